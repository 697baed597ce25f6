"""What every search through an autoregressive decoder shares, and the simplest one: greedy, a batch at a time.

A search sees a decoder as `TokenDecoder`: it starts an empty cache, extends it by tokens, and selects rows of it. What may
be said at all (which tokens, how often, how many) is in `TokenRules`, which every search asks, so that all of them mean
the same by the best token.

Shape legend: B batch, R rows still running, P prompt, U tokens, J new tokens, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class TokenDecoder(Protocol):
    """What a search asks of a decoder; `speechkit.nn.decoder.TransformerDecoder` is one.

    Caches and sources have `select(rows_R)`, which gives those of the rows named, in that order; rows may repeat. A source
    of B rows serves N * B rows of tokens, N in turn for each.
    """

    vocab_size: int

    def __call__(self, tokens_BU: Tensor, source: Any) -> Tensor:
        """Logits of what follows each prefix of whole sequences, shape (B, U, V)."""

    def start(self, num_rows: int) -> Any:
        """An empty cache."""

    def extend(self, tokens_BJ: Tensor, cache: Any, source: Any, *, attention: list[Tensor] | None = None) -> Tensor:
        """Reads J more tokens in every row; logits of what follows each, shape (B, J, V).

        `attention` takes from every layer the weights of the source's frames, shape (B, J, T).
        """


@dataclass(frozen=True, slots=True)
class AttentionResult:
    """One transcript.

    Attributes:
        tokens: token ids, prompt and end excluded.
        log_probs: natural log-probability of each token under the decoder.
        score: what the search ranks by.
        att_score: log-probability of the tokens and the end under the decoder.
        ctc_score: log-probability of the tokens under CTC; 0.0 without CTC.
    """

    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0
    att_score: float = 0.0
    ctc_score: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a decoder may say next.

    Attributes:
        eos: id of the end.
        never: ids that no transcript holds: blank, start, tags.
        max_repeats: how often a sequence of tokens may stand in a row; None for no limit. What would be one more is ruled
            out, which ends the loops that decoders fall into.
        repeat_span: longest such sequence looked for, in tokens.

    Raises:
        ValueError: a limit is below 1.
    """

    eos: int
    never: tuple[int, ...] = ()
    max_repeats: int | None = None
    repeat_span: int = 8

    def __post_init__(self) -> None:
        for name, value in (("max_repeats", self.max_repeats), ("repeat_span", self.repeat_span)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def log_probs(self, logits_RV: Tensor, tokens_RU: Tensor, lens_R: Tensor, limits_R: Tensor) -> Tensor:
        """Log-probabilities of the next token, -inf for those ruled out.

        Args:
            logits_RV: scores of the next token before the softmax, shape (R, V).
            tokens_RU: tokens so far, prompt excluded, anything past each length, int64, shape (R, U).
            lens_R: tokens so far of each row, int64, shape (R,).
            limits_R: most tokens of each row, int64, shape (R,); at the limit only the end is left.

        Returns:
            fp32, shape (R, V).
        """
        log_probs_RV = F.log_softmax(logits_RV.float(), dim=-1)
        if self.never:
            log_probs_RV.index_fill_(1, _indices(self.never, log_probs_RV.device), -torch.inf)
        if self.max_repeats is not None and tokens_RU.shape[1] >= self.max_repeats:
            log_probs_RV[self._repeats(tokens_RU, lens_R, self.max_repeats)] = -torch.inf
        end_R = log_probs_RV[:, self.eos].clone()
        log_probs_RV.masked_fill_((lens_R >= limits_R)[:, None], -torch.inf)
        log_probs_RV[:, self.eos] = end_R
        return log_probs_RV

    def _repeats(self, tokens_RU: Tensor, lens_R: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Rows, and tokens that would repeat a sequence too often in them."""
        places_L, needed_S, later_SM, earlier_SM = _comparisons(most, self.repeat_span, tokens_RU.device)
        tail_RL = tokens_RU.gather(1, (lens_R[:, None] + places_L).clamp(min=0))
        alike_RS = (tail_RL[:, later_SM] == tail_RL[:, earlier_SM]).all(dim=2)
        rows_N, lengths_N = (alike_RS & (lens_R[:, None] >= needed_S)).nonzero(as_tuple=True)
        return rows_N, tail_RL[rows_N, -1 - lengths_N]


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _indices(tokens: tuple[int, ...], device: torch.device) -> Tensor:
    """Token ids as an index."""
    return torch.tensor(tokens, device=device)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _comparisons(most: int, span: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which tokens of a tail must be equal for one more to be the last of `most` + 1 repetitions of a sequence.

    Args:
        most: repetitions that are allowed.
        span: S, longest sequence.
        device: where the indices live.

    Returns:
        places of the tail's L tokens, counted from the end and negative, shape (L,); for sequences of 1 to S tokens: how many
        tokens there must be, shape (S,), and indices into the tail of M tokens and of those that they must be equal to, each
        of shape (S, M).
    """
    room, lengths_S1 = span * (most + 1) - 1, torch.arange(1, span + 1)[:, None]
    back_M = torch.arange(1, span * most)
    later_SM = (room - back_M).expand(span, -1)
    earlier_SM = torch.where(back_M < lengths_S1 * most, later_SM - lengths_S1, later_SM)  # short ones compare fewer tokens
    needed_S = lengths_S1[:, 0] * (most + 1) - 1
    return tuple(x.to(device) for x in (torch.arange(-room, 0), needed_S, later_SM, earlier_SM))  # type: ignore[return-value]


@torch.inference_mode()
def attention_greedy(
    decoder: TokenDecoder, source: Any, prompts_BP: Tensor, limits_B: Tensor, *, rules: TokenRules
) -> list[AttentionResult]:
    """Takes the most probable token until it is the end.

    Rows that have ended leave the batch when they are half of it. A row's result does not depend on its batch mates.

    Args:
        decoder: in eval mode.
        source: what it attends to, of B rows.
        prompts_BP: what every row begins with, int64, shape (B, P), P at least 1.
        limits_B: most tokens of each row, int64, shape (B,); 0 for rows without speech, which are not decoded.
        rules: what may be said.

    Returns:
        one transcript per row.
    """
    results = [AttentionResult() for _ in range(len(prompts_BP))]
    rows_R = limits_B.nonzero()[:, 0]
    if len(rows_R) < len(prompts_BP):
        source = source.select(rows_R)
    cache, reading_RJ, limits_R = decoder.start(len(rows_R)), prompts_BP[rows_R], limits_B[rows_R]
    tokens_RU, log_probs_RU = prompts_BP[rows_R, :0], torch.zeros(len(rows_R), 0, device=prompts_BP.device)
    ended_R = torch.zeros_like(rows_R, dtype=torch.bool)
    while len(rows_R):
        lens_R = torch.full_like(rows_R, tokens_RU.shape[1])
        logits_RV = decoder.extend(reading_RJ, cache, source)[:, -1]
        best_R, token_R = rules.log_probs(logits_RV, tokens_RU, lens_R, limits_R).max(dim=1)
        tokens_RU = torch.cat((tokens_RU, token_R[:, None]), dim=1)
        log_probs_RU = torch.cat((log_probs_RU, best_R[:, None]), dim=1)
        reading_RJ = token_R[:, None]
        ended_R = ended_R | (token_R == rules.eos)
        num_ended = int(ended_R.sum())
        if 2 * num_ended < len(rows_R):
            continue
        done_R, kept_R = ended_R.nonzero()[:, 0], (~ended_R).nonzero()[:, 0]
        for row, tokens, log_probs in zip(*(x.tolist() for x in (rows_R[done_R], tokens_RU[done_R], log_probs_RU[done_R]))):
            results[row] = _greedy_result(tokens, log_probs, rules.eos)
        rows_R, tokens_RU, log_probs_RU = rows_R[kept_R], tokens_RU[kept_R], log_probs_RU[kept_R]
        reading_RJ, limits_R, ended_R = reading_RJ[kept_R], limits_R[kept_R], ended_R[kept_R]
        if len(rows_R):
            cache, source = cache.select(kept_R), source.select(kept_R)
    return results


def _greedy_result(tokens: Sequence[int], log_probs: Sequence[float], eos: int) -> AttentionResult:
    """What stands before the first end."""
    length = list(tokens).index(eos)
    score = sum(log_probs[: length + 1])
    return AttentionResult(tuple(tokens[:length]), tuple(log_probs[:length]), score, score)

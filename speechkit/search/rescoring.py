"""Attention rescoring: transcripts found without the decoder, ranked with it.

All candidates of all utterances are read in one teacher-forced pass, those of an utterance against one source (Zhang et
al. 2020, "Unified streaming and non-streaming two-pass end-to-end model for speech recognition", section 2.2).

Shape legend: B batch, N candidates, P prompt, U tokens, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.search.attention import AttentionResult, TokenDecoder
from speechkit.search.ctc_prefix_beam import BeamResult

MAX_LOGITS = 2**26  # scores held at once: 256 MiB in float32


class SequenceScore(NamedTuple):
    """What the decoder thinks of one sequence: natural log-probability of each token, and of all of them and the end."""

    log_probs: tuple[float, ...]
    total: float


@torch.inference_mode()
def score_sequences(
    decoder: TokenDecoder, source: Any, prompts_BP: Tensor, sequences: Sequence[Sequence[Sequence[int]]], *, eos: int
) -> list[list[SequenceScore]]:
    """Teacher-forced scores of given sequences.

    Args:
        decoder: in eval mode.
        source: what it attends to, of B rows.
        prompts_BP: what every row begins with, int64, shape (B, P).
        sequences: for each of B utterances any number of token sequences, without prompt and end.
        eos: id of the end.

    Returns:
        scores in the same order.
    """
    num = max((len(own) for own in sequences), default=0)
    longest = max((len(tokens) for own in sequences for tokens in own), default=0)
    tokens_BNU = torch.full((len(sequences), num, longest + 1), eos)
    for b, own in enumerate(sequences):
        for n, tokens in enumerate(own):
            tokens_BNU[b, n, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    tokens_BNU = tokens_BNU.to(prompts_BP.device)
    if num == 0:
        return [[] for _ in sequences]
    results: list[list[SequenceScore]] = []
    size = max(1, MAX_LOGITS // (num * (longest + prompts_BP.shape[1]) * decoder.vocab_size))
    for rows_R in torch.arange(len(sequences), device=prompts_BP.device).split(size):
        log_probs_RNU = _log_probs(decoder, source.select(rows_R), prompts_BP[rows_R], tokens_BNU[rows_R])
        for b, rows_NU in zip(rows_R.tolist(), log_probs_RNU.tolist()):
            pairs = zip(rows_NU, sequences[b])
            results.append([SequenceScore(tuple(row[: len(own)]), sum(row[: len(own) + 1])) for row, own in pairs])
    return results


def rescore(
    decoder: TokenDecoder,
    source: Any,
    prompts_BP: Tensor,
    nbest: Sequence[Sequence[BeamResult]],
    *,
    eos: int,
    ctc_weight: float = 0.5,
    length_bonus: float = 0.0,
) -> list[list[AttentionResult]]:
    """Ranks the N best transcripts of CTC with the decoder: (1 - w) log p(decoder) + w log p(CTC) + what scorers added.

    Args:
        decoder: in eval mode.
        source: what it attends to, of B rows.
        prompts_BP: what every row begins with, int64, shape (B, P).
        nbest: from `ctc_prefix_beam`, B lists.
        eos: id of the end.
        ctc_weight: w, in [0, 1].
        length_bonus: added for every token.

    Returns:
        the candidates of each utterance, best first.
    """
    scores = score_sequences(decoder, source, prompts_BP, [[result.tokens for result in own] for own in nbest], eos=eos)
    ranked = []
    for own, own_scores in zip(nbest, scores):
        results = [
            AttentionResult(
                tokens=found.tokens,
                log_probs=score.log_probs,
                score=(1.0 - ctc_weight) * score.total
                + ctc_weight * found.am_score
                + (found.score - found.am_score)
                + length_bonus * len(found.tokens),
                att_score=score.total,
                ctc_score=found.am_score,
            )
            for found, score in zip(own, own_scores)
        ]
        ranked.append(sorted(results, key=lambda result: -result.score))
    return ranked


def _log_probs(decoder: TokenDecoder, source: Any, prompts_BP: Tensor, tokens_BNU: Tensor) -> Tensor:
    """Log-probability of every token given those before it, float64, shape (B, N, U)."""
    batch, num, _ = tokens_BNU.shape
    prompts_BNP = prompts_BP[:, None].expand(batch, num, prompts_BP.shape[1])
    inputs_RU = torch.cat((prompts_BNP, tokens_BNU[..., :-1]), dim=2).flatten(0, 1)
    logits_RUV = decoder(inputs_RU, source)[:, prompts_BP.shape[1] - 1 :]
    log_probs_RUV = F.log_softmax(logits_RUV.float(), dim=-1)
    return log_probs_RUV.gather(2, tokens_BNU.flatten(0, 1)[..., None])[..., 0].unflatten(0, (batch, num)).double()

"""Greedy decoding in few decoder calls: a draft says what may follow, one call checks many tokens at once.

The decoder reads the last token and the drafted ones together, and keeps the longest beginning that it would have chosen
itself, plus its own next token. What comes out is what plain greedy search gives, whatever the draft: a bad one only costs
time. Rows accept different numbers of tokens; the cache has a length for every row.

Sources: Stern et al. 2018, "Blockwise parallel decoding", section 3; Leviathan et al. 2023, "Fast inference from
Transformers via speculative decoding", section 2 (greedy case); prompt lookup and n-gram drafts follow Saxena 2023 and
Ou et al. 2024, "Lossless acceleration of large language model via adaptive n-gram parallel decoding".

Shape legend: B batch, R rows still running, P prompt, U tokens, G drafted tokens, V vocab.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.search.attention import AttentionResult, TokenDecoder, TokenRules

NO_TOKEN = -1  # pads drafts of different lengths; no decoder says it


@runtime_checkable
class Draft(Protocol):
    """Says what may follow. Rows are called by their place in the batch that decoding began with.

    A row whose tokens so far are none begins anew: a draft may be used for the same rows again.
    """

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> Sequence[Sequence[int]]:
        """For each of `rows`, whose tokens so far (prompt excluded) are given, up to `most` tokens that may follow."""

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        """Row `row` has ended and reads `tokens`, the end excluded."""


class SpeculativeStats(NamedTuple):
    """What decoding cost.

    Attributes:
        num_calls: calls of the decoder, each for all rows still running.
        num_row_calls: rows in all these calls together.
        num_tokens: tokens that came out, ends included.
        num_proposed: tokens that were drafted.
        num_accepted: drafted tokens that the decoder would have chosen itself.
    """

    num_calls: int
    num_row_calls: int
    num_tokens: int
    num_proposed: int
    num_accepted: int

    @property
    def tokens_per_call(self) -> float:
        """Tokens that a row gets from a call on average; 1.0 for plain greedy search."""
        return self.num_tokens / self.num_row_calls if self.num_row_calls else 1.0


@torch.inference_mode()
def speculative_greedy(
    decoder: TokenDecoder,
    source: Any,
    prompts_BP: Tensor,
    limits_B: Tensor,
    *,
    rules: TokenRules,
    draft: Draft,
    num_draft: int = 16,
    max_positions: int | None = None,
) -> tuple[list[AttentionResult], SpeculativeStats]:
    """Takes the most probable token until it is the end, several per call where the draft is right.

    Args:
        decoder: in eval mode; its caches keep a length per row (`speechkit.nn.decoder.DecoderCache`).
        source: what it attends to, of B rows.
        prompts_BP: what every row begins with, int64, shape (B, P), P at least 1.
        limits_B: most tokens of each row, int64, shape (B,); 0 for rows without speech, which are not decoded.
        rules: what may be said.
        draft: what proposes.
        num_draft: most tokens drafted per row and call, at least 1.
        max_positions: of all rows in a call; drafts are shortened so that no more tokens are read at once, and grow as rows
            end. Where a call costs as much as it reads (many rows, no accelerator), this bounds what a bad draft wastes;
            None for no limit.

    Returns:
        one transcript per row, as `attention_greedy` gives them, and what they cost.

    Raises:
        ValueError: `num_draft` or `max_positions` is below 1.
    """
    for name, value in (("num_draft", num_draft), ("max_positions", max_positions)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    results = [AttentionResult() for _ in range(len(prompts_BP))]
    rows = limits_B.nonzero()[:, 0].tolist()
    said: dict[int, list[int]] = {row: [] for row in rows}
    log_probs: dict[int, list[float]] = {row: [] for row in rows}
    num_calls = num_row_calls = num_proposed = num_accepted = 0
    rows_R = torch.tensor(rows, dtype=torch.long, device=prompts_BP.device)
    if len(rows) < len(prompts_BP):
        source = source.select(rows_R)
    cache, reading_RJ = decoder.start(len(rows)), prompts_BP[rows_R]
    while rows:
        most = num_draft if max_positions is None else min(num_draft, max(max_positions // len(rows) - 1, 0))
        drafts = [list(tokens[:most]) for tokens in draft.propose(rows, [said[row] for row in rows], most)]
        drafts_RG = _padded(drafts, reading_RJ.device)
        logits_RJV = decoder.extend(torch.cat((reading_RJ, drafts_RG.clamp(min=0)), dim=1), cache, source)
        best = _choose(logits_RJV[:, reading_RJ.shape[1] - 1 :], [said[row] for row in rows], drafts_RG, limits_B[rows_R], rules)
        running = []
        for i, (row, drafted, (tokens, scores)) in enumerate(zip(rows, drafts, best)):
            right = next((n for n, token in enumerate(drafted) if token != tokens[n]), len(drafted))
            new = tokens[: right + 1]
            ended = rules.eos in new
            new = new[: new.index(rules.eos) + 1] if ended else new
            said[row] += new
            log_probs[row] += scores[: len(new)]
            num_proposed, num_accepted = num_proposed + len(drafted), num_accepted + min(right, len(new))
            if ended:
                results[row] = _result(said[row], log_probs[row])
                draft.finish(row, said[row][:-1])
            else:
                running.append(i)
        num_calls, num_row_calls = num_calls + 1, num_row_calls + len(rows)
        rows = [rows[i] for i in running]
        if len(running) < len(rows_R) and rows:
            kept_R = torch.tensor(running, device=rows_R.device)
            rows_R, source, cache = rows_R[kept_R], source.select(kept_R), cache.select(kept_R)
        if rows:
            held = [prompts_BP.shape[1] + len(said[row]) - 1 for row in rows]  # the last token is still to be read
            cache.lens_B = torch.tensor(held, device=rows_R.device)
            reading_RJ = torch.tensor([[said[row][-1]] for row in rows], device=rows_R.device)
    num_tokens = sum(map(len, said.values()))
    return results, SpeculativeStats(num_calls, num_row_calls, num_tokens, num_proposed, num_accepted)


def _padded(drafts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Drafts of all rows, int64, shape (R, G), NO_TOKEN past the end of each."""
    tensors = [torch.tensor(tokens, dtype=torch.long) for tokens in drafts]
    return pad_sequence(tensors, batch_first=True, padding_value=NO_TOKEN).to(device)


def _choose(
    logits_RGV: Tensor, said: Sequence[Sequence[int]], drafts_RG: Tensor, limits_R: Tensor, rules: TokenRules
) -> list[tuple[list[int], list[float]]]:
    """What the decoder would say after each beginning of the draft, the empty one first, and how probable that is."""
    num_rows, num_places, _ = logits_RGV.shape
    device = logits_RGV.device
    whole = [[*tokens, *drafted] for tokens, drafted in zip(said, drafts_RG.tolist())]
    tokens_RU = _padded(whole, device).repeat_interleave(num_places, dim=0)
    lens_R = torch.tensor([len(tokens) for tokens in said], device=device)
    lens_RG = lens_R[:, None] + torch.arange(num_places, device=device)
    log_probs = rules.log_probs(logits_RGV.flatten(0, 1), tokens_RU, lens_RG.flatten(), limits_R.repeat_interleave(num_places))
    scores, best = (x.unflatten(0, (num_rows, num_places)).tolist() for x in log_probs.max(dim=1))
    return list(zip(best, scores))


def _result(tokens: Sequence[int], log_probs: Sequence[float]) -> AttentionResult:
    """A transcript from its tokens and the end."""
    score = sum(log_probs)
    return AttentionResult(tuple(tokens[:-1]), tuple(log_probs[:-1]), score, score)


class HypothesisDraft:
    """Another system's transcript of each row: CTC of the same encoder, Paraformer, CASS-NAT, an earlier pass.

    Where decoder and hypothesis disagree, the hypothesis goes on from the place that fits best to what the decoder has said:
    the beginning of the hypothesis with the least edit distance to it, the longest of several.
    """

    def __init__(self, hypotheses: Sequence[Sequence[int]], *, end: int | None = None) -> None:
        """Creates the draft.

        Args:
            hypotheses: token ids of each row.
            end: id of the end, drafted after the last token; None leaves it to the decoder.
        """
        ending = [] if end is None else [end]
        self.hypotheses = [np.array([*tokens, *ending], dtype=np.int64) for tokens in hypotheses]
        self._distances = [np.arange(len(tokens) + 1) for tokens in self.hypotheses]  # of what was said, to each beginning
        self._read = [0] * len(self.hypotheses)

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """The rest of the hypothesis."""
        proposals = []
        for row, said in zip(rows, tokens):
            distances = self._distances[row] if said else np.arange(len(self.hypotheses[row]) + 1)
            for token in said[self._read[row] :]:
                distances = self._after(distances, self.hypotheses[row], token)
            self._distances[row], self._read[row] = distances, len(said)
            place = len(distances) - 1 - int(np.argmin(distances[::-1]))
            proposals.append(self.hypotheses[row][place : place + most].tolist())
        return proposals

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        """Nothing is learned."""

    @staticmethod
    def _after(distances: np.ndarray, hypothesis: np.ndarray, token: int) -> np.ndarray:
        """Edit distances to each beginning of the hypothesis after one more token."""
        places = np.arange(len(distances))
        reached = distances + 1
        reached[1:] = np.minimum(reached[1:], distances[:-1] + (hypothesis != token))
        return np.minimum.accumulate(reached - places) + places  # the last term leaves tokens of the hypothesis out


class NgramDraft:
    """What most often followed the last tokens: in texts given, and in all that was decoded since.

    One draft may serve many batches: it adapts to the domain as it goes.
    """

    def __init__(self, *, order: int = 4, min_count: int = 1) -> None:
        """Creates the draft.

        Args:
            order: longest n-gram, at least 2: contexts have up to `order` - 1 tokens, the longest known one counts.
            min_count: how often a continuation must have been seen.

        Raises:
            ValueError: `order` is below 2.
        """
        if order < 2:
            raise ValueError(f"order={order} must be at least 2: one token of context and one that follows")
        self.order, self.min_count = order, min_count
        self._following: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def __repr__(self) -> str:
        return f"NgramDraft(order={self.order}, min_count={self.min_count})"

    def learn(self, texts: Iterable[Sequence[int]]) -> NgramDraft:
        """Counts the n-grams of token sequences; gives back itself."""
        for tokens in texts:
            for place in range(1, len(tokens)):
                for length in range(1, min(self.order - 1, place) + 1):
                    self._following[tuple(tokens[place - length : place])][tokens[place]] += 1
        return self

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """The most frequent continuation, token by token."""
        return [self._continue(said, most) for said in tokens]

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        """Counts what was said."""
        self.learn([tokens])

    def _continue(self, said: Sequence[int], most: int) -> list[int]:
        context, proposal = list(said[-self.order + 1 :]), list[int]()
        while len(proposal) < most:
            for length in range(min(self.order - 1, len(context)), 0, -1):
                following = self._following.get(tuple(context[-length:]))
                if following and following.most_common(1)[0][1] >= self.min_count:
                    break
            else:
                break
            proposal.append(following.most_common(1)[0][0])
            context.append(proposal[-1])
        return proposal


class PromptLookupDraft:
    """What followed the last tokens where they stood before, in the row's own transcript or in a text given with it."""

    def __init__(self, texts: Sequence[Sequence[int]] = (), *, max_match: int = 3) -> None:
        """Creates the draft.

        Args:
            texts: for each row, tokens that the transcript may quote, such as what was said before; empty for none.
            max_match: longest sequence of last tokens looked for, at least 1; shorter ones if it is not found.

        Raises:
            ValueError: `max_match` is below 1.
        """
        if max_match < 1:
            raise ValueError(f"max_match={max_match} must be at least 1")
        self.texts, self.max_match = texts, max_match

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """What followed the last place that matches."""
        return [
            self._look_up([*(self.texts[row] if self.texts else ()), *said], len(said), most) for row, said in zip(rows, tokens)
        ]

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        """Nothing is learned."""

    def _look_up(self, text: list[int], num_said: int, most: int) -> list[int]:
        for length in range(min(self.max_match, num_said), 0, -1):
            wanted = text[-length:]
            for place in range(len(text) - length - 1, -1, -1):
                if text[place : place + length] == wanted:
                    return text[place + length : place + length + most]
        return []


class DecoderDraft:
    """A small decoder that reads the same source, or one of its own: its greedy continuation is the draft."""

    def __init__(self, decoder: TokenDecoder, source: Any, prompts_BP: Tensor) -> None:
        """Creates the draft.

        Args:
            decoder: in eval mode, with the vocabulary of the one that checks.
            source: what it attends to, of B rows.
            prompts_BP: what every row begins with, int64, shape (B, P).
        """
        self.decoder, self.source, self.prompts_BP = decoder, source, prompts_BP
        self._cache = decoder.start(len(prompts_BP))
        self._rows = list(range(len(prompts_BP)))

    @torch.inference_mode()
    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """`most` tokens per row, one small step each."""
        if most < 1:
            return [[] for _ in rows]
        if list(rows) != self._rows:
            kept_R = torch.tensor([self._rows.index(row) for row in rows], device=self.prompts_BP.device)
            self._cache, self.source, self._rows = self._cache.select(kept_R), self.source.select(kept_R), list(rows)
        whole = [self.prompts_BP[row].tolist() + list(said) for row, said in zip(rows, tokens)]
        held = min(min(int(length), len(text) - 1) for length, text in zip(self._cache.lens_B.tolist(), whole))
        unread = [text[held:] for text in whole]
        lens_R = torch.tensor([len(text) for text in unread], device=self.prompts_BP.device)
        self._cache.lens_B = torch.full_like(lens_R, held)
        logits_RJV = self.decoder.extend(_padded(unread, self.prompts_BP.device).clamp(min=0), self._cache, self.source)
        self._cache.lens_B = held + lens_R
        token_R = logits_RJV[torch.arange(len(rows)), lens_R - 1].argmax(dim=1)
        proposal = [token_R]
        while len(proposal) < most:
            token_R = self.decoder.extend(token_R[:, None], self._cache, self.source)[:, -1].argmax(dim=1)
            proposal.append(token_R)
        self._cache.lens_B = held + lens_R  # what was drafted is not yet said
        return torch.stack(proposal, dim=1).tolist()

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        """Nothing is learned."""


class AdaptiveDraft:
    """Another draft for as long as it pays: drafts grow and shrink with what was right, and a row gives up where too little was.

    The rule looks at nothing but the row's own tokens: a draft has at most twice as many tokens as were right the last time
    or on average (`least` or more), and a row that drafted `patience` times takes plain steps from the first call on after
    which fewer than `worth` drafted tokens per call were right. On a CPU a call of three tokens takes about half as long again as
    one of one token (6 layers of 256, one utterance or 16), hence the defaults.
    """

    def __init__(self, draft: Draft, *, worth: float = 0.5, patience: int = 4, least: int = 2) -> None:
        """Creates the draft.

        Args:
            draft: what proposes.
            worth: right tokens per call that a longer call must bring.
            patience: calls before a row may give up.
            least: tokens of a draft after one of which nothing was right.

        Raises:
            ValueError: `patience` or `least` is below 1.
        """
        for name, value in (("patience", patience), ("least", least)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.draft, self.worth, self.patience, self.least = draft, worth, patience, least
        self._rows: dict[int, _Record] = {}

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[Sequence[int]]:
        """What the other draft proposes for rows that have not given up, as long as was right lately."""
        for row, said in zip(rows, tokens):
            if not said:
                self._rows[row] = _Record()
            self._rows[row].note(len(said), self.least)
        going = [i for i, row in enumerate(rows) if not self._rows[row].gives_up(self.worth, self.patience)]
        proposals: list[Sequence[int]] = [()] * len(rows)
        if most > 0 and going:
            found = self.draft.propose([rows[i] for i in going], [tokens[i] for i in going], most)
            for i, proposed in zip(going, found):
                proposals[i] = proposed[: min(most, self._rows[rows[i]].length)]
        for row, proposed in zip(rows, proposals):
            self._rows[row].proposed = len(proposed)
        return proposals

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        """Passed on."""
        self.draft.finish(row, tokens)


@dataclass
class _Record:
    """How a row's drafts did: its tokens when it drafted last, how many it drafted then, and in all calls with drafts the
    number of these and of the tokens that were right; how many to draft next."""

    said: int = 0
    proposed: int = 0
    calls: int = 0
    right: int = 0
    length: int = sys.maxsize

    def note(self, said: int, least: int) -> None:
        """Takes in what came of the last draft: a call gives what was right of it and one token more."""
        if self.proposed:
            right = said - self.said - 1
            self.calls, self.right = self.calls + 1, self.right + right
            self.length = max(2 * right, 2 * self.right // self.calls, least)
        self.said, self.proposed = said, 0

    def gives_up(self, worth: float, patience: int) -> bool:
        """Whether drafts do not pay."""
        return self.calls >= patience and self.right < worth * self.calls

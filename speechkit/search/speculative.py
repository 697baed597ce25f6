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

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.search.attention import AttentionResult, TokenDecoder, TokenRules

NO_TOKEN = -1  # pads drafts of different lengths; no decoder says it


class Draft(Protocol):
    """Says what may follow. Rows are called by their place in the batch that decoding began with."""

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
) -> tuple[list[AttentionResult], SpeculativeStats]:
    """Takes the most probable token until it is the end, several per call where the draft is right.

    Args:
        decoder: in eval mode; its caches keep a length per row (`speechkit.nn.decoder.DecoderCache`).
        source: what it attends to, of B rows.
        prompts_BP: what every row begins with, int64, shape (B, P), P at least 1.
        limits_B: most tokens of each row, int64, shape (B,); 0 for rows without speech, which are not decoded.
        rules: what may be said.
        draft: what proposes.
        num_draft: most tokens drafted per call, at least 1.

    Returns:
        one transcript per row, as `attention_greedy` gives them, and what they cost.

    Raises:
        ValueError: `num_draft` is below 1.
    """
    if num_draft < 1:
        raise ValueError(f"num_draft={num_draft} must be at least 1")
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
        drafts = [list(tokens[:num_draft]) for tokens in draft.propose(rows, [said[row] for row in rows], num_draft)]
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
        self.hypotheses = [[*tokens, *ending] for tokens in hypotheses]
        self._distances = [list(range(len(tokens) + 1)) for tokens in self.hypotheses]  # of what was said, to each beginning
        self._read = [0] * len(self.hypotheses)

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """The rest of the hypothesis."""
        proposals = []
        for row, said in zip(rows, tokens):
            for token in said[self._read[row] :]:
                self._distances[row] = self._after(self._distances[row], self.hypotheses[row], token)
            self._read[row] = len(said)
            distances = self._distances[row]
            place = len(distances) - 1 - min(range(len(distances)), key=lambda back: distances[-1 - back])
            proposals.append(self.hypotheses[row][place : place + most])
        return proposals

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        """Nothing is learned."""

    @staticmethod
    def _after(distances: Sequence[int], hypothesis: Sequence[int], token: int) -> list[int]:
        """Edit distances to each beginning of the hypothesis after one more token."""
        row = [distances[0] + 1]
        for j, other in enumerate(hypothesis):
            row.append(min(distances[j] + (token != other), distances[j + 1] + 1, row[j] + 1))
        return row


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

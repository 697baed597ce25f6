"""Speculative greedy decoding: the same tokens as greedy for every draft, in fewer calls for good ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.nn.decoder import TransformerDecoder
from speechkit.search.attention import AttentionResult, TokenRules, attention_greedy
from speechkit.search.decoder_calls import count_calls
from speechkit.search.speculative import (
    AdaptiveDraft,
    DecoderDraft,
    Draft,
    HypothesisDraft,
    NgramDraft,
    PromptLookupDraft,
    speculative_greedy,
)

VOCAB, EOS = 13, 3
RULES = TokenRules(eos=EOS, never=(0, 1, 2), max_repeats=3)


def make(seed: int = 0, layers: int = 2) -> TransformerDecoder:
    torch.manual_seed(seed)
    decoder = TransformerDecoder(vocab_size=VOCAB, dim=16, num_layers=layers, num_heads=2, ff_dim=32, source_dim=12).eval()
    with torch.no_grad():
        decoder.head.weight.mul_(4.0)  # decided scores: rounding settles nothing
        decoder.head.bias[EOS] -= 1.0
    return decoder


def batch(decoder: TransformerDecoder, num_rows: int, seed: int = 1) -> tuple[object, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lens = torch.randint(1, 8, (num_rows,), generator=generator)
    source = decoder.read(torch.randn(num_rows, 7, 12, generator=generator), lens)
    prompts = torch.tensor([[2, 5]]).repeat(num_rows, 1)
    return source, prompts, torch.randint(0, 30, (num_rows,), generator=generator)


def greedy(decoder: TransformerDecoder, num_rows: int) -> list[AttentionResult]:
    source, prompts, limits = batch(decoder, num_rows)
    return attention_greedy(decoder, source, prompts, limits, rules=RULES)


class RandomDraft:
    """Adversary: random tokens, ends among them, of random number."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        return [self.rng.integers(0, VOCAB, self.rng.integers(0, most + 3)).tolist() for _ in rows]

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        pass


def corrupted(tokens: Sequence[int], seed: int) -> list[int]:
    """A hypothesis with substitutions, insertions and deletions."""
    rng, out = np.random.default_rng(seed), []
    for token in tokens:
        kind = rng.random()
        out += [] if kind < 0.1 else [int(rng.integers(4, VOCAB))] if kind < 0.2 else [token, 7] if kind < 0.3 else [token]
    return out


def small_draft(decoder: TransformerDecoder) -> Draft:
    small = make(seed=9, layers=1)
    source, prompts, _ = batch(small, 5)
    return DecoderDraft(small, source, prompts)


DRAFTS: dict[str, Callable[[TransformerDecoder], Draft]] = {
    "random": lambda decoder: RandomDraft(0),
    "right": lambda decoder: HypothesisDraft([result.tokens for result in greedy(decoder, 5)], end=EOS),
    "wrong": lambda decoder: HypothesisDraft([[4] * 30] * 5),
    "nearly right": lambda decoder: HypothesisDraft([corrupted(r.tokens, i) for i, r in enumerate(greedy(decoder, 5))], end=EOS),
    "empty": lambda decoder: HypothesisDraft([[]] * 5),
    "n-grams": lambda decoder: NgramDraft(order=3).learn([result.tokens for result in greedy(decoder, 3)]),
    "lookup": lambda decoder: PromptLookupDraft(),
    "lookup in texts": lambda decoder: PromptLookupDraft([result.tokens for result in greedy(decoder, 5)]),
    "small decoder": small_draft,
    "random while it pays": lambda decoder: AdaptiveDraft(RandomDraft(1), patience=2),
    "small decoder while it pays": lambda decoder: AdaptiveDraft(small_draft(decoder), patience=2),
}


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize(("num_draft", "max_positions"), [(1, None), (4, 8), (16, None), (16, 40)])
def test_every_draft_gives_the_tokens_of_greedy_search(name: str, num_draft: int, max_positions: int | None) -> None:
    decoder = make()
    expected = greedy(decoder, 5)
    assert sum(len(result.tokens) for result in expected) > 20
    source, prompts, limits = batch(decoder, 5)
    draft = DRAFTS[name](decoder)
    results, stats = speculative_greedy(
        decoder, source, prompts, limits, rules=RULES, draft=draft, num_draft=num_draft, max_positions=max_positions
    )
    assert [result.tokens for result in results] == [result.tokens for result in expected]
    for result, other in zip(results, expected):
        assert result.score == pytest.approx(other.score, abs=1e-3)
        assert result.log_probs == pytest.approx(other.log_probs, abs=1e-3)
    assert stats.num_tokens == sum(len(result.tokens) + 1 for result, limit in zip(results, limits.tolist()) if limit)
    assert stats.num_accepted <= min(stats.num_proposed, stats.num_tokens)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 6), num_draft=st.integers(1, 9))
def test_adversarial_drafts(seed: int, rows: int, num_draft: int) -> None:
    decoder = make(seed % 5)
    source, prompts, limits = batch(decoder, rows, seed)
    expected = attention_greedy(decoder, source, prompts, limits, rules=RULES)
    results, _ = speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=RandomDraft(seed), num_draft=num_draft)
    assert [result.tokens for result in results] == [result.tokens for result in expected]


def test_a_right_draft_takes_one_call_and_an_empty_one_as_many_as_tokens() -> None:
    decoder = make()
    expected = greedy(decoder, 5)
    source, prompts, limits = batch(decoder, 5)
    longest = max(len(result.tokens) for result in expected)
    right = HypothesisDraft([result.tokens for result in expected], end=EOS)
    _, stats = speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=right, num_draft=40)
    assert stats.num_calls == 1
    assert stats.tokens_per_call > 4
    _, stats = speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=HypothesisDraft([[]] * 5))
    assert stats.num_calls == longest + 1
    assert stats.tokens_per_call == 1.0


def test_the_hypothesis_goes_on_after_each_kind_of_error() -> None:
    hypothesis = [4, 5, 6, 7, 8, 9]
    for said, rest in (
        ([4, 5], [6, 7, 8, 9]),
        ([4, 5, 12], [7, 8, 9]),  # 12 in place of 6
        ([4, 5, 12, 7], [8, 9]),
        ([4, 5, 7], [8, 9]),  # 6 left out
        ([4, 5, 12, 6], [7, 8, 9]),  # 12 put in
    ):
        assert HypothesisDraft([hypothesis]).propose([0], [said], 10) == [rest], said


def test_realignment_saves_calls() -> None:
    decoder = make()
    expected = greedy(decoder, 5)
    source, prompts, limits = batch(decoder, 5)
    hypotheses = [corrupted(result.tokens, i) for i, result in enumerate(expected)]
    _, stats = speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=HypothesisDraft(hypotheses, end=EOS))
    assert stats.tokens_per_call > 1.8


def test_a_hypothesis_may_be_used_again_and_is_realigned_as_by_edit_distance() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        hypothesis, said = (rng.integers(4, 7, rng.integers(0, 8)).tolist() for _ in range(2))
        draft = HypothesisDraft([hypothesis])
        for _ in range(2):
            for length in range(len(said) + 1):
                [proposal] = draft.propose([0], [said[:length]], 99)
                distances = [edit_distance(hypothesis[:end], said[:length]) for end in range(len(hypothesis) + 1)]
                best = max(end for end, distance in enumerate(distances) if distance == min(distances))
                assert proposal == hypothesis[best:]


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    if not first or not second:
        return len(first) + len(second)
    inner = edit_distance(first[:-1], second[:-1]) + (first[-1] != second[-1])
    return min(inner, edit_distance(first[:-1], second) + 1, edit_distance(first, second[:-1]) + 1)


def test_positions_of_a_call_are_bounded() -> None:
    decoder = make()
    source, prompts, limits = batch(decoder, 5)
    expected = greedy(decoder, 5)
    right = HypothesisDraft([result.tokens for result in expected], end=EOS)
    with count_calls(decoder) as calls:
        _, stats = speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=right, max_positions=12)
    num_rows = int((limits > 0).sum())
    assert calls.num_positions <= 12 * calls.num_calls + num_rows  # the prompt has one token more
    assert calls.num_calls == stats.num_calls > 1
    wrong = HypothesisDraft([[4] * 30] * 5)
    _, stats = speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=wrong, max_positions=1)
    assert stats.num_proposed == 0


class Fixed:
    """Proposes the same for all rows, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def propose(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        self.asked.append(list(rows))
        return [[7] * most for _ in rows]

    def finish(self, row: int, tokens: Sequence[int]) -> None:
        pass


def test_drafts_grow_and_shrink_and_end_where_they_do_not_pay() -> None:
    fixed = Fixed()
    draft = AdaptiveDraft(fixed, worth=0.5, patience=3, least=2)
    said: dict[int, list[int]] = {0: [], 5: []}
    lengths = []
    for right in (3, 4, 0, 0, 0, 0, 0):  # of what row 0 drafts; nothing of what row 5 drafts is ever right
        proposals = draft.propose([0, 5], [said[0], said[5]], 16)
        lengths.append(tuple(map(len, proposals)))
        said[0] += [7] * (right + 1)
        said[5] += [8]
    assert lengths == [(16, 16), (6, 2), (8, 2), (4, 0), (3, 0), (2, 0), (2, 0)]
    assert fixed.asked == [[0, 5]] * 3 + [[0]] * 4
    assert list(map(len, draft.propose([5], [[]], 16))) == [16], "a row that begins anew"
    assert list(map(len, draft.propose([5], [[8]], 0))) == [0]


def test_giving_up_costs_no_more_calls_than_greedy_search_and_few_tokens() -> None:
    decoder = make()
    source, prompts, limits = batch(decoder, 5)
    draft = AdaptiveDraft(HypothesisDraft([[4] * 30] * 5), patience=2)
    _, stats = speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=draft)
    assert stats.num_calls <= max(len(result.tokens) for result in greedy(decoder, 5)) + 1
    assert stats.num_proposed <= 5 * (16 + 2) + 4 * stats.num_accepted


def test_ngrams_adapt_to_what_was_said() -> None:
    draft = NgramDraft(order=3)
    assert draft.propose([0], [[4, 5]], 4) == [[]]
    draft.finish(0, [4, 5, 6, 7])
    assert draft.propose([0], [[4, 5]], 4) == [[6, 7]]
    draft.learn([[5, 9]] * 2)
    assert draft.propose([0], [[8, 5]], 1) == [[9]], "the more frequent one after the shorter context"


def test_lookup_takes_the_last_place_and_the_longest_match() -> None:
    draft = PromptLookupDraft(max_match=2)
    assert draft.propose([0], [[4, 5, 6, 9, 5, 7, 4, 5]], 2) == [[6, 9]]
    assert draft.propose([0], [[5, 7, 8, 5]], 9) == [[7, 8, 5]]
    assert draft.propose([0], [[4]], 9) == [[]]


def test_wrong_settings_are_named() -> None:
    decoder = make()
    source, prompts, limits = batch(decoder, 2)
    with pytest.raises(ValueError, match="num_draft=0"):
        speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=PromptLookupDraft(), num_draft=0)
    with pytest.raises(ValueError, match="order=1"):
        NgramDraft(order=1)
    with pytest.raises(ValueError, match="max_positions=0"):
        speculative_greedy(decoder, source, prompts, limits, rules=RULES, draft=PromptLookupDraft(), max_positions=0)
    with pytest.raises(ValueError, match="patience=0"):
        AdaptiveDraft(PromptLookupDraft(), patience=0)
    with pytest.raises(ValueError, match="max_match=0"):
        PromptLookupDraft(max_match=0)

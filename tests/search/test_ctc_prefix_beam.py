"""Prefix beam search against enumeration of all paths and against the textbook with dictionaries."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.search.ctc_greedy import ctc_greedy
from speechkit.search.ctc_prefix_beam import BeamResult, ctc_prefix_beam
from speechkit.search.lm import Scorer

Prefix = tuple[int, ...]


class BigramScorer:
    """A table of bonuses for a token after another, and for ending; the state is the token before."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.table = np.random.default_rng(seed).normal(size=(vocab, vocab + 1))
        self.calls = 0

    def initial_state(self) -> int:
        return 0

    def score(self, state: int, token: int) -> tuple[float, int]:
        self.calls += 1
        return float(self.table[state, token]), token

    def final(self, state: int) -> float:
        return float(self.table[state, -1])


class BatchBigramScorer(BigramScorer):
    def score_batch(self, states: Sequence[int], tokens: Sequence[int]) -> list[tuple[float, int]]:
        return [super(BatchBigramScorer, self).score(*pair) for pair in zip(states, tokens, strict=True)]

    def score(self, state: int, token: int) -> tuple[float, int]:
        raise AssertionError("score_batch should be used")

    def final_batch(self, states: Sequence[int]) -> list[float]:
        return [super(BatchBigramScorer, self).final(state) for state in states]

    def final(self, state: int) -> float:
        raise AssertionError("final_batch should be used")


def random_log_probs(seed: int, batch: int, frames: int, vocab: int, peak: float = 1.0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=(batch, frames, vocab)) * peak
    return torch.from_numpy(values).log_softmax(dim=-1)


def fused(scorer: Scorer | None, prefix: Prefix, ended: bool) -> float:
    if scorer is None:
        return 0.0
    state, total = scorer.initial_state(), 0.0
    for token in prefix:
        added, state = scorer.score(state, token)
        total += added
    return total + (scorer.final(state) if ended else 0.0)


def all_prefixes(log_probs_TV: np.ndarray, scorer: Scorer | None = None) -> dict[Prefix, tuple[float, float]]:
    """(score, acoustic score) of every prefix, by enumerating all paths."""
    totals: dict[Prefix, float] = defaultdict(float)
    for path in itertools.product(range(log_probs_TV.shape[1]), repeat=len(log_probs_TV)):
        prefix = tuple(token for token, _ in itertools.groupby(path) if token != 0)
        totals[prefix] += math.exp(sum(log_probs_TV[t, token] for t, token in enumerate(path)))
    return {p: (math.log(v) + fused(scorer, p, True), math.log(v)) for p, v in totals.items() if v > 0.0}


def textbook(log_probs_TV: np.ndarray, beam_size: int, scorer: Scorer | None) -> list[tuple[Prefix, float, float]]:
    """Hannun's algorithm with dictionaries: (tokens, score, acoustic score), best first."""
    beam: dict[Prefix, tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs_TV:
        grown: dict[Prefix, list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (blank, token_end) in beam.items():
            total = np.logaddexp(blank, token_end)
            grown[prefix][0] = np.logaddexp(grown[prefix][0], total + frame[0])
            for token in range(1, len(frame)):
                repeat = bool(prefix) and prefix[-1] == token
                if repeat:
                    grown[prefix][1] = np.logaddexp(grown[prefix][1], token_end + frame[token])
                longer = (*prefix, token)
                grown[longer][1] = np.logaddexp(grown[longer][1], (blank if repeat else total) + frame[token])
        alive = {p: (b, e) for p, (b, e) in grown.items() if max(b, e) > -math.inf}
        ranked = sorted(alive, key=lambda p: -np.logaddexp(*alive[p]) - fused(scorer, p, False))
        beam = {p: alive[p] for p in ranked[:beam_size]}
    rows = [(p, np.logaddexp(*ends) + fused(scorer, p, True), np.logaddexp(*ends)) for p, ends in beam.items()]
    return sorted(rows, key=lambda row: -row[1])


def assert_same(results: list[BeamResult], expected: list[tuple[Prefix, float, float]]) -> None:
    assert [r.tokens for r in results] == [tokens for tokens, _, _ in expected]
    assert [r.score for r in results] == pytest.approx([score for _, score, _ in expected], abs=1e-9)
    assert [r.am_score for r in results] == pytest.approx([score for _, _, score in expected], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), frames=st.integers(0, 5), vocab=st.integers(1, 3), with_scorer=st.booleans())
def test_exact_without_pruning(seed: int, frames: int, vocab: int, with_scorer: bool) -> None:
    log_probs = random_log_probs(seed, 1, frames, vocab)
    scorer = BigramScorer(seed, vocab) if with_scorer else None
    expected = all_prefixes(log_probs[0].numpy(), scorer)
    results = ctc_prefix_beam(
        log_probs,
        torch.tensor([frames]),
        beam_size=len(expected) + 2,
        scorer=scorer,
        token_top_k=None,
        token_min_logp=None,
    )[0]
    assert_same(results, sorted(((p, *v) for p, v in expected.items()), key=lambda row: -row[1]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    frames=st.integers(0, 25),
    vocab=st.integers(2, 6),
    beam_size=st.integers(1, 6),
    peak=st.sampled_from([0.5, 2.0, 5.0]),
    min_logp=st.sampled_from([None, -1.0, -3.0]),
    with_scorer=st.booleans(),
)
def test_equals_textbook_on_the_surviving_tokens(
    seed: int, frames: int, vocab: int, beam_size: int, peak: float, min_logp: float | None, with_scorer: bool
) -> None:
    log_probs = random_log_probs(seed, 1, frames, vocab, peak)
    scorer = BigramScorer(seed, vocab) if with_scorer else None
    pruned = log_probs[0].numpy().copy()
    if min_logp is not None:
        pruned[:, 1:][pruned[:, 1:] <= min_logp] = -np.inf
    results = ctc_prefix_beam(
        log_probs,
        torch.tensor([frames]),
        beam_size=beam_size,
        scorer=scorer,
        token_top_k=None,
        token_min_logp=min_logp,
    )[0]
    assert_same(results, textbook(pruned, beam_size, scorer))


def test_top_k_and_blank_skip_prune_what_they_say() -> None:
    log_probs = random_log_probs(3, 1, 20, 8, peak=3.0)
    kept = log_probs[0].numpy().copy()
    for frame in kept:
        order = np.argsort(-frame[1:])
        frame[1:][order[2:]] = -np.inf
        if frame[0] > math.log(0.6):
            frame[1:] = -np.inf
    assert (kept[:, 1:] == -np.inf).all(axis=1).any(), "the case should have a skipped frame"
    results = ctc_prefix_beam(log_probs, torch.tensor([20]), beam_size=5, token_top_k=2, token_min_logp=None, blank_skip=0.6)
    assert_same(results[0], textbook(kept, 5, None))


@pytest.mark.parametrize("with_scorer", [False, True])
def test_batch_equals_single_bit_for_bit(with_scorer: bool) -> None:
    lens = [0, 1, 33, 7, 50]
    log_probs = random_log_probs(5, 5, 64, 12, peak=3.0).float()
    log_probs[2] = log_probs[2].round()  # ties
    scorer = BigramScorer(5, 12) if with_scorer else None
    together = ctc_prefix_beam(log_probs, torch.tensor(lens), scorer=scorer)
    alone = [ctc_prefix_beam(log_probs[i : i + 1, :n], torch.tensor([n]), scorer=scorer)[0] for i, n in enumerate(lens)]
    assert together == alone
    assert [r.tokens for r in together[0]] == [()]
    assert together[0][0].am_score == 0.0


def test_batch_scorer_gives_the_same_and_repeats_no_question() -> None:
    log_probs, lens = random_log_probs(6, 3, 30, 8, peak=2.0), torch.tensor([30, 20, 30])
    single, batch = BigramScorer(6, 8), BatchBigramScorer(6, 8)
    assert ctc_prefix_beam(log_probs, lens, scorer=single) == ctc_prefix_beam(log_probs, lens, scorer=batch)
    assert single.calls == batch.calls < 30 * 3 * 10 * 7 / 2


def test_scorer_changes_the_ranking_as_by_hand() -> None:
    """Three frames, four tokens: blank, a, b, c. Sound says "a c", the model "b c"; weights 1 by construction."""
    log_probs = torch.tensor([[[0.1, 0.5, 0.4, 0.0], [0.7, 0.0, 0.0, 0.3], [0.2, 0.0, 0.0, 0.8]]]).log()

    class Model:
        def initial_state(self) -> str:
            return ""

        def score(self, state: str, token: int) -> tuple[float, str]:
            return math.log({"a": 0.2, "b": 0.6, "c": 0.5}["_abc"[token]]), state + "_abc"[token]

        def final(self, state: str) -> float:
            return math.log(0.9 if state.endswith("c") else 0.1)

    sound = ctc_prefix_beam(log_probs, torch.tensor([3]), token_min_logp=None)[0]
    # "a c": a, then c at the second, the third or both of the frames (0.7*0.8 + 0.3*0.2 + 0.3*0.8 = 0.86)
    assert [r.tokens for r in sound[:2]] == [(1, 3), (2, 3)]
    assert [math.exp(r.am_score) for r in sound[:2]] == pytest.approx([0.5 * 0.86, 0.4 * 0.86])
    both = ctc_prefix_beam(log_probs, torch.tensor([3]), token_min_logp=None, scorer=Model())[0]
    assert [r.tokens for r in both[:2]] == [(2, 3), (1, 3)]
    assert math.exp(both[0].score) == pytest.approx(0.4 * 0.86 * 0.6 * 0.5 * 0.9)
    assert math.exp(both[1].score) == pytest.approx(0.5 * 0.86 * 0.2 * 0.5 * 0.9)
    assert both[0].am_score == pytest.approx(sound[1].am_score)


def test_prefix_that_left_the_beam_and_came_back_is_one_prefix() -> None:
    """Its children must find it again, or "1 2" would appear twice."""
    results = ctc_prefix_beam(
        random_log_probs(8, 1, 60, 3, peak=0.3),
        torch.tensor([60]),
        beam_size=40,
        token_top_k=None,
        token_min_logp=None,
    )[0]
    assert len({r.tokens for r in results}) == len(results) == 40


def test_start_frames_on_peaky_input_are_those_of_the_best_path() -> None:
    log_probs = torch.full((1, 12, 4), math.log(0.02))
    for t, token in enumerate([0, 0, 1, 1, 0, 1, 2, 0, 0, 3, 3, 0]):
        log_probs[0, t, token] = math.log(0.94)
    path, best = ctc_greedy(log_probs, torch.tensor([12]))[0], ctc_prefix_beam(log_probs, torch.tensor([12]))[0][0]
    assert (best.tokens, best.start_frames) == (path.tokens, path.start_frames) == ((1, 1, 2, 3), (2, 5, 6, 9))


def test_impossible_input_has_no_result() -> None:
    log_probs = torch.full((2, 3, 3), -math.inf)
    log_probs[1] = math.log(1 / 3)
    impossible, possible = ctc_prefix_beam(log_probs, torch.tensor([3, 3]))
    assert impossible == []
    assert possible


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beam_size": 0}, "beam_size is 0"), ({"token_top_k": 0}, "token_top_k is 0"), ({"blank_skip": 1.5}, "blank_skip")],
)
def test_wrong_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ctc_prefix_beam(torch.zeros(1, 2, 3), torch.tensor([2]), **options)  # type: ignore[arg-type]

"""CTC prefix scores against the sum over all label paths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.search.ctc_prefix_score import CtcPrefixScorer


def transcripts(log_probs_TV: Tensor) -> dict[tuple[int, ...], float]:
    """Probability of every transcript, by enumeration of paths; blank is 0."""
    frames, vocab = log_probs_TV.shape
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(vocab), repeat=frames):
        collapsed = tuple(label for label, _ in itertools.groupby(path) if label)
        probability = math.exp(sum(float(log_probs_TV[t, label]) for t, label in enumerate(path)))
        found[collapsed] = found.get(collapsed, 0.0) + probability
    return found


def log(probability: float) -> float:
    return math.log(probability) if probability > 0.0 else -math.inf


def beginning_with(found: dict[tuple[int, ...], float], prefix: tuple[int, ...]) -> float:
    return log(sum(p for tokens, p in found.items() if tokens[: len(prefix)] == prefix))


@settings(max_examples=25, deadline=None)
@given(lens=st.lists(st.integers(0, 4), min_size=1, max_size=3), vocab=st.integers(2, 4), seed=st.integers(0, 10**6))
def test_equals_the_sum_over_all_paths(lens: list[int], vocab: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (3 * torch.randn(len(lens), max(lens), vocab, generator=generator)).log_softmax(-1)
    found = [transcripts(log_probs[b, :n].double()) for b, n in enumerate(lens)]
    scorer = CtcPrefixScorer(log_probs, torch.tensor(lens))
    state = scorer.start()
    prefixes: list[list[tuple[int, ...]]] = [[()] for _ in lens]
    tokens_K = torch.arange(1, vocab)
    for _ in range(3):
        candidates = tokens_K.expand(len(lens), len(prefixes[0]), -1)
        scores, ends = scorer.score(state, candidates).tolist(), scorer.score_end(state).tolist()
        for b, own in enumerate(prefixes):
            for w, prefix in enumerate(own):
                assert ends[b][w] == pytest.approx(log(found[b].get(prefix, 0.0)), abs=1e-5)
                for k, token in enumerate(tokens_K.tolist()):
                    assert scores[b][w][k] == pytest.approx(beginning_with(found[b], (*prefix, token)), abs=1e-5)
        width = 3
        parents = torch.randint(0, len(prefixes[0]), (len(lens), width), generator=generator)
        chosen = torch.randint(1, vocab, (len(lens), width), generator=generator)
        state = scorer.advance(state, parents, chosen)
        pairs = zip(prefixes, parents.tolist(), chosen.tolist())
        prefixes = [[(*own[p], t) for p, t in zip(places, tokens)] for own, places, tokens in pairs]


def test_selected_utterances_score_as_before() -> None:
    log_probs, lens = torch.randn(3, 9, 5).log_softmax(-1), torch.tensor([9, 4, 0])
    scorer, rows = CtcPrefixScorer(log_probs, lens), torch.tensor([2, 0])
    zeros, tokens = torch.zeros(3, 1, dtype=torch.long), torch.tensor([[1], [2], [3]])
    state = scorer.advance(scorer.start(), zeros, tokens)
    candidates = torch.arange(1, 5).expand(3, 1, -1)
    chosen = scorer.select(rows)
    torch.testing.assert_close(chosen.score(state.select(rows), candidates[rows]), scorer.score(state, candidates)[rows])
    torch.testing.assert_close(chosen.score_end(state.select(rows)), scorer.score_end(state)[rows])


def test_padding_and_certain_frames_stay_finite_or_impossible() -> None:
    log_probs = torch.full((1, 2000, 3), -math.inf)
    log_probs[0, torch.arange(2000), torch.arange(2000) % 2] = 0.0  # blank, 1, blank, 1, ... for certain
    scorer = CtcPrefixScorer(log_probs, torch.tensor([2000]))
    state = scorer.start()
    for _ in range(3):
        scores = scorer.score(state, torch.tensor([[[1, 2]]]))
        assert float(scores[0, 0, 0]) == pytest.approx(0.0, abs=1e-6)
        assert float(scores[0, 0, 1]) <= -900.0
        state = scorer.advance(state, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long))
        assert not any(part.isnan().any() for part in state)
    junk = torch.cat((log_probs[:, :10], torch.full((1, 5, 3), math.nan)), dim=1)
    padded = CtcPrefixScorer(torch.nan_to_num(junk, nan=7.0), torch.tensor([10])).score(
        CtcPrefixScorer(torch.nan_to_num(junk, nan=7.0), torch.tensor([10])).start(), torch.tensor([[[1, 2]]])
    )
    plain = CtcPrefixScorer(log_probs[:, :10], torch.tensor([10]))
    torch.testing.assert_close(padded, plain.score(plain.start(), torch.tensor([[[1, 2]]])))

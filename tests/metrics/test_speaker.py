"""Equal error rates computed by hand; pairs against a loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.metrics.speaker import equal_error_rate, score_pairs
from speechkit.metrics.tts import speaker_similarity


@pytest.mark.parametrize(
    ("same", "different", "rate", "threshold"),
    [
        ([0.8, 0.9], [0.1, 0.2], 0.0, 0.5),  # told apart; all thresholds between are as good
        ([0.1, 0.2], [0.8, 0.9], 1.0, 0.5),  # all wrong
        ([0.5], [0.5], 0.5, 0.5),  # scores that tell nothing
        ([0.3] * 5, [0.3] * 2, 0.5, 0.3),
        ([0.4, 0.9], [0.1, 0.6], 0.5, 0.5),  # 0.4 rejected, 0.6 accepted
        ([0.2, 0.7, 0.8, 0.9], [0.1, 0.3, 0.4, 0.75], 0.25, 0.55),
        # from 0.6 on: 0 of 2 rejected, 1 of 3 accepted; above 0.6: 1 of 2 rejected, 1 of 3 accepted; the rates pass at 1 / 3
        ([0.6, 0.9], [0.1, 0.2, 0.7], 1 / 3, 0.6),
        # at the tie rejections rise from 0 to 1 / 2 while acceptances fall from 1 / 2 to 0
        ([0.5, 0.9], [0.5, 0.1], 0.25, 0.5),
        ([1.0], [0.0, 0.0, 2.0, 0.5], 0.25, 1.0),
    ],
)
def test_by_hand(same: list[float], different: list[float], rate: float, threshold: float) -> None:
    scores, labels = [*same, *different], [True] * len(same) + [False] * len(different)
    found = equal_error_rate(scores, labels)
    assert found.rate == pytest.approx(rate)
    assert found.threshold == pytest.approx(threshold)
    assert (found.num_same, found.num_different) == (len(same), len(different))
    backwards = equal_error_rate(scores[::-1], labels[::-1])
    assert backwards == found


@settings(max_examples=100, deadline=None)
@given(
    same=st.lists(st.integers(-5, 5), min_size=1, max_size=12), different=st.lists(st.integers(-5, 5), min_size=1, max_size=12)
)
def test_it_lies_between_the_rates_around_its_threshold(same: list[int], different: list[int]) -> None:
    labels = [True] * len(same) + [False] * len(different)
    found = equal_error_rate([*same, *different], labels)
    low = sum(s < found.threshold for s in same) / len(same), sum(d >= found.threshold for d in different) / len(different)
    high = sum(s <= found.threshold for s in same) / len(same), sum(d > found.threshold for d in different) / len(different)
    assert low[0] - 1e-9 <= found.rate <= high[0] + 1e-9
    assert high[1] - 1e-9 <= found.rate <= low[1] + 1e-9
    stretched = equal_error_rate([3.0 * s + 1.0 for s in [*same, *different]], labels)
    assert stretched.rate == found.rate
    turned = equal_error_rate([-s for s in [*same, *different]], [not label for label in labels])
    assert turned.rate == pytest.approx(found.rate)  # false rejections and acceptances change places


def test_two_bells(rng: np.random.Generator) -> None:
    """Scores of the same deviation around means two deviations apart: one in 6.3 on the wrong side of the middle."""
    scores = np.concatenate([rng.normal(1.0, 1.0, 40_000), rng.normal(-1.0, 1.0, 60_000)])
    found = equal_error_rate(scores, np.arange(100_000) < 40_000)
    assert found.rate == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.005)
    assert found.threshold == pytest.approx(0.0, abs=0.05)


def test_pairs_equal_a_loop(rng: np.random.Generator) -> None:
    embeddings, speakers = rng.standard_normal((6, 4)), ["b", "a", "b", "c", "a", "b"]
    scores, same = score_pairs(embeddings, speakers)
    pairs = list(itertools.combinations(range(6), 2))
    assert scores == pytest.approx([speaker_similarity(embeddings[i], embeddings[j]) for i, j in pairs])
    assert same.tolist() == [speakers[i] == speakers[j] for i, j in pairs]
    assert score_pairs(embeddings, [1, 0, 1, 2, 0, 1])[1].tolist() == same.tolist()
    assert [len(part) for part in score_pairs(embeddings[:1], ["a"])] == [0, 0]


def test_one_direction_per_speaker_makes_no_error() -> None:
    found = equal_error_rate(*score_pairs([[1, 0], [2, 0], [0, 1], [0.1, 3]], ["a", "a", "b", "b"]))
    assert found.rate == 0
    assert (found.num_same, found.num_different) == (2, 4)


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"scores_K and same_K have shapes \(2,\) and \(3,\)"):
        equal_error_rate([0.1, 0.2], [True, False, True])
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        equal_error_rate([math.nan, 0.2], [True, False])
    for labels, counts in (([True] * 2, "2 pairs of one speaker and 0 of two"), ([], "0 pairs of one speaker and 0 of two")):
        with pytest.raises(ValueError, match=counts):
            equal_error_rate([0.5] * len(labels), labels)
    with pytest.raises(ValueError, match=r"embeddings_UD has shape \(2, 2\) for 1 speakers"):
        score_pairs(np.eye(2), ["a"])
    for wrong in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="row 1 has norm"):
            score_pairs([[1.0, 0.0], [wrong, 0.0]], ["a", "b"])

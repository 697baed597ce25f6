"""Greedy CTC decoding against a frame-by-frame loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.search.ctc_greedy import CtcPath, ctc_greedy


def random_log_probs(seed: int, batch: int, frames: int, vocab: int, peak: float = 1.0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=(batch, frames, vocab)) * peak
    return torch.from_numpy(values).log_softmax(dim=-1)


def greedy_loop(log_probs_TV: np.ndarray, blank: int) -> CtcPath:
    best = log_probs_TV.argmax(axis=1).tolist()
    tokens, starts, ends, confidences, t = [], [], [], [], 0
    for token, run in itertools.groupby(best):
        length = len(list(run))
        if token != blank:
            tokens.append(token)
            starts.append(t)
            ends.append(t + length)
            confidences.append(float(np.exp(log_probs_TV[t : t + length, token]).mean()))
        t += length
    return CtcPath(tuple(tokens), tuple(starts), tuple(ends), tuple(confidences), log_probs_TV.max(axis=1).sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lens=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    vocab=st.integers(1, 4),
    pad=st.integers(0, 3),
    data=st.data(),
)
def test_equals_loop_whatever_the_padding(seed: int, lens: list[int], vocab: int, pad: int, data: st.DataObject) -> None:
    blank = data.draw(st.integers(0, vocab - 1))
    log_probs = random_log_probs(seed, len(lens), max(lens) + pad, vocab)
    for row, length, path in zip(log_probs.numpy(), lens, ctc_greedy(log_probs, torch.tensor(lens), blank), strict=True):
        expected = greedy_loop(row[:length], blank) if length else CtcPath((), (), (), (), 0.0)
        assert (path.tokens, path.start_frames, path.end_frames) == (
            expected.tokens,
            expected.start_frames,
            expected.end_frames,
        )
        assert path.confidences == pytest.approx(expected.confidences, abs=1e-12)
        assert path.score == pytest.approx(float(expected.score), abs=1e-12)


def test_batch_equals_single_bit_for_bit() -> None:
    lens = [0, 1, 17, 50]
    log_probs = random_log_probs(0, 4, 60, 7).float()
    together = ctc_greedy(log_probs, torch.tensor(lens))
    alone = [ctc_greedy(log_probs[i : i + 1, :n], torch.tensor([n]))[0] for i, n in enumerate(lens)]
    assert together == alone


def test_repeated_token_needs_a_blank_between() -> None:
    certain = torch.full((1, 6, 3), -math.inf)
    for t, token in enumerate([1, 1, 0, 1, 2, 2]):
        certain[0, t, token] = 0.0
    assert ctc_greedy(certain, torch.tensor([6])) == [CtcPath((1, 1, 2), (0, 3, 4), (2, 4, 6), (1.0, 1.0, 1.0), 0.0)]


def test_no_utterances() -> None:
    assert ctc_greedy(torch.zeros(0, 5, 3), torch.zeros(0, dtype=torch.int64)) == []


@pytest.mark.parametrize(
    ("shape", "lens", "blank", "message"),
    [
        ((5, 3), [5], 0, "log_probs has shape"),
        ((1, 5, 3), [5, 5], 0, "one length for each"),
        ((1, 5, 3), [6], 0, "5 frames"),
        ((1, 5, 3), [-1], 0, "from -1"),
        ((1, 5, 3), [5], 3, "blank is 3"),
    ],
)
def test_wrong_arguments_are_named(shape: tuple[int, ...], lens: list[int], blank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ctc_greedy(torch.zeros(shape), torch.tensor(lens), blank)

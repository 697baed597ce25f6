"""Dynamic time warping against all paths, and the spans that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.search.attention_align import attention_spans, warp


def all_paths(num_tokens: int, num_frames: int, place: tuple[int, int] = (0, 0)) -> Iterator[list[tuple[int, int]]]:
    """Every way to the last token at the last frame, one step at a time."""
    u, t = place
    if place == (num_tokens - 1, num_frames - 1):
        yield [place]
        return
    steps = [(u + 1, t + 1), (u, t + 1)] + ([(u + 1, t)] if num_tokens > num_frames else [])
    for step in steps:
        if step[0] < num_tokens and step[1] < num_frames:
            for rest in all_paths(num_tokens, num_frames, step):
                yield [place, *rest]


@settings(max_examples=60, deadline=None)
@given(num_tokens=st.integers(1, 5), num_frames=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_no_path_is_cheaper(num_tokens: int, num_frames: int, seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(num_tokens, num_frames))
    path = [(int(u), int(t)) for u, t in warp(cost)]
    paths = list(all_paths(num_tokens, num_frames))
    assert path in paths
    assert sum(cost[place] for place in path) == pytest.approx(min(sum(cost[place] for place in other) for other in paths))


def peaks(places: list[tuple[int, int]], num_frames: int) -> np.ndarray:
    """Weights of tokens that each look at some frames, and a little everywhere."""
    weights = np.full((len(places), num_frames), 0.001)
    for row, (start, end) in zip(weights, places):
        row[start:end] = 1.0
    return weights / weights.sum(axis=1, keepdims=True)


def test_tokens_lie_where_the_decoder_looked() -> None:
    places = [(6, 12), (12, 20), (20, 26), (34, 40)]  # three tokens and the end; nothing is said from 26 to 34
    weights = torch.from_numpy(peaks(places, 40))[None, None]
    [spans] = attention_spans(weights, [3], [40])
    assert spans[0][0] == 6, "the first token does not begin with the recording"
    assert [spans[0][1], spans[1][0], spans[1][1], spans[2][0]] == pytest.approx([12, 12, 20, 20], abs=1)
    assert 26 <= spans[2][1] <= 35


def test_one_frame_does_not_mislead() -> None:
    weights = peaks([(0, 10), (10, 20), (20, 30), (30, 40)], 40)
    weights[3, 4] = weights[0, 33] = 2.0  # glances far away
    [spans] = attention_spans(torch.from_numpy(weights)[None, None], [3], [40])
    assert np.array(spans).flatten().tolist() == pytest.approx([0, 10, 10, 20, 20, 30], abs=1)


@settings(max_examples=40, deadline=None)
@given(tokens=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 1000), data=st.data())
def test_spans_follow_each_other_and_padding_is_not_read(tokens: list[int], seed: int, data: st.DataObject) -> None:
    frames = [data.draw(st.integers(0, 12)) for _ in tokens]
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(tokens), 2, max(tokens) + 1, max(frames), generator=generator)
    found = attention_spans(weights, tokens, frames)
    for row, (num_tokens, num_frames, spans) in enumerate(zip(tokens, frames, found)):
        assert len(spans) == num_tokens
        assert all(0 <= start <= end <= num_frames for start, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        if num_tokens < num_frames:
            assert all(start < end for start, end in spans)
        alone = attention_spans(weights[row : row + 1, :, : num_tokens + 1, :num_frames], [num_tokens], [num_frames])
        assert alone == [spans]


def test_even_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="filter_width=4 must be odd"):
        attention_spans(torch.rand(1, 1, 2, 3), [1], [3], filter_width=4)

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.kernels.attention import Visibility
from speechkit.kernels.attention.visibility import band_mask, chunk_mask
from speechkit.nn.masks import hide_padding, padding_mask, valid_mask

CPU = torch.device("cpu")


def slow_chunk_mask(num_frames: int, chunk_size: int, left_chunks: int | None) -> list[list[bool]]:
    """Which key each query may see, by walking over chunks."""
    rows = []
    for query in range(num_frames):
        own = query // chunk_size
        first = 0 if left_chunks is None else max(0, own - left_chunks) * chunk_size
        rows.append([first <= key < (own + 1) * chunk_size for key in range(num_frames)])
    return rows


def test_valid_mask_counts_frames() -> None:
    mask = valid_mask(torch.tensor([0, 2, 4]), 4)
    assert mask.tolist() == [[False] * 4, [True, True, False, False], [True] * 4]


def test_padding_mask_is_none_only_without_padding() -> None:
    assert padding_mask(torch.tensor([5, 5]), 5) is None
    mask = padding_mask(torch.tensor([5, 4]), 5)
    assert mask is not None
    assert mask.sum().item() == 9
    assert padding_mask(torch.tensor([4, 4]), 5) is not None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 17), st.integers(1, 7), st.one_of(st.none(), st.integers(0, 4)))
def test_chunk_mask_equals_slow_reference(num_frames: int, chunk_size: int, left_chunks: int | None) -> None:
    assert chunk_mask(num_frames, chunk_size, left_chunks).tolist() == slow_chunk_mask(num_frames, chunk_size, left_chunks)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(0, 3)),
)
def test_attention_mask_is_right_for_valid_queries_and_empty_for_none(
    lens: list[int], chunk_size: int | None, left_chunks: int | None
) -> None:
    frames = 9
    left_chunks = None if chunk_size is None else left_chunks
    mask = Visibility(lens_B=torch.tensor(lens), chunk_size=chunk_size, left_chunks=left_chunks).dense(frames, CPU)
    assert mask is not None
    mask = mask.expand(len(lens), 1, frames, frames)
    assert mask.any(-1).all(), "a query without keys has no softmax"
    visible = slow_chunk_mask(frames, chunk_size or frames, left_chunks)
    for row, length in enumerate(lens):
        for query in range(length):
            expected = [key < length and visible[query][key] for key in range(frames)]
            assert mask[row, 0, query].tolist() == expected


def test_no_attention_mask_without_padding_and_chunks() -> None:
    assert Visibility().dense(7, CPU) is None
    assert hide_padding(torch.tensor([7, 7]), 7, of_queries=True) is None
    chunked = Visibility(chunk_size=2).dense(7, CPU)
    assert chunked is not None
    assert chunked.shape == (1, 1, 7, 7)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 13), st.integers(0, 4))
def test_band_mask_equals_slow_reference(num_frames: int, reach: int, num_global: int) -> None:
    expected = [
        [abs(query - key) <= reach or min(query, key) < num_global for key in range(num_frames)] for query in range(num_frames)
    ]
    assert band_mask(num_frames, reach, num_global=num_global).tolist() == expected


def test_band_and_padding_join() -> None:
    mask = Visibility(lens_B=torch.tensor([6, 2]), reach=1).dense(6, CPU)
    assert mask is not None
    assert mask[0, 0].tolist() == band_mask(6, 1).tolist()
    assert mask[1, 0, 1].tolist() == [True, True, False, False, False, False]
    assert mask.any(-1).all(), "a query without keys has no softmax"

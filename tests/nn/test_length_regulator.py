"""Against loops with repeat_interleave; durations that come back from their logarithms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.kernels.mas import mas
from speechkit.nn.length_regulator import average_by_phone, durations_from_log, expand, frame_phones

rows_of_durations = st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=4)


def padded(rows: list[list[int]], extra: int = 0, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Durations of shape (B, P) and how many phones each row has."""
    durations = torch.full((len(rows), max(map(len, rows)) + extra), filler)
    for row, own in enumerate(rows):
        durations[row, : len(own)] = torch.tensor(own, dtype=torch.long)
    return durations, torch.tensor([len(own) for own in rows])


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_durations, extra=st.integers(0, 2), filler=st.integers(0, 3), longer=st.none() | st.integers(0, 3))
def test_expansion_and_its_gradient_equal_a_loop(rows: list[list[int]], extra: int, filler: int, longer: int | None) -> None:
    durations, phone_lens = padded(rows, extra, filler)  # padding may hold anything
    x = torch.randn(*durations.shape, 3, requires_grad=True)
    longest = max(sum(own) for own in rows)
    out, lens = expand(x, durations, phone_lens, max_frames=None if longer is None else longest + longer)
    assert out.shape == (len(rows), longest + (longer or 0), 3)
    assert lens.tolist() == [sum(own) for own in rows]
    weights = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    for row, own in enumerate(rows):
        loop = x[row, : len(own)].repeat_interleave(durations[row, : len(own)], dim=0)
        assert torch.equal(out[row, : len(loop)], loop)
        assert out[row, len(loop) :].abs().sum() == 0
        (expected,) = torch.autograd.grad((loop * weights[row, : len(loop)]).sum(), x, allow_unused=True)
        torch.testing.assert_close(gradient[row], expected[row])


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_durations, extra=st.integers(0, 2), longer=st.integers(0, 3), masked=st.booleans(), seed=st.integers(0, 99))
def test_averages_equal_a_loop(rows: list[list[int]], extra: int, longer: int, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    durations, _ = padded(rows, extra)
    values = torch.randn(len(rows), max(sum(own) for own in rows) + longer) * 100.0
    where = torch.rand(values.shape) < 0.6 if masked else None
    if where is not None:
        values = values.masked_fill(~where, math.nan)  # as trackers mark frames without a voice
    means = average_by_phone(values, durations, where)
    assert means.shape == durations.shape
    assert means.dtype == torch.float32
    for row, own in enumerate(rows):
        begin = 0
        for phone, frames in enumerate([*own, *[0] * (durations.shape[1] - len(own))]):
            part = values[row, begin : begin + frames]
            part = part if where is None else part[where[row, begin : begin + frames]]
            torch.testing.assert_close(means[row, phone], part.mean() if len(part) else torch.tensor(0.0))
            begin += frames


def test_expanding_averages_and_averaging_them_again_changes_nothing() -> None:
    durations = torch.tensor([[2, 1, 3], [4, 2, 0]])
    means = torch.randn(2, 3).masked_fill(durations == 0, 0.0)
    frames, _ = expand(means[..., None], durations, torch.tensor([3, 2]))
    torch.testing.assert_close(average_by_phone(frames[..., 0], durations), means)


def test_frames_and_phones_are_those_of_the_alignment_search() -> None:
    lens = torch.tensor([11, 7, 0]), torch.tensor([4, 7, 0])
    found = mas(torch.randn(3, 11, 7), *lens)
    assert torch.equal(frame_phones(found.durations_BP, 11), found.frame_phone_BT)


def test_what_is_longer_than_the_most_frames_is_cut_and_says_so() -> None:
    x = torch.arange(6.0).view(2, 3, 1)
    out, lens = expand(x, torch.tensor([[2, 2, 2], [1, 0, 1]]), torch.tensor([3, 3]), max_frames=3)
    assert out[..., 0].tolist() == [[0.0, 0.0, 1.0], [3.0, 5.0, 0.0]]
    assert lens.tolist() == [3, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_any_dtype_is_copied(dtype: torch.dtype) -> None:
    x = torch.arange(6, dtype=dtype).view(1, 3, 2)
    out, _ = expand(x, torch.tensor([[1, 0, 2]]), torch.tensor([3]))
    assert out.dtype == dtype
    assert torch.equal(out, x[:, [0, 2, 2]])


def test_pitch_in_halves_is_averaged_in_full() -> None:
    values = torch.full((1, 4000), 300.0, dtype=torch.float16)  # in halves the sum would be inf
    assert average_by_phone(values, torch.tensor([[3999, 1]])).tolist() == [[300.0, 300.0]]


def test_padding_and_mates_change_no_bit() -> None:
    torch.manual_seed(0)
    durations, values, logs = torch.tensor([[3, 1, 2]]), torch.rand(1, 6), torch.rand(1, 3) * 2
    more_durations, more_values, more_logs = torch.tensor([[3, 1, 2, 0], [5, 0, 3, 1]]), torch.rand(2, 9), torch.rand(2, 4) * 2
    more_values[0, :6], more_logs[0, :3] = values[0], logs[0]
    assert torch.equal(average_by_phone(more_values, more_durations)[0, :3], average_by_phone(values, durations)[0])
    own = durations_from_log(logs, torch.tensor([3]))
    assert torch.equal(durations_from_log(more_logs, torch.tensor([3, 4]))[0, :3], own[0])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 900), max_size=5), min_size=1, max_size=4), filler=st.integers(0, 3))
def test_durations_come_back_from_their_logarithms(rows: list[list[int]], filler: int) -> None:
    durations, phone_lens = padded(rows, 1, filler)
    back = durations_from_log(torch.log1p(durations.float()), phone_lens)
    for row, own in enumerate(rows):
        expected = own if sum(own) or not own else [1, *own[1:]]  # all alike: the first has the frame
        assert back[row].tolist() == [*expected, *[0] * (durations.shape[1] - len(own))]


def test_speed_divides_durations_before_they_are_rounded() -> None:
    logs = torch.log1p(torch.tensor([[2.0, 5.0, 7.4, 0.6]]))
    lens = torch.tensor([4])
    assert durations_from_log(logs, lens).tolist() == [[2, 5, 7, 1]]
    assert durations_from_log(logs, lens, speed=2.0).tolist() == [[1, 2, 4, 0]]  # 2.5 goes to 2
    assert durations_from_log(logs, lens, speed=0.5).tolist() == [[4, 10, 15, 1]]


def test_a_text_has_a_frame_and_an_endless_phone_an_end() -> None:
    logs = torch.tensor([[-3.0, 0.2, 0.1, 9.0], [-3.0, -1.0, 0.0, math.nan], [math.inf, 99.0, -math.inf, 0.0]])
    assert durations_from_log(logs, torch.tensor([3, 0, 4])).tolist() == [[0, 1, 0, 0], [0] * 4, [1000, 1000, 0, 0]]
    assert durations_from_log(torch.zeros(2, 0), torch.tensor([0, 0])).shape == (2, 0)
    assert durations_from_log(torch.tensor([[4.0]]), torch.tensor([1]), max_duration=7).tolist() == [[7]]


def test_no_phones_no_rows() -> None:
    out, lens = expand(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0]), max_frames=4)
    assert out.shape == (2, 4, 3)
    assert lens.tolist() == [0, 0]
    out, lens = expand(torch.zeros(0, 2, 3), torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert out.shape == (0, 0, 3)
    assert average_by_phone(torch.zeros(2, 3), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)


def test_what_does_not_fit_is_refused() -> None:
    x, durations, lens = torch.zeros(1, 2, 3), torch.tensor([[1, 2]]), torch.tensor([2])
    with pytest.raises(ValueError, match=r"x has shape \(1, 2\); give \(B, P, D\)"):
        expand(x[..., 0], durations, lens)
    with pytest.raises(ValueError, match=r"durations has shape \(1, 2\) and dtype torch.float32; give int64 of shape \(1, 2\)"):
        expand(x, durations.float(), lens)
    with pytest.raises(ValueError, match="durations has values from -1; give"):
        expand(x, -durations + 1, lens)
    with pytest.raises(ValueError, match="durations take up to 3 frames of a row, but values have 2"):
        average_by_phone(torch.zeros(1, 2), durations)
    with pytest.raises(ValueError, match=r"give \(B, T\) for both"):
        average_by_phone(torch.zeros(1, 3), durations, torch.ones(1, 2, dtype=torch.bool))
    for speed in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"speed={speed} must be a positive number"):
            durations_from_log(torch.zeros(1, 2), lens, speed=speed)

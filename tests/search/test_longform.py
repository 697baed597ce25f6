"""Windows over long recordings tile the output frames exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechkit.search.longform import plan_windows, stitch


@given(
    num_inputs=st.integers(0, 400),
    stride=st.integers(1, 8),
    hop=st.integers(1, 20),
    edge=st.integers(0, 6),
    spare=st.integers(0, 7),
)
def test_every_output_frame_is_kept_once(num_inputs: int, stride: int, hop: int, edge: int, spare: int) -> None:
    size = hop + 2 * edge
    windows = plan_windows(num_inputs, window=size * stride + min(spare, stride - 1), context=edge * stride, stride=stride)
    frames = -(-num_inputs // stride)
    outputs = [torch.arange(w.first_frame, w.first_frame + -(-(w.end - w.start) // stride)) for w in windows]
    if not windows:
        assert num_inputs == 0
        return
    assert torch.equal(stitch(outputs, windows), torch.arange(frames))
    assert (windows[0].start, windows[-1].end) == (0, num_inputs)
    for i, window in enumerate(windows):
        assert window.start == window.first_frame * stride
        assert 0 < window.end - window.start <= size * stride
        assert len(windows) == 1 or window.end - window.start > (size - 1) * stride
        kept_end = frames if window.keep_end is None else window.keep_end
        last_frame = window.first_frame + -(-(window.end - window.start) // stride)
        assert i == 0 or window.keep_start - window.first_frame >= edge
        assert window.keep_end is None or last_frame - kept_end >= edge


@pytest.mark.parametrize("frames", [3, 50, 51, 237, 1000])
def test_local_encoder_gives_the_same_in_windows(frames: int) -> None:
    """A convolution that sees 4 frames to each side, stride 4, in windows with that much context."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(3, 5, kernel_size=9, stride=4, padding=4)
    signal = torch.randn(frames, 3)

    def encode(x: torch.Tensor) -> torch.Tensor:
        return conv(x.T[None])[0].T

    with torch.inference_mode():
        windows = plan_windows(frames, window=48, context=4, stride=4)
        joined = stitch([encode(signal[w.start : w.end]) for w in windows], windows)
        torch.testing.assert_close(joined, encode(signal), rtol=0, atol=1e-6)


def test_labels_stitch_too() -> None:
    windows = plan_windows(10, window=6, context=1, stride=1)
    assert stitch([torch.arange(w.start, w.end) for w in windows], windows).tolist() == list(range(10))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="window of at least 12"):
        plan_windows(100, window=8, context=4, stride=4)
    with pytest.raises(ValueError, match="stride 0"):
        plan_windows(100, window=8, context=4, stride=0)
    windows = plan_windows(20, window=8, context=1)
    with pytest.raises(ValueError, match=r"outputs\[0\] has 3 frames"):
        stitch([torch.zeros(3, 2)] * len(windows), windows)
    with pytest.raises(ValueError, match="1 entries for 3 windows"):
        stitch([torch.zeros(8, 2)], windows)
    with pytest.raises(ValueError, match="0 entries"):
        stitch([], [])

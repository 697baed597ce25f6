"""Convolution over frames: torch's own, padding, strides, edges."""

from __future__ import annotations

import pytest
import torch

from speechkit.nn.frame_conv import FrameConv, silence
from speechkit.nn.masks import valid_mask


@pytest.mark.parametrize(("kernel_size", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (5, 2, 1), (7, 1, 4), (1, 2, 2)])
@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_it_is_a_convolution_and_reads_no_padding(kernel_size: int, stride: int, groups: int, num_frames: int) -> None:
    torch.manual_seed(0)
    conv = FrameConv(in_dim=8, out_dim=12, kernel_size=kernel_size, stride=stride, groups=groups)
    x_BTI = torch.randn(2, num_frames, 8, requires_grad=True)
    expected = conv.conv(x_BTI.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(conv(x_BTI), expected)
    assert expected.shape[1] == -(-num_frames // stride)
    found, wanted = (torch.autograd.grad(y.square().sum(), x_BTI)[0] for y in (conv(x_BTI), expected))
    torch.testing.assert_close(found, wanted)
    lens_B = torch.tensor([num_frames, 1])
    valid_BT = valid_mask(lens_B, num_frames + 3)
    padded = torch.cat((x_BTI, torch.randn(2, 3, 8)), dim=1)
    out = conv(padded, valid_BT)
    torch.testing.assert_close(out[0, : expected.shape[1]], expected[0])
    torch.testing.assert_close(out[1, :1], conv(x_BTI[1:, :1])[0])
    torch.testing.assert_close(silence(padded, valid_BT)[0, :num_frames], x_BTI[0])


def test_weights_lie_in_memory_as_they_are_read_and_stay_there() -> None:
    conv = FrameConv(in_dim=8, out_dim=12, kernel_size=3)
    conv.load_state_dict({"conv.weight": torch.randn(12, 8, 3), "conv.bias": torch.zeros(12)})
    assert conv.conv.weight.shape == (12, 8, 3)
    assert conv.conv.weight.unsqueeze(2).is_contiguous(memory_format=torch.channels_last)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        FrameConv(in_dim=1, out_dim=1, kernel_size=4)

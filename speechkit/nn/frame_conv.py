"""Convolution over frames that does not read padding.

Shape legend: B batch, T frames (or phones), I input channels, O output channels, D any channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FrameConv(nn.Module):
    """Convolution over frames, channels last; frame t of the result is centred on frame stride * t.

    Args:
        in_dim: I.
        out_dim: O.
        kernel_size: frames under it, odd.
        stride: frames from one result to the next; T frames make ceil(T / stride).
        groups: channels in so many groups that do not see each other.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(self, *, in_dim: int, out_dim: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, so that the convolution is centred")
        self.conv = nn.Conv1d(in_dim, out_dim, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups)
        weight_OKI = self.conv.weight.data.transpose(1, 2).contiguous()  # in memory as `forward` reads it, (O, I, K) in shape
        self.conv.weight.data = weight_OKI.transpose(1, 2)

    def forward(self, x_BTI: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Maps (B, T, I) to (B, ceil(T / stride), O).

        Args:
            x_BTI: frames, T at least 1.
            valid_BT: which are valid, bool; the others are read as zeros by their neighbours. None for all.
        """
        conv, half = self.conv, self.conv.kernel_size[0] // 2
        if half == 0 and conv.stride == (1,) and conv.groups == 1:
            return F.linear(x_BTI, conv.weight[..., 0], conv.bias)
        # As an image of one row whose channels come last in memory: up to twice as fast on a CPU.
        image_BI1T = silence(x_BTI, valid_BT).transpose(1, 2).unsqueeze(2)
        weight, stride = conv.weight.unsqueeze(2), (1, conv.stride[0])
        image_BO1T = F.conv2d(image_BI1T, weight, conv.bias, stride=stride, padding=(0, half), groups=conv.groups)
        return image_BO1T.squeeze(2).transpose(1, 2)


def silence(x_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Zeros outside of what is valid; None changes nothing."""
    return x_BTD if valid_BT is None else x_BTD.masked_fill(~valid_BT[..., None], 0.0)

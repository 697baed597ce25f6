"""The convolution module by torch's own operations.

Shape legend: B batch, T frames, C = 2 D projected, D model, K taps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def glu_conv_eager(x_BTC: Tensor, valid_BT: Tensor | None, weight_D1K: Tensor, bias_D: Tensor, causal: bool) -> Tensor:
    """Gate, mask and convolution, shape (B, T, D)."""
    x_BTD = F.glu(x_BTC, dim=-1)
    if valid_BT is not None:
        x_BTD = x_BTD * valid_BT[..., None].to(x_BTD.dtype)
    return depthwise(x_BTD, weight_D1K, bias_D, causal=causal)


def norm_silu_eager(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis, and SiLU."""
    return F.silu(F.layer_norm(x_BTD, weight_D.shape, weight_D, bias_D, eps))


def depthwise(x_BTD: Tensor, weight_D1K: Tensor, bias_D: Tensor, *, causal: bool) -> Tensor:
    """Convolves each channel over time.

    On a CPU as a 2-D convolution over one row: oneDNN then reads the channels-last input as it lies, and is several
    times as fast as `Conv1d`, which turns it round first.
    """
    dim, _, kernel = weight_D1K.shape
    padding = 0 if causal else kernel // 2
    if causal:
        x_BTD = F.pad(x_BTD, (0, 0, kernel - 1, 0))
    x_BDT = x_BTD.transpose(1, 2)
    if x_BTD.device.type != "cpu":
        return F.conv1d(x_BDT, weight_D1K, bias_D, padding=padding, groups=dim).transpose(1, 2)
    y_BD1T = F.conv2d(x_BDT.unsqueeze(2), weight_D1K.unsqueeze(2), bias_D, padding=(0, padding), groups=dim)
    return y_BD1T.squeeze(2).transpose(1, 2)

"""The convolution module one step after another, in any float dtype.

Shape legend: B batch, T frames, C = 2 D projected, D model, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def glu_conv_plain(x_BTC: Tensor, valid_BT: Tensor | None, weight_D1K: Tensor, bias_D: Tensor, causal: bool) -> Tensor:
    """Gate, mask, and the convolution as a sum over taps, shape (B, T, D)."""
    value_BTD, gate_BTD = x_BTC.chunk(2, dim=-1)
    gated_BTD = value_BTD * torch.sigmoid(gate_BTD)
    if valid_BT is not None:
        gated_BTD = gated_BTD.masked_fill(~valid_BT[..., None], 0.0)
    frames, taps = x_BTC.shape[1], weight_D1K.shape[2]
    left = taps - 1 if causal else taps // 2
    padded_BTD = F.pad(gated_BTD, (0, 0, left, taps - 1 - left))
    y_BTD = bias_D.to(x_BTC.dtype).expand_as(gated_BTD)
    for k in range(taps):
        y_BTD = y_BTD + padded_BTD[:, k : k + frames] * weight_D1K[:, 0, k].to(x_BTC.dtype)
    return y_BTD


def norm_silu_plain(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis, and SiLU."""
    centred_BTD = x_BTD - x_BTD.mean(-1, keepdim=True)
    normed_BTD = centred_BTD * torch.rsqrt(centred_BTD.square().mean(-1, keepdim=True) + eps)
    h_BTD = normed_BTD * weight_D.to(x_BTD.dtype) + bias_D.to(x_BTD.dtype)
    return h_BTD * torch.sigmoid(h_BTD)

"""The convolution module of Conformer blocks.

Source: Gulati et al. 2020, Conformer, section 2.2; layer norm may stand for batch norm.

Shape legend: B batch, T frames, C = 2 D projected, D model.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.kernels.glu_conv import Norm, glu_conv
from speechkit.nn.dropout import Dropout
from speechkit.nn.norm import MaskedBatchNorm

ConvNorm = Literal["layer", "batch"]


class ConvModule(nn.Module):
    """Layer norm, gated linear unit, depthwise convolution over time, norm, SiLU, linear.

    Args:
        dim: D.
        kernel_size: frames under the depthwise convolution; odd unless `causal`.
        norm: "layer", or "batch" for statistics over valid frames.
        causal: whether the convolution sees no frame to the right.
        dropout: rate in training.

    Raises:
        ValueError: `kernel_size` is even though not causal, or `norm` is unknown.
    """

    def __init__(self, *, dim: int, kernel_size: int, norm: ConvNorm, causal: bool, dropout: float) -> None:
        super().__init__()
        if kernel_size % 2 == 0 and not causal:
            raise ValueError(f"kernel_size={kernel_size} must be odd, so that the convolution is centred")
        if norm not in ("layer", "batch"):
            raise ValueError(f"conv_norm={norm!r} is unknown; choose layer or batch")
        self.causal = causal
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, groups=dim)
        self.conv_norm = nn.LayerNorm(dim) if norm == "layer" else MaskedBatchNorm(dim=dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Maps (B, T, D) to (B, T, D); frames outside `valid_BT` read as zeros under the convolution."""
        gates_BTC = self.gate(self.norm(x_BTD))
        assert self.depthwise.bias is not None
        taps = self.depthwise.weight, self.depthwise.bias
        if isinstance(self.conv_norm, MaskedBatchNorm):
            x_BTD = F.silu(self.conv_norm(glu_conv(gates_BTC, *taps, valid_BT=valid_BT, causal=self.causal), valid_BT))
        else:
            norm = Norm(self.conv_norm.weight, self.conv_norm.bias, self.conv_norm.eps)
            x_BTD = glu_conv(gates_BTC, *taps, valid_BT=valid_BT, causal=self.causal, norm=norm)
        return self.dropout(self.out(x_BTD))

"""The convolution module of Conformer blocks.

Source: Gulati et al. 2020, Conformer, section 2.2; layer norm may stand for batch norm.

Shape legend: B batch, T frames, D model.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

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
        x_BTD = F.glu(self.gate(self.norm(x_BTD)), dim=-1)
        if valid_BT is not None:
            x_BTD = x_BTD * valid_BT[..., None].to(x_BTD.dtype)
        x_BTD = self._depthwise(x_BTD)
        x_BTD = self.conv_norm(x_BTD, valid_BT) if isinstance(self.conv_norm, MaskedBatchNorm) else self.conv_norm(x_BTD)
        return self.dropout(self.out(F.silu(x_BTD)))

    def _depthwise(self, x_BTD: Tensor) -> Tensor:
        """Convolves each channel over time.

        On a CPU as a 2-D convolution over one row: oneDNN then reads the channels-last input as it lies, and is several
        times as fast as `Conv1d`, which turns it round first.
        """
        weight, bias = self.depthwise.weight, self.depthwise.bias
        dim, _, kernel = weight.shape
        padding = 0 if self.causal else kernel // 2
        if self.causal:
            x_BTD = F.pad(x_BTD, (0, 0, kernel - 1, 0))
        x_BDT = x_BTD.transpose(1, 2)
        if x_BTD.device.type != "cpu":
            return F.conv1d(x_BDT, weight, bias, padding=padding, groups=dim).transpose(1, 2)
        y_BD1T = F.conv2d(x_BDT.unsqueeze(2), weight.unsqueeze(2), bias, padding=(0, padding), groups=dim)
        return y_BD1T.squeeze(2).transpose(1, 2)

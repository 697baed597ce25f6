"""Convolutional subsampling of log-mel frames by 4 or 8.

conv2d4: two full 3x3 convolutions of stride 2 (Gulati et al. 2020, Conformer, section 2). dw4, dw8: a full one, then
depthwise 3x3 + pointwise pairs (Rekesh et al. 2023, Fast Conformer, section 2.1). Every convolution pads by one frame,
so that each stage maps a length L to ceil(L / 2): no input is too short, and output frame t is centred on input frame
t * factor. Frames past a row's length are cleared before each convolution over time, or cut off: either way the row meets
the zero padding that it would meet on its own.

Shape legend: B batch, T frames, F mel bins, C channels, D model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.masks import padding_mask, valid_mask

Subsampling = Literal["conv2d4", "dw4", "dw8"]


class ConvSubsampling(nn.Module):
    """Strided convolutions and a linear layer.

    Args:
        input_dim: F, mel bins.
        dim: D, width of the output.
        kind: "conv2d4", "dw4" or "dw8".
        channels: C of the convolutions; None for `dim`.

    Attributes:
        factor: input frames per output frame.

    Raises:
        ValueError: `kind` is unknown.
    """

    def __init__(self, *, input_dim: int, dim: int, kind: Subsampling = "conv2d4", channels: int | None = None) -> None:
        super().__init__()
        stages = {"conv2d4": 2, "dw4": 2, "dw8": 3}.get(kind)
        if stages is None:
            raise ValueError(f"subsampling={kind!r} is unknown; choose conv2d4, dw4 or dw8")
        channels = dim if channels is None else channels
        self.factor = 2**stages
        self.convs = nn.ModuleList([nn.Conv2d(1, channels, 3, stride=2, padding=1)])
        for _ in range(stages - 1):
            self.convs.append(_full_conv(channels) if kind == "conv2d4" else _depthwise_conv(channels))
        bins = input_dim
        for _ in range(stages):
            bins = (bins + 1) // 2
        self.out = nn.Linear(channels * bins, dim)

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Frames that come out for so many going in: ceil(lens / factor)."""
        return (lens_B + self.factor - 1) // self.factor

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Subsamples.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64.

        Returns:
            frames of shape (B, ceil(T / factor), D) and their lengths (B,). An empty time axis gives one padded frame.
        """
        if feats_BTF.shape[1] == 0:
            feats_BTF = F.pad(feats_BTF, (0, 0, 0, 1))
        if feats_BTF.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._row_by_row(feats_BTF, feat_lens_B), self.output_lengths(feat_lens_B)
        padded = padding_mask(feat_lens_B, feats_BTF.shape[1]) is not None
        x_BCTF, lens_B = feats_BTF.unsqueeze(1), feat_lens_B
        for conv in self.convs:
            if padded:
                x_BCTF = x_BCTF.masked_fill(~valid_mask(lens_B, x_BCTF.shape[2])[:, None, :, None], 0.0)
            x_BCTF = F.relu(conv(x_BCTF))
            lens_B = (lens_B + 1) // 2
        return self.out(x_BCTF.transpose(1, 2).flatten(2)), lens_B

    def _row_by_row(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
        """The same, each row without its padding: there is nothing to clear, and zeros come out past its length.

        On a CPU the buffers of one row stay in the cache, and are small enough for malloc to use them again.
        """
        frames = -(-feats_BTF.shape[1] // self.factor)
        rows = []
        for feats_TF, length in zip(feats_BTF, feat_lens_B.tolist()):
            x_1CTF = feats_TF[None, None, :length] if length else feats_TF.new_zeros(1, 1, 1, feats_TF.shape[1])
            for conv in self.convs:
                x_1CTF = F.relu(conv(x_1CTF))
            x_TD = self.out(x_1CTF.transpose(1, 2).flatten(2))[0, : -(-length // self.factor)]
            rows.append(F.pad(x_TD, (0, 0, 0, frames - len(x_TD))))
        return torch.stack(rows)


def _full_conv(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def _depthwise_conv(channels: int) -> nn.Module:
    depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
    return nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1))

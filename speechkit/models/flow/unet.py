"""The decoder of the aligned model: a U-Net over frames.

Source: Mehta et al. 2024, "Matcha-TTS", section 3.2. Ours differs: layer norms frame by frame stand for group norms over all
frames, which would read padding; GELU for snake activations, at half their time; the frame rate is doubled by a
convolution with two frames' channels (Shi et al. 2016), a fourth of the time of a transposed one; halves are rounded up, so that
any length is as good as another.

Shape legend: B batch, T frames, F channels of the features, D channels of a stage, C condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.kernels.attention import Visibility
from speechkit.models.flow.layers import TransformerLayer
from speechkit.nn.frame_conv import FrameConv, silence
from speechkit.nn.masks import hide_padding, padding_mask
from speechkit.nn.time_embedding import TimeEmbedding

HEAD_DIM = 64


class Rate(NamedTuple):
    """What is valid at one of the frame rates; None for everything."""

    valid_BT: Tensor | None
    visible: Visibility | None


class UNetCondition(NamedTuple):
    """What a U-Net is told beside points and times; made once for all steps of a synthesis.

    Attributes:
        mean_BTF: what the encoder expects of each frame, 0 past each length, shape (B, T, F).
        voice_BC: who speaks, shape (B, C); None for one voice.
        rates: validity at the full frame rate, half of it, and so on.
    """

    mean_BTF: Tensor
    voice_BC: Tensor | None
    rates: tuple[Rate, ...]


class ResidualConvs(nn.Module):
    """Two convolutions with layer norm and SiLU, the condition added between them, and a residual around all.

    Args:
        in_dim: channels that come.
        dim: D, channels that go.
        condition_dim: C.
    """

    def __init__(self, *, in_dim: int, dim: int, condition_dim: int) -> None:
        super().__init__()
        self.conv1 = FrameConv(in_dim=in_dim, out_dim=dim, kernel_size=3)
        self.conv2 = FrameConv(in_dim=dim, out_dim=dim, kernel_size=3)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.condition = nn.Linear(condition_dim, dim)
        self.skip = nn.Linear(in_dim, dim) if in_dim != dim else nn.Identity()

    def forward(self, x_BTI: Tensor, condition_BC: Tensor, valid_BT: Tensor | None) -> Tensor:
        """Maps (B, T, I) to (B, T, D)."""
        hidden_BTD = functional.silu(self.norm1(self.conv1(x_BTI, valid_BT)))
        hidden_BTD = hidden_BTD + self.condition(functional.silu(condition_BC))[:, None]
        return self.skip(x_BTI) + functional.silu(self.norm2(self.conv2(hidden_BTD, valid_BT)))


class Stage(nn.Module):
    """Residual convolutions and Transformer layers at one frame rate; arguments as those of `UNet`."""

    def __init__(self, *, in_dim: int, dim: int, condition_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.convs = ResidualConvs(in_dim=in_dim, dim=dim, condition_dim=condition_dim)
        heads = dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1
        self.layers = nn.ModuleList(
            TransformerLayer(dim=dim, num_heads=heads, ff_dim=4 * dim, kernel_size=1, rope=False, dropout=dropout)
            for _ in range(num_layers)
        )

    def forward(self, x_BTI: Tensor, condition_BC: Tensor, rate: Rate) -> Tensor:
        """Maps (B, T, I) to (B, T, D)."""
        x_BTD = self.convs(x_BTI, condition_BC, rate.valid_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rate.valid_BT, rate.visible, None)
        return x_BTD


class UNet(nn.Module):
    """Velocity of frames, from points, times, expected frames and the voice.

    Args:
        num_channels: F.
        dims: channels of the stages; each but the first at half the frame rate of the one before it. Multiples of 64 have
            heads of 64 channels, others one head.
        condition_dim: C.
        num_layers: Transformer layers of a stage.
        num_mid: stages at the lowest rate between way down and way up.
        dropout: rate in training.

    Raises:
        ValueError: `dims` is empty.
    """

    def __init__(
        self,
        *,
        num_channels: int,
        dims: Sequence[int] = (256, 256),
        condition_dim: int = 1024,
        num_layers: int = 1,
        num_mid: int = 2,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        if not dims:
            raise ValueError("dims=[] has no stage; give the channels of one stage at least")
        dims = tuple(dims)
        stage = partial(Stage, condition_dim=condition_dim, num_layers=num_layers, dropout=dropout)
        self.time = TimeEmbedding(dim=condition_dim)
        self.down = nn.ModuleList(stage(in_dim=last, dim=dim) for last, dim in zip((2 * num_channels, *dims), dims))
        self.halving = nn.ModuleList(FrameConv(in_dim=dim, out_dim=dim, kernel_size=3, stride=2) for dim in dims[:-1])
        self.mid = nn.ModuleList(stage(in_dim=dims[-1], dim=dims[-1]) for _ in range(num_mid))
        self.up = nn.ModuleList(stage(in_dim=last + dim, dim=dim) for last, dim in zip((*dims[1:], dims[-1]), dims))
        self.doubling = nn.ModuleList(FrameConv(in_dim=dim, out_dim=2 * dim, kernel_size=3) for dim in dims[1:])
        self.last = FrameConv(in_dim=dims[0], out_dim=dims[0], kernel_size=3)
        self.norm = nn.LayerNorm(dims[0])
        self.out = nn.Linear(dims[0], num_channels)

    def condition(self, mean_BTF: Tensor, lens_B: Tensor, voice_BC: Tensor | None) -> UNetCondition:
        """What `forward` needs besides points and times.

        Args:
            mean_BTF: what the encoder expects of each frame, shape (B, T, F).
            lens_B: valid frames of each row, int64, shape (B,).
            voice_BC: who speaks, shape (B, C); None for one voice.
        """
        num_frames, rates = mean_BTF.shape[1], []
        for _ in self.down:
            visible = hide_padding(lens_B, num_frames, of_queries=True)
            rates.append(Rate(padding_mask(lens_B, num_frames), visible))
            lens_B, num_frames = (lens_B + 1) // 2, (num_frames + 1) // 2
        return UNetCondition(silence(mean_BTF, rates[0].valid_BT), voice_BC, tuple(rates))

    def forward(self, x_BTF: Tensor, t_B: Tensor, condition: UNetCondition) -> Tensor:
        """Velocity.

        Args:
            x_BTF: points, shape (B, T, F) with T at least 1.
            t_B: times in [0, 1], shape (B,).
            condition: of `condition`, of the same rows.

        Returns:
            shape (B, T, F); what lies past a length holds nothing of use.
        """
        time_BC = self.time(t_B)
        c_BC = time_BC if condition.voice_BC is None else time_BC + condition.voice_BC
        x = torch.cat((x_BTF.to(self.out.weight.dtype), condition.mean_BTF.to(self.out.weight.dtype)), dim=2)
        skips = []
        for level, (stage, rate) in enumerate(zip(self.down, condition.rates)):
            x = stage(x, c_BC, rate)
            skips.append(x)
            if level < len(self.halving):
                x = self.halving[level](x, rate.valid_BT)
        for stage in self.mid:
            x = stage(x, c_BC, condition.rates[-1])
        for level in reversed(range(len(self.up))):
            if level < len(self.doubling):
                wide = self.doubling[level](x, condition.rates[level + 1].valid_BT)  # two frames out of each
                x = wide.unflatten(2, (2, -1)).flatten(1, 2)[:, : skips[level].shape[1]]
            x = self.up[level](torch.cat((x, skips[level]), dim=2), c_BC, condition.rates[level])
        x = self.norm(self.last(x, condition.rates[0].valid_BT))
        return self.out(functional.silu(x))

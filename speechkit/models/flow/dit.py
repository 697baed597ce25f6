"""The network of the infilling model: a Transformer over frames, conditioned on time by its norms.

Sources: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (DiT); Chen et al. 2024, "F5-TTS", section 3.2.

Shape legend: B batch, T frames, F channels of the features, E channels of the text, D model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.kernels.attention import Visibility
from speechkit.nn.adaptive_norm import AdaptiveNorm, zero_linear
from speechkit.nn.attention import PositionTable, SelfAttention, position_table
from speechkit.nn.dropout import Dropout
from speechkit.nn.frame_conv import FrameConv
from speechkit.nn.masks import hide_padding, padding_mask
from speechkit.nn.time_embedding import TimeEmbedding


class DiTCondition(NamedTuple):
    """What a DiT is told beside points and times; made once for all steps of a synthesis.

    Attributes:
        seen_BTD: image of the frames that are given and of the text, shape (B, T, D).
        voice_BD: who speaks, shape (B, D); None for one voice.
        valid_BT: valid frames, bool, shape (B, T); None for all.
        visible: the same, for attention.
        table: rotary positions.
    """

    seen_BTD: Tensor
    voice_BD: Tensor | None
    valid_BT: Tensor | None
    visible: Visibility | None
    table: PositionTable


class DiTBlock(nn.Module):
    """Self-attention and a feed-forward layer, each behind an adaptive norm and a gated residual; arguments as those of `DiT`."""

    def __init__(self, *, dim: int, num_heads: int, ff_mult: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = AdaptiveNorm(dim=dim, condition_dim=dim)
        self.attention = SelfAttention(dim=dim, num_heads=num_heads, position="rope")
        self.attention_gate = zero_linear(dim, dim)
        self.ff_norm = AdaptiveNorm(dim=dim, condition_dim=dim)
        self.up, self.down = nn.Linear(dim, ff_mult * dim), nn.Linear(ff_mult * dim, dim)
        self.ff_gate = zero_linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, time_BD: Tensor, condition: DiTCondition) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        heard_BTD = self.attention(self.attention_norm(x_BTD, time_BD), condition.visible, condition.table)
        x_BTD = torch.addcmul(x_BTD, self.attention_gate(time_BD)[:, None], self.dropout(heard_BTD))
        hidden = self.dropout(functional.gelu(self.up(self.ff_norm(x_BTD, time_BD)), approximate="tanh"))
        return torch.addcmul(x_BTD, self.ff_gate(time_BD)[:, None], self.dropout(self.down(hidden)))


class DiT(nn.Module):
    """Velocity of frames, from points, times, the frames that are given, text by frame, and the voice.

    Points, given frames and text are not concatenated but projected one by one and added, which is the same linear layer: what
    does not change from step to step is projected once.

    Args:
        num_channels: F.
        text_dim: E.
        dim: D.
        num_layers: blocks.
        num_heads: attention heads; must divide `dim`.
        ff_mult: width inside the feed-forward layers, in multiples of `dim`.
        position_kernel: frames under the two convolutions that tell places, odd.
        position_groups: their groups of channels.
        dropout: rate in training.
    """

    def __init__(
        self,
        *,
        num_channels: int,
        text_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ff_mult: int = 2,
        position_kernel: int = 31,
        position_groups: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.time = TimeEmbedding(dim=dim)
        self.points = nn.Linear(num_channels, dim)
        self.given, self.text = nn.Linear(num_channels, dim, bias=False), nn.Linear(text_dim, dim, bias=False)
        self.places = nn.ModuleList(
            FrameConv(in_dim=dim, out_dim=dim, kernel_size=position_kernel, groups=position_groups) for _ in range(2)
        )
        self.blocks = nn.ModuleList(
            DiTBlock(dim=dim, num_heads=num_heads, ff_mult=ff_mult, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = AdaptiveNorm(dim=dim, condition_dim=dim)
        self.out = zero_linear(dim, num_channels)

    def condition(self, given_BTF: Tensor, text_BTE: Tensor, lens_B: Tensor, voice_BD: Tensor | None) -> DiTCondition:
        """What `forward` needs besides points and times.

        Args:
            given_BTF: frames that are known, 0 where they are to be made, shape (B, T, F).
            text_BTE: what is said at each frame, shape (B, T, E).
            lens_B: valid frames of each row, int64, shape (B,).
            voice_BD: who speaks, shape (B, D); None for one voice.
        """
        num_frames = given_BTF.shape[1]
        dtype = self.given.weight.dtype
        return DiTCondition(
            self.given(given_BTF.to(dtype)) + self.text(text_BTE.to(dtype)),
            voice_BD,
            padding_mask(lens_B, num_frames),
            hide_padding(lens_B, num_frames, of_queries=True),
            position_table("rope", num_frames, dim=self.dim, num_heads=self.num_heads, device=given_BTF.device),
        )

    def forward(self, x_BTF: Tensor, t_B: Tensor, condition: DiTCondition) -> Tensor:
        """Velocity; arguments and result as those of `speechkit.models.flow.unet.UNet.forward`."""
        time_BD = self.time(t_B)
        time_BD = functional.silu(time_BD if condition.voice_BD is None else time_BD + condition.voice_BD)
        x_BTD = self.points(x_BTF.to(self.points.weight.dtype)) + condition.seen_BTD
        hidden_BTD = x_BTD
        for conv in self.places:
            hidden_BTD = functional.mish(conv(hidden_BTD, condition.valid_BT))
        x_BTD = x_BTD + hidden_BTD
        for block in self.blocks:
            x_BTD = block(x_BTD, time_BD, condition)
        return self.out(self.norm(x_BTD, time_BD))

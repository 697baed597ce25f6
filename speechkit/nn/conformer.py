"""Conformer and Fast Conformer encoders.

Block: half a feed-forward, self-attention, convolution, half a feed-forward, layer norm (Gulati et al. 2020, Conformer,
section 2); Fast Conformer is the same block behind 8x depthwise subsampling with kernel 9 (Rekesh et al. 2023).

Every valid output frame is a function of its own utterance alone: padding and batch mates change nothing.

Shape legend: B batch, T frames, P prefix frames, D model, F mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from speechkit.kernels.attention import Visibility
from speechkit.nn.attention import Position, PositionTable, SelfAttention, position_table
from speechkit.nn.conv_module import ConvModule, ConvNorm
from speechkit.nn.dropout import Dropout
from speechkit.nn.feed_forward import FeedForward
from speechkit.nn.masks import padding_mask
from speechkit.nn.positional import sinusoids
from speechkit.nn.subsampling import ConvSubsampling, Subsampling

Tap = Callable[[int, Tensor, Tensor], Tensor]


class ConformerBlock(nn.Module):
    """One Conformer block; arguments as those of `ConformerEncoder`."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ff_dim: int,
        kernel_size: int,
        position: Position = "rope",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        conv_norm: ConvNorm = "layer",
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.ff1 = FeedForward(dim=dim, ff_dim=ff_dim, dropout=dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim=dim, num_heads=num_heads, position=position, dropout=attention_dropout)
        self.conv = ConvModule(dim=dim, kernel_size=kernel_size, norm=conv_norm, causal=causal, dropout=dropout)
        self.ff2 = FeedForward(dim=dim, ff_dim=ff_dim, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, valid_BT: Tensor | None = None, visible: Visibility | None = None, table: PositionTable = None
    ) -> Tensor:
        """Maps (B, T, D) to (B, T, D).

        Args:
            x_BTD: frames.
            valid_BT: valid frames, bool; None when all are.
            visible: which frames each frame sees, see `SelfAttention`.
            table: positions, see `SelfAttention`.
        """
        x_BTD = torch.add(x_BTD, self.ff1(x_BTD), alpha=0.5)
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), visible, table))
        x_BTD = x_BTD + self.conv(x_BTD, valid_BT)
        return self.norm(torch.add(x_BTD, self.ff2(x_BTD), alpha=0.5))


class ConformerEncoder(nn.Module):
    """Subsampling and a stack of Conformer blocks.

    Args:
        input_dim: F, width of the features.
        dim: D.
        num_layers: blocks.
        num_heads: attention heads.
        ff_dim: hidden width of the feed-forward layers.
        kernel_size: frames under the depthwise convolution.
        subsampling: "conv2d4" (Conformer), "dw4" or "dw8" (Fast Conformer).
        subsampling_channels: channels of the subsampling convolutions; None for `dim`.
        position: "rope", "relative", "absolute" or "none".
        dropout: rate in training on features, hidden layers and residual branches.
        attention_dropout: rate on the attention weights in training; above 0 the T x T weights are kept in memory.
        layer_drop: chance in training that a block is skipped, drawn per block and utterance. Skipped blocks are
            computed all the same: every parameter has a gradient on every rank at every step.
        conv_norm: norm after the depthwise convolution: "layer", or "batch" (statistics over valid frames).
        chunk_size: output frames per chunk for limited context; None for full context. With chunks the depthwise
            convolution is causal.
        left_chunks: chunks of context to the left; None for all. Only with `chunk_size`.
        attention_reach: output frames that attention sees on either side; None for all. What is said far away then
            changes nothing: a passage reads the same cut out or within its recording, but for its edges.

    Attributes:
        subsampling_factor: input frames per output frame.
        output_dim: D.

    Raises:
        ValueError: a size or a choice is not possible; the message names it.
    """

    def __init__(
        self,
        *,
        input_dim: int = 80,
        dim: int = 256,
        num_layers: int = 12,
        num_heads: int = 4,
        ff_dim: int = 1024,
        kernel_size: int = 31,
        subsampling: Subsampling = "conv2d4",
        subsampling_channels: int | None = None,
        position: Position = "rope",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        layer_drop: float = 0.0,
        conv_norm: ConvNorm = "layer",
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        attention_reach: int | None = None,
    ) -> None:
        super().__init__()
        if attention_reach is not None and (chunk_size is not None or attention_reach < 0):
            raise ValueError(f"attention_reach={attention_reach} must not be negative, and has no place beside chunk_size")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be at least 1; use null for full context")
        if left_chunks is not None and (chunk_size is None or left_chunks < 0):
            raise ValueError(f"left_chunks={left_chunks} needs chunk_size to be set, and must not be negative")
        if not 0.0 <= layer_drop < 1.0:
            raise ValueError(f"layer_drop={layer_drop} must be in [0, 1)")
        self.position, self.num_heads, self.layer_drop = position, num_heads, layer_drop
        self.chunk_size, self.left_chunks, self.attention_reach = chunk_size, left_chunks, attention_reach
        self.subsampling = ConvSubsampling(input_dim=input_dim, dim=dim, kind=subsampling, channels=subsampling_channels)
        self.subsampling_factor, self.output_dim = self.subsampling.factor, dim
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            ConformerBlock(
                dim=dim,
                num_heads=num_heads,
                ff_dim=ff_dim,
                kernel_size=kernel_size,
                position=position,
                dropout=dropout,
                attention_dropout=attention_dropout,
                conv_norm=conv_norm,
                causal=chunk_size is not None,
            )
            for _ in range(num_layers)
        )

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Output frames for so many input frames: ceil(lens / subsampling_factor)."""
        return self.subsampling.output_lengths(lens_B)

    def forward(
        self, feats_BTF: Tensor, feat_lens_B: Tensor, *, tap: Tap | None = None, prefix_BPD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encodes.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            tap: called after every layer as tap(layer, x_BTD, lens_B), layers counted from 1; its result replaces x.
            prefix_BPD: P frames that stand before those of the audio in all layers, shape (B, P, D); None for none.

        Returns:
            frames of shape (B, P + ceil(T / subsampling_factor), D), zero past each length, and their lengths (B,), in
            which the prefix counts.
        """
        x_BTD, lens_B = self.subsampling(feats_BTF, feat_lens_B)
        num_prefix = 0 if prefix_BPD is None else prefix_BPD.shape[1]
        if prefix_BPD is not None:
            x_BTD, lens_B = torch.cat((prefix_BPD.to(x_BTD.dtype), x_BTD), dim=1), lens_B + num_prefix
        frames, device = x_BTD.shape[1], x_BTD.device
        if self.position == "absolute":
            positions = sinusoids(torch.arange(frames, device=device), self.output_dim)
            x_BTD = x_BTD * math.sqrt(self.output_dim) + positions.to(x_BTD.dtype)
        x_BTD = self.dropout(x_BTD)
        valid_BT = padding_mask(lens_B, frames)
        hidden_lens_B = None if valid_BT is None else lens_B
        visible = Visibility(
            lens_B=hidden_lens_B,
            query_lens_B=hidden_lens_B,
            chunk_size=self.chunk_size,
            left_chunks=self.left_chunks,
            reach=self.attention_reach,
            num_global=num_prefix,
        )
        table = position_table(self.position, frames, dim=self.output_dim, num_heads=self.num_heads, device=device)
        for i, layer in enumerate(self.layers, start=1):
            y_BTD = layer(x_BTD, valid_BT, visible, table)
            if self.training and self.layer_drop:
                kept_B = torch.rand(len(lens_B), device=device) >= self.layer_drop
                y_BTD = torch.where(kept_B[:, None, None], y_BTD, x_BTD)
            x_BTD = y_BTD if tap is None else tap(i, y_BTD, lens_B)
        return (x_BTD if valid_BT is None else x_BTD.masked_fill(~valid_BT[..., None], 0.0)), lens_B

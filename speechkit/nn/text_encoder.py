"""A Transformer over text that other networks attend to, and the layer by which they do.

Pre-norm layers (Vaswani et al. 2017, section 3.1; pre-norm, Xiong et al. 2020).

Shape legend: B batch, U tokens, T frames, D model, V vocab.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.kernels.attention import Visibility
from speechkit.nn.attention import SelfAttention
from speechkit.nn.decoder import CrossAttention
from speechkit.nn.dropout import Dropout
from speechkit.nn.feed_forward import FeedForward
from speechkit.nn.masks import hide_padding
from speechkit.nn.positional import sinusoids


class EncodedText(NamedTuple):
    """Text ready to be attended to.

    Attributes:
        x_BUD: one vector per token, shape (B, U, D).
        visible: which tokens a frame sees; None for all.
    """

    x_BUD: Tensor
    visible: Visibility | None


class TextEncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a layer norm and a residual; arguments as those of `TextEncoder`."""

    def __init__(self, *, dim: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim=dim, num_heads=num_heads, position="none")
        self.feed_forward = FeedForward(dim=dim, ff_dim=ff_dim, dropout=dropout, activation="relu")
        self.dropout = Dropout(dropout)

    def forward(self, x_BUD: Tensor, visible: Visibility | None) -> Tensor:
        """Maps (B, U, D) to (B, U, D); `visible` as in `SelfAttention`."""
        x_BUD = x_BUD + self.dropout(self.attention(self.attention_norm(x_BUD), visible))
        return x_BUD + self.feed_forward(x_BUD)


class TextEncoder(nn.Module):
    """Embedding, sinusoidal positions and a stack of layers.

    Args:
        vocab_size: V.
        dim: D.
        num_layers: layers.
        num_heads: attention heads; must divide `dim`.
        ff_dim: hidden width of the feed-forward layers.
        dropout: rate in training on embeddings, hidden layers and residual branches.
    """

    def __init__(self, *, vocab_size: int, dim: int, num_layers: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TextEncoderLayer(dim=dim, num_heads=num_heads, ff_dim=ff_dim, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens_BU: Tensor, token_lens_B: Tensor) -> EncodedText:
        """Encodes.

        Args:
            tokens_BU: token ids, anything past each length, int64, shape (B, U) with U at least 1.
            token_lens_B: valid tokens of each row, int64, shape (B,).
        """
        num_tokens = tokens_BU.shape[1]
        visible = hide_padding(token_lens_B, num_tokens, of_queries=True)
        positions_UD = sinusoids(torch.arange(num_tokens, device=tokens_BU.device), self.dim)
        x_BUD = self.embedding(tokens_BU) * math.sqrt(self.dim)
        x_BUD = self.dropout(x_BUD + positions_UD.to(x_BUD.dtype))
        for layer in self.layers:
            x_BUD = layer(x_BUD, visible)
        return EncodedText(self.norm(x_BUD), None if visible is None else Visibility(lens_B=token_lens_B))


class TextAttention(nn.Module):
    """Adds to frames what they find in a text: layer norm, cross-attention, dropout, residual.

    Args:
        dim: D of the frames.
        num_heads: attention heads; must divide `dim`.
        text_dim: width of the encoded text.
        dropout: rate in training.
    """

    def __init__(self, *, dim: int, num_heads: int, text_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim=dim, num_heads=num_heads, source_dim=text_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, text: EncodedText) -> Tensor:
        """Maps frames (B, T, D) to (B, T, D)."""
        keys, values = self.attention.keys_values(text.x_BUD)
        return x_BTD + self.dropout(self.attention(self.norm(x_BTD), keys, values, text.visible))

"""What the networks of both models are made of: Transformer layers, embeddings of the voice, scores for CTC.

Padding is read as zeros by every convolution and by no attention, and norms are taken frame by frame: a row is its own,
whatever its padding and its mates.

Shape legend: B batch, T frames (or phones), D model, I input channels, V vocab.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.kernels.attention import Visibility
from speechkit.nn.attention import PositionTable, SelfAttention
from speechkit.nn.dropout import Dropout
from speechkit.nn.frame_conv import FrameConv
from speechkit.nn.masks import padding_mask


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward layer of two convolutions, each behind a layer norm and a residual.

    Args:
        dim: D.
        num_heads: attention heads; must divide `dim`.
        ff_dim: channels between the convolutions.
        kernel_size: frames under each convolution, odd.
        rope: rotary positions; none otherwise.
        dropout: rate in training.
    """

    def __init__(self, *, dim: int, num_heads: int, ff_dim: int, kernel_size: int, rope: bool, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.ff_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SelfAttention(dim=dim, num_heads=num_heads, position="rope" if rope else "none")
        self.up = FrameConv(in_dim=dim, out_dim=ff_dim, kernel_size=kernel_size)
        self.down = FrameConv(in_dim=ff_dim, out_dim=dim, kernel_size=kernel_size)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None, visible: Visibility | None, table: PositionTable) -> Tensor:
        """Maps (B, T, D) to (B, T, D); `visible` and `table` as in `SelfAttention`."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), visible, table))
        hidden = self.dropout(F.gelu(self.up(self.ff_norm(x_BTD), valid_BT)))
        return x_BTD + self.dropout(self.down(hidden, valid_BT))


class VoiceEmbedding(nn.Module):
    """One vector of who speaks and in which language; there are only tables with more than one entry.

    Args:
        dim: D.
        num_speakers: speakers.
        num_languages: languages.
    """

    def __init__(self, *, dim: int, num_speakers: int, num_languages: int) -> None:
        super().__init__()
        self.speakers = nn.Embedding(num_speakers, dim) if num_speakers > 1 else None
        self.languages = nn.Embedding(num_languages, dim) if num_languages > 1 else None
        for table in (self.speakers, self.languages):
            if table is not None:
                nn.init.normal_(table.weight, std=dim**-0.5)

    def forward(self, speakers_B: Tensor, languages_B: Tensor) -> Tensor | None:
        """Numbers of speakers and of languages, int64, shape (B,) each, to (B, D); None for one voice in one language."""
        pairs = ((self.speakers, speakers_B), (self.languages, languages_B))
        found = [table(numbers_B) for table, numbers_B in pairs if table is not None]
        return torch.stack(found).sum(0) if found else None


class CtcHead(nn.Module):
    """Scores of phones at each frame: two convolutions with GELU and layer norm, and a linear layer.

    Args:
        in_dim: I, channels of the features.
        dim: D, inside.
        vocab_size: V.
    """

    def __init__(self, *, in_dim: int, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(FrameConv(in_dim=d, out_dim=dim, kernel_size=5) for d in (in_dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.out = nn.Linear(dim, vocab_size)

    def forward(self, x_BTI: Tensor, lens_B: Tensor) -> Tensor:
        """Features (B, T, I), T at least 1, and their lengths (B,) to scores before the softmax, (B, T, V)."""
        valid_BT = padding_mask(lens_B, x_BTI.shape[1])
        for conv, norm in zip(self.convs, self.norms):
            x_BTI = norm(F.gelu(conv(x_BTI, valid_BT)))
        return self.out(x_BTI)

"""Encoders of phones: a Transformer for the aligned model, convolutions for the infilling one.

Sources: Mehta et al. 2024, "Matcha-TTS", section 3.1 (the encoder of Glow-TTS with rotary positions); Chen et al. 2024, "F5-TTS",
section 3.2 (ConvNeXt blocks over embedded text).

Shape legend: B batch, P phones, D model, V vocab.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechkit.models.flow.layers import TransformerLayer
from speechkit.nn.attention import position_table
from speechkit.nn.convnext import ConvNextBlock
from speechkit.nn.dropout import Dropout
from speechkit.nn.frame_conv import FrameConv, silence
from speechkit.nn.masks import hide_padding, padding_mask
from speechkit.nn.positional import sinusoids


class PhoneTransformer(nn.Module):
    """Embedding, three convolutions with a residual around them, Transformer layers with rotary positions, layer norm.

    Args:
        vocab_size: V.
        dim: D.
        num_layers: Transformer layers.
        num_heads: attention heads; must divide `dim`.
        ff_dim: channels inside the feed-forward layers.
        kernel_size: frames under the convolutions of the feed-forward layers.
        prenet_kernel: frames under the three convolutions.
        dropout: rate in training.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ff_dim: int,
        kernel_size: int = 3,
        prenet_kernel: int = 5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.prenet = nn.ModuleList(FrameConv(in_dim=dim, out_dim=dim, kernel_size=prenet_kernel) for _ in range(3))
        self.prenet_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.prenet_out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim=dim, num_heads=num_heads, ff_dim=ff_dim, kernel_size=kernel_size, rope=True, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, phones_BP: Tensor, phone_lens_B: Tensor, voice_BD: Tensor | None = None) -> Tensor:
        """Encodes.

        Args:
            phones_BP: ids, anything valid past each length, int64, shape (B, P) with P at least 1.
            phone_lens_B: valid phones of each row, int64, shape (B,).
            voice_BD: who speaks, added ahead of the Transformer, shape (B, D); None for one voice.

        Returns:
            shape (B, P, D); what lies past a length holds nothing of use.
        """
        num_phones = phones_BP.shape[1]
        valid_BP = padding_mask(phone_lens_B, num_phones)
        visible = hide_padding(phone_lens_B, num_phones, of_queries=True)
        table = position_table("rope", num_phones, dim=self.dim, num_heads=self.num_heads, device=phones_BP.device)
        x_BPD = self.embedding(phones_BP) * math.sqrt(self.dim)
        hidden_BPD = x_BPD
        for conv, norm in zip(self.prenet, self.prenet_norms):
            hidden_BPD = self.dropout(norm(conv(hidden_BPD, valid_BP)).relu())
        x_BPD = x_BPD + self.prenet_out(hidden_BPD)
        if voice_BD is not None:
            x_BPD = x_BPD + voice_BD[:, None]
        for layer in self.layers:
            x_BPD = layer(x_BPD, valid_BP, visible, table)
        return self.norm(x_BPD)


class PhoneConvNet(nn.Module):
    """Embedding, sinusoidal positions and ConvNeXt blocks.

    Args:
        vocab_size: V.
        dim: D.
        num_layers: blocks.
        ff_mult: width inside the blocks, in multiples of `dim`.
    """

    def __init__(self, *, vocab_size: int, dim: int, num_layers: int, ff_mult: int = 2) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(ConvNextBlock(dim=dim, intermediate_dim=ff_mult * dim) for _ in range(num_layers))

    def forward(self, phones_BP: Tensor, phone_lens_B: Tensor) -> Tensor:
        """Encodes; arguments and result as those of `PhoneTransformer.forward`, and 0 past each length."""
        num_phones = phones_BP.shape[1]
        valid_BP = padding_mask(phone_lens_B, num_phones)
        x_BPD = self.embedding(phones_BP)
        x_BPD = x_BPD + sinusoids(torch.arange(num_phones, device=phones_BP.device), self.dim).to(x_BPD.dtype)
        for block in self.blocks:
            x_BPD = block(x_BPD, valid_BP)
        return silence(x_BPD, valid_BP)

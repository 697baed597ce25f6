"""Feed-forward Transformer blocks, predictors by phone, and PostNet.

Shape legend: B batch, T frames or phones, D model, F mel bins, C channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.kernels.attention import Visibility
from speechkit.nn.attention import SelfAttention
from speechkit.nn.dropout import Dropout
from speechkit.nn.frame_conv import FrameConv
from speechkit.nn.masks import hide_padding, padding_mask
from speechkit.nn.norm import MaskedBatchNorm
from speechkit.nn.positional import sinusoids


class FeedForwardBlock(nn.Module):
    """Self-attention, then two convolutions over time, each behind a layer norm and a residual.

    Args:
        dim: D.
        num_heads: attention heads; must divide `dim`.
        filter_dim: channels between the convolutions.
        kernel_sizes: of the two convolutions.
        dropout: rate in training.
    """

    def __init__(self, *, dim: int, num_heads: int, filter_dim: int, kernel_sizes: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.conv_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SelfAttention(dim=dim, num_heads=num_heads, position="none")
        self.up = FrameConv(in_dim=dim, out_dim=filter_dim, kernel_size=kernel_sizes[0])
        self.down = FrameConv(in_dim=filter_dim, out_dim=dim, kernel_size=kernel_sizes[1])
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, visible: Visibility | None, valid_BT: Tensor | None) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), visible))
        hidden_BTC = functional.relu(self.up(self.conv_norm(x_BTD), valid_BT))
        return x_BTD + self.dropout(self.down(hidden_BTC, valid_BT))


class FeedForwardTransformer(nn.Module):
    """Sinusoidal positions and a stack of blocks, with a layer norm at the end.

    Args:
        dim: D.
        num_layers: blocks.
        num_heads: attention heads; must divide `dim`.
        filter_dim: channels between the convolutions of a block.
        kernel_sizes: of the two convolutions.
        dropout: rate in training.
    """

    def __init__(
        self, *, dim: int, num_layers: int, num_heads: int, filter_dim: int, kernel_sizes: tuple[int, int], dropout: float
    ) -> None:
        super().__init__()
        self.dim = dim
        sizes = {"dim": dim, "num_heads": num_heads, "filter_dim": filter_dim}
        self.layers = nn.ModuleList(
            FeedForwardBlock(**sizes, kernel_sizes=kernel_sizes, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, lens_B: Tensor) -> Tensor:
        """Encodes.

        Args:
            x_BTD: shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            shape (B, T, D); past a row's length anything finite.
        """
        num_frames = x_BTD.shape[1]
        if num_frames == 0:
            return x_BTD
        valid_BT, visible = padding_mask(lens_B, num_frames), hide_padding(lens_B, num_frames, of_queries=True)
        positions_TD = sinusoids(torch.arange(num_frames, device=x_BTD.device), self.dim)
        x_BTD = self.dropout(x_BTD + positions_TD.to(x_BTD.dtype))
        for layer in self.layers:
            x_BTD = layer(x_BTD, visible, valid_BT)
        return self.norm(x_BTD)


class VariancePredictor(nn.Module):
    """One number per phone: two convolutions, each with ReLU, layer norm and dropout, then a linear layer.

    Args:
        dim: D.
        hidden_dim: channels of the convolutions.
        kernel_size: of the convolutions.
        dropout: rate in training.
    """

    def __init__(self, *, dim: int, hidden_dim: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        dims = (dim, hidden_dim)
        self.convs = nn.ModuleList(FrameConv(in_dim=d, out_dim=hidden_dim, kernel_size=kernel_size) for d in dims)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in dims)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(hidden_dim, 1)

    def forward(self, x_BPD: Tensor, valid_BP: Tensor | None) -> Tensor:
        """Maps (B, P, D) to (B, P); what lies past a row's phones is anything."""
        if x_BPD.shape[1] == 0:
            return x_BPD.new_zeros(x_BPD.shape[:2])
        for conv, norm in zip(self.convs, self.norms):
            x_BPD = self.dropout(norm(functional.relu(conv(x_BPD, valid_BP))))
        return self.out(x_BPD).squeeze(2)


class BinnedEmbedding(nn.Module):
    """An embedding of a number by the bin that it falls into; the first and the last bin have no end.

    Args:
        dim: D.
        num_bins: bins.
        limit: bins lie evenly in [-limit, limit], in deviations of the normalised value.
    """

    edges: Tensor

    def __init__(self, *, dim: int, num_bins: int = 256, limit: float = 4.0) -> None:
        super().__init__()
        self.register_buffer("edges", torch.linspace(-limit, limit, num_bins - 1), persistent=False)
        self.embedding = nn.Embedding(num_bins, dim)

    def forward(self, values_BP: Tensor) -> Tensor:
        """Maps (B, P) to (B, P, D)."""
        return self.embedding(torch.bucketize(values_BP.float(), self.edges))


class PostNet(nn.Module):
    """A residual for the mel: convolutions of 5 frames with batch norm, tanh between them (Shen et al. 2018, section 2.2).

    Args:
        num_mels: F.
        dim: channels between.
        num_layers: convolutions.
        dropout: rate in training.
    """

    def __init__(self, *, num_mels: int, dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        dims = [num_mels, *[dim] * (num_layers - 1), num_mels]
        pairs = list(pairwise(dims))
        self.convs = nn.ModuleList(FrameConv(in_dim=first, out_dim=second, kernel_size=5) for first, second in pairs)
        self.norms = nn.ModuleList(MaskedBatchNorm(dim=second) for _, second in pairs)
        self.dropout = Dropout(dropout)

    def forward(self, mel_BTF: Tensor, valid_BT: Tensor | None) -> Tensor:
        """Maps (B, T, F) to the residual, (B, T, F)."""
        x_BTC = mel_BTF
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x_BTC = norm(conv(x_BTC, valid_BT), valid_BT)
            x_BTC = self.dropout(x_BTC if place + 1 == len(self.convs) else torch.tanh(x_BTC))
        return x_BTC

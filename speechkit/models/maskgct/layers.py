"""What both networks are made of: a Transformer that knows the time, the voice, and the filter of Learn2PD.

Shape legend: B batch, T places, D model, H heads, V vocab.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.kernels.attention import Visibility
from speechkit.nn.adaptive_norm import AdaptiveNorm
from speechkit.nn.attention import PositionTable, SelfAttention, position_table
from speechkit.nn.dropout import Dropout
from speechkit.nn.masks import hide_padding
from speechkit.nn.time_embedding import TimeEmbedding

UNKNOWN = -1  # speaker or language of rows that are not conditioned on it
FILTER_DIM = 64


class MaskedTransformerLayer(nn.Module):
    """Self-attention and a gated feed-forward layer, each behind an adaptive norm; arguments as those of `MaskedTransformer`."""

    def __init__(self, *, dim: int, num_heads: int, ff_dim: int, time_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = AdaptiveNorm(dim=dim, condition_dim=time_dim)
        self.attention = SelfAttention(dim=dim, num_heads=num_heads, position="rope")
        self.ff_norm = AdaptiveNorm(dim=dim, condition_dim=time_dim)
        self.gate_up, self.down = nn.Linear(dim, 2 * ff_dim), nn.Linear(ff_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, time_BC: Tensor, visible: Visibility | None, table: PositionTable) -> Tensor:
        """Maps (B, T, D) to (B, T, D); `visible` and `table` as in `SelfAttention`."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD, time_BC), visible, table))
        gate, up = self.gate_up(self.ff_norm(x_BTD, time_BC)).chunk(2, dim=2)
        return x_BTD + self.dropout(self.down(self.dropout(F.silu(gate) * up)))


class MaskedTransformer(nn.Module):
    """A Transformer that sees the whole row: rotary positions, gated feed-forward layers, norms that depend on the time.

    Source: Wang et al. 2024, "MaskGCT", section 3.2.2: a bidirectional Llama with norms adapted to the time step. There it
    scales a root-mean-square norm; here, as in a DiT, it scales and shifts a layer norm.

    Args:
        dim: D.
        num_layers: layers.
        num_heads: H; must divide `dim`.
        ff_dim: hidden width of the feed-forward layers.
        time_dim: channels of the time that the norms read.
        dropout: rate in training on embeddings, hidden layers and residual branches.
    """

    def __init__(
        self, *, dim: int, num_layers: int, num_heads: int, ff_dim: int, time_dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.time = TimeEmbedding(dim=time_dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            MaskedTransformerLayer(dim=dim, num_heads=num_heads, ff_dim=ff_dim, time_dim=time_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = AdaptiveNorm(dim=dim, condition_dim=time_dim)

    def forward(self, x_BTD: Tensor, lens_B: Tensor, t_B: Tensor) -> Tensor:
        """Hidden states.

        Args:
            x_BTD: embedded tokens, shape (B, T, D).
            lens_B: valid places of each row, int64, shape (B,).
            t_B: time of each row in [0, 1], shape (B,).

        Returns:
            normalised, shape (B, T, D); past a row's length anything finite.
        """
        num_places = x_BTD.shape[1]
        if not num_places:
            return x_BTD
        visible = hide_padding(lens_B, num_places, of_queries=True)
        table = position_table("rope", num_places, dim=self.dim, num_heads=self.num_heads, device=x_BTD.device)
        time_BC = F.silu(self.time(t_B))
        x_BTD = self.dropout(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, time_BC, visible, table)
        return self.norm(x_BTD, time_BC)


class Voice(nn.Module):
    """Adds to a row who speaks, and in which language, where there is more than one of these.

    Args:
        num_speakers: above 1 for an embedding of them.
        num_languages: likewise.
        dim: D.
    """

    def __init__(self, *, num_speakers: int, num_languages: int, dim: int) -> None:
        super().__init__()
        self.speakers = nn.Embedding(num_speakers + 1, dim) if num_speakers > 1 else None
        self.languages = nn.Embedding(num_languages + 1, dim) if num_languages > 1 else None

    def forward(self, x_BTD: Tensor, speakers_B: Tensor, languages_B: Tensor) -> Tensor:
        """Adds the vectors of each row, of which `UNKNOWN` has its own, to (B, T, D)."""
        for embedding, numbers_B in ((self.speakers, speakers_B), (self.languages, languages_B)):
            if embedding is not None:
                x_BTD = x_BTD + embedding(numbers_B + 1)[:, None]
        return x_BTD


class FinishFilter(nn.Module):
    """Tells which best tokens are final already, from the hidden state and the two best probabilities; a small network.

    Source: Bao et al. 2025, "Learning to Parallel" (Learn2PD). It looks on: the network before it gets no gradient from it.

    Args:
        dim: D.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim + 2, FILTER_DIM), nn.GELU(), nn.Linear(FILTER_DIM, 1))

    def forward(self, x_BTD: Tensor, logits_BTV: Tensor) -> Tensor:
        """What the filter says before the sigmoid, shape (B, T).

        Args:
            x_BTD: hidden states, shape (B, T, D).
            logits_BTV: scores made of them, V at least 2, shape (B, T, V).
        """
        best_BT2 = logits_BTV.detach().float().log_softmax(2).topk(2, dim=2).values
        return self.layers(torch.cat((x_BTD.detach(), best_BT2.to(x_BTD.dtype)), dim=2))[..., 0]

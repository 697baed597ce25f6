"""Multi-head self-attention over frames, with the positions of a Conformer.

Rotary positions (Su et al. 2021) turn queries and keys. Relative positions (Dai et al. 2019, section 3.3) score
(q + u) k + (q + v) W r(i - j). What computes them is `speechkit.kernels.attention`.

Shape legend: B batch, T frames, D model, H heads, K head dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from speechkit.kernels.attention import RelativePositions, Visibility, attention
from speechkit.nn.positional import relative_sinusoids, rotary_table

Position = Literal["rope", "relative", "absolute", "none"]
PositionTable = Tensor | tuple[Tensor, Tensor] | None


def position_table(position: Position, num_frames: int, *, dim: int, num_heads: int, device: torch.device) -> PositionTable:
    """What `SelfAttention.forward` needs to know about positions; one table serves all layers.

    Args:
        position: as in `SelfAttention`.
        num_frames: T.
        dim: D.
        num_heads: H.
        device: where the table lives.

    Returns:
        cosines and sines for "rope", sinusoids of all distances for "relative", else None.
    """
    if position == "rope":
        return rotary_table(num_frames, dim // num_heads, device)
    return relative_sinusoids(num_frames, dim, device) if position == "relative" else None


class SelfAttention(nn.Module):
    """Self-attention.

    Args:
        dim: D.
        num_heads: H; must divide `dim`.
        position: how a layer sees distances: "rope", "relative", or "none" ("absolute" is added to the input instead).
        dropout: rate on the attention weights in training.

    Raises:
        ValueError: `num_heads` does not divide `dim` as the positions need it, or `position` is unknown.
    """

    def __init__(self, *, dim: int, num_heads: int, position: Position = "rope", dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim}")
        if position not in ("rope", "relative", "absolute", "none"):
            raise ValueError(f"position={position!r} is unknown; choose rope, relative, absolute or none")
        if position == "rope" and dim // num_heads % 2:
            raise ValueError(f"dim={dim} / num_heads={num_heads} must be even for position=rope")
        self.num_heads, self.head_dim, self.position, self.dropout = num_heads, dim // num_heads, position, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        if position == "relative":
            self.distance = nn.Linear(dim, dim, bias=False)
            self.u_HK = nn.Parameter(torch.zeros(num_heads, self.head_dim))
            self.v_HK = nn.Parameter(torch.zeros(num_heads, self.head_dim))

    def forward(self, x_BTD: Tensor, visible: Visibility | None = None, table: PositionTable = None) -> Tensor:
        """Attends.

        Args:
            x_BTD: shape (B, T, D).
            visible: which frames each frame sees; None for all.
            table: from `position_table`.

        Returns:
            shape (B, T, D); past `visible.query_lens_B` anything finite.
        """
        qkv = self.qkv(x_BTD).unflatten(-1, (3 * self.num_heads, self.head_dim))
        q, k, v = qkv.chunk(3, dim=2)
        rope, relative = None, None
        if self.position == "rope":
            assert isinstance(table, tuple)
            rope = table
        elif self.position == "relative":
            assert isinstance(table, Tensor)
            r_RHK = self.distance(table.to(q.dtype)).unflatten(-1, (self.num_heads, self.head_dim))
            relative = RelativePositions(r_RHK, self.u_HK, self.v_HK)
        dropout = self.dropout if self.training else 0.0
        out_BTHK = attention(q, k, v, visible=visible, rope=rope, relative=relative, dropout=dropout)
        return self.out(out_BTHK.flatten(2))

"""Multi-head self-attention over frames, with the positions of a Conformer.

Rotary positions (Su et al. 2021) turn queries and keys and leave the attention kernel as it is. Relative positions
(Dai et al. 2019, section 3.3) score (q + u) k + (q + v) W r(i - j); the second term goes to the kernel as a bias.

Shape legend: B batch, T frames, D model, H heads, K head dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.positional import apply_rotary, relative_shift, relative_sinusoids, rotary_table

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

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None, table: PositionTable = None) -> Tensor:
        """Attends.

        Args:
            x_BTD: shape (B, T, D).
            mask: bool, broadcastable to (B, 1, T, T), True where a query may see a key; None for everywhere.
            table: from `position_table`.

        Returns:
            shape (B, T, D).
        """
        qkv = self.qkv(x_BTD).unflatten(-1, (3 * self.num_heads, self.head_dim))
        bias = mask
        if self.position == "rope":
            assert isinstance(table, tuple)
            qk, v = qkv.split((2 * self.num_heads, self.num_heads), dim=2)
            q, k = apply_rotary(qk, table).chunk(2, dim=2)
        else:
            q, k, v = qkv.chunk(3, dim=2)
        if self.position == "relative":
            assert isinstance(table, Tensor)
            bias = self._relative_bias(q + self.v_HK.to(q.dtype), table, mask)
            q = q + self.u_HK.to(q.dtype)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(out.transpose(1, 2).flatten(2))

    def _relative_bias(self, q_BTHK: Tensor, table_RD: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of queries against distances, scaled as the kernel scales its own, -inf where masked; (B, H, T, T)."""
        r_RHK = self.distance(table_RD.to(q_BTHK.dtype)).unflatten(-1, (self.num_heads, self.head_dim))
        q_BHTK = (q_BTHK * self.head_dim**-0.5).transpose(1, 2)
        bias_BHTT = relative_shift(q_BHTK @ r_RHK.permute(1, 2, 0))
        if mask is None:
            return bias_BHTT
        return bias_BHTT + torch.zeros_like(mask, dtype=bias_BHTT.dtype).masked_fill(~mask, float("-inf"))

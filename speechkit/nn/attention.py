"""Multi-head self-attention over frames, with the positions of a Conformer.

Rotary positions (Su et al. 2021) turn queries and keys and leave the attention kernel as it is. Relative positions
(Dai et al. 2019, section 3.3) score (q + u) k + (q + v) W r(i - j); the second term goes to the kernel as a bias.

Shape legend: B batch, T frames, J new positions, L room in a cache, M positions held, D model, H heads, K head dimension.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

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


class Places(NamedTuple):
    """Where J new positions belong in caches of what came before.

    Attributes:
        first: the first new one in every row, if rows hold equally many; else anything.
        held: positions that the longest row holds with the new ones, M.
        index_BJ: each new one, int64, shape (B, J); None if rows hold equally many.
        mask: bool, broadcastable to (B, 1, J, M), True where a new one may see a cached one; None for everywhere.
    """

    first: int
    held: int
    index_BJ: Tensor | None
    mask: Tensor | None

    @classmethod
    def after(cls, lens_B: Tensor, num_new: int) -> Places:
        """Behind `lens_B` positions that each row holds, int64, shape (B,). Waits for the device."""
        lens = lens_B.tolist()
        first, held, device = min(lens), max(lens) + num_new, lens_B.device
        if first + num_new == held:  # rows of equal length, the usual case, need no scattered writing, and one token no mask
            mask = torch.ones(num_new, held, dtype=torch.bool, device=device).tril(first) if num_new > 1 else None
            return cls(first, held, None, mask)
        index_BJ = lens_B[:, None] + torch.arange(num_new, device=device)
        return cls(first, held, index_BJ, (torch.arange(held, device=device) <= index_BJ[..., None])[:, None])


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

    def extend(self, x_BJD: Tensor, memory_NBHLK: Tensor, places: Places) -> Tensor:
        """Attends from J new positions to all so far, whose keys and values are cached; for position "none" only.

        Args:
            x_BJD: new positions, shape (B, J, D).
            memory_NBHLK: keys and values with room for L positions, shape (2, B, H, L, K); those of the new ones are written
                into it.
            places: where the new ones belong.

        Returns:
            shape (B, J, D).
        """
        assert self.position == "none", self.position
        qkv_NBHJK = self.qkv(x_BJD).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        new_NBHJK = qkv_NBHJK[1:]
        if places.index_BJ is None:
            memory_NBHLK[:, :, :, places.first : places.held] = new_NBHJK
        else:
            memory_NBHLK.scatter_(3, places.index_BJ[:, None, :, None].expand_as(new_NBHJK), new_NBHJK)
        key_BHMK, value_BHMK = memory_NBHLK[:, :, :, : places.held].unbind(0)
        out = F.scaled_dot_product_attention(qkv_NBHJK[0], key_BHMK, value_BHMK, attn_mask=places.mask)
        return self.out(out.transpose(1, 2).flatten(2))

    def _relative_bias(self, q_BTHK: Tensor, table_RD: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of queries against distances, scaled as the kernel scales its own, -inf where masked; (B, H, T, T)."""
        r_RHK = self.distance(table_RD.to(q_BTHK.dtype)).unflatten(-1, (self.num_heads, self.head_dim))
        q_BHTK = (q_BTHK * self.head_dim**-0.5).transpose(1, 2)
        bias_BHTT = relative_shift(q_BHTK @ r_RHK.permute(1, 2, 0))
        if mask is None:
            return bias_BHTT
        return bias_BHTT + torch.zeros_like(mask, dtype=bias_BHTT.dtype).masked_fill(~mask, float("-inf"))

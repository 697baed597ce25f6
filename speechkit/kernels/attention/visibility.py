"""Which keys a query sees, in closed form where there is one: kernels skip what is hidden, others get a mask.

Shape legend: B batch, T queries, S keys; T = S in self-attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Visibility:
    """Which keys each query sees; one object serves all layers that see alike.

    No query is left without a key, which would make its softmax undefined: queries see themselves (where context is limited)
    or the first key (where it is not) even when these lie past the length. Both choices change nothing for valid frames.

    Attributes:
        lens_B: valid keys of each row, int64, shape (B,); None when all are.
        query_lens_B: queries of each row whose result is of use, int64, shape (B,); None when all are. Kernels do not compute
            the others.
        causal: a query sees no key that follows it.
        chunk_size: query i sees key j when 0 <= chunk(i) - chunk(j) <= left_chunks; None for no chunks.
        left_chunks: chunks seen to the left of one's own; None for all of them.
        reach: query i sees key j when |i - j| <= reach (Beltagy et al. 2020, Longformer, section 3.1); None for all.
        num_global: with `reach`: first frames that see all others and are seen by all.
        mask: bool, broadcastable to (B, 1, T, S), True where a query may see a key, at least one for each; for what has no
            closed form, with none of the above but `query_lens_B`.

    Raises:
        ValueError: attributes that exclude one another, or a number out of range.
    """

    lens_B: Tensor | None = None
    query_lens_B: Tensor | None = None
    causal: bool = False
    chunk_size: int | None = None
    left_chunks: int | None = None
    reach: int | None = None
    num_global: int = 0
    mask: Tensor | None = None
    _kept: dict[int, Tensor] = field(default_factory=dict, repr=False)  # the mask made of the rest, by number of keys

    def __post_init__(self) -> None:
        limits = {"causal": self.causal, "chunk_size": self.chunk_size is not None, "reach": self.reach is not None}
        limited = [name for name, given in limits.items() if given]
        if len(limited) > 1:
            raise ValueError(f"{' and '.join(limited)} exclude one another; give one of them")
        if self.mask is not None and (limited or self.lens_B is not None):
            raise ValueError("mask stands alone: put what lens_B, causal, chunk_size or reach hide into it")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1; use None for no chunks")
        if self.left_chunks is not None and (self.chunk_size is None or self.left_chunks < 0):
            raise ValueError(f"left_chunks={self.left_chunks} needs chunk_size, and must not be negative")
        if min(self.num_global, self.reach or 0) < 0:
            raise ValueError(f"reach={self.reach} and num_global={self.num_global} must not be negative")

    @property
    def is_limited(self) -> bool:
        """Whether what a query sees depends on its place; then there are as many keys as queries."""
        return self.causal or self.chunk_size is not None or self.reach is not None

    def dense(self, num_keys: int, device: torch.device) -> Tensor | None:
        """The mask for scaled dot-product attention, made once.

        Args:
            num_keys: S.
            device: where the mask lives.

        Returns:
            bool, broadcastable to (B, 1, T, S), True where a query may see a key; None when nothing is hidden.
        """
        if self.mask is not None:
            return self.mask
        if num_keys not in self._kept:
            mask = self._make(num_keys, device)
            if mask is None:
                return None
            self._kept[num_keys] = mask
        return self._kept[num_keys]

    def select(self, rows_R: Tensor) -> Visibility:
        """That of rows `rows_R` (int64, shape (R,)), which may repeat."""
        return Visibility(
            lens_B=None if self.lens_B is None else self.lens_B[rows_R],
            query_lens_B=None if self.query_lens_B is None else self.query_lens_B[rows_R],
            causal=self.causal,
            chunk_size=self.chunk_size,
            left_chunks=self.left_chunks,
            reach=self.reach,
            num_global=self.num_global,
            mask=None if self.mask is None else _select(self.mask, rows_R),
            _kept={num_keys: _select(mask, rows_R) for num_keys, mask in self._kept.items()},
        )

    def _make(self, num_keys: int, device: torch.device) -> Tensor | None:
        if self.causal:
            mask_TT = torch.ones(num_keys, num_keys, dtype=torch.bool, device=device).tril()
        elif self.chunk_size is not None:
            mask_TT = chunk_mask(num_keys, self.chunk_size, self.left_chunks, device)
        elif self.reach is not None:
            mask_TT = band_mask(num_keys, self.reach, num_global=self.num_global, device=device)
        elif self.lens_B is None:
            return None
        else:
            keys_S = torch.arange(num_keys, device=device)
            return ((keys_S < self.lens_B[:, None]) | (keys_S == 0))[:, None, None, :]
        if self.lens_B is None:
            return mask_TT if self.causal else mask_TT[None, None]
        valid_BS = torch.arange(num_keys, device=device) < self.lens_B[:, None]
        return (mask_TT & valid_BS[:, None, None, :]) | torch.eye(num_keys, dtype=torch.bool, device=device)


def chunk_mask(num_frames: int, chunk_size: int, left_chunks: int | None, device: torch.device | None = None) -> Tensor:
    """Chunk-wise limited context: frame i sees frame j when 0 <= chunk(i) - chunk(j) <= left_chunks.

    Args:
        num_frames: T.
        chunk_size: frames in a chunk.
        left_chunks: chunks seen to the left of one's own; None for all of them.
        device: where the mask lives.

    Returns:
        bool, shape (T, T), rows are queries.
    """
    chunk_T = torch.arange(num_frames, device=device) // chunk_size
    distance_TT = chunk_T[:, None] - chunk_T[None, :]
    mask_TT = distance_TT >= 0
    return mask_TT if left_chunks is None else mask_TT & (distance_TT <= left_chunks)


def band_mask(num_frames: int, reach: int, *, num_global: int = 0, device: torch.device | None = None) -> Tensor:
    """Local attention: frame i sees frame j when |i - j| <= reach (Beltagy et al. 2020, Longformer, section 3.1).

    Args:
        num_frames: T.
        reach: frames seen on either side.
        num_global: first frames that see all others and are seen by all.
        device: where the mask lives.

    Returns:
        bool, shape (T, T), rows are queries.
    """
    frames_T = torch.arange(num_frames, device=device)
    first_T = frames_T < num_global
    return ((frames_T[:, None] - frames_T[None, :]).abs() <= reach) | first_T[:, None] | first_T[None, :]


def _select(mask: Tensor, rows_R: Tensor) -> Tensor:
    return mask[rows_R] if mask.dim() == 4 and len(mask) > 1 else mask

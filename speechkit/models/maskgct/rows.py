"""Rows of different lengths put one behind the other, with all padding at the end.

Shape legend: B batch, P places of the first part, T places of the second, W places of both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join_rows(first: Tensor, first_lens_B: Tensor, second: Tensor, second_lens_B: Tensor) -> tuple[Tensor, Tensor]:
    """The second part of each row right behind the first.

    Args:
        first: shape (B, P, ...).
        first_lens_B: valid places of each row, int64, shape (B,).
        second: shape (B, T, ...), of the same dtype.
        second_lens_B: valid places of each row, int64, shape (B,).

    Returns:
        shape (B, W, ...) with W of the longest row, anything past a row's length; and the lengths, shape (B,).
    """
    lens_B = first_lens_B + second_lens_B
    width = int(lens_B.max()) if len(lens_B) else 0
    both = torch.cat((first, second), dim=1)
    places_W = torch.arange(width, device=lens_B.device)
    in_first_BW = places_W < first_lens_B[:, None]
    index_BW = torch.where(in_first_BW, places_W, places_W - first_lens_B[:, None] + first.shape[1])
    return _gather(both, index_BW), lens_B


def take_rows(x: Tensor, starts_B: Tensor, num_places: int) -> Tensor:
    """Places of each row from its own start on.

    Args:
        x: shape (B, W, ...).
        starts_B: int64, shape (B,).
        num_places: T.

    Returns:
        shape (B, T, ...); past a row's end anything of that row.
    """
    if not x.shape[1]:
        return x.new_zeros(len(x), num_places, *x.shape[2:])
    return _gather(x, starts_B[:, None] + torch.arange(num_places, device=x.device))


def _gather(x: Tensor, index_BW: Tensor) -> Tensor:
    index_BW = index_BW.clamp(max=max(x.shape[1] - 1, 0))
    return x.gather(1, index_BW.reshape(*index_BW.shape, *[1] * (x.ndim - 2)).expand(*index_BW.shape, *x.shape[2:]))

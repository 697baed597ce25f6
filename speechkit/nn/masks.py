"""Masks over frames: which are valid.

True always means "take part". A mask is None when nothing is hidden, so that kernels can run without one. Which frames may
attend to which is told by `speechkit.kernels.attention.Visibility`.

Shape legend: B batch, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.kernels.attention import Visibility


def valid_mask(lens_B: Tensor, num_frames: int) -> Tensor:
    """Marks the valid frames of each row.

    Args:
        lens_B: valid frames of each row, int64, shape (B,).
        num_frames: length T of the padded axis.

    Returns:
        bool, shape (B, T), True on valid frames.
    """
    return torch.arange(num_frames, device=lens_B.device) < lens_B[:, None]


def padding_mask(lens_B: Tensor, num_frames: int) -> Tensor | None:
    """As `valid_mask`, but None when no row has padding.

    Looking at the lengths waits for the device once. A compiled graph cannot branch on them: there the mask is always
    made.
    """
    if not torch.compiler.is_compiling() and bool((lens_B == num_frames).all()):
        return None
    return valid_mask(lens_B, num_frames)


def hide_padding(lens_B: Tensor, num_keys: int, *, of_queries: bool) -> Visibility | None:
    """For attention in which every query sees all valid keys; None when no row has padding, as in `padding_mask`.

    Args:
        lens_B: valid keys of each row, int64, shape (B,).
        num_keys: length of the padded axis.
        of_queries: whether the queries are the same frames, so that those past a length are of no use.
    """
    if padding_mask(lens_B, num_keys) is None:
        return None
    return Visibility(lens_B=lens_B, query_lens_B=lens_B if of_queries else None)

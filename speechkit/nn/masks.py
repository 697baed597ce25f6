"""Masks over frames: which are valid, and which may attend to which.

True always means "take part". A mask is None when nothing is hidden, so that kernels can run without one.

Shape legend: B batch, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def attention_mask(
    valid_BT: Tensor | None,
    num_frames: int,
    *,
    chunk_size: int | None = None,
    left_chunks: int | None = None,
    reach: int | None = None,
    num_global: int = 0,
    device: torch.device | None = None,
) -> Tensor | None:
    """Joins padding and limited context into one mask for scaled dot-product attention.

    No query is left without a key, which would make its softmax undefined: queries in padding may see themselves (with
    limited context) or the first frame (without). Both choices change nothing for valid frames.

    Args:
        valid_BT: valid frames, or None when all are.
        num_frames: T.
        chunk_size: frames in a chunk; None for full context.
        left_chunks: chunks seen to the left; None for all of them.
        reach: frames seen on either side, as in `band_mask`; None for all of them. Not together with `chunk_size`.
        num_global: frames that all see all the same, as in `band_mask`.
        device: where the mask lives; needed only when `valid_BT` is None.

    Returns:
        bool, broadcastable to (B, 1, T, T): (B, 1, 1, T), (1, 1, T, T) or (B, 1, T, T); None when nothing is hidden.
    """
    if chunk_size is None and reach is None:
        if valid_BT is None:
            return None
        first_T = torch.arange(num_frames, device=valid_BT.device) == 0
        return (valid_BT | first_T)[:, None, None, :]
    device = device if valid_BT is None else valid_BT.device
    if chunk_size is None:
        assert reach is not None
        mask_TT = band_mask(num_frames, reach, num_global=num_global, device=device)
    else:
        mask_TT = chunk_mask(num_frames, chunk_size, left_chunks, device)
    if valid_BT is None:
        return mask_TT[None, None]
    self_TT = torch.eye(num_frames, dtype=torch.bool, device=device)
    return (mask_TT & valid_BT[:, None, None, :]) | self_TT

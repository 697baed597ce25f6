"""Positions of frames: rotary, relative and absolute sinusoids.

Tables are functions of the frame index alone, made in fp32 where they are used: there is nothing to store, no largest
length, and casting a model to half precision does not touch them.

Sources: rotary, Su et al. 2021 (RoFormer), section 3; relative, Dai et al. 2019 (Transformer-XL), section 3.3;
absolute, Vaswani et al. 2017, section 3.5.

Shape legend: B batch, T frames, H heads, D model, K head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions_T: Tensor, dim: int) -> Tensor:
    """Sines of each position in the first half of the channels, cosines in the second.

    Args:
        positions_T: positions in frames, may be negative, shape (T,).
        dim: D, even.

    Returns:
        fp32, shape (T, D).
    """
    angles_TK = _angles(positions_T, dim)
    return torch.cat((angles_TK.sin(), angles_TK.cos()), dim=-1)


def rotary_table(num_frames: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which `speechkit.kernels.attention` turns queries and keys.

    Args:
        num_frames: T.
        head_dim: K, even.
        device: where the tables live.

    Returns:
        cos and sin, fp32, each of shape (T, K/2).
    """
    angles_TK = _angles(torch.arange(num_frames, device=device), head_dim)
    return angles_TK.cos(), angles_TK.sin()


def relative_sinusoids(num_frames: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids of all distances that occur in a sequence, from T - 1 down to -(T - 1).

    Returns:
        fp32, shape (2T - 1, D); row r is the distance T - 1 - r of a query from its key.
    """
    return sinusoids(torch.arange(num_frames - 1, -num_frames, -1, device=device), dim)


def _angles(positions_T: Tensor, dim: int) -> Tensor:
    """Position times frequency 10000^(-2k/D) for k < D/2, fp32, shape (T, D/2)."""
    if dim % 2:
        raise ValueError(f"dim={dim} must be even for sinusoidal positions; choose an even dimension")
    steps = torch.arange(0, dim, 2, device=positions_T.device, dtype=torch.float32)
    return positions_T.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / dim))

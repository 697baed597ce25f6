"""Attention by what torch has: scaled dot-product attention, with the relative term as a bias.

Shape legend: B batch, T queries, S keys, H heads, K head dimension, R = 2T - 1 distances.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    mask: Tensor | None,
    relative: tuple[Tensor, Tensor, Tensor] | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """As `speechkit.kernels.attention.attention`; shape (B, T, H, K), strides as torch leaves them."""
    bias = mask
    if relative is not None:
        r_RHK, u_HK, w_HK = relative
        bias = _relative_bias(q_BTHK + w_HK.to(q_BTHK.dtype), r_RHK, mask, scale)
        q_BTHK = q_BTHK + u_HK.to(q_BTHK.dtype)
    out_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2), k_BSHK.transpose(1, 2), v_BSHK.transpose(1, 2), attn_mask=bias, dropout_p=dropout, scale=scale
    )
    return out_BHTK.transpose(1, 2)


def rotate(x_BTHK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turns channel pairs (2k, 2k + 1) of frame t by the angles of the table's row t; shape and dtype of the input."""
    pairs = x_BTHK.unflatten(-1, (-1, 2))
    if x_BTHK.dtype == torch.float32 and not torch.compiler.is_compiling():
        turn_T1K = torch.complex(*table)[:, None, :]  # one pass over memory instead of several
        return torch.view_as_real(torch.view_as_complex(pairs) * turn_T1K).flatten(-2)
    cos, sin = (t[:, None, :].to(x_BTHK.dtype) for t in table)
    first, second = pairs.unbind(-1)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


def relative_shift(scores_BHTR: Tensor) -> Tensor:
    """Brings scores by distance into the frame of queries and keys: out[i, j] = scores[i, T - 1 - i + j].

    Row i of the result begins T - 1 - i places into row i of the input, so in a contiguous input consecutive rows of
    the result lie 2T - 2 apart: the result is a view.

    Args:
        scores_BHTR: query against distance, R = 2T - 1 distances from T - 1 down, shape (B, H, T, 2T - 1).

    Returns:
        shape (B, H, T, T).
    """
    batch, heads, num_frames, distances = scores_BHTR.shape
    assert distances == 2 * num_frames - 1, f"expected {2 * num_frames - 1} distances, got {distances}"
    rows = num_frames * distances
    strides = (heads * rows, rows, max(distances - 1, 1), 1)
    return scores_BHTR.contiguous().as_strided((batch, heads, num_frames, num_frames), strides, num_frames - 1)


def _relative_bias(q_BTHK: Tensor, r_RHK: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Scores of queries against distances, scaled as the kernel scales its own, -inf where masked; (B, H, T, T)."""
    q_BHTK = (q_BTHK * (q_BTHK.shape[3] ** -0.5 if scale is None else scale)).transpose(1, 2)
    bias_BHTT = relative_shift(q_BHTK @ r_RHK.permute(1, 2, 0))
    if mask is None:
        return bias_BHTT
    return bias_BHTT + torch.zeros_like(mask, dtype=bias_BHTT.dtype).masked_fill(~mask, float("-inf"))

"""Attention as it is written down: all scores, a softmax, a product.

Shape legend: B batch, T queries, S keys, H heads, K head dimension, R = 2T - 1 distances, N pairs of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.kernels.attention.visibility import Visibility


def attend(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    visible: Visibility | None,
    relative: tuple[Tensor, Tensor, Tensor] | None,
    scale: float,
) -> Tensor:
    """As `speechkit.kernels.attention.attention`, in the dtype of the inputs; shape (B, T, H, K).

    A query that sees no key, and one past `visible.query_lens_B`, gets zeros.
    """
    queries, keys = q_BTHK.shape[1], k_BSHK.shape[1]
    if relative is None:
        scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK)
    else:
        r_RHK, u_HK, w_HK = relative
        places = torch.arange(queries, device=q_BTHK.device)
        index_TS = queries - 1 - places[:, None] + places
        by_distance_BHTR = torch.einsum("bthk,rhk->bhtr", q_BTHK + w_HK, r_RHK)
        shifted_BHTS = by_distance_BHTR.gather(3, index_TS.expand(*by_distance_BHTR.shape[:2], -1, -1))
        scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK + u_HK, k_BSHK) + shifted_BHTS
    scores_BHTS = scores_BHTS * scale
    hidden = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=q_BTHK.device)
    mask = None if visible is None else visible.dense(keys, q_BTHK.device)
    if mask is not None:
        hidden = ~mask
    if visible is not None and visible.query_lens_B is not None:
        is_query_BT = torch.arange(queries, device=q_BTHK.device) < visible.query_lens_B[:, None]
        hidden = hidden | ~is_query_BT[:, None, :, None]
    hidden = hidden.expand(len(q_BTHK), 1, queries, keys)
    blind = hidden.all(dim=3, keepdim=True)
    weights_BHTS = scores_BHTS.masked_fill(hidden & ~blind, -torch.inf).softmax(dim=3).masked_fill(blind, 0.0)
    return torch.einsum("bhts,bshk->bthk", weights_BHTS, v_BSHK)


def rotate(x_BTHK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turns channel pairs (2n, 2n + 1) of frame t by the angle whose cosine and sine are table[0][t, n] and table[1][t, n]."""
    cos_T1N, sin_T1N = (each[:, None, :].to(x_BTHK.dtype) for each in table)
    first, second = x_BTHK[..., 0::2], x_BTHK[..., 1::2]
    return torch.stack((first * cos_T1N - second * sin_T1N, second * cos_T1N + first * sin_T1N), dim=-1).flatten(-2)

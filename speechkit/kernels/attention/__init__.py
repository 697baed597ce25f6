"""Multi-head attention with limited context, rotary and relative positions; in memory that grows with T, not with T x T.

With q, k, v of one head, and what a query may not see left out::

    out_i = sum over j of softmax_j(scale s_ij) v_j        s_ij = q_i . k_j
    rotary     q and k turned before, channel pairs (2n, 2n + 1) of frame t by the angles of row t (Su et al. 2021, section 3.4)
    relative   s_ij = (q_i + u) . k_j + (q_i + w) . r[T - 1 - i + j]        (Dai et al. 2019, section 3.3)

Source of the fused kernels: Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning". The
relative term is computed inside their tiles. On a CPU, torch's scaled dot-product attention does the same with a bias.

Shape legend: B batch, T queries, S keys, J few queries, H heads, K head dimension, R = 2T - 1 distances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels import dispatch
from speechkit.kernels.attention import reference, torch_impl
from speechkit.kernels.attention.visibility import Visibility

BACKENDS = ("torch", "reference", "triton")
MAX_HEAD_DIM = 128
FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class RelativePositions(NamedTuple):
    """What the relative term is made of.

    Attributes:
        r_RHK: of each distance i - j from T - 1 down to -(T - 1), shape (2T - 1, H, K).
        u_HK: added to the queries that meet keys, shape (H, K).
        v_HK: added to the queries that meet distances, shape (H, K).
    """

    r_RHK: Tensor
    u_HK: Tensor
    v_HK: Tensor


def attention(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    *,
    visible: Visibility | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    relative: RelativePositions | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attends.

    With "triton" a row's result and its gradients by q, k and v are the same, bit for bit, whatever its padding and its batch
    mates, and nothing is added in an order of chance. Keys past a length are not read. Under autocast q, k and v are cast, and
    the result has the type that autocast computes in; else it has theirs. Strided inputs (parts of one projection) are read as
    they lie.

    Args:
        q_BTHK: queries, shape (B, T, H, K).
        k_BSHK: keys, shape (B, S, H, K).
        v_BSHK: values, shape (B, S, H, K).
        visible: which keys each query sees; None for all.
        rope: cosines and sines, fp32, each of shape (T, K / 2); with T = S.
        relative: the relative term; with T = S.
        scale: of the scores; None for K ** -0.5.
        dropout: rate on the weights; above 0 no kernel is used, and the weights of T x S are kept for the gradient.
        backend: "torch" (scaled dot-product attention), "reference", "triton" or "auto".

    Returns:
        shape (B, T, H, K). Past `visible.query_lens_B` anything finite: zeros from "triton" and "reference".

    Raises:
        ValueError: shapes do not fit, or the backend cannot do what is asked.
    """
    _check(q_BTHK, k_BSHK, v_BSHK, visible, rope, relative)
    chosen = dispatch.choose("attention", backend, q_BTHK.device, BACKENDS)
    if dropout or chosen == "triton":
        chosen = _supported(chosen, backend, q_BTHK, dropout)
    if chosen == "torch":
        if rope is not None:
            q_BTHK, k_BSHK = torch_impl.rotate(q_BTHK, rope), torch_impl.rotate(k_BSHK, rope)
        mask = None if visible is None else visible.dense(k_BSHK.shape[1], k_BSHK.device)
        return torch_impl.attend(q_BTHK, k_BSHK, v_BSHK, mask, relative, scale, dropout)
    scale = q_BTHK.shape[3] ** -0.5 if scale is None else scale
    if chosen == "reference":
        if rope is not None:
            q_BTHK, k_BSHK = reference.rotate(q_BTHK, rope), reference.rotate(k_BSHK, rope)
        return reference.attend(q_BTHK, k_BSHK, v_BSHK, visible, relative, scale)
    from speechkit.kernels.attention import triton_impl

    q, k, v = _cast(q_BTHK, k_BSHK, v_BSHK)
    if rope is not None:
        q, k = triton_impl.rotate(q, k, rope)
    return triton_impl.attend(q, k, v, visible, relative, scale)


def decode_attention(
    q_BJHK: Tensor,
    key_BHSK: Tensor,
    value_BHSK: Tensor,
    *,
    visible: Visibility | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attends with few queries to many keys, as a step of a decoder does; without a gradient from "triton".

    The keys are cut into blocks of a fixed size that are read at the same time, and their results are merged in a fixed order: a
    row's result is the same, bit for bit, whatever its padding and its batch mates. N rows of tokens that read the same source,
    as those of a beam, are given as the J = N queries of one row, and read it once.

    Args:
        q_BJHK: queries, shape (B, J, H, K).
        key_BHSK: keys as caches hold them, shape (B, H, S, K).
        value_BHSK: values, shape (B, H, S, K).
        visible: lengths, or a mask of shape (B, 1, J, S) or (J, S); None for all.
        backend: as in `attention`.

    Returns:
        shape (B, J, H, K).

    Raises:
        ValueError: the backend cannot do what is asked.
    """
    chosen = dispatch.choose("attention", backend, q_BJHK.device, BACKENDS)
    if chosen == "triton":
        chosen = _supported(chosen, backend, q_BJHK, 0.0)
    if chosen == "torch":
        mask = None if visible is None else visible.dense(key_BHSK.shape[2], key_BHSK.device)
        return F.scaled_dot_product_attention(q_BJHK.transpose(1, 2), key_BHSK, value_BHSK, attn_mask=mask).transpose(1, 2)
    if visible is not None and visible.is_limited:
        raise ValueError("decode_attention takes lengths or a mask: what a query sees here does not depend on its row")
    k_BSHK, v_BSHK = key_BHSK.transpose(1, 2), value_BHSK.transpose(1, 2)
    scale = q_BJHK.shape[3] ** -0.5
    if chosen == "reference":
        return reference.attend(q_BJHK, k_BSHK, v_BSHK, visible, None, scale)
    from speechkit.kernels.attention import triton_decode

    return triton_decode.attend(*_cast(q_BJHK, k_BSHK, v_BSHK), visible, scale)


def _check(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    visible: Visibility | None,
    rope: tuple[Tensor, Tensor] | None,
    relative: RelativePositions | None,
) -> None:
    """Raises ValueError for shapes that do not fit together."""
    batch, queries, heads, head_dim = q_BTHK.shape
    keys = k_BSHK.shape[1]
    if k_BSHK.shape != v_BSHK.shape or k_BSHK.shape != (batch, keys, heads, head_dim):
        raise ValueError(
            f"keys of shape {tuple(k_BSHK.shape)} and values of shape {tuple(v_BSHK.shape)} do not fit queries of shape "
            f"{tuple(q_BTHK.shape)}; expected ({batch}, S, {heads}, {head_dim})"
        )
    if queries != keys and (rope is not None or relative is not None or (visible is not None and visible.is_limited)):
        raise ValueError(f"{queries} queries and {keys} keys: rope, relative, causal, chunk_size and reach need as many of both")
    if rope is not None and rope[0].shape != (queries, head_dim // 2):
        raise ValueError(f"rope of shape {tuple(rope[0].shape)} does not fit; expected ({queries}, {head_dim // 2})")
    if relative is not None and relative.r_RHK.shape != (2 * queries - 1, heads, head_dim):
        expected = (2 * queries - 1, heads, head_dim)
        raise ValueError(f"relative.r_RHK of shape {tuple(relative.r_RHK.shape)} does not fit; expected {expected}")


def _supported(chosen: str, wanted: str, q: Tensor, dropout: float) -> str:
    """The backend itself, or "torch" where it cannot do what is asked, which is said once on a GPU."""
    reason = ""
    if dropout:
        reason = f"dropout={dropout} on the weights keeps all of them; use 0"
    elif q.dtype not in FUSED_TYPES:
        reason = f"{q.dtype} has no kernel; use float32, bfloat16 or float16"
    elif not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        reason = f"heads of {q.shape[3]} channels have no kernel; use at most {MAX_HEAD_DIM}"
    if not reason:
        return chosen
    if wanted == "triton":
        raise ValueError(f"backend='triton': {reason}")
    if q.device.type == "cuda" and chosen == "triton":
        dispatch.warn_slow("attention", reason)
    return "torch"


def _cast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the type that autocast computes in, where it is on."""
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        return q.to(dtype), k.to(dtype), v.to(dtype)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"queries, keys and values are {q.dtype}, {k.dtype} and {v.dtype}; give them one type")
    return q, k, v


__all__ = ["RelativePositions", "Visibility", "attention", "decode_attention"]

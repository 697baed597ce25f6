"""The forward kernel: an online softmax over blocks of keys (Dao 2023, FlashAttention-2, section 3.1).

Shape legend: as in `speechkit.kernels.attention.triton_tiles`.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from speechkit.kernels.attention.triton_tiles import (
    LOG2_E,
    distances,
    dot,
    keys_of,
    lengths,
    load_rows,
    sees,
    skew,
    store_rows,
)
from speechkit.kernels.triton_rounding import narrow


@triton.jit(do_not_specialize=["T", "S", "H"])
def forward_kernel(
    q,
    k,
    v,
    out,
    lse,
    seen,
    relative,
    T,
    S,
    H,
    scale,
    KIND: tl.constexpr,
    HAS_LENS: tl.constexpr,
    HAS_QUERY_LENS: tl.constexpr,
    RELATIVE: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One program: M queries of one head. Writes their output and the log-sum-exp of their scores, base 2."""
    m0, h, b = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2)
    num_keys, num_queries, readable = lengths(seen, b, T, S, KIND, HAS_LENS, HAS_QUERY_LENS)
    rows = m0 + tl.arange(0, M)
    start, free, stop, gap = keys_of(m0, tl.minimum(m0 + M, num_queries), num_keys, seen.first, seen.second, KIND, N)
    q_MP = load_rows(q, b, h, rows, num_queries, K, P)
    w_MP, strip = q_MP, T - M - m0
    if RELATIVE:
        q_MP, w_MP = biased(q_MP, relative, h, K, P)
    state = tl.full((M,), -float("inf"), tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M, P), tl.float32)
    for n0 in tl.range(start, free, N):
        s_MN, _, _, _ = scores(q_MP, w_MP, k, relative, b, h, n0, strip, readable, T, H, scale, RELATIVE, K, P, M, N)
        state = accumulate(state, s_MN, v, b, h, n0, readable, K, P, N)
    for n in tl.range(free - gap, stop, N):
        n0 = tl.where(n < free, n - free + gap, n)
        s_MN, _, _, _ = scores(q_MP, w_MP, k, relative, b, h, n0, strip, readable, T, H, scale, RELATIVE, K, P, M, N)
        columns = n0 + tl.arange(0, N)
        shown = sees(seen, b, rows[:, None], columns[None, :], T, S, num_keys, num_queries, KIND)
        state = accumulate(state, tl.where(shown, s_MN, -float("inf")), v, b, h, n0, readable, K, P, N)
    largest_M, sum_M, out_MP = state
    is_seeing_M = (sum_M > 0) & (rows < num_queries)
    out_MP = tl.where(is_seeing_M[:, None], out_MP / tl.where(sum_M > 0, sum_M, 1.0)[:, None], 0.0)
    store_rows(out, out_MP, b, h, rows, T, H, K, P)
    lse_M = tl.where(is_seeing_M, largest_M + tl.log2(tl.where(sum_M > 0, sum_M, 1.0)), float("inf"))
    tl.store(lse + (b * H + h).to(tl.int64) * T + rows, lse_M, mask=rows < T)


@triton.jit
def biased(q_MP, relative, h, K: tl.constexpr, P: tl.constexpr):
    """Queries for keys and queries for distances: q + u and q + w."""
    channels = tl.arange(0, P)
    u_P = tl.load(relative.u + h * K + channels, mask=channels < K, other=0.0).to(tl.float32)
    w_P = tl.load(relative.w + h * K + channels, mask=channels < K, other=0.0).to(tl.float32)
    wide_MP = q_MP.to(tl.float32)
    return narrow(wide_MP + u_P[None, :], q_MP.dtype), narrow(wide_MP + w_P[None, :], q_MP.dtype)


@triton.jit
def scores(
    q_MP,
    w_MP,
    k,
    relative,
    b,
    h,
    n0,
    strip,
    readable,
    T,
    H,
    scale,
    RELATIVE: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Scaled scores of M queries against keys n0 to n0 + N - 1, in units of log 2; the keys and the two strips of distances."""
    k_NP = load_rows(k, b, h, n0 + tl.arange(0, N), readable, K, P)
    s_MN = dot(q_MP, tl.trans(k_NP))
    near_NP, far_NP = k_NP, k_NP
    if RELATIVE:
        near_NP = distances(relative.r, h, strip + n0, T, H, N, K, P)
        far_NP = distances(relative.r, h, strip + n0 + M, T, H, N, K, P)
        near_MN = dot(w_MP, tl.trans(near_NP))
        s_MN += skew(near_MN, dot(w_MP, tl.trans(far_NP)), M, N)
    return s_MN * (scale * LOG2_E), k_NP, near_NP, far_NP


@triton.jit
def accumulate(state, s_MN, v, b, h, n0, readable, K: tl.constexpr, P: tl.constexpr, N: tl.constexpr):
    """Largest score, sum of weights and weighted sum of values, with one more block of keys."""
    largest_M, sum_M, out_MP = state
    new_M = tl.maximum(largest_M, tl.max(s_MN, 1))
    finite_M = tl.where(new_M == -float("inf"), 0.0, new_M)
    p_MN, shrink_M = tl.exp2(s_MN - finite_M[:, None]), tl.exp2(largest_M - finite_M)
    v_NP = load_rows(v, b, h, n0 + tl.arange(0, N), readable, K, P)
    out_MP = dot(narrow(p_MN, v_NP.dtype), v_NP, out_MP * shrink_M[:, None])
    return new_M, sum_M * shrink_M + tl.sum(p_MN, 1), out_MP

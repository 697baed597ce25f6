"""The backward kernels (Dao 2023, FlashAttention-2, section 3.1.2): scores are computed again, nothing is added atomically.

With p = exp(s - lse), delta_i = <dO_i, O_i> and ds = p (dO V^T - delta), by s before scaling:

    queries_kernel     dq_i = scale sum_j ds_ij k_j, and of the relative term scale sum_j ds_ij r[T - 1 - i + j]
    keys_kernel        dk_j = scale sum_i ds_ij (q_i + u)          dv_j = sum_i p_ij dO_i
    distances_kernel   dr[T - 1 - i + j] = scale sum ds_ij (q_i + w), by diagonals of tiles, which share a strip of distances

Shape legend: as in `speechkit.kernels.attention.triton_tiles`.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from speechkit.kernels.attention.triton_forward import biased, scores
from speechkit.kernels.attention.triton_tiles import (
    BAND,
    CHUNK,
    FULL,
    LOG2_E,
    UNLIMITED,
    distances,
    dot,
    keys_of,
    lengths,
    load_rows,
    queries_of,
    sees,
    skew_transposed,
    store_rows,
    unskew,
    unskew_transposed,
)
from speechkit.kernels.triton_rounding import narrow


@triton.jit(do_not_specialize=["T", "S", "H"])
def queries_kernel(
    q,
    k,
    v,
    out,
    grad,
    lse,
    delta,
    dq,
    du,
    dw,
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
    """One program: M queries of one head. Writes their gradient, delta, and their share in the gradients of u and w."""
    m0, h, b = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2)
    num_keys, num_queries, readable = lengths(seen, b, T, S, KIND, HAS_LENS, HAS_QUERY_LENS)
    rows = m0 + tl.arange(0, M)
    start, free, stop, gap = keys_of(m0, tl.minimum(m0 + M, num_queries), num_keys, seen.first, seen.second, KIND, N)
    grad_MP = load_rows(grad, b, h, rows, num_queries, K, P)
    delta_M = tl.sum(grad_MP.to(tl.float32) * load_rows(out, b, h, rows, num_queries, K, P).to(tl.float32), 1)
    lse_M = tl.load(lse + (b * H + h).to(tl.int64) * T + rows, mask=rows < T, other=float("inf"))
    tl.store(delta + (b * H + h).to(tl.int64) * T + rows, delta_M, mask=rows < T)
    q_MP = load_rows(q, b, h, rows, num_queries, K, P)
    w_MP, strip = q_MP, T - M - m0
    if RELATIVE:
        q_MP, w_MP = biased(q_MP, relative, h, K, P)
    sums = tl.zeros((M, P), tl.float32), tl.zeros((M, P), tl.float32)
    for n in tl.range(start - gap, stop, N):
        n0 = tl.where(n < start, n - start + gap, n)
        s_MN, k_NP, near_NP, far_NP = scores(
            q_MP, w_MP, k, relative, b, h, n0, strip, readable, T, H, scale, RELATIVE, K, P, M, N
        )
        p_MN, columns = tl.exp2(s_MN - lse_M[:, None]), n0 + tl.arange(0, N)
        if n0 >= free:
            p_MN = tl.where(sees(seen, b, rows[:, None], columns[None, :], T, S, num_keys, num_queries, KIND), p_MN, 0.0)
        v_NP = load_rows(v, b, h, columns, readable, K, P)
        ds_MN = p_MN * (dot(grad_MP, tl.trans(v_NP)) - delta_M[:, None])
        sums = add_queries(sums, ds_MN, k_NP, near_NP, far_NP, RELATIVE, M, N)
    store_rows(dq, (sums[0] + sums[1]) * scale, b, h, rows, T, H, K, P)
    if RELATIVE:
        places = ((b * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * H + h) * K + tl.arange(0, P)
        tl.store(du + places, tl.sum(sums[0], 0) * scale, mask=tl.arange(0, P) < K)
        tl.store(dw + places, tl.sum(sums[1], 0) * scale, mask=tl.arange(0, P) < K)


@triton.jit
def add_queries(sums, ds_MN, k_NP, near_NP, far_NP, RELATIVE: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Gradients of the queries, by keys and by distances, with one more block of keys."""
    by_key_MP, by_distance_MP = sums
    by_key_MP = dot(narrow(ds_MN, k_NP.dtype), k_NP, by_key_MP)
    if RELATIVE:
        dnear_MN, dfar_MN = unskew(ds_MN, M, N)
        by_distance_MP = dot(narrow(dnear_MN, near_NP.dtype), near_NP, by_distance_MP)
        by_distance_MP = dot(narrow(dfar_MN, far_NP.dtype), far_NP, by_distance_MP)
    return by_key_MP, by_distance_MP


@triton.jit(do_not_specialize=["T", "S", "H"])
def keys_kernel(
    q,
    k,
    v,
    grad,
    lse,
    delta,
    dk,
    dv,
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
    """One program: N keys of one head. Writes the gradients of keys and values."""
    n0, h, b = tl.program_id(0) * N, tl.program_id(1), tl.program_id(2)
    num_keys, num_queries, readable = lengths(seen, b, T, S, KIND, HAS_LENS, HAS_QUERY_LENS)
    columns = n0 + tl.arange(0, N)
    start, stop, gap = queries_of(n0, tl.minimum(n0 + N, S), num_keys, num_queries, seen.first, seen.second, KIND, M)
    k_NP, v_NP = load_rows(k, b, h, columns, readable, K, P), load_rows(v, b, h, columns, readable, K, P)
    dk_NP, dv_NP = tl.zeros((N, P), tl.float32), tl.zeros((N, P), tl.float32)
    for m in tl.range(start - gap, stop, M):
        m0 = tl.where(m < start, m - start + gap, m)
        q_MP, grad_MP, p_NM, ds_NM = tile(
            q, k_NP, v_NP, grad, lse, delta, relative, b, h, m0, n0, num_queries, T, H, scale, RELATIVE, K, P, M, N
        )
        if KIND != FULL:
            rows = m0 + tl.arange(0, M)
            shown = sees(seen, b, rows[None, :], columns[:, None], T, S, num_keys, num_queries, KIND)
            p_NM, ds_NM = tl.where(shown, p_NM, 0.0), tl.where(shown, ds_NM, 0.0)
        dv_NP = dot(narrow(p_NM, grad_MP.dtype), grad_MP, dv_NP)
        dk_NP = dot(narrow(ds_NM, q_MP.dtype), q_MP, dk_NP)
    is_read_N1 = (columns < readable)[:, None]
    store_rows(dk, tl.where(is_read_N1, dk_NP * scale, 0.0), b, h, columns, S, H, K, P)
    store_rows(dv, tl.where(is_read_N1, dv_NP, 0.0), b, h, columns, S, H, K, P)


@triton.jit
def tile(
    q,
    k_NP,
    v_NP,
    grad,
    lse,
    delta,
    relative,
    b,
    h,
    m0,
    n0,
    num_queries,
    T,
    H,
    scale,
    RELATIVE: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Queries with u and their upstream gradient, weights and gradient by score of a tile as if nothing were hidden."""
    rows = m0 + tl.arange(0, M)
    q_MP, grad_MP = load_rows(q, b, h, rows, num_queries, K, P), load_rows(grad, b, h, rows, num_queries, K, P)
    places = (b * H + h).to(tl.int64) * T + rows
    lse_M = tl.load(lse + places, mask=rows < num_queries, other=float("inf"))
    delta_M = tl.load(delta + places, mask=rows < num_queries, other=0.0)
    w_MP = q_MP
    if RELATIVE:
        q_MP, w_MP = biased(q_MP, relative, h, K, P)
    s_NM = dot(k_NP, tl.trans(q_MP))
    if RELATIVE:
        near_NP = distances(relative.r, h, T - M - m0 + n0, T, H, N, K, P)
        far_NP = distances(relative.r, h, T - m0 + n0, T, H, N, K, P)
        near_NM = dot(near_NP, tl.trans(w_MP))
        s_NM += skew_transposed(near_NM, dot(far_NP, tl.trans(w_MP)), M, N)
    p_NM = tl.exp2(s_NM * (scale * LOG2_E) - lse_M[None, :])
    ds_NM = p_NM * (dot(v_NP, tl.trans(grad_MP)) - delta_M[None, :])
    return q_MP, grad_MP, p_NM, ds_NM


@triton.jit(do_not_specialize=["B", "T", "H"])
def distances_kernel(
    q,
    k,
    v,
    grad,
    lse,
    delta,
    dnear,
    dfar,
    seen,
    relative,
    B,
    T,
    H,
    scale,
    KIND: tl.constexpr,
    HAS_LENS: tl.constexpr,
    HAS_QUERY_LENS: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program: one diagonal of tiles in one head of ROWS rows of the batch. Writes what its two strips get."""
    strip, h, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    step = (strip - tl.num_programs(0) // 2) * N  # from the first query of a tile to its first key
    near_NP, far_NP = tl.zeros((N, P), tl.float32), tl.zeros((N, P), tl.float32)
    for row in tl.range(0, tl.minimum(B - group * ROWS, ROWS)):
        b = group * ROWS + row
        num_keys, num_queries, readable = lengths(seen, b, T, T, KIND, HAS_LENS, HAS_QUERY_LENS)
        start, stop = diagonal(step, num_queries, readable, seen.first, seen.second, KIND, M, N)
        for m0 in tl.range(start, stop, M):
            columns, rows = m0 + step + tl.arange(0, N), m0 + tl.arange(0, M)
            k_NP, v_NP = load_rows(k, b, h, columns, readable, K, P), load_rows(v, b, h, columns, readable, K, P)
            _, _, _, ds_NM = tile(
                q, k_NP, v_NP, grad, lse, delta, relative, b, h, m0, m0 + step, num_queries, T, H, scale, True, K, P, M, N
            )
            shown = sees(seen, b, rows[None, :], columns[:, None], T, T, num_keys, num_queries, KIND)
            ds_NM = tl.where(shown & (columns >= 0)[:, None], ds_NM, 0.0)
            _, w_MP = biased(load_rows(q, b, h, rows, num_queries, K, P), relative, h, K, P)
            dnear_NM, dfar_NM = unskew_transposed(ds_NM, M, N)
            near_NP = dot(narrow(dnear_NM, w_MP.dtype), w_MP, near_NP)
            far_NP = dot(narrow(dfar_NM, w_MP.dtype), w_MP, far_NP)
    columns, num_places = strip * N + tl.arange(0, N), tl.num_programs(0) * N
    store_rows(dnear, near_NP * scale, group, h, columns, num_places, H, K, P)
    store_rows(dfar, far_NP * scale, group, h, columns, num_places, H, K, P)


@triton.jit
def diagonal(step, num_queries, readable, first, second, KIND: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Where the queries of a diagonal's tiles begin and end; where nothing is seen, nowhere."""
    start = tl.maximum(-step - N + 1, 0) // M * M
    stop = tl.minimum(num_queries, readable - step)
    least, most = -step - N + 1, M - 1 - step  # of i - j
    if KIND == CHUNK:
        stop = tl.where(most <= -first, start, stop)
        if second < UNLIMITED:
            stop = tl.where(least >= (second + 1) * first, start, stop)
    elif KIND == BAND:
        stop = tl.where((second == 0) & ((least > first) | (most < -first)), start, stop)
    return start, stop

"""What the attention kernels share: where tiles lie, which of them to visit, who sees whom inside one, relative scores.

A tile has M queries i and N keys j. Which keys a query sees is told by a kind and two numbers:

    FULL                          every valid key, the first one always
    CHUNK (frames, left chunks)   0 <= i // frames - j // frames <= left; causal attention is chunks of one frame
    BAND (reach, global frames)   |i - j| <= reach, and the first frames see and are seen
    MASK                          a mask in memory

With CHUNK and BAND a frame always sees itself.

Relative scores (Dai et al. 2019, appendix B) of a tile, (q_i + w) . r[T - 1 - i + j], are those of M queries against a strip of
M + N distances, each row moved by another amount: with s_i = M - 1 - i the place of row i in the strip, out[i, j] =
strip[i, s_i + j]. As s_i < M, a first strip and a second one M further on hold, at place j % M of one or the other, what a
rotation of M places brings to where it belongs: one select, one gather inside groups of M places, no value fetched twice.

Shape legend: B batch, T queries, S keys, H heads, K head dimension, P its next power of two, M queries and N keys of a tile,
R = 2T - 1 distances.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from speechkit.kernels.triton_rounding import INTERPRETING, narrow

FULL = tl.constexpr(0)
CHUNK = tl.constexpr(1)
BAND = tl.constexpr(2)
MASK = tl.constexpr(3)
UNLIMITED = tl.constexpr(1 << 30)
LOG2_E = tl.constexpr(1.4426950408889634)


class Heads(NamedTuple):
    """A tensor of shape (B, T, H, K) as kernels take it; neighbouring channels lie side by side."""

    pointer: Any
    batch: Any
    time: Any
    head: Any


class Seen(NamedTuple):
    """Who sees whom; pointers that are not in use point anywhere."""

    lens: Any
    query_lens: Any
    mask: Any
    mask_batch: Any
    mask_query: Any
    mask_key: Any
    first: Any
    second: Any


class Relative(NamedTuple):
    """Distances (R, H, K) and the two biases (H, K), contiguous; not in use they point anywhere."""

    r: Any
    u: Any
    w: Any


@triton.jit
def dot(first, second, added=None):
    """Matrix product in fp32, of fp32 in full precision."""
    if INTERPRETING:  # the interpreter takes bf16 for integers
        first, second = first.to(tl.float32), second.to(tl.float32)
    return tl.dot(first, second, added, input_precision="ieee")


@triton.jit
def load_rows(x, b, h, rows, limit, K: tl.constexpr, P: tl.constexpr):
    """Rows of one head, zero outside 0 to `limit` - 1 and in channels past K; shape (len(rows), P)."""
    channels = tl.arange(0, P)
    places = x.pointer + (b.to(tl.int64) * x.batch + h * x.head) + (rows[:, None] * x.time + channels[None, :])
    inside = (rows >= 0) & (rows < limit)
    if P == K:
        return tl.load(places, mask=inside[:, None], other=0.0)
    return tl.load(places, mask=inside[:, None] & (channels < K)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, values, b, h, rows, num_rows, H, K: tl.constexpr, P: tl.constexpr):
    """Writes rows of one head of a contiguous tensor (B, num_rows, H, K)."""
    channels = tl.arange(0, P)
    places = pointer + (b.to(tl.int64) * num_rows * H + h) * K + (rows[:, None] * (H * K) + channels[None, :])
    tl.store(places, narrow(values, pointer.dtype.element_ty), mask=(rows < num_rows)[:, None] & (channels < K)[None, :])


@triton.jit
def lengths(seen, b, T, S, KIND: tl.constexpr, HAS_LENS: tl.constexpr, HAS_QUERY_LENS: tl.constexpr):
    """Valid keys, queries to compute, and keys to read of a row."""
    num_keys, num_queries = S, T
    if HAS_LENS:
        num_keys = tl.minimum(tl.load(seen.lens + b).to(tl.int32), S)
    if HAS_QUERY_LENS:
        num_queries = tl.minimum(tl.load(seen.query_lens + b).to(tl.int32), T)
    if KIND == FULL:
        num_keys = tl.maximum(num_keys, 1)
        readable = num_keys
    else:
        readable = tl.minimum(tl.maximum(num_keys, num_queries), S)
        if KIND == MASK:
            readable = S
    return num_keys, num_queries, readable


@triton.jit
def keys_of(m0, m1, num_keys, first, second, KIND: tl.constexpr, N: tl.constexpr):
    """Blocks of keys that queries m0 to m1 - 1 see.

    Returns:
        from, free, to, gap: the blocks from `from` to `free` hold nothing hidden, those from `free` to `to` may; with `gap`
        the latter are to be preceded by those from 0 to `gap`. All multiples of N but `to`.
    """
    start, free, stop, gap = m0 * 0, m0 * 0, num_keys, m0 * 0
    if KIND == FULL:
        free = num_keys // N * N
    elif KIND == CHUNK:
        start = tl.maximum(m0 // first - second, 0) * first // N * N
        stop = tl.maximum(tl.minimum(((m1 - 1) // first + 1) * first, num_keys), tl.where(m1 > num_keys, m1, 0))
        free = tl.where(second >= UNLIMITED, tl.minimum((m0 // first + 1) * first, num_keys) // N * N, start)
    elif KIND == BAND:
        is_global = m0 < second
        start = tl.where(is_global, 0, tl.maximum(m0 - first, 0)) // N * N
        stop = tl.where(is_global, num_keys, tl.minimum(m1 + first, num_keys))
        stop = tl.maximum(stop, tl.where(m1 > num_keys, m1, 0))
        gap = tl.cdiv(tl.minimum(second, num_keys), N) * N
        start = tl.where(gap >= start, 0, start)
        gap = tl.where(start == 0, 0, gap)
        free = start
    stop = tl.where(m0 < m1, stop, start)
    return start, tl.minimum(free, stop), stop, tl.where(m0 < m1, gap, 0)


@triton.jit
def queries_of(n0, n1, num_keys, num_queries, first, second, KIND: tl.constexpr, M: tl.constexpr):
    """Blocks of queries that see keys n0 to n1 - 1: from, to, gap as in `keys_of`."""
    start, stop, gap = n0 * 0, num_queries, n0 * 0
    if KIND == CHUNK:
        start = n0 // first * first
        if second < UNLIMITED:
            stop = tl.minimum(((n1 - 1) // first + second + 1) * first, num_queries)
    elif KIND == BAND:
        is_global = n0 < second
        start = tl.where(is_global, 0, tl.maximum(n0 - first, 0))
        stop = tl.where(is_global, num_queries, tl.minimum(n1 + first, num_queries))
        gap = tl.cdiv(tl.minimum(second, num_queries), M) * M
    if KIND == FULL:
        stop = tl.where(n0 < num_keys, stop, 0)
    elif KIND != MASK:  # keys in padding are seen by themselves alone
        start = tl.where(n0 < num_keys, start, n0)
        stop = tl.where(n0 < num_keys, stop, tl.minimum(n1, num_queries))
        gap = tl.where(n0 < num_keys, gap, 0)
    start = start // M * M
    start = tl.where(gap >= start, 0, start)
    return start, stop, tl.where(start == 0, 0, gap)


@triton.jit
def sees(seen, b, rows, columns, T, S, num_keys, num_queries, KIND: tl.constexpr):
    """Whether queries see keys; `rows` and `columns` have one dimension of size 1 each, either way round."""
    if KIND == FULL:
        return (columns < num_keys) & (rows < num_queries)
    if KIND == MASK:
        inside = (rows < tl.minimum(T, num_queries)) & (columns < S)
        places = seen.mask + b.to(tl.int64) * seen.mask_batch + rows.to(tl.int64) * seen.mask_query + columns * seen.mask_key
        return tl.load(places, mask=inside, other=0) != 0
    if KIND == CHUNK:
        behind = rows // seen.first - columns // seen.first
        near = (behind >= 0) & (behind <= seen.second)
    else:
        near = (tl.abs(rows - columns) <= seen.first) | (rows < seen.second) | (columns < seen.second)
    return ((near & (columns < num_keys)) | (rows == columns)) & (rows < num_queries)


@triton.jit
def distances(r, h, start, T, H, N: tl.constexpr, K: tl.constexpr, P: tl.constexpr):
    """Distances start to start + N - 1 of one head, zero where there are none; shape (N, P)."""
    rows, channels = start + tl.arange(0, N), tl.arange(0, P)
    inside = ((rows >= 0) & (rows < 2 * T - 1))[:, None] & (channels < K)[None, :]
    return tl.load(r + h * K + (rows[:, None] * (H * K) + channels[None, :]), mask=inside, other=0.0)


@triton.jit
def skew(first, second, M: tl.constexpr, N: tl.constexpr):
    """Scores of M queries against N keys out of their scores against two strips of N distances; shape (M, N)."""
    shift, places = (M - 1 - tl.arange(0, M))[:, None], tl.arange(0, N)[None, :]
    chosen = tl.where(places % M >= shift, first, second)
    return tl.gather(chosen, places // M * M + (places + shift) % M, 1)


@triton.jit
def unskew(scores, M: tl.constexpr, N: tl.constexpr):
    """The inverse of `skew`: what of the scores' gradient belongs to either strip."""
    shift, places = (M - 1 - tl.arange(0, M))[:, None], tl.arange(0, N)[None, :]
    turned = tl.gather(scores, places // M * M + (places - shift + M) % M, 1)
    return tl.where(places % M >= shift, turned, 0.0), tl.where(places % M >= shift, 0.0, turned)


@triton.jit
def skew_transposed(first, second, M: tl.constexpr, N: tl.constexpr):
    """As `skew`, of shape (N, M)."""
    shift, places = (M - 1 - tl.arange(0, M))[None, :], tl.arange(0, N)[:, None]
    chosen = tl.where(places % M >= shift, first, second)
    return tl.gather(chosen, places // M * M + (places + shift) % M, 0)


@triton.jit
def unskew_transposed(scores, M: tl.constexpr, N: tl.constexpr):
    """As `unskew`, of shape (N, M)."""
    shift, places = (M - 1 - tl.arange(0, M))[None, :], tl.arange(0, N)[:, None]
    turned = tl.gather(scores, places // M * M + (places - shift + M) % M, 0)
    return tl.where(places % M >= shift, turned, 0.0), tl.where(places % M >= shift, 0.0, turned)

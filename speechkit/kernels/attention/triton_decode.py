"""Attention of few queries to many keys: blocks of keys side by side, then merged.

Source: Dao et al. 2023, "Flash-Decoding for long-context inference".

Shape legend: as in `speechkit.kernels.attention.triton_tiles`; J queries, C blocks of keys ("splits").
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechkit.kernels.attention.triton_forward import accumulate
from speechkit.kernels.attention.triton_tiles import FULL, LOG2_E, MASK, Heads, Seen, dot, lengths, load_rows, sees, store_rows
from speechkit.kernels.attention.visibility import Visibility
from speechkit.kernels.operator import operator

QUERIES = 16  # of one program: the fewest rows that tensor cores take
KEYS = 32  # of a tile
SPLIT = 128  # keys of one program


@triton.jit(do_not_specialize=["J", "S", "H"])
def split_kernel(
    q,
    k,
    v,
    out,
    parts,
    sums,
    seen,
    J,
    S,
    H,
    scale,
    KIND: tl.constexpr,
    HAS_LENS: tl.constexpr,
    IS_ALONE: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program: M queries of one head and SPLIT keys. Writes weighted sums, largest scores and sums of weights."""
    split, h, blocks = tl.program_id(0), tl.program_id(1), tl.cdiv(J, M)
    b, rows = tl.program_id(2) // blocks, tl.program_id(2) % blocks * M + tl.arange(0, M)
    num_keys, num_queries, readable = lengths(seen, b, J, S, KIND, HAS_LENS, False)
    q_MP = load_rows(q, b, h, rows, J, K, P)
    state = tl.full((M,), -float("inf"), tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M, P), tl.float32)
    for n0 in tl.range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, readable), N):
        columns = n0 + tl.arange(0, N)
        k_NP = load_rows(k, b, h, columns, readable, K, P)
        s_MN = dot(q_MP, tl.trans(k_NP)) * (scale * LOG2_E)
        shown = sees(seen, b, rows[:, None], columns[None, :], J, S, num_keys, num_queries, KIND)
        state = accumulate(state, tl.where(shown, s_MN, -float("inf")), v, b, h, n0, readable, K, P, N)
    largest_M, sum_M, out_MP = state
    if IS_ALONE:
        store_rows(out, out_MP / tl.where(sum_M > 0, sum_M, 1.0)[:, None], b, h, rows, J, H, K, P)
    else:
        row = b * tl.num_programs(0) + split
        store_rows(parts, out_MP, row, h, rows, J, H, K, P)
        places = (row.to(tl.int64) * J + rows) * H + h
        tl.store(sums + 2 * places, largest_M, mask=rows < J)
        tl.store(sums + 2 * places + 1, sum_M, mask=rows < J)


@triton.jit(do_not_specialize=["J", "H", "num_splits"])
def merge_kernel(parts, sums, out, J, H, num_splits, K: tl.constexpr, P: tl.constexpr, M: tl.constexpr):
    """One program: M queries of one head; adds up what all blocks of keys gave, in their order."""
    rows, h, b = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1), tl.program_id(2)
    largest_M, sum_M, out_MP = tl.full((M,), -float("inf"), tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M, P), tl.float32)
    for split in tl.range(0, num_splits):
        row = (b * num_splits + split).to(tl.int64)
        places = (row * J + rows) * H + h
        part_M = tl.load(sums + 2 * places, mask=rows < J, other=-float("inf"))
        more_M = tl.load(sums + 2 * places + 1, mask=rows < J, other=0.0)
        new_M = tl.maximum(largest_M, part_M)
        finite_M = tl.where(new_M == -float("inf"), 0.0, new_M)
        shrink_M, weight_M = tl.exp2(largest_M - finite_M), tl.exp2(part_M - finite_M)
        values = load_rows(Heads(parts, J * H * K, H * K, K), row, h, rows, J, K, P)
        out_MP = out_MP * shrink_M[:, None] + values * weight_M[:, None]
        largest_M, sum_M = new_M, sum_M * shrink_M + more_M * weight_M
    store_rows(out, out_MP / tl.where(sum_M > 0, sum_M, 1.0)[:, None], b, h, rows, J, H, K, P)


def attend(q_BJHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, visible: Visibility | None, scale: float) -> Tensor:
    """As `speechkit.kernels.attention.decode_attention`, keys and values as views of shape (B, S, H, K)."""
    visible = Visibility() if visible is None else visible
    mask = visible.mask
    if mask is not None:
        mask = mask.expand(len(q_BJHK), 1, q_BJHK.shape[1], k_BSHK.shape[1])
    return decode(q_BJHK, k_BSHK, v_BSHK, visible.lens_B, mask, scale)


@operator("decode_attention")
def decode(q: Tensor, k: Tensor, v: Tensor, lens: Tensor | None, mask: Tensor | None, scale: float) -> Tensor:
    """Output, contiguous, shape (B, J, H, K)."""
    (batch, queries, heads, head_dim), keys = q.shape, k.shape[1]
    out, num_splits = decode_like(q, k, v, lens, mask, scale), triton.cdiv(keys, SPLIT)
    if not out.numel() or not keys:
        return out.zero_()
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    shape = (batch, num_splits, queries, heads, head_dim) if num_splits > 1 else (0,)
    parts, sums = q.new_empty(shape, dtype=torch.float32), q.new_empty((*shape[:-1], 2), dtype=torch.float32)
    places = (q, 0, 0, 0) if mask is None else (mask.view(torch.uint8), mask.stride(0), mask.stride(2), mask.stride(3))
    seen = Seen(q if lens is None else lens, q, *places, 0, 0)
    num_blocks, padded = triton.cdiv(queries, QUERIES), max(16, triton.next_power_of_2(head_dim))
    split_kernel[(num_splits, heads, batch * num_blocks)](
        *(Heads(x, *x.stride()[:3]) for x in (q, k, v)),
        out,
        parts,
        sums,
        seen,
        queries,
        keys,
        heads,
        scale,
        KIND=FULL.value if mask is None else MASK.value,
        HAS_LENS=lens is not None,
        IS_ALONE=num_splits == 1,
        K=head_dim,
        P=padded,
        M=QUERIES,
        N=KEYS,
        SPLIT=SPLIT,
    )
    if num_splits > 1:
        merge_kernel[(num_blocks, heads, batch)](parts, sums, out, queries, heads, num_splits, K=head_dim, P=padded, M=QUERIES)
    return out


@decode.register_fake
def decode_like(q: Tensor, k: Tensor, v: Tensor, lens: Tensor | None, mask: Tensor | None, scale: float) -> Tensor:
    """A contiguous tensor of the shape of q."""
    return q.new_empty(q.shape)

# mypy: allow-untyped-defs
"""Integrate-and-fire over the band of the weight matrix, on a GPU.

Forward: the running sums, then a program for each token and block of D: it finds its run of frames by bisection of the running
sums and adds them up, so that nothing is added atomically. Backward: a program for some frames, which adds up the few tokens of
each and takes the product of frame steps with the open token; then a sum over all later frames. Every order of addition is one
of time from the beginning of the row: a row gives the same bits in any batch.

Where tokens end follows from numbers only (S_t against whole numbers), so a frame may complete any number of tokens.

Shape legend: B batch, T frames, U tokens, D model.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechkit.kernels.aot import Variant
from speechkit.kernels.cif.autograd import differentiate
from speechkit.kernels.operator import operator
from speechkit.kernels.triton_rounding import narrow

SCAN_BLOCK = 1024  # frames
SEARCH_BLOCK = 64  # tokens
RUN_BLOCK = 8  # frames of a token that are loaded together
FRAME_BLOCK = 8  # frames of a program of the backward pass
BACKWARD_DIM_BLOCK = 128


@triton.jit
def _running_sums(alphas, frame_lens, sums, frames, stride_b, stride_t, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.load(frame_lens + row), frames)
    total = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, frames, BLOCK):
        t = start + tl.arange(0, BLOCK)
        alpha = tl.load(alphas + row * stride_b + t.to(tl.int64) * stride_t, mask=t < length, other=0.0).to(tl.float64)
        tl.store(sums + row * frames + t, total + tl.cumsum(alpha, 0), mask=t < frames)
        total += tl.sum(alpha, 0)


@triton.jit
def _runs(sums, frame_lens, token_lens, starts, ends, frames, max_tokens, steps, BLOCK: tl.constexpr):
    """First frame and end of each token's run, by bisection; nothing past the tokens of a row."""
    row = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    length = tl.minimum(tl.load(frame_lens + row), frames).to(tl.int32)
    length = tl.where(token < tl.load(token_lens + row), length, 0)
    level = token.to(tl.float64)
    sums += row * frames
    low, high = tl.full([BLOCK], 0, tl.int32), length  # first frame with a sum above the level
    low_end, high_end = tl.full([BLOCK], 0, tl.int32), length  # first frame with a sum of level + 1 at least
    for _ in range(steps):
        middle = (low + high) // 2
        is_open = low < high
        is_below = is_open & (tl.load(sums + middle, mask=is_open, other=0.0) <= level)
        low, high = tl.where(is_below, middle + 1, low), tl.where(is_open & (is_below == 0), middle, high)
        middle = (low_end + high_end) // 2
        is_open = low_end < high_end
        is_below = is_open & (tl.load(sums + middle, mask=is_open, other=0.0) < level + 1.0)
        low_end, high_end = tl.where(is_below, middle + 1, low_end), tl.where(is_open & (is_below == 0), middle, high_end)
    tl.store(starts + row * max_tokens + token, low, mask=token < max_tokens)
    tl.store(ends + row * max_tokens + token, tl.minimum(low_end + 1, length), mask=token < max_tokens)


@triton.jit
def _integrate(
    sums,
    hidden,
    starts,
    ends,
    embeddings,
    frames,
    max_tokens,
    dim,
    stride_b,
    stride_t,
    RUN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, token = program // max_tokens, program % max_tokens
    level = token.to(tl.float64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start, end = tl.load(starts + program), tl.load(ends + program)
    sums += row * frames
    total = tl.full([BLOCK_D], 0.0, tl.float32)
    for first in range(start, end, RUN):
        t = first + tl.arange(0, RUN)
        after = tl.load(sums + t, mask=t < end, other=0.0)
        before = tl.load(sums + t - 1, mask=(t < end) & (t > 0), other=0.0)
        share = tl.where(after >= level + 1.0, level + 1.0, after) - tl.where(before <= level, level, before)  # nan stays
        share = tl.where((t >= end) | (share < 0.0), 0.0, share).to(tl.float32)
        where = hidden + row * stride_b + t[:, None].to(tl.int64) * stride_t + d[None, :]
        frame = tl.load(where, mask=(t < end)[:, None] & (d < dim)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(share[:, None] * frame, 0)
    tl.store(embeddings + program * dim + d, narrow(total, embeddings.dtype.element_ty), mask=d < dim)


@triton.jit
def _integrate_backward(
    grad,
    sums,
    hidden,
    frame_lens,
    token_lens,
    by_sums,
    by_hidden,
    frames,
    max_tokens,
    dim,
    stride_b,
    stride_t,
    TO_ALPHAS: tl.constexpr,
    TO_HIDDEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    length = tl.minimum(tl.load(frame_lens + row), frames).to(tl.int32)
    tokens = tl.minimum(tl.load(token_lens + row), max_tokens).to(tl.int32)
    is_valid = (t < length) & (tokens > 0)
    after = tl.load(sums + row * frames + t, mask=is_valid, other=0.0)
    before = tl.load(sums + row * frames + t - 1, mask=is_valid & (t > 0), other=0.0)
    cap = tokens.to(tl.float64)
    opened = tl.maximum(tl.ceil(tl.where(before < cap, before, cap)).to(tl.int32) - 1, 0)  # token that is open before the frame
    opened_after = tl.maximum(tl.ceil(tl.where(after < cap, after, cap)).to(tl.int32) - 1, 0)
    most = tl.max(tl.where(is_valid, opened_after - opened + 1, 0), 0)
    reaches = is_valid & (after <= cap)
    grad += row * max_tokens * dim
    hidden += row * stride_b
    product = tl.full([BLOCK_T], 0.0, tl.float32)
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        in_dim = (d < dim)[None, :]
        if TO_HIDDEN:
            total = tl.full([BLOCK_T, BLOCK_D], 0.0, tl.float32)
            for more in range(most):
                token = opened + more
                is_given = is_valid & (token <= opened_after)
                where = grad + token[:, None].to(tl.int64) * dim + d[None, :]
                by_token = tl.load(where, mask=is_given[:, None] & in_dim, other=0.0)
                level = token.to(tl.float64)
                share = tl.where(after >= level + 1.0, level + 1.0, after) - tl.where(before <= level, level, before)
                share = tl.where((is_given == 0) | (share < 0.0), 0.0, share).to(tl.float32)
                total += share[:, None] * by_token.to(tl.float32)
            where = by_hidden + (row * frames + t[:, None]) * dim + d[None, :]
            tl.store(where, narrow(total, by_hidden.dtype.element_ty), mask=(t < frames)[:, None] & in_dim)
        if TO_ALPHAS:
            where = hidden + t[:, None].to(tl.int64) * stride_t + d[None, :]
            here = tl.load(where, mask=reaches[:, None] & in_dim, other=0.0).to(tl.float32)
            has_next = reaches & (t + 1 < length)
            there = tl.load(where + stride_t, mask=has_next[:, None] & in_dim, other=0.0).to(tl.float32)
            where = grad + opened_after[:, None].to(tl.int64) * dim + d[None, :]
            by_open = tl.load(where, mask=reaches[:, None] & in_dim, other=0.0).to(tl.float32)
            product += tl.sum(by_open * (here - there), 1)
    if TO_ALPHAS:
        tl.store(by_sums + row * frames + t, product, mask=t < frames)


@triton.jit
def _sum_of_later(by_sums, by_alphas, frames, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.full([BLOCK], 0.0, tl.float64)
    for done in range(tl.cdiv(frames, BLOCK)):
        t = (tl.cdiv(frames, BLOCK) - 1 - done) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(by_sums + row * frames + t, mask=t < frames, other=0.0).to(tl.float64)
        later = total + tl.cumsum(value, 0, reverse=True)
        tl.store(by_alphas + row * frames + t, narrow(later.to(tl.float32), by_alphas.dtype.element_ty), mask=t < frames)
        total += tl.sum(value, 0)


def _dense_last(x_BTD: Tensor) -> Tensor:
    """The tensor with its last axis laid out without gaps."""
    return x_BTD if x_BTD.stride(2) == 1 else x_BTD.contiguous()


@operator("cif_fused")
def integrate_fused(
    alphas_BT: Tensor, hidden_BTD: Tensor, frame_lens_B: Tensor, token_lens_B: Tensor, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Embeddings of shape (B, U, D), and the running sums in fp64; arguments as those of `integrate`."""
    batch, frames, dim = hidden_BTD.shape
    embeddings_BUD = hidden_BTD.new_empty(batch, max_tokens, dim)
    sums_BT = torch.empty(batch, frames, dtype=torch.float64, device=hidden_BTD.device)
    if not embeddings_BUD.numel() or not frames:
        return embeddings_BUD.zero_(), sums_BT.zero_()
    hidden_BTD = _dense_last(hidden_BTD)
    _running_sums[(batch,)](alphas_BT, frame_lens_B, sums_BT, frames, *alphas_BT.stride(), BLOCK=SCAN_BLOCK)
    block = min(triton.next_power_of_2(dim), 256)
    starts_BU, ends_BU = torch.empty(2, batch, max_tokens, dtype=torch.int32, device=hidden_BTD.device)
    lens, runs, steps = (frame_lens_B, token_lens_B), (starts_BU, ends_BU), frames.bit_length()
    _runs[(triton.cdiv(max_tokens, SEARCH_BLOCK), batch)](
        sums_BT, *lens, *runs, frames, max_tokens, steps, BLOCK=SEARCH_BLOCK, num_warps=2
    )
    _integrate[(batch * max_tokens, triton.cdiv(dim, block))](
        sums_BT,
        hidden_BTD,
        *runs,
        embeddings_BUD,
        frames,
        max_tokens,
        dim,
        *hidden_BTD.stride()[:2],
        RUN=RUN_BLOCK,
        BLOCK_D=block,
    )
    return embeddings_BUD, sums_BT


@operator("cif_fused_backward")
def integrate_fused_backward(
    grad_BUD: Tensor,
    sums_BT: Tensor,
    hidden_BTD: Tensor,
    frame_lens_B: Tensor,
    token_lens_B: Tensor,
    alphas_BT: Tensor,
    to_alphas: bool,
    to_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `integrate_fused` by alphas and by frames."""
    batch, frames, dim = hidden_BTD.shape
    by_alphas = alphas_BT.new_empty(alphas_BT.shape if to_alphas else (0,))
    by_hidden = torch.empty(hidden_BTD.shape if to_hidden else (0,), dtype=hidden_BTD.dtype, device=hidden_BTD.device)
    if not grad_BUD.numel() or not frames:
        return by_alphas.zero_(), by_hidden.zero_()
    hidden_BTD, grad_BUD = _dense_last(hidden_BTD), grad_BUD.contiguous()
    by_sums_BT = torch.empty(batch, frames if to_alphas else 0, dtype=torch.float32, device=hidden_BTD.device)
    _integrate_backward[(triton.cdiv(frames, FRAME_BLOCK), batch)](
        grad_BUD,
        sums_BT,
        hidden_BTD,
        frame_lens_B,
        token_lens_B,
        by_sums_BT,
        by_hidden,
        frames,
        grad_BUD.shape[1],
        dim,
        *hidden_BTD.stride()[:2],
        TO_ALPHAS=to_alphas,
        TO_HIDDEN=to_hidden,
        BLOCK_T=FRAME_BLOCK,
        BLOCK_D=min(triton.next_power_of_2(dim), BACKWARD_DIM_BLOCK),
    )
    if to_alphas:
        _sum_of_later[(batch,)](by_sums_BT, by_alphas, frames, BLOCK=SCAN_BLOCK)
    return by_alphas, by_hidden


differentiate(integrate_fused, integrate_fused_backward)


def compile_variants() -> list[Variant]:
    """What is compiled ahead of time: all kernels, with frames in fp32 and bf16."""
    scan: dict[str, Any] = {"BLOCK": SCAN_BLOCK}
    lens = {"frame_lens": "*i64", "token_lens": "*i64"}
    runs = {"starts": "*i32", "ends": "*i32"}
    strided = dict.fromkeys(("frames", "stride_b", "stride_t"), "i32")
    sizes = strided | {"max_tokens": "i32", "dim": "i32"}
    search = {"sums": "*fp64", "frames": "i32", "max_tokens": "i32", "steps": "i32"} | lens | runs
    found = [Variant("runs", _runs, search, {"BLOCK": SEARCH_BLOCK}, num_warps=2)]
    for dtype in ("fp32", "bf16"):
        tensor = f"*{dtype}"
        signature = {"alphas": tensor, "frame_lens": "*i64", "sums": "*fp64"} | strided
        found.append(Variant(f"running_sums {dtype}", _running_sums, signature, scan))
        signature = {"sums": "*fp64", "hidden": tensor, "embeddings": tensor} | runs | sizes
        found.append(Variant(f"integrate {dtype} D=256", _integrate, signature, {"RUN": RUN_BLOCK, "BLOCK_D": 256}))
        signature = {"grad": tensor, "sums": "*fp64", "hidden": tensor, "by_sums": "*fp32", "by_hidden": tensor} | lens | sizes
        constants = {"TO_ALPHAS": True, "TO_HIDDEN": True, "BLOCK_T": FRAME_BLOCK, "BLOCK_D": BACKWARD_DIM_BLOCK}
        found.append(Variant(f"integrate_backward {dtype}", _integrate_backward, signature, constants))
        signature = {"by_sums": "*fp32", "by_alphas": tensor, "frames": "i32"}
        found.append(Variant(f"sum_of_later {dtype}", _sum_of_later, signature, scan))
    return found

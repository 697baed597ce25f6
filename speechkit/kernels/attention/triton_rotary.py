"""Rotary positions: queries and keys turned by one small kernel, backwards for the gradient.

Shape legend: as in `speechkit.kernels.attention.triton_tiles`.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from speechkit.kernels.attention.triton_tiles import Heads, load_rows, store_rows
from speechkit.kernels.operator import operator

FRAMES = 32  # of one program


@triton.jit(do_not_specialize=["T", "H", "way"])
def rotate_kernel(q, k, cos, sin, q_out, k_out, T, H, way, K: tl.constexpr, P: tl.constexpr, M: tl.constexpr):
    """One program: M frames of one head of queries and keys, turned by the angles of a table times `way`, 1 or -1."""
    h, b, rows, pairs = tl.program_id(1), tl.program_id(2), tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, P // 2)
    places, inside = rows[:, None] * (K // 2) + pairs[None, :], (rows < T)[:, None] & (pairs < K // 2)[None, :]
    cos_MN, sin_MN = tl.load(cos + places, mask=inside, other=0.0), tl.load(sin + places, mask=inside, other=0.0) * way
    store_rows(q_out, turn(load_rows(q, b, h, rows, T, K, P), cos_MN, sin_MN, P, M), b, h, rows, T, H, K, P)
    store_rows(k_out, turn(load_rows(k, b, h, rows, T, K, P), cos_MN, sin_MN, P, M), b, h, rows, T, H, K, P)


@triton.jit
def turn(x_MP, cos_MN, sin_MN, P: tl.constexpr, M: tl.constexpr):
    """Channel pairs turned, fp32."""
    first, second = tl.split(tl.reshape(x_MP.to(tl.float32), (M, P // 2, 2)))
    return tl.reshape(tl.join(first * cos_MN - second * sin_MN, second * cos_MN + first * sin_MN), (M, P))


@operator("rotate")
def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, way: float) -> tuple[Tensor, Tensor]:
    """Queries and keys, each (B, T, H, K), turned by the angles whose cosines and sines are given, (T, K / 2), times `way`."""
    batch, frames, heads, head_dim = q.shape
    q_out, k_out = rotate_like(q, k, cos, sin, way)
    if q.numel():
        q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
        rotate_kernel[(triton.cdiv(frames, FRAMES), heads, batch)](
            *(Heads(x, *x.stride()[:3]) for x in (q, k)),
            cos.float().contiguous(),
            sin.float().contiguous(),
            q_out,
            k_out,
            frames,
            heads,
            way,
            K=head_dim,
            P=max(16, triton.next_power_of_2(head_dim)),
            M=FRAMES,
        )
    return q_out, k_out


@rotate.register_fake
def rotate_like(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, way: float) -> tuple[Tensor, Tensor]:
    """Contiguous tensors of the shape of q and k."""
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[2:4])
    ctx.way = inputs[4]


def _differentiate(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    return (*rotate(dq, dk, *ctx.saved_tensors, -ctx.way), None, None, None)


rotate.register_autograd(_differentiate, setup_context=_save)

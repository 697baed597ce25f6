"""Launching the attention kernels, as custom operations that autograd and torch.compile know.

Shape legend: as in `speechkit.kernels.attention.triton_tiles`; G groups of rows of the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from speechkit.kernels.aot import Variant
from speechkit.kernels.attention.triton_backward import distances_kernel, keys_kernel, queries_kernel
from speechkit.kernels.attention.triton_forward import forward_kernel
from speechkit.kernels.attention.triton_rotary import rotate as _rotate
from speechkit.kernels.attention.triton_tiles import BAND, CHUNK, FULL, MASK, UNLIMITED, Heads, Relative, Seen
from speechkit.kernels.attention.visibility import Visibility
from speechkit.kernels.operator import operator

GROUP = 4  # rows of a batch whose gradients by distance one program adds up


class Blocks(NamedTuple):
    """Sizes of a tile, warps of a program, depth of its pipeline."""

    m: int
    n: int
    num_warps: int
    num_stages: int


def blocks(kernel: str, dtype: torch.dtype, head_dim: int, relative: bool) -> Blocks:
    """How a kernel is launched: by dtype and head dimension alone, so that results depend on nothing else.

    Args:
        kernel: "forward", "queries", "keys" or "distances".
        dtype: of the queries.
        head_dim: K.
        relative: whether there is a relative term.
    """
    wide = head_dim > 64
    if dtype == torch.float32:  # products in full fp32 do not run on tensor cores
        return Blocks(32, 32, 8, 1)
    if relative and wide:
        return Blocks(32, 32, 8, 1)
    if relative:
        narrow = {"forward": Blocks(64, 64, 4, 2), "queries": Blocks(32, 64, 8, 2), "keys": Blocks(32, 32, 4, 2)}
        return narrow.get(kernel, Blocks(32, 32, 4, 1))
    if kernel == "forward":
        return Blocks(128, 64, 8, 2 if wide else 3)
    return Blocks(64, 64, 8 if wide else 4, 2)


def attend(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    visible: Visibility | None,
    relative: tuple[Tensor, Tensor, Tensor] | None,
    scale: float,
) -> Tensor:
    """As `speechkit.kernels.attention.attention`; zeros where `visible.query_lens_B` says that nothing is needed."""
    visible = Visibility() if visible is None else visible
    kind, first, second = closed_form(visible, q_BTHK.shape[1])
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BTHK, k_BSHK, v_BSHK))
    r, u, w = (None, None, None) if relative is None else (x.to(q.dtype).contiguous() for x in relative)
    mask = visible.mask
    if mask is not None:
        mask = mask.expand(len(q), 1, q.shape[1], k.shape[1])
    return _forward(q, k, v, visible.lens_B, visible.query_lens_B, mask, r, u, w, kind, first, second, scale)[0]


def rotate(q_BTHK: Tensor, k_BTHK: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Turned queries and keys."""
    return _rotate(q_BTHK, k_BTHK, *table, 1.0)


def closed_form(visible: Visibility, num_frames: int) -> tuple[int, int, int]:
    """Kind and the two numbers that tell who sees whom, as in `triton_tiles`."""
    if visible.mask is not None:
        return MASK.value, 0, 0
    if visible.causal or visible.chunk_size is not None:
        left = visible.left_chunks
        unlimited = left is None or left >= num_frames
        return CHUNK.value, visible.chunk_size or 1, UNLIMITED.value if unlimited else left  # type: ignore[return-value]
    if visible.reach is not None:
        return BAND.value, min(visible.reach, num_frames), min(visible.num_global, num_frames)
    return FULL.value, 0, 0


@operator("attention_forward")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens: Tensor | None,
    query_lens: Tensor | None,
    mask: Tensor | None,
    r: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    kind: int,
    first: int,
    second: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, K) and log-sum-exp (B, H, T), base 2, fp32."""
    (batch, queries, heads, head_dim), keys = q.shape, k.shape[1]
    out, lse = _forward_like(q, k, v, lens, query_lens, mask, r, u, w, kind, first, second, scale)
    how = blocks("forward", q.dtype, head_dim, r is not None)
    if out.numel():
        forward_kernel[(triton.cdiv(queries, how.m), heads, batch)](
            *(_heads(x) for x in (q, k, v)),
            out,
            lse,
            _seen(q, lens, query_lens, mask, first, second),
            _relative(q, r, u, w),
            queries,
            keys,
            heads,
            scale,
            **_constants(how, head_dim, kind, lens, query_lens, r is not None),
        )
    return out, lse


@_forward.register_fake
def _forward_like(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lens: Tensor | None,
    query_lens: Tensor | None,
    mask: Tensor | None,
    r: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    kind: int,
    first: int,
    second: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, queries), dtype=torch.float32)


@operator("attention_backward")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lens: Tensor | None,
    query_lens: Tensor | None,
    mask: Tensor | None,
    r: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    kind: int,
    first: int,
    second: int,
    scale: float,
) -> list[Tensor]:
    """Gradients by q, k, v, and of a relative term by r, u, w."""
    (batch, queries, heads, head_dim), keys = q.shape, k.shape[1]
    grad, relative = grad.contiguous(), r is not None
    seen, terms = _seen(q, lens, query_lens, mask, first, second), _relative(q, r, u, w)
    heads_of = [_heads(x) for x in (q, k, v, out, grad)]
    how = blocks("queries", q.dtype, head_dim, relative)
    num_blocks = triton.cdiv(queries, how.m)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    delta = torch.empty_like(lse)
    du, dw = (q.new_empty((batch, num_blocks, heads, head_dim), dtype=torch.float32) for _ in range(2))
    shared = (seen, terms, queries, keys, heads, scale)
    if q.numel():
        constants = _constants(how, head_dim, kind, lens, query_lens, relative)
        queries_kernel[(num_blocks, heads, batch)](*heads_of, lse, delta, dq, du, dw, *shared, **constants)
        how = blocks("keys", q.dtype, head_dim, relative)
        constants = _constants(how, head_dim, kind, lens, query_lens, relative)
        q_k_v_grad = (*heads_of[:3], heads_of[4])
        keys_kernel[(triton.cdiv(keys, how.n), heads, batch)](*q_k_v_grad, lse, delta, dk, dv, *shared, **constants)
    if r is None or u is None or w is None:
        return [dq, dk, dv]
    dr = _by_distance(q, k, v, grad, lse, delta, lens, query_lens, mask, r, u, w, kind, first, second, scale)
    return [dq, dk, dv, dr, du.sum((0, 1)).to(u.dtype), dw.sum((0, 1)).to(w.dtype)]


@_backward.register_fake
def _backward_like(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lens: Tensor | None,
    query_lens: Tensor | None,
    mask: Tensor | None,
    r: Tensor | None,
    u: Tensor | None,
    w: Tensor | None,
    kind: int,
    first: int,
    second: int,
    scale: float,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (q, k, v, r, u, w) if x is not None]


def _by_distance(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    lens: Tensor | None,
    query_lens: Tensor | None,
    mask: Tensor | None,
    r: Tensor,
    u: Tensor,
    w: Tensor,
    kind: int,
    first: int,
    second: int,
    scale: float,
) -> Tensor:
    """Gradient by r: strips of distances, a near and a far one for each diagonal of tiles, laid over one another."""
    batch, queries, heads, head_dim = q.shape
    how = blocks("distances", q.dtype, head_dim, True)
    side = triton.cdiv(queries, how.n)
    num_strips = 2 * side + 1
    shape = (triton.cdiv(batch, GROUP), num_strips * how.n, heads, head_dim)
    near, far = (q.new_empty(shape, dtype=torch.float32) for _ in range(2))
    if not q.numel():
        return torch.zeros_like(r)
    constants = _constants(how, head_dim, kind, lens, query_lens, True)
    del constants["RELATIVE"]
    distances_kernel[(num_strips, heads, shape[0])](
        *(_heads(x) for x in (q, k, v, grad)),
        lse,
        delta,
        near,
        far,
        _seen(q, lens, query_lens, mask, first, second),
        _relative(q, r, u, w),
        batch,
        queries,
        heads,
        scale,
        ROWS=GROUP,
        **constants,
    )
    begin = side * how.n - queries  # place of distance 0 in the far strips
    added = near[:, begin + how.m : begin + how.m + len(r)].sum(0) + far[:, begin : begin + len(r)].sum(0)
    return added.to(r.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9], *output)
    ctx.numbers = inputs[9:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad_BTHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, lens, query_lens, mask, r, u, w, out, lse = ctx.saved_tensors
    found = _backward(grad_BTHK, q, k, v, out, lse, lens, query_lens, mask, r, u, w, *ctx.numbers)
    return (*found[:3], None, None, None, *(found[3:] or (None, None, None)), None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _heads(x_BTHK: Tensor) -> Heads:
    return Heads(x_BTHK, *x_BTHK.stride()[:3])


def _seen(q: Tensor, lens: Tensor | None, query_lens: Tensor | None, mask: Tensor | None, first: int, second: int) -> Seen:
    places = (q, 0, 0, 0) if mask is None else (mask.view(torch.uint8), mask.stride(0), mask.stride(2), mask.stride(3))
    return Seen(q if lens is None else lens, q if query_lens is None else query_lens, *places, first, second)


def _relative(q: Tensor, r: Tensor | None, u: Tensor | None, w: Tensor | None) -> Relative:
    return Relative(*(q if x is None else x for x in (r, u, w)))


def _constants(
    how: Blocks, head_dim: int, kind: int, lens: Tensor | None, query_lens: Tensor | None, relative: bool
) -> dict[str, Any]:
    return {
        "KIND": kind,
        "HAS_LENS": lens is not None,
        "HAS_QUERY_LENS": query_lens is not None,
        "RELATIVE": relative,
        "K": head_dim,
        "P": max(16, triton.next_power_of_2(head_dim)),
        "M": how.m,
        "N": how.n,
        "num_warps": how.num_warps,
        "num_stages": how.num_stages,
    }


def compile_variants() -> list[Variant]:
    """What ahead-of-time compilation covers."""
    from speechkit.kernels.attention.triton_variants import list_variants

    return list_variants()

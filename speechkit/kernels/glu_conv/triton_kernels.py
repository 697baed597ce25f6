# mypy: ignore-errors
"""Kernels of the convolution module; `triton_impl` says how they work together and launches them.

The last K - 1 frames under the convolution and the taps are tuples of vectors over channels: registers, one channel for each
thread. Offsets inside a row are 64 bits wide.

Shape legend: B batch, T frames, C = 2 D projected, D model, K taps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from speechkit.kernels.triton_rounding import narrow


@triton.jit
def _projected_frames(x, valid, first, frames, d, dim, stride_t, COUNT: tl.constexpr, HAS_VALID: tl.constexpr):
    """Values and gates of COUNT frames of a row; zeros outside the row and outside valid frames."""
    values, gates = (), ()
    for i in tl.static_range(COUNT):
        t = first + i
        is_valid = (t >= 0) & (t < frames)
        if HAS_VALID:
            is_valid = is_valid & (tl.load(valid + t, mask=is_valid, other=0) != 0)
        where = x + t.to(tl.int64) * stride_t + d
        values = values + (tl.load(where, mask=is_valid & (d < dim), other=0.0),)
        gates = gates + (tl.load(where + dim, mask=is_valid & (d < dim), other=0.0),)
    return values, gates


@triton.jit
def _sums_of_four(a, b, c, d):
    """Sums of four vectors in one pass over the threads."""
    first, second = tl.split(tl.sum(tl.join(tl.join(a, b), tl.join(c, d)), 0))
    a_sum, b_sum = tl.split(first)
    c_sum, d_sum = tl.split(second)
    return a_sum, b_sum, c_sum, d_sum


@triton.jit
def forward_kernel(
    x, valid, weight, bias, norm_weight, norm_bias, y, kept, frames, dim, stride_b, stride_t, eps,
    K: tl.constexpr, LEFT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_VALID: tl.constexpr, HAS_NORM: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """LEFT frames to the left under the kernel; `kept` gets what layer norm sees."""
    row = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * CHUNK
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_dim = d < dim
    x += row * stride_b
    valid += row * frames
    y += row * frames * dim
    kept += row * frames * dim
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight + d * K + k, mask=in_dim, other=0.0).to(tl.float32),)
    offset = tl.load(bias + d, mask=in_dim, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.load(norm_weight + d, mask=in_dim, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias + d, mask=in_dim, other=0.0).to(tl.float32)
    window = ()
    for _ in tl.static_range(K - 1):
        window = window + (tl.full([BLOCK_D], 0.0, tl.float32),)
    begin = first - (K + 2) // 4 * 4  # early enough to fill the window
    values, gates = _projected_frames(x, valid, begin - LEFT + K - 1, frames, d, dim, stride_t, 4, HAS_VALID)
    for step in range((tl.minimum(first + CHUNK, frames) - begin + 3) // 4):
        start = begin + step * 4
        for i in tl.static_range(4):
            window = window + (values[i].to(tl.float32) / (1.0 + tl.exp(-gates[i].to(tl.float32))),)
        values, gates = _projected_frames(x, valid, start + 4 - LEFT + K - 1, frames, d, dim, stride_t, 4, HAS_VALID)
        if start >= first:
            place = start.to(tl.int64) * dim + d
            totals = ()
            for i in tl.static_range(4):
                total = offset
                for k in tl.static_range(K):
                    total += taps[k] * window[i + k]
                totals = totals + (total,)
                if KEEP or not HAS_NORM:
                    tl.store(kept + place + i * dim, narrow(total, kept.dtype.element_ty), mask=in_dim & (start + i < frames))
            if HAS_NORM:
                sums = _sums_of_four(totals[0], totals[1], totals[2], totals[3])
                centred = ()
                for i in tl.static_range(4):
                    centred = centred + (tl.where(in_dim, totals[i] - sums[i] / dim, 0.0),)
                squares = _sums_of_four(
                    centred[0] * centred[0], centred[1] * centred[1], centred[2] * centred[2], centred[3] * centred[3]
                )
                for i in tl.static_range(4):
                    normed = centred[i] * tl.rsqrt(squares[i] / dim + eps) * scale + shift
                    out = narrow(normed / (1.0 + tl.exp(-normed)), y.dtype.element_ty)
                    tl.store(y + place + i * dim, out, mask=in_dim & (start + i < frames))
        window = window[4:]


@triton.jit
def norm_backward_kernel(
    grad, kept, norm_weight, norm_bias, by_conv, partial, num_rows, dim, eps,
    STEP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Through SiLU and layer norm; sums for its weight and bias over CHUNK frames to `partial`."""
    first = tl.program_id(0).to(tl.int64) * CHUNK
    d = tl.arange(0, BLOCK_D)
    in_dim = d < dim
    scale = tl.load(norm_weight + d, mask=in_dim, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(norm_bias + d, mask=in_dim, other=0.0).to(tl.float32)[None, :]
    by_scale = tl.full([BLOCK_D], 0.0, tl.float32)
    by_shift = tl.full([BLOCK_D], 0.0, tl.float32)
    for step in range((tl.minimum(num_rows - first, CHUNK) + STEP - 1) // STEP):
        row = first + step * STEP + tl.arange(0, STEP)
        place = row[:, None] * dim + d[None, :]
        is_there = (row < num_rows)[:, None] & in_dim[None, :]
        z = tl.load(kept + place, mask=is_there, other=0.0).to(tl.float32)
        centred = tl.where(in_dim[None, :], z - (tl.sum(z, 1) / dim)[:, None], 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, 1) / dim + eps)[:, None]
        normed = centred * inverse
        h = normed * scale + shift
        gate = 1.0 / (1.0 + tl.exp(-h))
        by_h = tl.load(grad + place, mask=is_there, other=0.0).to(tl.float32) * (gate + h * gate * (1.0 - gate))
        by_scale += tl.sum(by_h * normed, 0)
        by_shift += tl.sum(by_h, 0)
        by_normed = by_h * scale
        mean = (tl.sum(by_normed, 1) / dim)[:, None]
        along = (tl.sum(by_normed * normed, 1) / dim)[:, None]
        by_z = inverse * (by_normed - mean - normed * along)
        tl.store(by_conv + place, narrow(by_z, by_conv.dtype.element_ty), mask=is_there)
    out = partial + tl.program_id(0).to(tl.int64) * 2 * dim + d
    tl.store(out, by_scale, mask=in_dim)
    tl.store(out + dim, by_shift, mask=in_dim)


@triton.jit
def _frames(grad, first, frames, d, dim, COUNT: tl.constexpr):
    """COUNT frames of a row; zeros outside it."""
    found = ()
    for i in tl.static_range(COUNT):
        t = first + i
        inside = (t >= 0) & (t < frames) & (d < dim)
        found = found + (tl.load(grad + t.to(tl.int64) * dim + d, mask=inside, other=0.0).to(tl.float32),)
    return found


@triton.jit
def conv_backward_kernel(
    grad, x, valid, weight, by_x, partial, frames, dim, stride_b, stride_t,
    K: tl.constexpr, LEFT: tl.constexpr, STEP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_VALID: tl.constexpr,
):  # fmt: skip
    """Through the convolution and the gate; sums for taps and bias over CHUNK frames to `partial`, the bias last."""
    row = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * CHUNK
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_dim = d < dim
    x += row * stride_b
    valid += row * frames
    grad += row * frames * dim
    by_x += row * frames * 2 * dim
    taps = ()
    by_taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight + d * K + k, mask=in_dim, other=0.0).to(tl.float32),)
        by_taps = by_taps + (tl.full([BLOCK_D], 0.0, tl.float32),)
    by_bias = tl.full([BLOCK_D], 0.0, tl.float32)
    window = ()
    for _ in tl.static_range(K - 1):
        window = window + (tl.full([BLOCK_D], 0.0, tl.float32),)
    begin = first - (K + STEP - 2) // STEP * STEP  # early enough to fill the window
    for step in range((tl.minimum(first + CHUNK, frames) - begin + STEP - 1) // STEP):
        start = begin + step * STEP
        window = window + _frames(grad, start + LEFT, frames, d, dim, STEP)
        for i in tl.static_range(STEP):
            t = start + i
            is_valid = (t >= first) & (t < frames)
            is_stored = is_valid & in_dim
            if HAS_VALID:
                is_valid = is_valid & (tl.load(valid + t, mask=is_valid, other=0) != 0)
            where = x + t.to(tl.int64) * stride_t + d
            value = tl.load(where, mask=is_valid & in_dim, other=0.0).to(tl.float32)
            gate = tl.load(where + dim, mask=is_valid & in_dim, other=0.0).to(tl.float32)
            gate = 1.0 / (1.0 + tl.exp(-gate))
            gated = value * gate
            by_gated = tl.full([BLOCK_D], 0.0, tl.float32)
            more = ()
            for k in tl.static_range(K):
                by_gated += taps[k] * window[i + K - 1 - k]
                more = more + (by_taps[k] + gated * window[i + K - 1 - k],)
            by_taps = more
            by_bias += tl.where(t >= first, window[i + K - 1 - LEFT], 0.0)
            by_value = tl.where(is_valid, by_gated * gate, 0.0)
            out = by_x + t.to(tl.int64) * 2 * dim + d
            tl.store(out, narrow(by_value, by_x.dtype.element_ty), mask=is_stored)
            tl.store(out + dim, narrow(by_gated * gated * (1.0 - gate), by_x.dtype.element_ty), mask=is_stored)
        window = window[STEP:]
    out = partial + (row * tl.num_programs(0) + tl.program_id(0)) * (K + 1) * dim + d
    for k in tl.static_range(K):
        tl.store(out + k * dim, by_taps[k], mask=in_dim)
    tl.store(out + K * dim, by_bias, mask=in_dim)

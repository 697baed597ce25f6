"""The convolution module of a Conformer between its two linear layers, on a GPU.

A program walks along time for a block of channels and keeps the last frames under the kernel in registers, so that each frame
is read and gated once (and K - 1 of a chunk twice). With layer norm a program holds all of D. Backward: layer norm and SiLU in a
kernel over frames, then the convolution, the gate and the sums for the weights in one walk. What is summed over frames and
utterances goes to a buffer, a row for each program, which is summed at the end: nothing is added atomically.

A frame takes part in no arithmetic but that of frames within K of it, in the order of the taps: padding and batch mates do not
change a bit of it.

Shape legend: B batch, T frames, C = 2 D projected, D model, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from speechkit.kernels.aot import Variant
from speechkit.kernels.glu_conv.triton_kernels import conv_backward_kernel, forward_kernel, norm_backward_kernel
from speechkit.kernels.operator import operator

FORWARD_CHUNK = 64  # frames of a program
BACKWARD_STEP = 4
BACKWARD_CHUNK = 128
CHANNEL_BLOCK = 128  # channels of a program, without layer norm
NORM_STEP = 4
NORM_CHUNK = 64
MOST_REGISTERS = 72  # of a thread, for taps and frames under the kernel; layer norm over more channels spills


def holds_norm(dim: int, taps: int) -> bool:
    """Whether a program has the registers to hold all channels for layer norm."""
    return (2 * taps + 4) * triton.cdiv(triton.next_power_of_2(dim), 512) <= MOST_REGISTERS


def _warps(block: int) -> int:
    """A channel for each thread, up to 512 threads."""
    return min(max(block // 32, 1), 16)


def _run_forward(
    x_BTC: Tensor,
    valid_BT: Tensor | None,
    conv: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor, float] | None,
    causal: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The result, and what layer norm sees; the latter is the former without it, and empty with it unless `keep`."""
    batch, frames, width = x_BTC.shape
    dim, taps = width // 2, conv[0].shape[-1]
    y_BTD = x_BTC.new_empty(batch, frames, dim)
    kept_BTD = y_BTD if norm is None else y_BTD.new_empty(y_BTD.shape if keep else 0)
    if not y_BTD.numel():
        return y_BTD, kept_BTD
    x_BTC = x_BTC if x_BTC.stride(2) == 1 else x_BTC.contiguous()
    block = triton.next_power_of_2(dim) if norm else min(triton.next_power_of_2(dim), CHANNEL_BLOCK)
    forward_kernel[(triton.cdiv(frames, FORWARD_CHUNK), triton.cdiv(dim, block), batch)](
        x_BTC,
        x_BTC if valid_BT is None else valid_BT.contiguous().view(torch.uint8),
        conv[0].contiguous(),
        conv[1],
        *(norm[:2] if norm else conv),
        y_BTD,
        kept_BTD,
        frames,
        dim,
        *x_BTC.stride()[:2],
        norm[2] if norm else 0.0,
        K=taps,
        LEFT=taps - 1 if causal else taps // 2,
        CHUNK=FORWARD_CHUNK,
        BLOCK_D=block,
        HAS_VALID=valid_BT is not None,
        HAS_NORM=norm is not None,
        KEEP=keep,
        num_warps=_warps(block),
    )
    return y_BTD, kept_BTD


@operator("glu_conv")
def glu_conv_fused(x_BTC: Tensor, valid_BT: Tensor | None, weight_D1K: Tensor, bias_D: Tensor, causal: bool) -> Tensor:
    """Gate, mask and convolution, shape (B, T, D); arguments as those of `glu_conv`."""
    return _run_forward(x_BTC, valid_BT, (weight_D1K, bias_D), None, causal, True)[0]


@operator("glu_conv_norm_silu")
def glu_conv_norm_fused(
    x_BTC: Tensor,
    valid_BT: Tensor | None,
    weight_D1K: Tensor,
    bias_D: Tensor,
    norm_weight_D: Tensor,
    norm_bias_D: Tensor,
    eps: float,
    causal: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """With layer norm and SiLU, shape (B, T, D); and, where `keep`, the result of the convolution, else nothing."""
    return _run_forward(x_BTC, valid_BT, (weight_D1K, bias_D), (norm_weight_D, norm_bias_D, eps), causal, keep)


@operator("norm_silu_backward")
def norm_silu_backward(
    grad_BTD: Tensor, kept_BTD: Tensor, norm_weight_D: Tensor, norm_bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the result of the convolution, and by weight and bias of the norm."""
    dim = kept_BTD.shape[2]
    rows = kept_BTD.numel() // max(dim, 1)
    by_conv_BTD = torch.empty_like(kept_BTD)
    programs = triton.cdiv(rows, NORM_CHUNK)
    partial = torch.empty(programs, 2, dim, dtype=torch.float32, device=kept_BTD.device)
    if rows:
        block = triton.next_power_of_2(dim)
        norm_backward_kernel[(programs,)](
            grad_BTD.contiguous(),
            kept_BTD,
            norm_weight_D,
            norm_bias_D,
            by_conv_BTD,
            partial,
            rows,
            dim,
            eps,
            STEP=NORM_STEP,
            CHUNK=NORM_CHUNK,
            BLOCK_D=block,
            num_warps=_norm_warps(block),
        )
    by_weight_D, by_bias_D = partial.sum(0).to(norm_weight_D.dtype).unbind(0)
    return by_conv_BTD, by_weight_D.clone(), by_bias_D.clone()


def _norm_warps(block: int) -> int:
    return min(max(block // 64, 1), 16)


@operator("glu_conv_backward")
def glu_conv_backward(
    grad_BTD: Tensor, x_BTC: Tensor, valid_BT: Tensor | None, weight_D1K: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the projection, and by weight and bias of the convolution."""
    batch, frames, dim = grad_BTD.shape
    taps = weight_D1K.shape[-1]
    by_x_BTC = torch.empty(x_BTC.shape, dtype=x_BTC.dtype, device=x_BTC.device)
    chunks = triton.cdiv(frames, BACKWARD_CHUNK)
    partial = torch.empty(batch * chunks, taps + 1, dim, dtype=torch.float32, device=x_BTC.device)
    if partial.numel():
        x_BTC = x_BTC if x_BTC.stride(2) == 1 else x_BTC.contiguous()
        block = min(triton.next_power_of_2(dim), CHANNEL_BLOCK)
        conv_backward_kernel[(chunks, triton.cdiv(dim, block), batch)](
            grad_BTD.contiguous(),
            x_BTC,
            x_BTC if valid_BT is None else valid_BT.contiguous().view(torch.uint8),
            weight_D1K.contiguous(),
            by_x_BTC,
            partial,
            frames,
            dim,
            *x_BTC.stride()[:2],
            K=taps,
            LEFT=taps - 1 if causal else taps // 2,
            STEP=BACKWARD_STEP,
            CHUNK=BACKWARD_CHUNK,
            BLOCK_D=block,
            HAS_VALID=valid_BT is not None,
            num_warps=_warps(block),
        )
    sums = partial.sum(0).to(weight_D1K.dtype)
    return by_x_BTC, sums[:taps].t().contiguous().view(weight_D1K.shape), sums[taps].clone()


@glu_conv_fused.register_fake
def _(x_BTC: Tensor, valid_BT: Tensor | None, weight_D1K: Tensor, bias_D: Tensor, causal: bool) -> Tensor:
    return x_BTC.new_empty(*x_BTC.shape[:2], x_BTC.shape[2] // 2)


@glu_conv_norm_fused.register_fake
def _(
    x_BTC: Tensor,
    valid_BT: Tensor | None,
    weight_D1K: Tensor,
    bias_D: Tensor,
    norm_weight_D: Tensor,
    norm_bias_D: Tensor,
    eps: float,
    causal: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y_BTD = x_BTC.new_empty(*x_BTC.shape[:2], x_BTC.shape[2] // 2)
    return y_BTD, y_BTD.new_empty(y_BTD.shape if keep else (0,))


@norm_silu_backward.register_fake
def _(
    grad_BTD: Tensor, kept_BTD: Tensor, norm_weight_D: Tensor, norm_bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(kept_BTD), torch.empty_like(norm_weight_D), torch.empty_like(norm_weight_D)


@glu_conv_backward.register_fake
def _(
    grad_BTD: Tensor, x_BTC: Tensor, valid_BT: Tensor | None, weight_D1K: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x_BTC.new_empty(x_BTC.shape), weight_D1K.new_empty(weight_D1K.shape), weight_D1K.new_empty(weight_D1K.shape[0])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.causal = inputs[4]


def _differentiated(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
    by_x, by_weight, by_bias = glu_conv_backward(grad_BTD, *ctx.saved_tensors, ctx.causal)
    return by_x, None, by_weight, by_bias, None


def _remember_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *inputs[4:6], output[1])
    ctx.eps, ctx.causal = inputs[6:8]


def _differentiated_norm(ctx: Any, grad_BTD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *conv, norm_weight_D, norm_bias_D, kept_BTD = ctx.saved_tensors
    by_conv, by_norm_weight, by_norm_bias = norm_silu_backward(grad_BTD, kept_BTD, norm_weight_D, norm_bias_D, ctx.eps)
    by_x, by_weight, by_bias = glu_conv_backward(by_conv, *conv, ctx.causal)
    return by_x, None, by_weight, by_bias, by_norm_weight, by_norm_bias, None, None, None


glu_conv_fused.register_autograd(_differentiated, setup_context=_remember)
glu_conv_norm_fused.register_autograd(_differentiated_norm, setup_context=_remember_norm)


def compile_variants() -> list[Variant]:
    """What is compiled ahead of time: the longest usual kernel at D = 512, and the shortest at D = 256."""
    found = []
    for dtype in ("fp32", "bf16"):
        t = f"*{dtype}"
        for dim, taps in ((256, 9), (512, 31)):
            shape: dict[str, Any] = {"K": taps, "LEFT": taps // 2, "HAS_VALID": True}
            sizes = {"frames": "i32", "dim": "i32", "stride_b": "i32", "stride_t": "i32"}
            inputs = {"x": t, "valid": "*u8", "weight": "*fp32"}
            signature = inputs | {"bias": "*fp32", "norm_weight": "*fp32", "norm_bias": "*fp32", "y": t, "kept": t, "eps": "fp32"}
            for has_norm in (True, False):
                block = dim if has_norm else CHANNEL_BLOCK
                constants = {"CHUNK": FORWARD_CHUNK, "BLOCK_D": block, "HAS_NORM": has_norm, "KEEP": True}
                name = f"forward {dtype} K={taps} " + (f"norm D={dim}" if has_norm else "no norm")
                found.append(Variant(name, forward_kernel, signature | sizes, shape | constants, num_warps=_warps(block)))
            constants = {"STEP": BACKWARD_STEP, "CHUNK": BACKWARD_CHUNK, "BLOCK_D": CHANNEL_BLOCK}
            signature = inputs | {"grad": t, "by_x": t, "partial": "*fp32"} | sizes
            found.append(Variant(f"conv_backward {dtype} K={taps}", conv_backward_kernel, signature, shape | constants))
            norm = {"norm_weight": "*fp32", "norm_bias": "*fp32", "num_rows": "i32", "dim": "i32", "eps": "fp32"}
            signature = {"grad": t, "kept": t, "by_conv": t, "partial": "*fp32"} | norm
            constants, warps = {"STEP": NORM_STEP, "CHUNK": NORM_CHUNK, "BLOCK_D": dim}, _norm_warps(dim)
            found.append(Variant(f"norm_backward {dtype} D={dim}", norm_backward_kernel, signature, constants, num_warps=warps))
    return found

"""The inside of a Conformer's convolution module: gate, depthwise convolution over time, layer norm, SiLU.

Source: Gulati et al. 2020, Conformer, section 2.2, with layer norm in the place of batch norm, or without a norm::

    g_t = a_t * sigmoid(b_t) where frame t is valid, else 0          x_t = (a_t, b_t)
    z_t = bias + sum over k of weight_k * g_{t + k - left}           left = K // 2, or K - 1 where causal
    y_t = SiLU(LayerNorm(z_t)), or z_t

Shape legend: B batch, T frames, C = 2 D projected, D model, K taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.kernels import dispatch
from speechkit.kernels.glu_conv.reference import glu_conv_plain, norm_silu_plain
from speechkit.kernels.glu_conv.torch_impl import glu_conv_eager, norm_silu_eager

BACKENDS = ("torch", "reference", "triton")


class Norm(NamedTuple):
    """A layer norm over D, followed by SiLU.

    Attributes:
        weight_D: shape (D,).
        bias_D: shape (D,).
        eps: added to the variance.
    """

    weight_D: Tensor
    bias_D: Tensor
    eps: float = 1e-5


def glu_conv(
    x_BTC: Tensor,
    weight_D1K: Tensor,
    bias_D: Tensor,
    *,
    valid_BT: Tensor | None = None,
    causal: bool = False,
    norm: Norm | None = None,
    backend: str = "auto",
) -> Tensor:
    """Runs a projection through gate, convolution and, where there is one, norm and SiLU.

    Args:
        x_BTC: values and, after them, gates, shape (B, T, 2 D).
        weight_D1K: taps, as `Conv1d` with D groups keeps them, shape (D, 1, K); K odd unless `causal`.
        bias_D: shape (D,).
        valid_BT: frames that the convolution sees, bool, shape (B, T); others are zero to it, whatever they hold. None for all.
        causal: whether a frame sees none to its right.
        norm: layer norm and SiLU after the convolution; None for neither.
        backend: "triton" (arithmetic in fp32, no fp64), "torch" (arithmetic in the dtype of the input, under autocast in what
            autocast chooses for each step), "reference", or "auto": see `speechkit.kernels.dispatch`.

    Returns:
        shape (B, T, D), dtype of `x_BTC`, also under autocast. Frames outside `valid_BT` are finite but mean nothing.

    Raises:
        ValueError: shapes do not fit together, or the backend cannot run on these tensors.
    """
    _check(x_BTC, weight_D1K, bias_D, valid_BT, causal, norm)
    has_kernel = x_BTC.dtype != torch.float64
    if backend == "triton" and not has_kernel:
        raise ValueError("glu_conv: backend='triton' takes no float64; use 'torch', or fp32")
    name = dispatch.choose("glu_conv", backend, x_BTC.device, BACKENDS if has_kernel else BACKENDS[:2])
    if name == "triton":
        return _fused(x_BTC, valid_BT, weight_D1K, bias_D, causal, norm)
    run, run_norm = (glu_conv_eager, norm_silu_eager) if name == "torch" else (glu_conv_plain, norm_silu_plain)
    y_BTD = run(x_BTC, valid_BT, weight_D1K, bias_D, causal)
    return (y_BTD if norm is None else run_norm(y_BTD, *norm)).to(x_BTC.dtype)


def _fused(x_BTC: Tensor, valid_BT: Tensor | None, weight_D1K: Tensor, bias_D: Tensor, causal: bool, norm: Norm | None) -> Tensor:
    """One kernel, or two steps where a program cannot hold all channels."""
    from speechkit.kernels.glu_conv.triton_impl import glu_conv_fused, glu_conv_norm_fused, holds_norm

    if norm is not None and holds_norm(*weight_D1K.shape[::2]):
        tensors = x_BTC, weight_D1K, bias_D, norm.weight_D, norm.bias_D
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        return glu_conv_norm_fused(x_BTC, valid_BT, *tensors[1:], norm.eps, causal, keep)[0]
    y_BTD = glu_conv_fused(x_BTC, valid_BT, weight_D1K, bias_D, causal)
    return y_BTD if norm is None else norm_silu_eager(y_BTD, *norm).to(x_BTC.dtype)


def _check(x_BTC: Tensor, weight_D1K: Tensor, bias_D: Tensor, valid_BT: Tensor | None, causal: bool, norm: Norm | None) -> None:
    dim, taps = weight_D1K.shape[0], weight_D1K.shape[-1]
    if x_BTC.dim() != 3 or x_BTC.shape[2] != 2 * dim or weight_D1K.shape != (dim, 1, taps) or bias_D.shape != (dim,):
        raise ValueError(
            f"x of shape {tuple(x_BTC.shape)}, weight of shape {tuple(weight_D1K.shape)} and bias of shape {tuple(bias_D.shape)} "
            f"do not fit; expected (B, T, {2 * dim}), ({dim}, 1, K) and ({dim},)"
        )
    if valid_BT is not None and (valid_BT.shape != x_BTC.shape[:2] or valid_BT.dtype != torch.bool):
        raise ValueError(
            f"valid of shape {tuple(valid_BT.shape)} and {valid_BT.dtype} must be bool of shape {tuple(x_BTC.shape[:2])}"
        )
    if taps % 2 == 0 and not causal:
        raise ValueError(f"weight has K={taps} taps, which must be odd, so that the convolution is centred, unless causal")
    if norm is not None and not norm.weight_D.shape == norm.bias_D.shape == (dim,):
        raise ValueError(f"norm has weights of shape {tuple(norm.weight_D.shape)}; expected ({dim},)")


__all__ = ["Norm", "glu_conv"]

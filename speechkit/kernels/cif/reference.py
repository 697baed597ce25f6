"""Integrate-and-fire as one matrix product per utterance, with its gradient in closed form.

With g_k the gradient of the loss by token k, and k(t) = ceil(S_t) the token that is open at the end of frame t::

    dL/dS_t = <g_k(t), h_t - h_{t+1}>     dL/dalpha_t = sum of dL/dS_s over s >= t     dL/dh_t = sum over k of W[k, t] g_k

The weight matrix takes B U T numbers; it is fine up to some thousand frames.

Shape legend: B batch, T frames, U tokens, D model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def running_sums(alphas_BT: Tensor) -> Tensor:
    """S_t: sums of weights up to and including each frame, fp64, shape (B, T)."""
    return alphas_BT.double().cumsum(1)


def token_weights(sums_BT: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
    """W: what each frame gives to each token.

    Args:
        sums_BT: from `running_sums`.
        token_lens_B: tokens of each row, int64, shape (B,); later ones get nothing.
        max_tokens: U.

    Returns:
        fp64, shape (B, U, T). The row of a token sums to 1 when the weights reach it.
    """
    capped_BT = torch.minimum(sums_BT, token_lens_B[:, None].to(sums_BT.dtype))
    before_U1 = torch.arange(max_tokens, device=sums_BT.device, dtype=sums_BT.dtype)[:, None]
    filled_BUT = (F.pad(capped_BT, (1, 0))[:, None] - before_U1).clamp(0.0, 1.0)
    return filled_BUT.diff(dim=2)


def integrate_dense(alphas_BT: Tensor, hidden_BTD: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
    """As `integrate`, differentiated by autograd through the weight matrix: what the closed form is checked against."""
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    weights_BUT = token_weights(running_sums(alphas_BT), token_lens_B, max_tokens)
    return (weights_BUT.to(dtype) @ hidden_BTD.to(dtype)).to(hidden_BTD.dtype)


def integrate(alphas_BT: Tensor, hidden_BTD: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
    """Token embeddings, products in fp32 (fp64 for fp64 frames) also under autocast.

    Args:
        alphas_BT: weight of each frame, zero in padding, shape (B, T).
        hidden_BTD: frames, finite in padding, shape (B, T, D).
        token_lens_B: tokens of each row, int64, shape (B,).
        max_tokens: U.

    Returns:
        dtype of the frames, shape (B, U, D), zero past each length.
    """
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        embeddings_BUD: Tensor = _Integrate.apply(alphas_BT, hidden_BTD, token_lens_B, max_tokens)
    return embeddings_BUD


class _Integrate(torch.autograd.Function):
    """`integrate`."""

    @staticmethod
    def forward(ctx: FunctionCtx, alphas_BT: Tensor, hidden_BTD: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
        dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
        sums_BT = running_sums(alphas_BT)
        weights_BUT = token_weights(sums_BT, token_lens_B, max_tokens).to(dtype)
        ctx.save_for_backward(sums_BT, hidden_BTD, weights_BUT, token_lens_B)
        ctx.alphas_dtype = alphas_BT.dtype  # type: ignore[attr-defined]
        return (weights_BUT @ hidden_BTD.to(dtype)).to(hidden_BTD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BUD: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        sums_BT, hidden_BTD, weights_BUT, token_lens_B = ctx.saved_tensors
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            grad_BUD = grad_BUD.to(weights_BUT.dtype)
            to_alphas = to_hidden = None
            if ctx.needs_input_grad[1]:
                to_hidden = (weights_BUT.transpose(1, 2) @ grad_BUD).to(hidden_BTD.dtype)
            if ctx.needs_input_grad[0]:
                to_alphas = _alpha_gradient(sums_BT, hidden_BTD.to(grad_BUD.dtype), grad_BUD, token_lens_B)
                to_alphas = to_alphas.to(ctx.alphas_dtype)
        return to_alphas, to_hidden, None, None


def _alpha_gradient(sums_BT: Tensor, hidden_BTD: Tensor, grad_BUD: Tensor, token_lens_B: Tensor) -> Tensor:
    """dL/dalpha in fp64, shape (B, T)."""
    open_BT = sums_BT.ceil().clamp(min=1.0).long()  # counted from 1
    kept_BT = open_BT <= token_lens_B[:, None]
    if not grad_BUD.shape[1]:
        return torch.zeros_like(sums_BT)
    index_BT1 = torch.where(kept_BT, open_BT - 1, 0)[..., None]
    grad_open_BTD = grad_BUD.gather(1, index_BT1.expand(-1, -1, grad_BUD.shape[2]))
    step_BTD = hidden_BTD - F.pad(hidden_BTD[:, 1:], (0, 0, 0, 1))
    to_sums_BT = (grad_open_BTD * step_BTD).sum(2).double().masked_fill(~kept_BT, 0.0)
    return to_sums_BT.flip(1).cumsum(1).flip(1)


@torch.no_grad()
def crossings(alphas_BT: Tensor, frame_lens_B: Tensor, levels_BK: Tensor) -> Tensor:
    """Where the running sums reach given levels, as if the weight of a frame came evenly over it.

    Args:
        alphas_BT: weight of each frame, zero in padding, shape (B, T).
        frame_lens_B: valid frames of each row, int64, shape (B,).
        levels_BK: above 0, shape (B, K).

    Returns:
        positions in frames from the beginning of each row; its number of frames where a level is not reached; fp32, shape
        (B, K).
    """
    sums_BT = running_sums(alphas_BT)
    levels_BK = levels_BK.to(sums_BT.dtype)
    padded_BT1 = F.pad(sums_BT, (1, 0))
    frame_BK = torch.searchsorted(sums_BT, levels_BK.contiguous())  # first frame with S_t >= level
    last = max(sums_BT.shape[1] - 1, 0)
    inside_BK = frame_BK.clamp(max=last)
    before_BK = padded_BT1.gather(1, inside_BK)
    after_BK = padded_BT1.gather(1, (inside_BK + 1).clamp(max=sums_BT.shape[1]))
    share_BK = (levels_BK - before_BK) / (after_BK - before_BK).clamp(min=torch.finfo(sums_BT.dtype).tiny)
    reached_BK = frame_BK < frame_lens_B[:, None]
    return torch.where(reached_BK, inside_BK + share_BK, frame_lens_B[:, None].to(sums_BT.dtype)).float()

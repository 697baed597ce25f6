"""Continuous integrate-and-fire: frames with weights become tokens with embeddings.

Source: Dong and Xu 2020, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition", section 3.1, in matrix form.

Weights add up along time, S_t = alpha_1 + ... + alpha_t; token k takes what is added between S = k - 1 and S = k::

    W[k, t] = clamp(S_t - (k - 1), 0, 1) - clamp(S_{t-1} - (k - 1), 0, 1)        E = W H

A frame that crosses several whole numbers gives each token its part, and the last token keeps its weight also when rounding
leaves S a little short of a whole number; loops that fire one token at a time at S >= 1 do neither.

Shape legend: B batch, T frames, U tokens, D model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.kernels import dispatch
from speechkit.kernels.cif.reference import crossings, integrate_dense, running_sums
from speechkit.kernels.cif.torch_impl import integrate_band

BACKENDS = ("torch", "reference", "triton")
TAIL = 0.45


class CifOutput(NamedTuple):
    """Tokens of each utterance.

    Attributes:
        embeddings_BUD: weighted sums of frames, zero past each length, dtype of the frames, shape (B, U, D).
        lens_B: tokens of each row, int64, shape (B,).
        fires_BU: where each token is complete, in frames from the beginning (2.25 is a quarter into the third frame), fp32,
            no gradient, shape (B, U); the row's number of frames for a last token that is not quite complete, 0 past each length.
    """

    embeddings_BUD: Tensor
    lens_B: Tensor
    fires_BU: Tensor


def cif(
    alphas_BT: Tensor,
    hidden_BTD: Tensor,
    frame_lens_B: Tensor,
    *,
    token_lens_B: Tensor | None = None,
    max_tokens: int | None = None,
    tail: float = TAIL,
    backend: str = "auto",
) -> CifOutput:
    """Integrates frames into tokens; differentiable in weights and frames.

    Padded frames take no part, whatever they hold. Sums run in fp64, products in fp32 (fp64 for fp64 input).

    Args:
        alphas_BT: weight of each frame, not negative, any float dtype, shape (B, T).
        hidden_BTD: frames, shape (B, T, D).
        frame_lens_B: valid frames of each row, int64, shape (B,).
        token_lens_B: tokens of each row when they are known, as in training; weight beyond them is left out, and tokens that
            no weight reaches are zero. None to round each row's sum of weights: floor(sum + tail).
        max_tokens: U, not less than the longest row; None for just that, which waits for the device.
        tail: what is added to the sum before rounding down: a rest of 1 - tail or more is a token of its own. Only without
            `token_lens_B`.
        backend: as in `integrate`.

    Returns:
        embeddings, lengths, and positions.

    Raises:
        ValueError: shapes do not fit together, or the backend cannot run.
    """
    batch, frames, _ = hidden_BTD.shape
    if alphas_BT.shape != (batch, frames) or frame_lens_B.shape != (batch,):
        raise ValueError(
            f"alphas of shape {tuple(alphas_BT.shape)} and frame_lens of shape {tuple(frame_lens_B.shape)} do not fit "
            f"hidden of shape {tuple(hidden_BTD.shape)}; expected ({batch}, {frames}) and ({batch},)"
        )
    valid_BT = torch.arange(frames, device=alphas_BT.device) < frame_lens_B[:, None]
    alphas_BT = alphas_BT.masked_fill(~valid_BT, 0.0)
    if token_lens_B is None:
        token_lens_B = count_tokens(alphas_BT, tail=tail)
    if max_tokens is None:
        max_tokens = int(token_lens_B.max()) if batch else 0
    embeddings_BUD = integrate(alphas_BT, hidden_BTD, token_lens_B, max_tokens, frame_lens_B=frame_lens_B, backend=backend)
    levels_U = torch.arange(1, max_tokens + 1, device=alphas_BT.device)
    fires_BU = crossings(alphas_BT, frame_lens_B, levels_U.expand(batch, -1))
    return CifOutput(embeddings_BUD, token_lens_B, fires_BU.masked_fill(levels_U > token_lens_B[:, None], 0.0))


def integrate(
    alphas_BT: Tensor,
    hidden_BTD: Tensor,
    token_lens_B: Tensor,
    max_tokens: int,
    *,
    frame_lens_B: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Token embeddings; sums of weights in fp64, products in fp32 (fp64 for fp64 frames), also under autocast.

    Where a running sum is a whole number the derivative by it is that towards smaller sums.

    Args:
        alphas_BT: weight of each frame, not negative, zero in padding, shape (B, T).
        hidden_BTD: frames, shape (B, T, D).
        token_lens_B: tokens of each row, int64, shape (B,).
        max_tokens: U.
        frame_lens_B: valid frames of each row, int64, shape (B,): later ones take no part, whatever they hold; None for T.
        backend: "triton", "torch" (sums over the band of the weight matrix; it waits for the device), "reference" (the whole
            matrix), or "auto": see `speechkit.kernels.dispatch`. Triton takes no fp64: "auto" then runs "torch".

    Returns:
        dtype of the frames, shape (B, U, D), zero past each length.

    Raises:
        ValueError: the backend cannot run on these tensors.
    """
    device = hidden_BTD.device
    has_kernel = torch.float64 not in (hidden_BTD.dtype, alphas_BT.dtype)
    if backend == "triton" and not has_kernel:
        raise ValueError("cif: backend='triton' takes no float64; use 'torch', or fp32")
    name = dispatch.choose("cif", backend, device, BACKENDS if has_kernel else BACKENDS[:2])
    batch, frames, _ = hidden_BTD.shape
    with torch.autocast(device.type, enabled=False):
        if name == "reference":
            if frame_lens_B is not None:
                valid_BT = torch.arange(frames, device=device) < frame_lens_B[:, None]
                hidden_BTD = hidden_BTD.masked_fill(~valid_BT[..., None], 0.0)
            return integrate_dense(alphas_BT, hidden_BTD, token_lens_B, max_tokens)
        if frame_lens_B is None:
            frame_lens_B = torch.full((batch,), frames, device=device)
        if name == "torch":
            return integrate_band(alphas_BT, hidden_BTD, frame_lens_B, token_lens_B, max_tokens)
        from speechkit.kernels.cif.triton_impl import integrate_fused

        return integrate_fused(alphas_BT, hidden_BTD, frame_lens_B, token_lens_B, max_tokens)[0]


def count_tokens(alphas_BT: Tensor, *, tail: float = TAIL) -> Tensor:
    """Tokens that weights stand for: floor(sum + tail), int64, shape (B,).

    Args:
        alphas_BT: weight of each frame, zero in padding, shape (B, T).
        tail: as in `cif`.
    """
    sums_BT = running_sums(alphas_BT.detach())
    total_B = sums_BT[:, -1] if sums_BT.shape[1] else sums_BT.sum(1)
    return (total_B + tail).floor().long()


__all__ = ["TAIL", "CifOutput", "cif", "count_tokens", "crossings", "integrate", "running_sums"]

"""Integrate-and-fire over the band of the weight matrix: about T + U weighted additions of frames for each utterance.

With g_k the gradient of the loss by token k, and k(t) = ceil(S_t) the token that is open at the end of frame t::

    dL/dS_t = <g_k(t), h_t - h_{t+1}>     dL/dalpha_t = sum of dL/dS_s over s >= t     dL/dh_t = sum over k of W[k, t] g_k

Frame t gives to the tokens k(t-1) to k(t). These pairs of a frame and a token, listed along time, are also sorted by token:
both sums over them are sums over runs (`embedding_bag`), each in the order of time whatever else is in the batch.

Shape legend: B batch, T frames, U tokens, D model, P pairs of a frame and a token that it gives to, in the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.cif.autograd import differentiate
from speechkit.kernels.cif.reference import running_sums
from speechkit.kernels.operator import Operator


class _Band(NamedTuple):
    """Non-zero weights, and a weight of zero where a sum is a whole number.

    Attributes:
        frame_P: row of (B T) frames.
        token_P: row of (B U) tokens.
        weight_P: fp64.
        first_N: first pair of each of the (B T) frames, shape (B T,).
        last_N: last pair of each frame; one less than the first for a frame without a pair, shape (B T,).
    """

    frame_P: Tensor
    token_P: Tensor
    weight_P: Tensor
    first_N: Tensor
    last_N: Tensor


def _band(sums_BT: Tensor, frame_lens_B: Tensor, token_lens_B: Tensor, max_tokens: int) -> _Band:
    """Lists the pairs; waits for the device, as their number is that of the frames and of the tokens completed inside them."""
    frames = sums_BT.shape[1]
    device = sums_BT.device
    lens_B1 = token_lens_B.clamp(max=max_tokens)[:, None]
    sums_BT = torch.minimum(sums_BT, lens_B1.to(sums_BT.dtype))
    before_BT = F.pad(sums_BT, (1, 0))[:, :-1]
    # Rows with nan have tokens of nan.
    open_BT = torch.where(sums_BT.isnan(), lens_B1, sums_BT.nan_to_num().ceil().long()).clamp(min=1) - 1
    opened_BT = F.pad(open_BT, (1, 0))[:, :-1]
    takes_part_BT = (torch.arange(frames, device=device) < frame_lens_B[:, None]) & (lens_B1 > 0)
    count_N = torch.where(takes_part_BT, open_BT - opened_BT + 1, 0).flatten()
    end_N = count_N.cumsum(0)
    first_N = end_N - count_N
    frame_P = torch.repeat_interleave(count_N)
    token_P = opened_BT.flatten()[frame_P] + torch.arange(len(frame_P), device=device) - first_N[frame_P]
    level_P = token_P.double()
    weight_P = torch.minimum(sums_BT.flatten()[frame_P], level_P + 1.0) - torch.maximum(before_BT.flatten()[frame_P], level_P)
    token_P = token_P + torch.div(frame_P, max(frames, 1), rounding_mode="floor") * max_tokens
    return _Band(frame_P, token_P, weight_P, first_N, end_N - 1)


def _add_up(rows_ND: Tensor, index_P: Tensor, first_M: Tensor, weight_P: Tensor) -> Tensor:
    """Weighted sums of runs of rows, each from `first_M` to the next, shape (M, D)."""
    return F.embedding_bag(index_P, rows_ND, first_M, mode="sum", per_sample_weights=weight_P)


def _first_of_tokens(band: _Band, num_tokens: int) -> Tensor:
    """First pair of each of the (B U) tokens."""
    return torch.searchsorted(band.token_P, torch.arange(num_tokens, device=band.token_P.device))


def integrate_band(alphas_BT: Tensor, hidden_BTD: Tensor, frame_lens_B: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
    """Embeddings of shape (B, U, D); arguments as those of `integrate`."""
    embeddings_BUD: Tensor = band_operation(alphas_BT, hidden_BTD, frame_lens_B, token_lens_B, max_tokens)[0]
    return embeddings_BUD


def _forward(
    alphas_BT: Tensor, hidden_BTD: Tensor, frame_lens_B: Tensor, token_lens_B: Tensor, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Embeddings, and the running sums in fp64."""
    batch, _, dim = hidden_BTD.shape
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    sums_BT = running_sums(alphas_BT)
    band = _band(sums_BT, frame_lens_B, token_lens_B, max_tokens)
    num_tokens = batch * max_tokens
    if not len(band.frame_P):
        return hidden_BTD.new_zeros(batch, max_tokens, dim), sums_BT
    rows_ND = hidden_BTD.reshape(-1, dim).to(dtype)
    sums_MD = _add_up(rows_ND, band.frame_P, _first_of_tokens(band, num_tokens), band.weight_P.to(dtype))
    return sums_MD.view(batch, max_tokens, dim).to(hidden_BTD.dtype), sums_BT


def _backward(
    grad_BUD: Tensor,
    sums_BT: Tensor,
    hidden_BTD: Tensor,
    frame_lens_B: Tensor,
    token_lens_B: Tensor,
    alphas_BT: Tensor,
    to_alphas: bool,
    to_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients by alphas and by frames, empty where the flag is not set."""
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    _, max_tokens, dim = grad_BUD.shape
    band = _band(sums_BT, frame_lens_B, token_lens_B, max_tokens)
    grad_MD = grad_BUD.reshape(-1, dim).to(dtype)
    grad_hidden = hidden_BTD.new_zeros(hidden_BTD.shape if to_hidden else 0)
    grad_alphas = alphas_BT.new_zeros(alphas_BT.shape if to_alphas else 0)
    if not len(band.frame_P):
        return grad_alphas, grad_hidden
    weight_P = band.weight_P.to(dtype)
    if to_hidden:
        grad_hidden = _add_up(grad_MD, band.token_P, band.first_N, weight_P).view(hidden_BTD.shape).to(hidden_BTD.dtype)
    if to_alphas:
        rows_ND = hidden_BTD.reshape(-1, dim).to(dtype)
        first_M = _first_of_tokens(band, len(grad_MD))
        # The derivative of embedding_bag by its weights: a dot product for each pair, without gathered copies of the rows.
        by_weight_P = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad_MD, rows_ND, band.frame_P, first_M, band.token_P, 0
        )
        grad_alphas = _alpha_gradient(by_weight_P, band, sums_BT, token_lens_B).to(alphas_BT.dtype)
    return grad_alphas, grad_hidden


def _alpha_gradient(by_weight_P: Tensor, band: _Band, sums_BT: Tensor, token_lens_B: Tensor) -> Tensor:
    """dL/dalpha in fp64 from <g_k, h_t> of each pair, shape (B, T)."""
    padded = F.pad(by_weight_P, (0, 1))  # for frames without a pair
    ends_BT, starts_BT = (padded[pair_N].view_as(sums_BT) for pair_N in (band.last_N, band.first_N))
    has_pair_BT = (band.first_N <= band.last_N).view_as(sums_BT)
    starts_BT = F.pad(starts_BT.masked_fill(~has_pair_BT, 0.0), (0, 1))[:, 1:]
    reaches_BT = has_pair_BT & (sums_BT <= token_lens_B[:, None])
    by_sums_BT = (ends_BT - starts_BT).double().masked_fill(~reaches_BT, 0.0)
    return by_sums_BT.flip(1).cumsum(1).flip(1)


band_operation = Operator("cif_band", _forward)
differentiate(band_operation, Operator("cif_band_backward", _backward))

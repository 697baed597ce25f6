"""Integrate-and-fire as one matrix product per utterance: what the faster forms are checked against.

The weight matrix takes B U T numbers; it is fine up to some thousand frames.

Shape legend: B batch, T frames, U tokens, D model, K levels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def running_sums(alphas_BT: Tensor) -> Tensor:
    """S_t: sums of weights up to and including each frame, fp64, shape (B, T)."""
    return alphas_BT.double().cumsum(1)


def token_weights(sums_BT: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
    """W: what each frame gives to each token.

    Where a sum is a whole number k, W has two slopes: autograd finds that towards smaller sums, on which token k depends.

    Args:
        sums_BT: from `running_sums`.
        token_lens_B: tokens of each row, int64, shape (B,); later ones get nothing.
        max_tokens: U.

    Returns:
        fp64, shape (B, U, T). The row of a token sums to 1 when the weights reach it.
    """
    before_U1 = torch.arange(max_tokens, device=sums_BT.device, dtype=sums_BT.dtype)[:, None]
    share_BUT = F.pad(sums_BT, (1, 0))[:, None] - before_U1
    is_before = (share_BUT <= 0.0) & (before_U1 > 0.0)
    filled_BUT = share_BUT.masked_fill(is_before, 0.0).masked_fill(share_BUT > 1.0, 1.0)
    return filled_BUT.diff(dim=2).masked_fill((before_U1 >= token_lens_B[:, None, None]), 0.0)


def integrate_dense(alphas_BT: Tensor, hidden_BTD: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
    """As `integrate` over all T frames, differentiated by autograd through the weight matrix."""
    dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)
    weights_BUT = token_weights(running_sums(alphas_BT), token_lens_B, max_tokens)
    return (weights_BUT.to(dtype) @ hidden_BTD.to(dtype)).to(hidden_BTD.dtype)


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

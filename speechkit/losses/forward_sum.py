"""Losses of an aligner that learns which frames belong to which phone from nothing but their order.

Sources: Shih et al. 2021, "RAD-TTS: Parallel Flow-Based TTS with Robust Alignment Learning and Diverse Synthesis"; Badlani et al.
2022, "One TTS Alignment To Rule Them All", section 2.

Forward-sum is CTC in which phone p of a row has class p, class 0 is a blank whose score is the same at all frames, and the
transcript is 1, 2, ..., P: all ways to go through the phones in order, none left out, some frames left to the blank.

Shape legend: B batch, T frames, P phones, V = P + 1 classes (blank, then phones).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.ctc_loss import ctc_loss

BLANK_SCORE = -1.0
NEVER = -1e30  # stands for log 0; a softmax over nothing else stays finite


class ForwardSumLoss(NamedTuple):
    """Loss of a batch, and of each utterance.

    Attributes:
        loss: nats per phone of each feasible utterance that has phones, averaged over these: all weigh the same, whatever
            their length. Scalar; 0 without any.
        nll_B: -log of the summed probability of all paths in nats, not normalised by any length; 0 where infeasible,
            shape (B,).
        feasible_B: whether there are frames for all phones, and phones for the frames, bool, shape (B,).
    """

    loss: Tensor
    nll_B: Tensor
    feasible_B: Tensor


def forward_sum_loss(
    log_attention_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor, *, blank_score: float = BLANK_SCORE
) -> ForwardSumLoss:
    """Likelihood that frames go through the phones in order, summed over all ways to do so.

    A softmax over the blank and a row's own phones comes first. One call of the CTC kernel for the batch, in fp32 (fp64 for
    fp64 scores), also under autocast. The gradient is exactly 0 on phones and frames past a row's lengths and in infeasible
    rows. Padding and mates change a row by no more than the rounding of the softmax's sum.

    Args:
        log_attention_BTP: score of each phone at each frame, as `speechkit.nn.aligner.Aligner` gives it, any float dtype,
            anything past a row's lengths, shape (B, T, P).
        frame_lens_B: valid frames of each row, int64, shape (B,).
        phone_lens_B: valid phones of each row, int64, shape (B,).
        blank_score: of the blank at every frame; -1 as published.

    Returns:
        loss, and log-likelihood and feasibility of each row.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check_scores(log_attention_BTP, frame_lens=frame_lens_B, phone_lens=phone_lens_B)
    _, num_frames, num_phones = log_attention_BTP.shape
    classes_P = torch.arange(1, num_phones + 1, device=log_attention_BTP.device)
    frames_T1 = torch.arange(num_frames, device=log_attention_BTP.device)[:, None]
    own_BTP = (classes_P <= phone_lens_B[:, None, None]) & (frames_T1 < frame_lens_B[:, None, None])
    scores_BTP = log_attention_BTP.to(torch.promote_types(log_attention_BTP.dtype, torch.float32))
    scores_BTV = F.pad(scores_BTP.masked_fill(~own_BTP, -torch.inf), (1, 0), value=blank_score)
    targets_BP = classes_P.expand(len(scores_BTV), -1).contiguous()
    nll_B = ctc_loss(scores_BTV, frame_lens_B, targets_BP, phone_lens_B, reduction="none", zero_infinity=True)
    feasible_B = (phone_lens_B <= frame_lens_B) & ((phone_lens_B > 0) | (frame_lens_B == 0))
    nll_B = nll_B.masked_fill(~feasible_B, 0.0)
    num_rows = (feasible_B & (phone_lens_B > 0)).sum()
    loss = (nll_B / phone_lens_B.clamp(min=1)).sum() / num_rows.clamp(min=1)
    return ForwardSumLoss(loss=loss, nll_B=nll_B, feasible_B=feasible_B)


def binarization_loss(log_attention_BTP: Tensor, frame_phone_BT: Tensor, phone_lens_B: Tensor) -> Tensor:
    """Cross-entropy of the soft attention against the hard alignment: -log of what each frame's own phone gets.

    The softmax is over a row's own phones, in fp32 (fp64 for fp64 scores), also under autocast. The gradient is exactly 0 on
    phones past a row's length and on frames without a phone.

    Args:
        log_attention_BTP: as in `forward_sum_loss`, shape (B, T, P).
        frame_phone_BT: the phone of each frame, -1 for none, as `speechkit.kernels.mas.mas` gives it, int64, shape (B, T).
        phone_lens_B: valid phones of each row, int64, shape (B,).

    Returns:
        nats, summed over the frames of the batch that have a phone and divided by their number, scalar; 0 without any.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check_scores(log_attention_BTP, phone_lens=phone_lens_B)
    if frame_phone_BT.shape != log_attention_BTP.shape[:2]:
        raise ValueError(
            f"frame_phone has shape {tuple(frame_phone_BT.shape)}; give {tuple(log_attention_BTP.shape[:2])}, one per frame"
        )
    aligned_BT = frame_phone_BT >= 0
    if log_attention_BTP.shape[2] == 0:
        log_attention_BTP = F.pad(log_attention_BTP, (0, 1))  # a column to point at for frames that have none
    own_B1P = torch.arange(log_attention_BTP.shape[2], device=phone_lens_B.device) < phone_lens_B[:, None, None]
    scores_BTP = log_attention_BTP.to(torch.promote_types(log_attention_BTP.dtype, torch.float32))
    read_BTP = own_B1P & aligned_BT[..., None]
    log_soft_BTP = scores_BTP.masked_fill(~read_BTP, NEVER).log_softmax(dim=2)
    nll_BT = -log_soft_BTP.gather(2, frame_phone_BT.clamp(min=0)[..., None]).squeeze(2)
    return nll_BT.masked_fill(~aligned_BT, 0.0).sum() / aligned_BT.sum().clamp(min=1)


def _check_scores(log_attention_BTP: Tensor, **lengths: Tensor) -> None:
    """Refuses what is no batch of score matrices, and what is no length of each."""
    if log_attention_BTP.ndim != 3 or not log_attention_BTP.is_floating_point():
        shape, dtype = tuple(log_attention_BTP.shape), log_attention_BTP.dtype
        raise ValueError(f"log_attention has shape {shape} and dtype {dtype}; give floats, (B, T, P)")
    for name, lens_B in lengths.items():
        if lens_B.shape != log_attention_BTP.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(lens_B.shape)}; give ({len(log_attention_BTP)},), one length per row")

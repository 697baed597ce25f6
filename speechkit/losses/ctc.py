"""Connectionist temporal classification, of one head and of several layers together.

Sources: Graves et al. 2006, section 4; Lee and Watanabe 2021, "Intermediate loss regularization for CTC-based speech
recognition". Id 0 is the blank unless said otherwise.

Shape legend: B batch, T frames, U tokens, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.kernels import ctc_loss as kernel
from speechkit.kernels.linear_ctc_loss import linear_ctc_loss

LARGE_VOCAB = 8192  # from here on the scores of all frames are more than it costs to do without them


class CtcLoss(NamedTuple):
    """Loss of each utterance.

    Attributes:
        nll_B: -log p(tokens | frames) in nats, fp32, not normalised by any length; 0 where infeasible, shape (B,).
        feasible_B: whether the frames can spell the tokens at all, bool, shape (B,).
    """

    nll_B: Tensor
    feasible_B: Tensor


def ctc_min_frames(tokens_BU: Tensor, token_lens_B: Tensor) -> Tensor:
    """Frames that a transcript needs: one per token, and a blank between equal neighbours.

    Args:
        tokens_BU: token ids, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).

    Returns:
        int64, shape (B,).
    """
    inner = torch.arange(1, max(tokens_BU.shape[1], 1), device=tokens_BU.device) < token_lens_B[:, None]
    repeats_B = ((tokens_BU[:, 1:] == tokens_BU[:, :-1]) & inner).sum(1)
    return token_lens_B + repeats_B


def ctc_loss(logits_BTV: Tensor, logit_lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, *, blank: int = 0) -> CtcLoss:
    """Negative log-likelihood of each transcript, computed in fp32 from unnormalised scores.

    An utterance whose frames cannot spell its tokens has loss 0 and gradient 0 and is marked, so that the caller can
    count it. The gradient is exactly 0 on frames past a row's length.

    Args:
        logits_BTV: scores before the softmax, shape (B, T, V).
        logit_lens_B: valid frames of each row, int64, shape (B,).
        tokens_BU: token ids, anything past each length, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        blank: id of the blank.

    Returns:
        loss and feasibility of each utterance.
    """
    lengths = (logit_lens_B, tokens_BU, token_lens_B)
    nll_B = kernel.ctc_loss(logits_BTV, *lengths, blank=blank, reduction="none", zero_infinity=True)
    return CtcLoss(nll_B=nll_B, feasible_B=ctc_min_frames(tokens_BU, token_lens_B) <= logit_lens_B)


class Unscored(NamedTuple):
    """Frames in front of a head, in place of the scores that it would give them.

    Attributes:
        hidden_BTD: frames, shape (B, T, D).
        weight_VD: of the head, shape (V, D).
        bias_V: of the head, shape (V,), or None.
    """

    hidden_BTD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None


def scores_for_loss(head: nn.Linear, hidden_BTD: Tensor) -> Tensor | Unscored:
    """Scores of a head for `ctc_branch_loss`, and nothing else: with a large vocabulary they are never made.

    Args:
        head: maps (B, T, D) to (B, T, V).
        hidden_BTD: frames, shape (B, T, D).
    """
    if head.out_features < LARGE_VOCAB:
        return head(hidden_BTD)
    return Unscored(hidden_BTD, head.weight, head.bias)


class CtcTargets(NamedTuple):
    """What a layer is trained to spell.

    Attributes:
        tokens_BU: token ids, anything past each length, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        known_B: rows that have a target at all, bool, shape (B,); None for all. Others add neither loss nor tokens.
    """

    tokens_BU: Tensor
    token_lens_B: Tensor
    known_B: Tensor | None = None


class CtcBranchLoss(NamedTuple):
    """Loss of a CTC head over a batch.

    Attributes:
        loss: scalar to back-propagate, per target token.
        parts: ctc and inter_ctc (if there are intermediate layers), each per target token, and infeasible, a count of
            utterances; detached.
        num_targets: target tokens of the feasible utterances, scalar.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    num_targets: Tensor


def ctc_branch_loss(
    logits_BTV: Tensor | Unscored,
    inter_logits: Sequence[Tensor | Unscored],
    logit_lens_B: Tensor,
    tokens_BU: Tensor,
    token_lens_B: Tensor,
    *,
    inter_weight: float = 0.5,
    inter_targets: Sequence[CtcTargets] | None = None,
    known_B: Tensor | None = None,
    views: int = 1,
    blank: int = 0,
) -> CtcBranchLoss:
    """CTC after the last layer and after intermediate ones: (1 - w) final + w mean(intermediate).

    Each is the sum over the batch of -log p(tokens), divided by the number of its target tokens. Utterances too short for
    their tokens add neither loss nor tokens. Losses of several views are averaged.

    Args:
        logits_BTV: scores of the head after the last layer; with views, `views` copies of the batch, one after the other,
            shape (views * B, T, V). Or what `scores_for_loss` gives.
        inter_logits: scores after intermediate layers, same shape each.
        logit_lens_B: valid frames of each row, int64, shape (views * B,).
        tokens_BU: token ids of the batch, anything past each length, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        inter_weight: w.
        inter_targets: targets of each intermediate layer; None for those of the last layer.
        known_B: as in `CtcTargets`, of the last layer.
        views: augmented copies of the batch.
        blank: id of the blank.
    """
    targets = CtcTargets(tokens_BU, token_lens_B, known_B)
    loss, num_targets, feasible_B = _loss_per_token(logits_BTV, logit_lens_B, targets, views=views, blank=blank)
    parts = {"ctc": loss.detach(), "infeasible": (~feasible_B).sum()}
    if inter_logits:
        inter_targets = [targets] * len(inter_logits) if inter_targets is None else inter_targets
        inter = [
            _loss_per_token(logits, logit_lens_B, own, views=views, blank=blank)[0]
            for logits, own in zip(inter_logits, inter_targets, strict=True)
        ]
        inter_loss = torch.stack(inter).mean()
        parts["inter_ctc"] = inter_loss.detach()
        loss = (1.0 - inter_weight) * loss + inter_weight * inter_loss
    return CtcBranchLoss(loss=loss, parts=parts, num_targets=num_targets)


def _loss_per_token(
    logits_BTV: Tensor | Unscored, logit_lens_B: Tensor, targets: CtcTargets, *, views: int, blank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss divided by target tokens, the number of these in one view, and which utterances are feasible (B,)."""
    tokens_BU, token_lens_B, known_B = targets
    rows, tokens_RU, token_lens_R = len(tokens_BU), tokens_BU.repeat(views, 1), token_lens_B.repeat(views)
    feasible_R = ctc_min_frames(tokens_RU, token_lens_R) <= logit_lens_B
    counted_R = feasible_R if known_B is None else feasible_R & known_B.repeat(views)
    if isinstance(logits_BTV, Unscored):
        # A row without frames and tokens has loss 0.
        lengths = (logit_lens_B * counted_R, tokens_RU, token_lens_R * counted_R)
        total = linear_ctc_loss(*logits_BTV, *lengths, blank=blank, reduction="sum", zero_infinity=True)
    else:
        nll_R = ctc_loss(logits_BTV, logit_lens_B, tokens_RU, token_lens_R, blank=blank).nll_B
        total = nll_R.masked_fill(~counted_R, 0.0).sum()
    num_targets = (token_lens_B * counted_R[:rows]).sum()
    return total / (views * num_targets.clamp(min=1)), num_targets, feasible_R[:rows]

"""Consistency of predictions for two views of the same utterance.

Source: Yao et al. 2024, "CR-CTC: Consistency regularization on CTC for improved speech recognition", section 3.2.

Shape legend: B batch, T frames, V vocab.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def symmetric_kl(logits_a_BTV: Tensor, logits_b_BTV: Tensor, lens_B: Tensor) -> Tensor:
    """Half the divergence of each view from the other, where the other is a fixed target.

    Args:
        logits_a_BTV: scores of the first view before the softmax, shape (B, T, V).
        logits_b_BTV: scores of the second view, same shape.
        lens_B: valid frames of each row, int64, shape (B,).

    Returns:
        sum over valid frames of (KL(b || a) + KL(a || b)) / 2 in nats, fp32, shape (B,). Frames past a row's length add
        nothing and get no gradient.
    """
    a_BTV, b_BTV = F.log_softmax(logits_a_BTV.float(), -1), F.log_softmax(logits_b_BTV.float(), -1)
    kl_BT = _kl(b_BTV.detach(), a_BTV) + _kl(a_BTV.detach(), b_BTV)
    valid_BT = torch.arange(kl_BT.shape[1], device=lens_B.device) < lens_B[:, None]
    return 0.5 * kl_BT.masked_fill(~valid_BT, 0.0).sum(1)


def _kl(target_BTV: Tensor, log_probs_BTV: Tensor) -> Tensor:
    """KL(target || prediction) of each frame, shape (B, T)."""
    return F.kl_div(log_probs_BTV, target_BTV, reduction="none", log_target=True).sum(-1)

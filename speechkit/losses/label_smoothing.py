"""Cross-entropy of tokens with smoothed targets.

Source: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", section 7: the target is
(1 - s) on the token plus s / V on every entry of the vocabulary.

Shape legend: B batch, U tokens, V vocab.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_IGNORED = -100


class TokenLoss(NamedTuple):
    """Loss of a batch of token predictions.

    Attributes:
        loss: summed over valid tokens, divided by their number, nats, fp32, scalar; 0 without any.
        accuracy: share of valid tokens that have the highest score, scalar; 0 without any.
        num_targets: number of valid tokens, scalar.
    """

    loss: Tensor
    accuracy: Tensor
    num_targets: Tensor


def smoothed_cross_entropy(logits_BUV: Tensor, targets_BU: Tensor, valid_BU: Tensor, *, smoothing: float = 0.0) -> TokenLoss:
    """Cross-entropy against smoothed targets: the sum over valid tokens divided by their number.

    The gradient is exactly 0 on tokens that are not valid.

    Args:
        logits_BUV: scores before the softmax, any float type, shape (B, U, V).
        targets_BU: token ids, anything where not valid, int64, shape (B, U).
        valid_BU: which tokens count, bool, shape (B, U).
        smoothing: s, in [0, 1); 0 for plain cross-entropy.

    Raises:
        ValueError: `smoothing` is out of range.
    """
    check_smoothing(smoothing)
    targets_BU = targets_BU.masked_fill(~valid_BU, _IGNORED)
    with torch.autocast(logits_BUV.device.type, enabled=False):
        total = F.cross_entropy(
            logits_BUV.flatten(0, 1).float(),
            targets_BU.flatten(),
            ignore_index=_IGNORED,
            label_smoothing=smoothing,
            reduction="sum",
        )
    num_targets = valid_BU.sum()
    correct = (logits_BUV.detach().argmax(dim=-1) == targets_BU).sum()
    scale = 1.0 / num_targets.clamp(min=1)
    return TokenLoss(loss=total * scale, accuracy=correct * scale, num_targets=num_targets)


def check_smoothing(smoothing: float) -> None:
    """Raises ValueError unless label smoothing is in [0, 1)."""
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"label_smoothing={smoothing} must be at least 0 and below 1")

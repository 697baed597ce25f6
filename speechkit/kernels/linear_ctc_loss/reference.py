"""Output layer, then CTC, in plain torch: what the chunked implementations are held against.

Shape legend: B batch, T frames, U tokens, D model, V vocab.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.ctc_loss import reference


def neg_log_likelihood(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    logit_lens_B: Tensor,
    targets_BU: Tensor,
    target_lens_B: Tensor,
    blank: int,
) -> Tensor:
    """-log p(targets | hidden) of each row, inf (without gradient) where no path spells them, shape (B,)."""
    logits_BTV = F.linear(hidden_BTD, weight_VD, bias_V)
    return reference.neg_log_likelihood(logits_BTV, logit_lens_B, targets_BU, target_lens_B, blank)

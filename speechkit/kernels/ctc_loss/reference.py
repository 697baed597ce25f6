"""CTC in plain torch, differentiated by autograd: the definition that the other implementations are held against.

Shape legend: B batch, T frames, U tokens, V vocab, S = 2U + 1 states (blank, token, blank, ..., token, blank).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NEVER = -1e30  # stands for log 0; sums of it stay finite, so that no gradient becomes nan


def neg_log_likelihood(
    logits_BTV: Tensor, logit_lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int
) -> Tensor:
    """-log p(targets | logits) of each row, inf (without gradient) where no path spells them.

    Computed in the dtype of the scores, at least fp32.

    Args:
        logits_BTV: scores before the softmax, shape (B, T, V).
        logit_lens_B: valid frames of each row, shape (B,).
        targets_BU: token ids, anything past each length, shape (B, U).
        target_lens_B: valid tokens of each row, shape (B,).
        blank: id of the blank.

    Returns:
        shape (B,).
    """
    log_probs_BTV = F.log_softmax(logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32)), dim=-1)
    inside_BU = torch.arange(targets_BU.shape[1], device=targets_BU.device) < target_lens_B[:, None]
    targets_BU = targets_BU.masked_fill(~inside_BU, blank)
    states_BS = torch.full((len(targets_BU), 2 * targets_BU.shape[1] + 1), blank, device=targets_BU.device)
    states_BS[:, 1::2] = targets_BU
    leaps_BS = torch.zeros_like(states_BS, dtype=torch.bool)  # a path may leap over the blank between unequal tokens
    leaps_BS[:, 3::2] = (targets_BU[:, 1:] != targets_BU[:, :-1]) & inside_BU[:, 1:]
    # Before the first frame all mass stands one place in front of the first blank: it stays for rows without frames.
    alpha_BS = torch.full(states_BS.shape, NEVER, dtype=log_probs_BTV.dtype, device=log_probs_BTV.device)
    for t in range(logits_BTV.shape[1]):
        emit_BS = log_probs_BTV[:, t].gather(1, states_BS).clamp(min=NEVER)
        if t == 0:
            next_BS = torch.where(torch.arange(states_BS.shape[1], device=emit_BS.device) < 2, emit_BS, NEVER)
        else:
            step_BS = F.pad(alpha_BS, (1, 0), value=NEVER)[:, :-1]
            leap_BS = F.pad(alpha_BS, (2, 0), value=NEVER)[:, :-2].masked_fill(~leaps_BS, NEVER)
            next_BS = torch.logsumexp(torch.stack((alpha_BS, step_BS, leap_BS)), dim=0) + emit_BS
        alpha_BS = torch.where((t < logit_lens_B)[:, None], next_BS, alpha_BS)
    last_B1 = 2 * target_lens_B[:, None]
    ends_B2 = torch.cat((last_B1, (last_B1 - 1).clamp(min=0)), dim=1)
    finals_B2 = alpha_BS.gather(1, ends_B2)
    finals_B2 = finals_B2.masked_fill((torch.arange(2, device=last_B1.device) == 1) & (last_B1 == 0), NEVER)
    nll_B = -torch.logsumexp(finals_B2, dim=1)
    nll_B = nll_B.masked_fill(nll_B > -0.5 * NEVER, torch.inf)
    return nll_B.masked_fill((logit_lens_B == 0) & (target_lens_B == 0), 0.0)

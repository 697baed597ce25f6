"""CTC alignment: the best path of frame labels that spells a given transcript (Viterbi).

Source: Graves et al. 2006, "Connectionist Temporal Classification", section 4.1, with max in place of sum.

The transcript is widened by blanks to S = 2U + 1 states, blank, token, blank, token, ..., blank; a path stays in its state,
steps to the next, or leaps over a blank between unequal tokens.

Shape legend: B batch, T frames, U tokens, S states, V vocab.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.kernels.ctc_align.reference import best_states


class CtcAlignment(NamedTuple):
    """The best path of each utterance, on the device of the log-probabilities.

    Attributes:
        labels_BT: label of each frame, int64; blank past a row's length and in infeasible rows, shape (B, T).
        token_index_BT: which token of the transcript a frame belongs to, int64; -1 on blanks, past a row's length and in
            infeasible rows, shape (B, T).
        spikes_BU: first frame of each token, int64; -1 past a row's tokens and in infeasible rows, shape (B, U).
        scores_B: log-probability of the path, blanks included, fp32; -inf in infeasible rows, shape (B,).
        feasible_B: whether any path of non-zero probability spells the transcript, bool, shape (B,).
    """

    labels_BT: Tensor
    token_index_BT: Tensor
    spikes_BU: Tensor
    scores_B: Tensor
    feasible_B: Tensor


@torch.no_grad()
def ctc_viterbi(
    log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, *, blank: int = 0
) -> CtcAlignment:
    """Aligns the transcripts of a batch to its frames; has no gradient.

    Computed in fp32. A row's result is the same, bit for bit, whatever its padding and its batch mates. Between paths of
    equal score the one that stays longest in its states is taken. Waits for the device.

    Args:
        log_probs_BTV: frame log-probabilities, any float dtype and device, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        tokens_BU: transcripts as token ids without the blank, int64, shape (B, U); what lies past a length is not read.
        token_lens_B: valid tokens of each row, int64, shape (B,).
        blank: id of the blank.

    Returns:
        paths, spikes, scores, feasibility.
    """
    device, num_frames, num_tokens = log_probs_BTV.device, log_probs_BTV.shape[1], tokens_BU.shape[1]
    frames_T, places_U = torch.arange(num_frames, device=device), torch.arange(num_tokens, device=device)
    tokens_BU = tokens_BU.masked_fill(places_U >= token_lens_B[:, None], blank)
    labels_BL = torch.cat((torch.full_like(lens_B[:, None], blank), tokens_BU), dim=1)  # blank, then the tokens
    emit_BTL = log_probs_BTV.detach().gather(2, labels_BL[:, None].expand(-1, num_frames, -1)).float()
    states_BT, scores_B = best_states(emit_BTL, lens_B, tokens_BU, token_lens_B)
    feasible_B = scores_B > -torch.inf
    is_token_BT = (states_BT % 2 == 1) & (frames_T < lens_B[:, None]) & feasible_B[:, None]
    token_index_BT = torch.where(is_token_BT, states_BT // 2, -1)
    starts_BT = is_token_BT.clone()
    starts_BT[:, 1:] &= token_index_BT[:, 1:] != token_index_BT[:, :-1]
    # Frames that start no token are written to a spare column in front.
    spikes_BU = tokens_BU.new_full((len(tokens_BU), num_tokens + 1), -1)
    spikes_BU.scatter_(1, torch.where(starts_BT, token_index_BT + 1, 0), frames_T.expand_as(token_index_BT))
    return CtcAlignment(
        labels_BT=labels_BL.gather(1, token_index_BT + 1),
        token_index_BT=token_index_BT,
        spikes_BU=spikes_BU[:, 1:],
        scores_B=scores_B,
        feasible_B=feasible_B,
    )


__all__ = ["CtcAlignment", "ctc_viterbi"]

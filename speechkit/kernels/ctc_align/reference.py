"""Viterbi over transcripts widened by blanks, in numpy: one pass over frames for the whole batch, and one back.

Small steps cost less in numpy than in torch, on the CPU and even more so on a GPU, which would be told every step
separately: there the log-probabilities of a batch's own labels, U + 1 per frame, cross to the host.

Shape legend: B batch, T frames, U tokens, L = U + 1 labels (blank, then tokens), S = 2U + 1 states, V vocab.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEVER = -np.inf


class Paths(NamedTuple):
    """What every implementation gives: labels and token of each frame, first frames, scores; see `CtcAlignment`."""

    labels_BT: Tensor
    token_index_BT: Tensor
    spikes_BU: Tensor
    scores_B: Tensor


def align(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    tokens_BU: Tensor,
    token_lens_B: Tensor,
    blank: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Paths:
    """The best path of each row; waits for the device.

    Args:
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        tokens_BU: transcripts, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        blank: id of the blank.
        dtype: of the sums, fp32 or fp64.

    Returns:
        labels, tokens, first frames, scores.

    Raises:
        ValueError: a length or a token id is out of range.
    """
    check_values(log_probs_BTV, lens_B, tokens_BU, token_lens_B)
    device, num_frames, num_tokens = log_probs_BTV.device, log_probs_BTV.shape[1], tokens_BU.shape[1]
    frames_T, places_U = torch.arange(num_frames, device=device), torch.arange(num_tokens, device=device)
    tokens_BU = tokens_BU.masked_fill(places_U >= token_lens_B[:, None], blank)
    labels_BL = torch.cat((torch.full_like(lens_B[:, None], blank), tokens_BU), dim=1)  # blank, then the tokens
    states_BT, scores_B = best_states(gather_labels(log_probs_BTV, labels_BL).to(dtype), lens_B, tokens_BU, token_lens_B)
    feasible_B = scores_B > -torch.inf
    is_token_BT = (states_BT % 2 == 1) & (frames_T < lens_B[:, None]) & feasible_B[:, None]
    token_index_BT = torch.where(is_token_BT, states_BT // 2, -1)
    starts_BT = is_token_BT.clone()
    starts_BT[:, 1:] &= token_index_BT[:, 1:] != token_index_BT[:, :-1]
    # Frames that start no token are written to a spare column in front.
    spikes_BU = tokens_BU.new_full((len(tokens_BU), num_tokens + 1), -1)
    spikes_BU.scatter_(1, torch.where(starts_BT, token_index_BT + 1, 0), frames_T.expand_as(token_index_BT))
    return Paths(labels_BL.gather(1, token_index_BT + 1), token_index_BT, spikes_BU[:, 1:].contiguous(), scores_B)


def gather_labels(log_probs_BTV: Tensor, labels_BL: Tensor) -> Tensor:
    """Log-probabilities of given labels at every frame, in the dtype they come in, shape (B, T, L)."""
    return log_probs_BTV.gather(2, labels_BL[:, None].expand(-1, log_probs_BTV.shape[1], -1))


def check_values(log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor) -> None:
    """Refuses lengths and token ids out of range; waits for the device.

    Raises:
        ValueError: one is.
    """
    lens, tokens, token_lens = (x.cpu().numpy() for x in (lens_B, tokens_BU, token_lens_B))
    _, num_frames, vocab = log_probs_BTV.shape
    for name, values, largest in (("lens", lens, num_frames), ("token_lens", token_lens, tokens.shape[1])):
        if ((values < 0) | (values > largest)).any():
            raise ValueError(f"{name} has values from {values.min()} to {values.max()}; give values from 0 to {largest}")
    wrong = (np.arange(tokens.shape[1]) < token_lens[:, None]) & ((tokens < 0) | (tokens >= vocab))
    if wrong.any():
        raise ValueError(f"tokens holds id {tokens[wrong][0]}; give ids from 0 to {vocab - 1}")


def best_states(emit_BTL: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor) -> tuple[Tensor, Tensor]:
    """The best path of each row.

    Args:
        emit_BTL: log-probability of the blank and of each token at each frame, fp32 or fp64, shape (B, T, U + 1).
        lens_B: valid frames of each row, shape (B,).
        tokens_BU: token ids, of which only equality of neighbours matters, shape (B, U).
        token_lens_B: valid tokens of each row, shape (B,).

    Returns:
        the state at each frame, int64, shape (B, T), anything past a row's length; the path's log-probability, in the
        dtype of `emit_BTL`, shape (B,), -inf where there is no path.
    """
    tokens, lens, token_lens = (x.cpu().numpy() for x in (tokens_BU, lens_B, token_lens_B))
    emit_TLB = emit_BTL.cpu().numpy().transpose(1, 2, 0)
    emit_TSB = np.empty((len(emit_TLB), 2 * tokens.shape[1] + 1, len(tokens)), dtype=emit_TLB.dtype)
    emit_TSB[:, 0::2], emit_TSB[:, 1::2] = emit_TLB[:, :1], emit_TLB[:, 1:]  # shifts by states are views of this layout
    states_TB, scores_B = _trace_back(*_advance(emit_TSB, tokens, lens), lens, token_lens)
    return torch.from_numpy(states_TB.T).to(emit_BTL.device), torch.from_numpy(scores_B).to(emit_BTL.device)


def _advance(emit_TSB: np.ndarray, tokens_BU: np.ndarray, lens_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how many states the best path to each state came from the frame before, int8, (T, S, B), and the scores of all
    states at each row's last frame, (S, B)."""
    num_states, batch = emit_TSB.shape[1:]
    # A path may leap from a token to the next over the blank between them unless they are equal.
    penalty_SB = np.full((num_states, batch), NEVER, dtype=emit_TSB.dtype)
    penalty_SB[3::2] = np.where(tokens_BU[:, 1:] != tokens_BU[:, :-1], 0.0, NEVER).T
    # Two spare states of -inf in front make the moves by 0, 1 and 2 states plain views.
    row = np.full((num_states + 2, batch), NEVER, dtype=emit_TSB.dtype)
    stay, step, leap = row[2:], row[1:-1], row[:-2]
    best, jump = np.empty_like(penalty_SB), np.empty_like(penalty_SB)
    stepped, leapt = np.zeros(emit_TSB.shape, dtype=bool), np.zeros(emit_TSB.shape, dtype=bool)
    last_SB = np.full_like(penalty_SB, NEVER)
    last_SB[0] = 0.0  # stands for an utterance without frames
    ends = {length: np.nonzero(lens_B == length)[0] for length in set(lens_B.tolist())}
    for t in range(lens_B.max(initial=0)):
        if t == 0:
            stay[:2] = emit_TSB[0, :2]
        else:
            np.greater(step, stay, out=stepped[t])
            np.maximum(stay, step, out=best)
            np.add(leap, penalty_SB, out=jump)
            np.greater(jump, best, out=leapt[t])
            np.maximum(best, jump, out=best)
            np.add(best, emit_TSB[t], out=stay)
        if t + 1 in ends:
            last_SB[:, ends[t + 1]] = stay[:, ends[t + 1]]
    moves_TSB = stepped.view(np.int8)
    np.putmask(moves_TSB, leapt, 2)
    return moves_TSB, last_SB


def _trace_back(
    moves_TSB: np.ndarray, last_SB: np.ndarray, lens_B: np.ndarray, token_lens_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follows the moves back from the better of the two last states: states (T, B), and the score of that state, (B,)."""
    num_frames, num_states, batch = moves_TSB.shape
    rows = np.arange(batch)
    final_blank = 2 * token_lens_B
    final_token = np.maximum(final_blank - 1, 0)
    state = np.where(last_SB[final_token, rows] > last_SB[final_blank, rows], final_token, final_blank)
    scores_B = last_SB[state, rows]
    moves = moves_TSB.reshape(num_frames, num_states * batch)
    strides_TB = np.where(np.arange(num_frames)[:, None] < lens_B, batch, 0)
    places_TB = np.empty((num_frames, batch), dtype=np.int64)  # of the states in a row of `moves`
    place = state * batch + rows
    for t in reversed(range(num_frames)):
        places_TB[t] = place
        place = place - moves[t].take(place) * strides_TB[t]
    return places_TB // batch, scores_B

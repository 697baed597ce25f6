"""Viterbi over transcripts widened by blanks, on the CPU: one pass over frames for the whole batch, and one back.

Small steps cost less in numpy than in torch, on the CPU and even more so on a GPU, which would be told every step
separately: there the log-probabilities of a batch's own labels, U + 1 per frame, cross to the host.

Shape legend: B batch, T frames, U tokens, L = U + 1 labels (blank, then tokens), S = 2U + 1 states.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NEVER = -np.inf


def best_states(emit_BTL: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor) -> tuple[Tensor, Tensor]:
    """The best path of each row.

    Args:
        emit_BTL: log-probability of the blank and of each token at each frame, fp32, shape (B, T, U + 1).
        lens_B: valid frames of each row, shape (B,).
        tokens_BU: token ids, of which only equality of neighbours matters, shape (B, U).
        token_lens_B: valid tokens of each row, shape (B,).

    Returns:
        the state at each frame, int64, shape (B, T), anything past a row's length; the path's log-probability, fp32, shape
        (B,), -inf where there is no path.
    """
    tokens, lens, token_lens = (x.cpu().numpy() for x in (tokens_BU, lens_B, token_lens_B))
    emit_TLB = emit_BTL.cpu().numpy().transpose(1, 2, 0)
    emit_TSB = np.empty((len(emit_TLB), 2 * tokens.shape[1] + 1, len(tokens)), dtype=np.float32)
    emit_TSB[:, 0::2], emit_TSB[:, 1::2] = emit_TLB[:, :1], emit_TLB[:, 1:]  # shifts by states are views of this layout
    states_TB, scores_B = _trace_back(*_advance(emit_TSB, tokens, lens), lens, token_lens)
    return torch.from_numpy(states_TB.T).to(emit_BTL.device), torch.from_numpy(scores_B).to(emit_BTL.device)


def _advance(emit_TSB: np.ndarray, tokens_BU: np.ndarray, lens_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how many states the best path to each state came from the frame before, int8, (T, S, B), and the scores of all
    states at each row's last frame, (S, B)."""
    num_states, batch = emit_TSB.shape[1:]
    # A path may leap from a token to the next over the blank between them unless they are equal.
    penalty_SB = np.full((num_states, batch), NEVER, dtype=np.float32)
    penalty_SB[3::2] = np.where(tokens_BU[:, 1:] != tokens_BU[:, :-1], 0.0, NEVER).T
    # Two spare states of -inf in front make the moves by 0, 1 and 2 states plain views.
    row = np.full((num_states + 2, batch), NEVER, dtype=np.float32)
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

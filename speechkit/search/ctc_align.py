"""CTC forced alignment: the best path that spells a given transcript (Viterbi).

Source: Graves et al. 2006, "Connectionist Temporal Classification", section 4.1, with max in place of sum.
The transcript is widened by blanks to S = 2U + 1 states; one step of the recursion works on all
utterances and states of the batch at once.
Shape legend: B batch, T frames, U tokens, S states, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechkit.search.inputs import check_log_probs


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the tokens of one transcript lie; the tuples have one entry per token.

    Attributes:
        start_frames: first frame of each token.
        end_frames: frame after the last one of each token.
        confidences: mean probability of the token over its frames, in [0, 1].
        score: log-probability of the whole path, blanks included.
    """

    start_frames: tuple[int, ...]
    end_frames: tuple[int, ...]
    confidences: tuple[float, ...]
    score: float


def ctc_align(
    log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, blank: int = 0
) -> list[Alignment | None]:
    """Align the transcripts of a batch to its frames.

    Args:
        log_probs_BTV: frame log-probabilities, any float type and device, shape (B, T, V).
        lens_B: valid frames of each row, shape (B,).
        tokens_BU: transcripts as token ids, shape (B, U); what lies past a length is not read.
        token_lens_B: valid tokens of each row, shape (B,).
        blank: id of the blank token.

    Returns:
        One alignment per utterance; None where no path of non-zero probability spells the transcript, as
        when it needs more frames (one per token, one more between equal neighbours) than there are.

    Raises:
        ValueError: shapes or lengths do not fit together, or a transcript holds the blank or an unknown id.
    """
    lens = check_log_probs(log_probs_BTV, lens_B, blank)
    tokens, token_lens = _check_tokens(tokens_BU, token_lens_B, log_probs_BTV.shape, blank)
    emit_TSB = _emissions(log_probs_BTV.detach()[:, : lens.max(initial=0)], tokens, blank)
    states_TB, reachable_B = _best_states(emit_TSB, tokens, lens, token_lens)
    return _alignments(emit_TSB, states_TB, reachable_B, lens, token_lens)


def _check_tokens(tokens_BU: Tensor, token_lens_B: Tensor, shape: tuple[int, ...], blank: int) -> tuple[np.ndarray, np.ndarray]:
    """The transcripts with blanks past their lengths, and the lengths, both int64 on the CPU."""
    batch, _, vocab = shape
    tokens = tokens_BU.detach().cpu().numpy().astype(np.int64)
    token_lens = token_lens_B.detach().cpu().numpy().astype(np.int64)
    if tokens.ndim != 2 or len(tokens) != batch or token_lens.shape != (batch,):
        raise ValueError(
            f"tokens has shape {tokens.shape} and token_lens {token_lens.shape}; give (batch, tokens) and (batch,) "
            f"with the batch of log_probs, {batch}"
        )
    if batch and (token_lens.min() < 0 or token_lens.max() > tokens.shape[1]):
        span = f"{token_lens.min()} to {token_lens.max()}"
        raise ValueError(f"token_lens has values from {span}; tokens has {tokens.shape[1]} columns")
    valid = np.arange(tokens.shape[1]) < token_lens[:, None]
    wrong = valid & ((tokens < 0) | (tokens >= vocab) | (tokens == blank))
    if wrong.any():
        raise ValueError(f"tokens holds id {tokens[wrong][0]}; give ids below {vocab} without the blank, {blank}")
    return np.where(valid, tokens, blank), token_lens


def _emissions(log_probs_BTV: Tensor, tokens_BU: np.ndarray, blank: int) -> np.ndarray:
    """Log-probability of each state's label at each frame, float32, shape (T, S, B): shifts by states are then views."""
    batch, num_frames, _ = log_probs_BTV.shape
    num_tokens = tokens_BU.shape[1]
    index_BTU = torch.from_numpy(tokens_BU).to(log_probs_BTV.device)[:, None, :].expand(-1, num_frames, -1)
    emit_TSB = np.empty((num_frames, 2 * num_tokens + 1, batch), dtype=np.float32)
    emit_TSB[:, 0::2] = log_probs_BTV[:, :, blank].float().cpu().numpy().T[:, None, :]
    emit_TSB[:, 1::2] = log_probs_BTV.gather(2, index_BTU).float().cpu().numpy().transpose(1, 2, 0)
    return emit_TSB


def _best_states(
    emit_TSB: np.ndarray, tokens_BU: np.ndarray, lens_B: np.ndarray, token_lens_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Viterbi over the widened transcripts: the state at each frame, (T, B), and whether an end was reached, (B,)."""
    num_frames, num_states, batch = emit_TSB.shape
    # A path may leap from a token to the next over the blank between them unless they are equal.
    penalty_SB = np.full((num_states, batch), -np.inf, dtype=np.float32)
    penalty_SB[3::2] = np.where(tokens_BU[:, 1:] != tokens_BU[:, :-1], 0.0, -np.inf).T
    # Two spare states of -inf in front make the moves by 0, 1 and 2 states plain views.
    row = np.full((num_states + 2, batch), -np.inf, dtype=np.float32)
    stay, step, leap = row[2:], row[1:-1], row[:-2]
    best, jump = np.empty_like(penalty_SB), np.empty_like(penalty_SB)
    stepped, leapt = np.zeros(emit_TSB.shape, dtype=bool), np.zeros(emit_TSB.shape, dtype=bool)
    last_SB = np.full_like(penalty_SB, -np.inf)
    last_SB[0] = 0.0  # stands for an utterance without frames
    ends = {length: np.nonzero(lens_B == length)[0] for length in set(lens_B.tolist())}
    for t in range(num_frames):
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
    return _trace_back(moves_TSB, last_SB, lens_B, token_lens_B)


def _trace_back(
    moves_TSB: np.ndarray, last_SB: np.ndarray, lens_B: np.ndarray, token_lens_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow the moves back from the better of the two last states."""
    num_frames, num_states, batch = moves_TSB.shape
    rows = np.arange(batch)
    final_blank = 2 * token_lens_B
    final_token = np.maximum(final_blank - 1, 0)
    state = np.where(last_SB[final_token, rows] > last_SB[final_blank, rows], final_token, final_blank)
    reachable_B = last_SB[state, rows] > -np.inf
    flat = moves_TSB.reshape(num_frames, num_states * batch)
    running_TB = (np.arange(num_frames)[:, None] < lens_B).astype(np.int64)
    states_TB = np.empty((num_frames, batch), dtype=np.int64)
    for t in reversed(range(num_frames)):
        states_TB[t] = state
        state = state - flat[t].take(state * batch + rows) * running_TB[t]
    return states_TB, reachable_B


def _alignments(
    emit_TSB: np.ndarray, states_TB: np.ndarray, reachable_B: np.ndarray, lens_B: np.ndarray, token_lens_B: np.ndarray
) -> list[Alignment | None]:
    """Turn the states of every frame into the run of frames of every token."""
    num_frames, batch = states_TB.shape
    path_BT = np.take_along_axis(emit_TSB, states_TB[:, None, :], axis=1)[:, 0].T.astype(np.float64)
    states_BT = states_TB.T
    valid_BT = (np.arange(num_frames) < lens_B[:, None]) & reachable_B[:, None]
    path_BT = np.where(valid_BT, path_BT, 0.0)
    scores = np.concatenate([np.zeros((batch, 1)), np.cumsum(path_BT, axis=1)], axis=1)[np.arange(batch), lens_B]
    rows, frames = np.nonzero((states_BT % 2 == 1) & valid_BT)  # runs of one token are contiguous, tokens in order
    width = int(token_lens_B.max(initial=0))
    keys = rows * width + states_BT[rows, frames] // 2
    counts = np.bincount(keys, minlength=batch * width)
    probs = np.bincount(keys, weights=np.exp(path_BT[rows, frames]), minlength=batch * width)
    first = np.cumsum(counts) - counts
    result: list[Alignment | None] = []
    for b in range(batch):
        if not reachable_B[b]:
            result.append(None)
            continue
        own = slice(b * width, b * width + int(token_lens_B[b]))
        starts, lengths = frames[first[own]], counts[own]
        result.append(
            Alignment(
                start_frames=tuple(starts.tolist()),
                end_frames=tuple((starts + lengths).tolist()),
                confidences=tuple(np.minimum(probs[own] / lengths, 1.0).tolist()),
                score=float(scores[b]),
            )
        )
    return result

"""Alpha and beta in probabilities rather than their logarithms, a frame of the whole batch at a time: seven additions and
multiplications of vectors in place of an exponential and a logarithm per state.

Probabilities would leave the range of fp64 within some hundred frames. What keeps them in it (Rabiner 1989, "A Tutorial on Hidden
Markov Models", section V.A, has the first; the last is ours):

- emissions are relative to the likeliest of a row's labels at that frame;
- every 8 frames all states of a row are multiplied by one power of two, which rounds nothing, and its exponent is kept;
- whoever enters token u is paid k[u], the inverse of its best emission. Every path enters every token once, so the sum over
  paths grows by the product of all k, and no token that is unlikely throughout pushes the states behind it out of range.

Where that does not do, alpha and beta no longer agree on log p: such rows are reported, and left to logarithms.

Shape legend: B batch, T frames, U tokens, L = U + 1 labels (blank, then tokens).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EVERY = 8  # frames between two multiplications
AGREE = 1e-6  # largest difference between log p of alpha and of both at any frame

Array = np.ndarray


class Recursions(NamedTuple):
    """What the recursions say of each row.

    Attributes:
        nll_B: -log p, shape (B,).
        gamma_TLB: probability of being at each label, not merged between equal tokens, 0 in padding, shape (T, L, B); None
            where it was not wanted.
        sure_B: rows whose values never left the range; of the others nothing is known, shape (B,).
    """

    nll_B: Array
    gamma_TLB: Array | None
    sure_B: Array


class _Frames(NamedTuple):
    """What every step reads, fp64."""

    blank_TB: Array  # relative emissions
    token_TUB: Array
    entry_UB: Array  # k
    leap_UB: Array  # 1 where a path may come from the token before, else 0
    lens_B: Array
    token_lens_B: Array


def run(emit_TLB: Array, lens_B: Array, targets_UB: Array, token_lens_B: Array, *, wanted: bool) -> Recursions:
    """Runs alpha and, if posteriors are wanted, beta.

    Args:
        emit_TLB: log-probability of the blank and of each token, fp64, shape (T, L, B); becomes something else.
        lens_B: valid frames of each row, not all 0, shape (B,).
        targets_UB: token ids, of which only equality of neighbours matters, shape (U, B).
        token_lens_B: valid tokens of each row, shape (B,).
        wanted: whether gamma is.
    """
    num_frames, num_labels, batch = emit_TLB.shape
    present_LB = np.arange(num_labels)[:, None] <= token_lens_B
    level_TB = np.where(present_LB, emit_TLB, -np.inf).max(axis=1)
    level_TB[level_TB == -np.inf] = 0.0
    emit_TLB -= level_TB[:, None]
    np.exp(emit_TLB, out=emit_TLB)
    emit_TLB *= present_LB
    emit_TLB *= np.arange(num_frames)[:, None, None] < lens_B
    entry_UB = emit_TLB[:, 1:].max(axis=0)
    entry_UB[~(entry_UB > 0.0)] = 1.0
    np.reciprocal(entry_UB, out=entry_UB)
    leap_UB = np.zeros((num_labels - 1, batch))
    leap_UB[1:] = targets_UB[1:] != targets_UB[:-1]
    frames = _Frames(emit_TLB[:, 0], emit_TLB[:, 1:], entry_UB, leap_UB, lens_B, token_lens_B)
    blanks_TLB, tokens_TLB, shifts_TB = _alpha(frames)
    rows, last_B = np.arange(batch), np.maximum(lens_B - 1, 0)
    total_B = blanks_TLB[last_B, token_lens_B, rows] + tokens_TLB[last_B, token_lens_B, rows]
    exponent_B = shifts_TB[last_B, rows]
    with np.errstate(divide="ignore"):
        log_p_B = np.log(total_B) + exponent_B * np.log(2.0)
    # Running sums add in order whatever the batch and the padding.
    paid_LB = np.cumsum(np.concatenate((np.zeros((1, batch)), np.log(entry_UB))), axis=0)
    log_p_B += np.cumsum(level_TB, axis=0)[last_B, rows] - paid_LB[-1]
    sure_B = (total_B > 0.0) & (lens_B > 0)
    if not wanted:
        return Recursions(-log_p_B, None, sure_B)
    gamma_TLB, agree_B = _beta(frames, blanks_TLB, tokens_TLB, shifts_TB, total_B, exponent_B)
    return Recursions(-log_p_B, gamma_TLB, sure_B & agree_B)


def _alpha(frames: _Frames) -> tuple[Array, Array, Array]:
    """Forward: blanks (T, L, B); token i in place i + 1, and nothing in place 0, (T, L, B); exponents taken out (T, B)."""
    num_frames, batch = frames.blank_TB.shape
    num_labels = len(frames.leap_UB) + 1
    blanks, tokens = np.zeros((num_frames, num_labels, batch)), np.zeros((num_frames, num_labels, batch))
    shifts_TB = np.zeros((num_frames, batch), dtype=np.int64)
    blanks[0, 0] = frames.blank_TB[0]
    tokens[0, 1:2] = frames.token_TUB[0, :1] * frames.entry_UB[:1]
    entering = np.empty_like(frames.leap_UB)
    for t in range(1, num_frames):
        np.add(blanks[t - 1], tokens[t - 1], out=blanks[t])
        blanks[t] *= frames.blank_TB[t]
        np.multiply(tokens[t - 1, :-1], frames.leap_UB, out=entering)
        entering += blanks[t - 1, :-1]
        entering *= frames.entry_UB
        np.add(tokens[t - 1, 1:], entering, out=tokens[t, 1:])
        tokens[t, 1:] *= frames.token_TUB[t]
        shifts_TB[t] = shifts_TB[t - 1]
        if t % EVERY == 0:
            shifts_TB[t] += _shift(blanks[t], tokens[t])
    return blanks, tokens, shifts_TB


def _beta(
    frames: _Frames, blanks_TLB: Array, tokens_TLB: Array, shifts_TB: Array, total_B: Array, exponent_B: Array
) -> tuple[Array, Array]:
    """Backward, without the emission of a state's own frame. Gamma takes the place of alpha's tokens; which rows agree on p."""
    num_frames, num_labels, batch = tokens_TLB.shape
    rows = np.arange(batch)
    blank, token = np.zeros((num_labels, batch)), np.zeros((num_labels, batch))  # token i in place i + 1, as in alpha
    entering, running = np.empty_like(frames.leap_UB), np.empty((num_labels, batch))
    shift_B, shifts_TB = np.zeros(batch, dtype=np.int64), shifts_TB - exponent_B
    for t in range(num_frames - 1, -1, -1):
        if t + 1 < num_frames:
            blank *= frames.blank_TB[t + 1]
            token[1:] *= frames.token_TUB[t + 1]
            np.multiply(token[1:], frames.entry_UB, out=entering)
            token[1:] += blank[1:]
            blank[:-1] += entering
            entering[1:] *= frames.leap_UB[1:]
            token[1:-1] += entering[1:]
        ends = rows[frames.lens_B == t + 1]
        blank[frames.token_lens_B[ends], ends] = 1.0
        token[frames.token_lens_B[ends], ends] = 1.0
        token[0] = 0.0
        if t % EVERY == 0:
            shift_B += _shift(blank, token)
        tokens_TLB[t] *= token
        np.multiply(blanks_TLB[t], blank, out=blanks_TLB[t])
        # A running sum adds in order whatever the batch: a sum would not.
        tokens_TLB[t, 0] = np.add.accumulate(blanks_TLB[t], axis=0, out=running)[-1]
        shifts_TB[t] += shift_B
    with np.errstate(divide="ignore"):
        inverse_B = np.where(total_B > 0.0, 1.0 / total_B, 0.0)
    tokens_TLB *= np.ldexp(inverse_B, shifts_TB.clip(-2000, 2000))[:, None]
    agree_TB = np.abs(tokens_TLB.sum(axis=1) - 1.0) < AGREE
    return tokens_TLB, (agree_TB | (np.arange(num_frames)[:, None] >= frames.lens_B)).all(axis=0)


def _shift(blank_LB: Array, token_LB: Array) -> Array:
    """Multiplies the states of each row by a power of two that brings the largest near 1; the exponents taken out, (B,)."""
    exponent_B = np.frexp(np.maximum(blank_LB.max(axis=0), token_LB.max(axis=0)))[1]
    factor_B = np.ldexp(1.0, -exponent_B)
    blank_LB *= factor_B
    token_LB *= factor_B
    return exponent_B

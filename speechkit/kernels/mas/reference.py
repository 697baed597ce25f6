"""Monotonic alignment search in numpy: one pass over frames for the whole batch, and one back.

Shape legend: B batch, T frames, P phones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Paths(NamedTuple):
    """What every implementation gives; see `MasOutput`."""

    durations_BP: Tensor
    frame_phone_BT: Tensor
    scores_B: Tensor


def align(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor, *, dtype: torch.dtype = torch.float32) -> Paths:
    """The best path of each row; waits for the device.

    Args:
        log_likelihood_BTP: of each frame under each phone, shape (B, T, P).
        frame_lens_B: valid frames of each row, int64, shape (B,).
        phone_lens_B: valid phones of each row, int64, shape (B,).
        dtype: of the sums, fp32 or fp64.

    Returns:
        durations, the phone of each frame, scores.

    Raises:
        ValueError: a length is out of range.
    """
    check_values(log_likelihood_BTP, frame_lens_B, phone_lens_B)
    device = log_likelihood_BTP.device
    frame_lens, phone_lens = frame_lens_B.cpu().numpy(), phone_lens_B.cpu().numpy()
    steps_TBP, last_BQ = _advance(log_likelihood_BTP.to(dtype).cpu().numpy(), frame_lens)
    rows = np.arange(len(frame_lens))
    scores_B = last_BQ[rows, phone_lens]
    feasible_B = scores_B > -np.inf
    frame_phone_BT = np.full((len(rows), len(steps_TBP)), -1, dtype=np.int64)
    durations_BP = np.zeros((len(rows), steps_TBP.shape[2]), dtype=np.int64)
    phones_B = phone_lens - 1
    for t in reversed(range(len(steps_TBP))):
        inside = rows[feasible_B & (t < frame_lens)]
        phones = phones_B[inside]
        frame_phone_BT[inside, t] = phones
        durations_BP[inside, phones] += 1
        phones_B[inside] -= steps_TBP[t, inside, phones]
    return Paths(*(torch.from_numpy(x).to(device) for x in (durations_BP, frame_phone_BT, scores_B)))


def _advance(log_likelihood_BTP: np.ndarray, frame_lens_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the best path to each cell came from the phone before, bool, (T, B, P), and the scores at each row's last frame
    of being before the first phone and in each phone, (B, P + 1)."""
    batch, num_frames, num_phones = log_likelihood_BTP.shape
    steps_TBP = np.zeros((num_frames, batch, num_phones), dtype=bool)
    best_BQ = np.full((batch, num_phones + 1), -np.inf, dtype=log_likelihood_BTP.dtype)
    best_BQ[:, 0] = 0.0
    last_BQ = best_BQ.copy()
    for t in range(frame_lens_B.max(initial=0)):
        reach = min(t + 1, num_phones)
        before, own = best_BQ[:, :reach], best_BQ[:, 1 : reach + 1]
        np.greater(before, own, out=steps_TBP[t, :, :reach])
        best_BQ[:, 1 : reach + 1] = np.maximum(before, own) + log_likelihood_BTP[:, t, :reach]
        best_BQ[:, 0] = -np.inf
        ends = frame_lens_B == t + 1
        last_BQ[ends] = best_BQ[ends]
    return steps_TBP, last_BQ


def check_values(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor) -> None:
    """Refuses lengths out of range; waits for the device.

    Raises:
        ValueError: one is.
    """
    _, num_frames, num_phones = log_likelihood_BTP.shape
    for name, lens_B, largest in (("frame_lens", frame_lens_B, num_frames), ("phone_lens", phone_lens_B, num_phones)):
        lens = lens_B.cpu().numpy()
        if ((lens < 0) | (lens > largest)).any():
            raise ValueError(f"{name} has values from {lens.min()} to {lens.max()}; give values from 0 to {largest}")

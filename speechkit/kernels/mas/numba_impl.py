"""Monotonic alignment search, compiled for the CPU: one utterance after the other, one pass over its frames.

Only cells that a path from the first phone to the last can pass are visited; one bit of each says whether the best path came
from the phone before, eight frames to a byte.

Shape legend: B batch, T frames, P phones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from speechkit.kernels.compiled import compiled, over_rows
from speechkit.kernels.mas.reference import Paths, check_values

NEVER = np.float32(-np.inf)


def align(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor) -> Paths:
    """As `reference.align`, bit for bit. Copies likelihoods that are not fp32, on the CPU, with phones side by side."""
    device = log_likelihood_BTP.device
    check_values(log_likelihood_BTP, frame_lens_B, phone_lens_B)
    batch, num_frames, num_phones = log_likelihood_BTP.shape
    frame_lens, phone_lens = frame_lens_B.cpu().contiguous().numpy(), phone_lens_B.cpu().contiguous().numpy()
    likelihoods = log_likelihood_BTP.cpu().float().contiguous().numpy()
    durations_BP = torch.zeros(batch, num_phones, dtype=torch.int64)
    frame_phone_BT = torch.full((batch, num_frames), -1)
    scores_B = torch.empty(batch)
    results = [x.numpy() for x in (durations_BP, frame_phone_BT, scores_B)]
    over_rows(_align_rows, frame_lens * phone_lens, likelihoods, frame_lens, phone_lens, *results)
    return Paths(*(x.to(device) for x in (durations_BP, frame_phone_BT, scores_B)))


@compiled("void(int64[::1], float32[:,:,::1], int64[::1], int64[::1], int64[:,::1], int64[:,::1], float32[::1])")
def _align_rows(
    rows_R: np.ndarray,
    log_likelihood_BTP: np.ndarray,
    frame_lens_B: np.ndarray,
    phone_lens_B: np.ndarray,
    durations_BP: np.ndarray,
    frame_phone_BT: np.ndarray,
    scores_B: np.ndarray,
) -> None:
    """Aligns the rows listed; durations and phones of frames hold what infeasible rows get."""
    for row in rows_R:
        num_frames, num_phones = frame_lens_B[row], phone_lens_B[row]
        if num_frames < num_phones or (num_phones == 0 and num_frames > 0):
            scores_B[row] = NEVER
            continue
        best = np.full(num_phones + 1, NEVER, dtype=np.float32)  # phone p at place p + 1; place 0 is before the first
        onward = np.full(num_phones + 1, NEVER, dtype=np.float32)
        best[0] = 0.0
        steps = np.zeros(((num_frames + 7) // 8, num_phones), dtype=np.uint8)
        for t in range(num_frames):
            first = max(num_phones - (num_frames - t), 0)
            count = min(t + 1, num_phones) - first
            frame = log_likelihood_BTP[row, t, first : first + count]
            before, own, new = best[first:], best[first + 1 :], onward[first + 1 :]
            bits, bit = steps[t // 8, first:], np.uint8(1 << (t % 8))
            for p in range(count):
                bits[p] |= bit if before[p] > own[p] else np.uint8(0)
                larger = own[p] if own[p] >= before[p] or own[p] != own[p] else before[p]  # nan wins, as in numpy.maximum
                new[p] = larger + frame[p]
            best, onward = onward, best
            onward[0] = NEVER
        scores_B[row] = best[num_phones]
        if not scores_B[row] > NEVER:
            continue
        phone = num_phones - 1
        for back in range(num_frames):
            t = num_frames - 1 - back
            frame_phone_BT[row, t] = phone
            durations_BP[row, phone] += 1
            phone -= (steps[t // 8, phone] >> (t % 8)) & 1

"""Times of tokens from cross-attention: where a decoder looked when it chose each of them.

The weights of some heads are made comparable over tokens, smoothed with a median over frames and averaged; dynamic time
warping then cuts the frames into one stretch per token. Sources: Sakoe and Chiba 1978, "Dynamic programming algorithm
optimization for spoken word recognition"; Radford et al. 2022, "Robust speech recognition via large-scale weak supervision",
whose word times are made like this.

Shape legend: B batch, H attention heads of any layers, U tokens and the end, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

LEAD = 0.05  # of the attention of the first token within its stretch, which else begins with the recording


def attention_spans(
    weights_BHUT: Tensor, token_lens_B: Sequence[int], frame_lens_B: Sequence[int], *, filter_width: int = 7
) -> list[list[tuple[int, int]]]:
    """Where the tokens of each row lie.

    A token lasts until the next one begins, the last one until the end does. The first one begins where it has had a
    twentieth of its attention.

    Args:
        weights_BHUT: how much was looked at each frame when a token or, last, the end was chosen, shape (B, H, U, T); anything
            past the lengths.
        token_lens_B: tokens of each row, the end excluded: less than U.
        frame_lens_B: valid frames of each row.
        filter_width: frames of the median, odd.

    Returns:
        for each token of each row its first frame and the frame after its last one. More tokens than frames share them: some
        are then empty.

    Raises:
        ValueError: `filter_width` is not odd.
    """
    if filter_width < 1 or filter_width % 2 == 0:
        raise ValueError(f"filter_width={filter_width} must be odd")
    rows = weights_BHUT.float().cpu().numpy().astype(np.float64)
    spans = []
    for weights_HUT, num_tokens, num_frames in zip(rows, token_lens_B, frame_lens_B, strict=True):
        spans.append(_spans(weights_HUT[:, : num_tokens + 1, :num_frames], filter_width) if num_tokens else [])
    return spans


def warp(cost_UT: np.ndarray) -> np.ndarray:
    """The cheapest way from the first token at the first frame to the last one at the last frame.

    Args:
        cost_UT: of each token at each frame, shape (U, T), both at least 1.

    Returns:
        pairs (token, frame), each one frame on from the one before it, in the same token or the next one, int64, shape
        (steps, 2). Only where there are more tokens than frames may tokens share frames.
    """
    num_tokens, num_frames = cost_UT.shape
    shared = num_tokens > num_frames
    total_UT = np.empty((num_tokens + 1, num_frames + 1))
    total_UT[0], total_UT[:, 0] = np.inf, np.inf
    total_UT[1, 1:] = np.cumsum(cost_UT[0])
    for u in range(1, num_tokens):
        before_T = total_UT[u, :-1]
        arrive_T = np.minimum(before_T, total_UT[u, 1:]) if shared else before_T
        sums_T = np.cumsum(cost_UT[u])
        total_UT[u + 1, 1:] = np.minimum.accumulate(arrive_T - sums_T + cost_UT[u]) + sums_T
    u, t = num_tokens, num_frames
    path = [(u, t)]
    while (u, t) != (1, 1):
        steps = [(u - 1, t - 1), (u, t - 1), *([(u - 1, t)] if shared else [])]
        u, t = min(steps, key=lambda step: float(total_UT[step]))
        path.append((u, t))
    return np.array(path[::-1]) - 1


def _spans(weights_HUT: np.ndarray, filter_width: int) -> list[tuple[int, int]]:
    """First frame of each token and of the next, for one row."""
    num_tokens, num_frames = weights_HUT.shape[1] - 1, weights_HUT.shape[2]
    if num_frames == 0:
        return [(0, 0)] * num_tokens
    deviation_H1T = weights_HUT.std(axis=1, keepdims=True)
    scores_HUT = (weights_HUT - weights_HUT.mean(axis=1, keepdims=True)) / np.maximum(deviation_H1T, 1e-9)
    path = warp(-_median(scores_HUT, filter_width).mean(axis=0))
    starts = [int(path[np.searchsorted(path[:, 0], u), 1]) for u in range(num_tokens + 1)]
    share_T = np.cumsum(weights_HUT[:, 0, : starts[1]].mean(axis=0))
    if len(share_T):
        starts[0] = int(np.searchsorted(share_T, LEAD * share_T[-1]))
    return list(pairwise(starts))


def _median(values_HUT: np.ndarray, width: int) -> np.ndarray:
    """Running median over frames; the ends are mirrored."""
    reach = width // 2
    padded = np.pad(values_HUT, ((0, 0), (0, 0), (reach, reach)), mode="reflect" if values_HUT.shape[2] > 1 else "edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=2), axis=3)

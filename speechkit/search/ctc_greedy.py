"""Greedy CTC decoding: the best label of each frame, repeats collapsed, blanks dropped.

Source: Graves et al. 2006, "Connectionist Temporal Classification", section 3.2 (best path decoding).
Shape legend: B batch, T frames, U tokens, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from speechkit.search.inputs import check_log_probs


@dataclass(frozen=True, slots=True)
class CtcPath:
    """The best path of one utterance; the tuples have one entry per token.

    Attributes:
        tokens: token ids.
        start_frames: first frame of each token's run.
        end_frames: frame after the last one of each token's run.
        confidences: mean probability of the token over its run, in [0, 1].
        score: log-probability of the whole path, blanks included; 0.0 without frames.
    """

    tokens: tuple[int, ...]
    start_frames: tuple[int, ...]
    end_frames: tuple[int, ...]
    confidences: tuple[float, ...]
    score: float


def ctc_greedy(log_probs_BTV: Tensor, lens_B: Tensor, blank: int = 0) -> list[CtcPath]:
    """Decode every utterance of a batch by its best path.

    An utterance's result does not depend on its batch mates or on padding.

    Args:
        log_probs_BTV: frame log-probabilities, any float type and device, shape (B, T, V).
        lens_B: valid frames of each row, shape (B,).
        blank: id of the blank token.

    Returns:
        One path per utterance.

    Raises:
        ValueError: shapes or lengths do not fit together.
    """
    lens = check_log_probs(log_probs_BTV, lens_B, blank)
    batch, num_frames, _ = log_probs_BTV.shape
    best_BT, labels_BT = (x.cpu().numpy() for x in log_probs_BTV.detach().max(dim=2))
    valid_BT = np.arange(num_frames) < lens[:, None]
    labels_BT = np.where(valid_BT, labels_BT, blank)
    best_BT = np.where(valid_BT, best_BT.astype(np.float64), 0.0)

    edge_B1 = np.full((batch, 1), blank)
    padded = np.concatenate([edge_B1, labels_BT, edge_B1], axis=1)
    change = padded[:, 1:] != padded[:, :-1]
    is_token = labels_BT != blank
    rows, starts = np.nonzero(is_token & change[:, :-1])
    ends = np.nonzero(is_token & change[:, 1:])[1] + 1

    # Running sums keep each value independent of how far its row is padded.
    zero_B1 = np.zeros((batch, 1))
    path_BT = np.concatenate([zero_B1, np.cumsum(best_BT, axis=1)], axis=1)
    prob_BT = np.concatenate([zero_B1, np.cumsum(np.exp(best_BT), axis=1)], axis=1)
    confidences = np.clip((prob_BT[rows, ends] - prob_BT[rows, starts]) / (ends - starts), 0.0, 1.0)
    tokens = labels_BT[rows, starts]
    bounds = np.searchsorted(rows, np.arange(batch + 1))
    return [
        CtcPath(
            tokens=tuple(tokens[i:j].tolist()),
            start_frames=tuple(starts[i:j].tolist()),
            end_frames=tuple(ends[i:j].tolist()),
            confidences=tuple(confidences[i:j].tolist()),
            score=float(path_BT[b, lens[b]]),
        )
        for b, (i, j) in enumerate(pairwise(bounds.tolist()))
    ]

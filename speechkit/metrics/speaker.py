"""Speaker verification: how well scores tell pairs of utterances of one speaker from those of two.

A pair is accepted as of one speaker when its score reaches the threshold. False rejections are pairs of one speaker below it,
false acceptances pairs of two speakers that reach it, each as a share of its kind. The equal error rate is what both are at the
threshold where they agree. Between the operating points of neighbouring scores, equal scores being one point, both rates are
taken as linear, so that scores that tell nothing have 0.5.

Shape legend: U utterances, D embedding, K pairs, S distinct scores, P = S + 1 operating points (the first p scores are rejected).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class EqualErrorRate:
    """Where false rejections and false acceptances are equally frequent.

    Attributes:
        rate: both of them, from 0 to 1.
        threshold: score from which a pair is accepted: where a range of them gives the rate its middle, else the score at
            which the rates pass each other.
        num_same: pairs of one speaker.
        num_different: pairs of two speakers.
    """

    rate: float
    threshold: float
    num_same: int
    num_different: int


def equal_error_rate(scores_K: npt.ArrayLike, same_K: npt.ArrayLike) -> EqualErrorRate:
    """Equal error rate of scored pairs.

    Args:
        scores_K: the higher, the more alike, shape (K,).
        same_K: whether a pair is of one speaker, bool, shape (K,).

    Raises:
        ValueError: the shapes differ, a score is not finite, or there are no pairs of one of the two kinds.
    """
    scores_K, same_K = np.asarray(scores_K, np.float64), np.asarray(same_K, np.bool_)
    if scores_K.ndim != 1 or scores_K.shape != same_K.shape:
        raise ValueError(f"scores_K and same_K have shapes {scores_K.shape} and {same_K.shape}: give one of each per pair")
    if not np.isfinite(scores_K).all():
        raise ValueError(f"scores_K: {np.count_nonzero(~np.isfinite(scores_K))} of {len(scores_K)} scores are not finite")
    num_same = int(same_K.sum())
    num_different = len(same_K) - num_same
    if not num_same or not num_different:
        raise ValueError(f"there are {num_same} pairs of one speaker and {num_different} of two: give some of each kind")
    values_S, place_K = np.unique(scores_K, return_inverse=True)
    rejected_P = np.append(0, np.cumsum(np.bincount(place_K[same_K], minlength=len(values_S))))
    accepted_P = num_different - np.append(0, np.cumsum(np.bincount(place_K[~same_K], minlength=len(values_S))))
    gap_P = accepted_P * num_same - rejected_P * num_different  # whole numbers; falls from above to below 0, by every score
    point = int(np.argmax(gap_P <= 0))
    part = gap_P[point - 1] / (gap_P[point - 1] - gap_P[point])
    rate = (rejected_P[point - 1] + part * (rejected_P[point] - rejected_P[point - 1])) / num_same
    threshold = values_S[point - 1] if gap_P[point] else (values_S[point - 1] + values_S[point]) / 2
    return EqualErrorRate(float(rate), float(threshold), num_same, num_different)


def score_pairs(
    embeddings_UD: npt.ArrayLike, speakers_U: Sequence[str] | Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Cosines of all pairs of utterances, each pair once: what `equal_error_rate` takes.

    Args:
        embeddings_UD: of all utterances, by one model, of any length but 0, shape (U, D).
        speakers_U: who speaks, U of them.

    Returns:
        scores_K and same_K for the K = U (U - 1) / 2 pairs, first with second, first with third and so on.

    Raises:
        ValueError: the numbers differ, a value is not finite, or an embedding is zero.
    """
    embeddings_UD = np.asarray(embeddings_UD, np.float64)
    if embeddings_UD.ndim != 2 or len(embeddings_UD) != len(speakers_U):
        raise ValueError(f"embeddings_UD has shape {embeddings_UD.shape} for {len(speakers_U)} speakers: give one row for each")
    norms_U = np.linalg.norm(embeddings_UD, axis=1)
    wrong = np.flatnonzero(~((norms_U > 0) & np.isfinite(norms_U)))
    if len(wrong):
        raise ValueError(f"embeddings_UD: row {wrong[0]} has norm {norms_U[wrong[0]]}: embeddings must be finite and not zero")
    unit_UD = embeddings_UD / norms_U[:, None]
    numbers_U = np.unique(np.asarray(speakers_U), return_inverse=True)[1]
    first_K, second_K = np.triu_indices(len(unit_UD), k=1)
    return np.clip((unit_UD @ unit_UD.T)[first_K, second_K], -1.0, 1.0), numbers_U[first_K] == numbers_U[second_K]

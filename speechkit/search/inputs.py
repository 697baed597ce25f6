"""Checks that every search on frame log-probabilities makes on its arguments.

Shape legend: B batch, T frames, V vocab.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def check_log_probs(log_probs_BTV: Tensor, lens_B: Tensor, blank: int) -> np.ndarray:
    """Check the arguments of a CTC search and bring the lengths to the CPU.

    Args:
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, shape (B,).
        blank: id of the blank token.

    Returns:
        The lengths, int64, shape (B,).

    Raises:
        ValueError: shapes disagree, a length is out of range, or the blank is not in the vocabulary.
    """
    if log_probs_BTV.ndim != 3:
        raise ValueError(f"log_probs has shape {tuple(log_probs_BTV.shape)}; give (batch, frames, vocabulary)")
    batch, num_frames, vocab = log_probs_BTV.shape
    lens = lens_B.detach().cpu().numpy().astype(np.int64)
    if lens.shape != (batch,):
        raise ValueError(f"lens has shape {lens.shape}; give one length for each of the {batch} rows of log_probs")
    if batch and (lens.min() < 0 or lens.max() > num_frames):
        raise ValueError(f"lens has values from {lens.min()} to {lens.max()}; log_probs has {num_frames} frames")
    if not 0 <= blank < vocab:
        raise ValueError(f"blank is {blank}; give an id below the vocabulary size {vocab}")
    return lens

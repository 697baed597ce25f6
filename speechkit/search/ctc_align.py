"""CTC forced alignment: the best path that spells a given transcript (Viterbi).

Source: Graves et al. 2006, "Connectionist Temporal Classification", section 4.1, with max in place of sum.
The path comes from `speechkit.kernels.ctc_align`; here it becomes runs of frames and confidences.
Shape legend: B batch, T frames, U tokens, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from speechkit.kernels.ctc_align import ctc_viterbi
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
    token_lens = _check_tokens(tokens_BU, token_lens_B, log_probs_BTV.shape, blank)
    log_probs_BTV = log_probs_BTV.detach()[:, : lens.max(initial=0)]
    rows = (x.to(log_probs_BTV.device).long() for x in (lens_B, tokens_BU, token_lens_B))
    path = ctc_viterbi(log_probs_BTV, *rows, blank=blank)
    path_BT = log_probs_BTV.gather(2, path.labels_BT[..., None])[..., 0].float().double().cpu().numpy()
    return _alignments(path_BT, path.token_index_BT.cpu().numpy(), path.feasible_B.cpu().numpy(), lens, token_lens)


def _check_tokens(tokens_BU: Tensor, token_lens_B: Tensor, shape: tuple[int, ...], blank: int) -> np.ndarray:
    """The lengths of the transcripts, int64 on the CPU."""
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
    return token_lens


def _alignments(
    path_BT: np.ndarray, token_index_BT: np.ndarray, feasible_B: np.ndarray, lens_B: np.ndarray, token_lens_B: np.ndarray
) -> list[Alignment | None]:
    """Turn the token of every frame, with its log-probability, into the run of frames of every token."""
    batch, num_frames = token_index_BT.shape
    valid_BT = (np.arange(num_frames) < lens_B[:, None]) & feasible_B[:, None]
    path_BT = np.where(valid_BT, path_BT, 0.0)
    scores = np.concatenate([np.zeros((batch, 1)), np.cumsum(path_BT, axis=1)], axis=1)[np.arange(batch), lens_B]
    rows, frames = np.nonzero(token_index_BT >= 0)  # runs of one token are contiguous, tokens in order
    width = int(token_lens_B.max(initial=0))
    keys = rows * width + token_index_BT[rows, frames]
    counts = np.bincount(keys, minlength=batch * width)
    probs = np.bincount(keys, weights=np.exp(path_BT[rows, frames]), minlength=batch * width)
    first = np.cumsum(counts) - counts
    result: list[Alignment | None] = []
    for b in range(batch):
        if not feasible_B[b]:
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

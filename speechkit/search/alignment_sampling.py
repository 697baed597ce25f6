"""Sampled CTC paths: the best path, and paths that take the runner-up at some of the frames that are in doubt.

Source: Fan et al. 2021, "CASS-NAT", section 3.3 (error-based sampling alignment).

Shape legend: B batch, T frames, U tokens, V vocab, N paths, S samples, R distinct alignments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.search.inputs import check_log_probs

_COINS_PER_DRAW = 64


class Alignments(NamedTuple):
    """Distinct alignments of the utterances of a batch, those of one utterance side by side.

    Attributes:
        rows_R: utterance of each alignment, int64, ascending; the first of an utterance is its best path, shape (R,).
        tokens_RU: tokens of the path without repeats and blanks, int64, blank past each length, shape (R, U).
        token_lens_R: tokens of each alignment, int64, shape (R,).
        starts_RU: first frame of each token's run, its spike, int64, 0 past each length, shape (R, U).
        ends_RU: frame after each token's run, int64, 0 past each length, shape (R, U).
    """

    rows_R: Tensor
    tokens_RU: Tensor
    token_lens_R: Tensor
    starts_RU: Tensor
    ends_RU: Tensor


def token_starts(labels_NT: Tensor, lens_N: Tensor, *, blank: int = 0) -> Tensor:
    """Marks the first frame of each token's run in paths of frame labels.

    Args:
        labels_NT: label of each frame, int64, shape (N, T).
        lens_N: valid frames of each path, int64, shape (N,).
        blank: id of the blank.

    Returns:
        bool, shape (N, T); the sum of a row is its number of tokens.
    """
    starts_NT = labels_NT != blank
    starts_NT[:, 1:] &= labels_NT[:, 1:] != labels_NT[:, :-1]
    return starts_NT & (torch.arange(labels_NT.shape[1], device=labels_NT.device) < lens_N[:, None])


def sample_alignments(
    log_probs_BTV: Tensor, lens_B: Tensor, *, num_samples: int, threshold: float = 0.9, seed: int = 0, blank: int = 0
) -> Alignments:
    """Samples CTC paths and keeps those that differ in tokens or spikes.

    Sample 0 is the best path. In the others, each frame whose best label has a probability below `threshold` takes its
    best or its second label, by a fair coin. Coins depend on the seed, the sample and the frame's number alone: the
    samples of an utterance do not depend on its batch mates, and fewer samples are the first ones of more.

    Args:
        log_probs_BTV: frame log-probabilities, shape (B, T, V) with V >= 2.
        lens_B: valid frames of each row, int64, shape (B,).
        num_samples: paths drawn for each utterance, the best one among them.
        threshold: probability below which a frame is in doubt.
        seed: of the coins.
        blank: id of the blank.

    Returns:
        from 1 to `num_samples` alignments of each utterance.

    Raises:
        ValueError: shapes or lengths do not fit together, or `num_samples` is below 1.
    """
    check_log_probs(log_probs_BTV, lens_B, blank)
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1, the best path")
    best_BT = log_probs_BTV.max(dim=2)
    labels_BST = best_BT.indices[:, None].repeat(1, num_samples, 1)
    if num_samples > 1:
        in_doubt_BT = best_BT.values.float().exp() < threshold
        rivals_NV = log_probs_BTV[in_doubt_BT].scatter(1, best_BT.indices[in_doubt_BT][:, None], -torch.inf)
        second_BT = best_BT.indices.masked_scatter(in_doubt_BT, rivals_NV.argmax(dim=1))
        heads_ST = _coins(num_samples - 1, labels_BST.shape[2], seed).to(labels_BST.device)
        labels_BST[:, 1:] = torch.where(heads_ST & in_doubt_BT[:, None], second_BT[:, None], labels_BST[:, 1:])
    return _distinct(labels_BST, lens_B, blank)


def _coins(num_samples: int, num_frames: int, seed: int) -> Tensor:
    """Fair coins, bool, shape (num_samples, num_frames): the bits of one draw per frame for each 64 samples."""
    words = [
        np.random.default_rng([seed, word]).integers(2**64, size=num_frames, dtype=np.uint64)
        for word in range(-(-num_samples // _COINS_PER_DRAW))
    ]
    bits = [(words[s // _COINS_PER_DRAW] >> np.uint64(s % _COINS_PER_DRAW)) & np.uint64(1) for s in range(num_samples)]
    return torch.from_numpy(np.stack(bits).astype(bool))


def _distinct(labels_BST: Tensor, lens_B: Tensor, blank: int) -> Alignments:
    """Drops paths whose tokens and spikes another path of the utterance has, and collapses the others."""
    num_samples = labels_BST.shape[1]
    labels_NT, lens_N = labels_BST.flatten(0, 1), lens_B.to(labels_BST.device).repeat_interleave(num_samples)
    starts_NT = token_starts(labels_NT, lens_N, blank=blank)
    spikes_NT = labels_NT.masked_fill(~starts_NT, blank).to(torch.int32).cpu().numpy()
    seen: set[tuple[int, bytes]] = set()
    kept = []
    for n, spikes_T in enumerate(spikes_NT):
        key = (n // num_samples, spikes_T.tobytes())
        if key not in seen:
            seen.add(key)
            kept.append(n)
    kept_R = torch.tensor(kept, dtype=torch.long, device=labels_NT.device)
    return _collapse(labels_NT[kept_R], starts_NT[kept_R], lens_N[kept_R], kept_R // num_samples, blank)


def _collapse(labels_RT: Tensor, starts_RT: Tensor, lens_R: Tensor, rows_R: Tensor, blank: int) -> Alignments:
    """Tokens and runs of paths."""
    frames_T = torch.arange(labels_RT.shape[1], device=labels_RT.device)
    token_lens_R = starts_RT.sum(dim=1)
    num_tokens = int(token_lens_R.max()) if len(token_lens_R) else 0
    # A run ends where the label changes or the row does.
    is_token_RT = (labels_RT != blank) & (frames_T < lens_R[:, None])
    ends_RT = is_token_RT & (frames_T == lens_R[:, None] - 1)
    ends_RT[:, :-1] |= is_token_RT[:, :-1] & (labels_RT[:, :-1] != labels_RT[:, 1:])

    def compact(values_RT: Tensor, marked_RT: Tensor, fill: int) -> Tensor:
        """The marked values of each row, in order, behind a spare column that takes the others."""
        out_RU = values_RT.new_full((len(values_RT), num_tokens + 1), fill)
        return out_RU.scatter_(1, torch.where(marked_RT, marked_RT.cumsum(dim=1), 0), values_RT)[:, 1:]

    return Alignments(
        rows_R=rows_R,
        tokens_RU=compact(labels_RT, starts_RT, blank),
        token_lens_R=token_lens_R,
        starts_RU=compact(frames_T.expand_as(labels_RT), starts_RT, 0),
        ends_RU=compact((frames_T + 1).expand_as(labels_RT), ends_RT, 0),
    )

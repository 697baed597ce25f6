"""Generalised end-to-end loss: an utterance should be nearer to the mean of its own speaker than to those of all others.

Source: Wan et al. 2018, "Generalized End-to-End Loss for Speaker Verification", section 2, the softmax variant (equations 5, 6, 8
and 9). There a batch holds N speakers with M utterances each and the loss is a sum over its rows; here speakers may have
different numbers of utterances and the loss is the mean over the rows that count.

Shape legend: B batch, D embedding, K rows that count, S speakers that count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_SCALE = 1e-6  # the paper wants it above 0: nearer must never score less
EPS = 1e-6  # least length that a vector is divided by


class Ge2eLoss(NamedTuple):
    """Loss of a batch, and of each utterance.

    Attributes:
        loss: mean over the rows that count, nats, scalar; 0 without any.
        loss_B: of each row, nats; 0 where it does not count, shape (B,).
        counted_B: rows that count, bool, shape (B,): those of speakers with two utterances or more, where there are two such
            speakers or more.
        accuracy: share of the rows that count whose own speaker scores highest, scalar, detached; 0 without any.
    """

    loss: Tensor
    loss_B: Tensor
    counted_B: Tensor
    accuracy: Tensor


def ge2e_loss(embeddings_BD: Tensor, speakers_B: Tensor, scale: Tensor, bias: Tensor) -> Ge2eLoss:
    """Cross-entropy of each utterance's speaker, scored by scale * cosine + bias with the mean embedding of each speaker.

    The mean that an utterance is compared with leaves the utterance itself out where it is its own speaker's: else the way to
    a low loss would be to put every utterance into its own mean. Rows that do not count are in no mean either and have a
    gradient of exactly 0, whatever they hold. Computed in fp32 (fp64 for fp64 embeddings), also under autocast.

    Args:
        embeddings_BD: one for each utterance, of any length, which is made 1 here; any float dtype, shape (B, D).
        speakers_B: who speaks, any integers, shape (B,).
        scale: factor on the cosines, trained, scalar; the paper begins with 10. Taken as 1e-6 where it is less.
        bias: added to all scores alike, so that a softmax has no use for it; kept as published, scalar, begins with -5.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check(embeddings_BD, speakers_B, scale, bias)
    dtype = torch.promote_types(embeddings_BD.dtype, torch.float32)
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        counted_B = _counted(speakers_B)
        _, owner_K, sizes_S = torch.unique(speakers_B[counted_B], return_inverse=True, return_counts=True)
        x_KD = F.normalize(embeddings_BD[counted_B].to(dtype), dim=1, eps=EPS)
        sums_SD = x_KD.new_zeros(len(sizes_S), x_KD.shape[1]).index_add(0, owner_K, x_KD)
        others_KD = F.normalize(sums_SD[owner_K] - x_KD, dim=1, eps=EPS)  # a sum has the direction of its mean
        cosines_KS = x_KD @ F.normalize(sums_SD, dim=1, eps=EPS).T
        own_K1 = (x_KD * others_KD).sum(dim=1, keepdim=True)
        cosines_KS = cosines_KS.scatter(1, owner_K[:, None], own_K1)
        scores_KS = scale.to(dtype).clamp(min=MIN_SCALE) * cosines_KS + bias.to(dtype)
        loss_K = -scores_KS.log_softmax(dim=1).gather(1, owner_K[:, None]).squeeze(1)
        loss_B = x_KD.new_zeros(len(counted_B)).masked_scatter(counted_B, loss_K)
        num_rows = counted_B.sum().clamp(min=1)
        right_K = (cosines_KS <= own_K1).all(dim=1)
        return Ge2eLoss(loss_B.sum() / num_rows, loss_B, counted_B, right_K.sum() / num_rows)


def _counted(speakers_B: Tensor) -> Tensor:
    """Rows whose speaker has another one, unless there is one such speaker only; bool, shape (B,)."""
    same_BB = speakers_B[:, None] == speakers_B
    paired_B = same_BB.sum(dim=1) > 1
    return paired_B & (~same_BB & paired_B).any(dim=1)


def _check(embeddings_BD: Tensor, speakers_B: Tensor, scale: Tensor, bias: Tensor) -> None:
    if embeddings_BD.ndim != 2 or not embeddings_BD.is_floating_point():
        shape, dtype = tuple(embeddings_BD.shape), embeddings_BD.dtype
        raise ValueError(f"embeddings has shape {shape} and dtype {dtype}; give floats, (B, D)")
    if speakers_B.shape != embeddings_BD.shape[:1]:
        raise ValueError(f"speakers has shape {tuple(speakers_B.shape)}; give ({len(embeddings_BD)},), one number per row")
    for name, value in (("scale", scale), ("bias", bias)):
        if value.ndim:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; give a scalar")

"""Random numbers of a training step, and what is decided by them.

In training they come from torch's default generators; in evaluation from the ids of the utterances, so that a validation loss
depends on nothing but its utterances, and compares from epoch to epoch.

Shape legend: B batch, T frames, F channels of the features, K kinds of uniform numbers, S frames of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.losses.flow_matching import utterance_noise, utterance_times


class Draws(NamedTuple):
    """Random numbers of a batch.

    Attributes:
        noise_BTF: standard normal, fp32, shape (B, T, F); of anything past a row's length.
        uniforms_BK: in [0, 1), fp32, shape (B, K).
    """

    noise_BTF: Tensor
    uniforms_BK: Tensor


def draw(features_BTF: Tensor, lens_B: Tensor, ids: Sequence[str], *, num_uniforms: int, training: bool) -> Draws:
    """Draws noise like the features, and K numbers for each row.

    Args:
        features_BTF: their shape and device, shape (B, T, F).
        lens_B: valid frames of each row, int64, shape (B,).
        ids: of the utterances, B of them; read in evaluation only.
        num_uniforms: K.
        training: whether torch's generators are to be used.
    """
    device, (batch, num_frames, num_channels) = features_BTF.device, features_BTF.shape
    if training:
        noise_BTF = torch.randn(features_BTF.shape, device=device)
        return Draws(noise_BTF, torch.rand(batch, num_uniforms, device=device))
    noise_BTF = utterance_noise(ids, lens_B, num_channels=num_channels, num_frames=num_frames, seed=0)
    columns = [utterance_times(ids, seed=0, draw=kind) for kind in range(num_uniforms)]
    return Draws(noise_BTF.to(device), torch.stack(columns, dim=1).to(device))


def draw_spans(lens_B: Tensor, num_frames: int, share_B: Tensor, start_B: Tensor) -> Tensor:
    """Marks one span of each row.

    Args:
        lens_B: valid frames of each row, int64, shape (B,).
        num_frames: T.
        share_B: length of the span as a share of the row, rounded up, in [0, 1], shape (B,).
        start_B: where it begins among all places that it can have, in [0, 1), shape (B,).

    Returns:
        bool, shape (B, T); nothing past a row's length.
    """
    span_B = (share_B * lens_B).ceil().long().clamp(min=1).minimum(lens_B)
    first_B = (start_B * (lens_B - span_B + 1)).long().minimum(lens_B - span_B)
    frames_T = torch.arange(num_frames, device=lens_B.device)
    return (frames_T >= first_B[:, None]) & (frames_T < (first_B + span_B)[:, None])


class Segments(NamedTuple):
    """Pieces of rows.

    Attributes:
        pieces: of each of the tensors, shape (B, S, F).
        lens_B: valid frames of each piece, int64, shape (B,).
    """

    pieces: tuple[Tensor, ...]
    lens_B: Tensor


def cut_segments(tensors: Sequence[Tensor], lens_B: Tensor, num_frames: int, start_B: Tensor) -> Segments:
    """Cuts the same piece out of several tensors, another in each row.

    Args:
        tensors: shape (B, T, F) each.
        lens_B: valid frames of each row, int64, shape (B,).
        num_frames: S; rows that are no longer are kept whole.
        start_B: where the piece begins among all places that it can have, in [0, 1), shape (B,).
    """
    size = min(num_frames, tensors[0].shape[1])
    first_B = (start_B * ((lens_B - size).clamp(min=0) + 1)).long().minimum((lens_B - size).clamp(min=0))
    places_BS = first_B[:, None] + torch.arange(size, device=lens_B.device)
    pieces = tuple(x.gather(1, places_BS[..., None].expand(-1, -1, x.shape[2])) for x in tensors)
    return Segments(pieces, lens_B.clamp(max=size))

"""Losses of adversarial training: hinge or least squares for what is real, and distances between a critic's features.

A discriminator is called with waveforms and lengths and returns a `Judgement` for each of its parts. Losses are averaged over
the valid places of a map, so that utterances shorter than their batch are neither judged nor compared past their end.

Sources: hinge, Lim and Ye 2017, "Geometric GAN", and Siuzdak 2023, "Vocos", section 3 (the generator's side); least squares,
Mao et al. 2017, "Least Squares GANs"; feature matching, Kumar et al. 2019, "MelGAN", section 2.3, and Kong et al. 2020,
"HiFi-GAN", section 2.4.

Shape legend: B batch, N samples, C channels, T places in time, E other places (periods, frequency bins).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from speechkit.types import LossOutput

AdversarialLoss = Literal["hinge", "least_squares"]


class Judgement(NamedTuple):
    """What one part of a discriminator makes of a batch of waveforms.

    Attributes:
        maps_BCTE: maps of its layers, from the first to the scores, which have one channel; zero past each length, shapes
            (B, C, T, E), of every layer another.
        lens_B: valid places in time of each row, of each map, int64, shapes (B,).
        weight: of this part among the others.
    """

    maps_BCTE: tuple[Tensor, ...]
    lens_B: tuple[Tensor, ...]
    weight: float


class AdversarialPair(NamedTuple):
    """What a generator under adversarial training makes of a batch.

    Attributes:
        real_BN: waveforms, or stretches of them, zero past each length, float32, shape (B, N).
        fake_BN: what the generator made in their place, with gradients, likewise.
        wave_lens_B: valid samples of each row of both, int64, shape (B,).
        reconstruction: all other losses of the generator. Its parts hold "mel", the mean absolute difference of log-mels, by
            which validations are judged.
    """

    real_BN: Tensor
    fake_BN: Tensor
    wave_lens_B: Tensor
    reconstruction: LossOutput


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement], *, kind: AdversarialLoss = "hinge") -> Tensor:
    """What a discriminator is trained by: scores of real waveforms up, of made ones down.

    Args:
        real: judgements of recordings.
        fake: judgements of what was made, of the same shapes, detached from the generator.
        kind: "hinge": max(0, 1 - D(real)) + max(0, 1 + D(fake)); "least_squares": (1 - D(real))^2 + D(fake)^2.

    Returns:
        The weighted sum over the parts, scalar.

    Raises:
        ValueError: `kind` is unknown.
    """
    _check_kind(kind)
    total = _zero(real)
    for one, other in zip(real, fake, strict=True):
        scores, lens_B = (one.maps_BCTE[-1], other.maps_BCTE[-1]), one.lens_B[-1]
        if kind == "hinge":
            loss_BCTE = functional.relu(1.0 - scores[0]) + functional.relu(1.0 + scores[1])
        else:
            loss_BCTE = (1.0 - scores[0]).square() + scores[1].square()
        total = total + one.weight * _mean(loss_BCTE, lens_B)
    return total


def generator_loss(fake: Sequence[Judgement], *, kind: AdversarialLoss = "hinge") -> Tensor:
    """What a generator is trained by: scores of what it made up.

    Args:
        fake: judgements of what was made.
        kind: "hinge": max(0, 1 - D(fake)); "least_squares": (1 - D(fake))^2.

    Returns:
        The weighted sum over the parts, scalar.

    Raises:
        ValueError: `kind` is unknown.
    """
    _check_kind(kind)
    total = _zero(fake)
    for one in fake:
        gap_BCTE = 1.0 - one.maps_BCTE[-1]
        total = total + one.weight * _mean(functional.relu(gap_BCTE) if kind == "hinge" else gap_BCTE.square(), one.lens_B[-1])
    return total


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Mean absolute difference of the maps of recordings and of what was made, summed over layers, the scores included.

    Args:
        real: judgements of recordings; no gradient goes there.
        fake: judgements of what was made, of the same shapes.

    Returns:
        The weighted sum over the parts, scalar.
    """
    total = _zero(fake)
    for one, other in zip(real, fake, strict=True):
        for real_BCTE, fake_BCTE, lens_B in zip(one.maps_BCTE, other.maps_BCTE, other.lens_B, strict=True):
            total = total + other.weight * _mean((real_BCTE.detach() - fake_BCTE).abs(), lens_B)
    return total


def _mean(values_BCTE: Tensor, lens_B: Tensor) -> Tensor:
    """Mean over valid places, in fp32; 0 where there are none."""
    _, channels, num_places, others = values_BCTE.shape
    valid_BT = torch.arange(num_places, device=lens_B.device) < lens_B[:, None]
    sums_BT = values_BCTE.float().sum((1, 3))
    return sums_BT.masked_fill(~valid_BT, 0.0).sum() / (lens_B.sum() * channels * others).clamp(min=1)


def _zero(judgements: Sequence[Judgement]) -> Tensor:
    if not judgements:
        raise ValueError("there are no judgements: give the discriminator at least one part")
    return judgements[0].maps_BCTE[-1].new_zeros((), dtype=torch.float32)


def _check_kind(kind: str) -> None:
    if kind not in ("hinge", "least_squares"):
        raise ValueError(f"kind={kind!r} is unknown; choose hinge or least_squares")

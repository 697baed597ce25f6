"""Conditional flow matching on straight paths: the objective, apart from any network.

A point moves from noise x0 at time 0 to data x1 at time 1: x_t = (1 - (1 - sigma) t) x0 + t x1, with the velocity
x1 - (1 - sigma) x0. With a small sigma this is the optimal-transport path of Lipman et al. 2023, "Flow Matching for Generative
Modeling", section 4.1 (Matcha-TTS takes 1e-4); with 0 it is the rectified flow of Liu et al. 2023, "Flow Straight and Fast",
section 2.1.

Noise and times are drawn from the id of an utterance, a seed and the number of the draw, never from the batch: an utterance
meets the same ones whatever its mates, its padding, the device and the number of ranks.

Everything is computed in fp32 at least (fp64 stays): in half precision 1 - 1e-4 is 1.

Shape legend: B batch, T frames, D channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

SIGMA_MIN = 1e-4
TimeLaw = Literal["uniform", "logit_normal"]


class FlowSample(NamedTuple):
    """Points on the paths and what the network should say there.

    Attributes:
        x_t_BTD: points at the times of their rows, shape (B, T, D).
        target_BTD: velocity of the path, same shape.
    """

    x_t_BTD: Tensor
    target_BTD: Tensor


class FlowLoss(NamedTuple):
    """Squared errors of velocities.

    Attributes:
        loss: mean over the marked frames of the batch, scalar; 0 without any.
        sums_B: sum over the marked frames of each row, for averages over more than a batch, shape (B,).
        frames_B: marked frames of each row, int64, shape (B,).
    """

    loss: Tensor
    sums_B: Tensor
    frames_B: Tensor


def conditional_flow(x1_BTD: Tensor, x0_BTD: Tensor, t_B: Tensor, sigma: float = SIGMA_MIN) -> FlowSample:
    """Points on the straight paths from noise to data, and the velocity there.

    Args:
        x1_BTD: data, shape (B, T, D).
        x0_BTD: noise, same shape.
        t_B: time of each row in [0, 1], shape (B,).
        sigma: width of what is left of the noise at time 1, in [0, 1); 0 for rectified flow.

    Returns:
        fp32, or fp64 for fp64 data; past a row's length as meaningless as the data there.

    Raises:
        ValueError: shapes do not fit together or `sigma` is out of range.
    """
    if x1_BTD.shape != x0_BTD.shape or t_B.shape != x1_BTD.shape[:1]:
        shapes = f"x1 {tuple(x1_BTD.shape)}, x0 {tuple(x0_BTD.shape)}, t {tuple(t_B.shape)}"
        raise ValueError(f"shapes {shapes} do not fit; give x1 and x0 as (B, T, D) and t as (B,)")
    _check_sigma(sigma)
    x1_BTD, x0_BTD = _at_least_fp32(x1_BTD), _at_least_fp32(x0_BTD)
    t_B11 = t_B.to(x1_BTD)[:, None, None]
    return FlowSample((1 - (1 - sigma) * t_B11) * x0_BTD + t_B11 * x1_BTD, x1_BTD - (1 - sigma) * x0_BTD)


def path_end(x_t_BTD: Tensor, velocity_BTD: Tensor, t_B: Tensor, sigma: float = SIGMA_MIN) -> Tensor:
    """The data that a path leads to, from one point and the velocity there; exact if the velocity is the path's own.

    A loss on this estimate reaches the network at any time (the auxiliary CTC loss of LEMAS-TTS, for one).

    Args:
        x_t_BTD: points, shape (B, T, D).
        velocity_BTD: velocities there, same shape.
        t_B: time of each row, shape (B,).
        sigma: as in `conditional_flow`.

    Returns:
        x1, fp32 or fp64, shape (B, T, D).

    Raises:
        ValueError: `sigma` is out of range.
    """
    _check_sigma(sigma)
    velocity_BTD, x_t_BTD = _at_least_fp32(velocity_BTD), _at_least_fp32(x_t_BTD)
    x0_BTD = x_t_BTD - t_B.to(x_t_BTD)[:, None, None] * velocity_BTD
    return velocity_BTD + (1 - sigma) * x0_BTD


def flow_matching_loss(velocity_BTD: Tensor, target_BTD: Tensor, marked_BT: Tensor) -> FlowLoss:
    """Squared error of the velocity, averaged over channels and over the marked frames.

    Args:
        velocity_BTD: the network's, shape (B, T, D).
        target_BTD: of `conditional_flow`, same shape.
        marked_BT: frames that count, bool, shape (B, T): the valid ones, or those of them that are to be filled in.

    Returns:
        fp32 or fp64; other frames add nothing and get no gradient, whatever lies there.
    """
    errors_BTD = _at_least_fp32(velocity_BTD) - _at_least_fp32(target_BTD)
    # Cleared before it is squared: the gradient of a square at NaN is NaN even where nothing flows back.
    squares_BTD = errors_BTD.masked_fill(~marked_BT[..., None], 0.0).square()
    sums_B, frames_B = squares_BTD.mean(2).sum(1), marked_BT.sum(1)
    return FlowLoss(sums_B.sum() / frames_B.sum().clamp(min=1), sums_B, frames_B)


def utterance_noise(
    utterance_ids: Sequence[str], lens_B: Tensor, *, num_channels: int, num_frames: int, seed: int, draw: int = 0
) -> Tensor:
    """Standard normal noise of each utterance; that of a shorter one begins that of a longer one with the same id.

    Drawn on the CPU, so that all devices see the same; the lengths are read once.

    Args:
        utterance_ids: B ids; equal ids get equal noise.
        lens_B: frames of each row, int64, shape (B,).
        num_channels: D.
        num_frames: T, at least the longest row.
        seed: of the run.
        draw: another number is another draw: the step in training, 0 in synthesis.

    Returns:
        fp32, 0 past each length, on the device of the lengths, shape (B, T, D).

    Raises:
        ValueError: ids and lengths do not match, or a row is longer than `num_frames`.
    """
    lens = lens_B.tolist()
    if len(lens) != len(utterance_ids):
        raise ValueError(f"{len(utterance_ids)} utterance_ids and {len(lens)} lengths; give one id for each row")
    if max(lens, default=0) > num_frames:
        raise ValueError(f"num_frames={num_frames} is less than the longest row, {max(lens)}; give the padded length")
    noise_BTD = np.zeros((len(lens), num_frames, num_channels), dtype=np.float32)
    for row, (utterance_id, length) in enumerate(zip(utterance_ids, lens)):
        generator = _generator(utterance_id, "noise", seed, draw)
        noise_BTD[row, :length] = generator.standard_normal((length, num_channels), dtype=np.float32)
    return torch.from_numpy(noise_BTD).to(lens_B.device)


def utterance_times(
    utterance_ids: Sequence[str],
    *,
    seed: int,
    draw: int = 0,
    law: TimeLaw = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
) -> Tensor:
    """A time of each utterance.

    Args:
        utterance_ids: B ids; equal ids get equal times.
        seed: of the run.
        draw: another number is another draw: the step of training.
        law: "uniform" in [0, 1), or "logit_normal", the logistic function of a normal number (Esser et al. 2024, "Scaling
            Rectified Flow Transformers", section 3.1), which prefers the middle of the path.
        mean: of that normal number; above 0 for times nearer to the data.
        std: its standard deviation.

    Returns:
        fp32 on the CPU, shape (B,).

    Raises:
        ValueError: `law` is unknown or `std` is not positive.
    """
    if law not in ("uniform", "logit_normal"):
        raise ValueError(f"law={law!r} is unknown; choose uniform or logit_normal")
    if std <= 0:
        raise ValueError(f"std={std} must be positive")
    generators = [_generator(utterance_id, "time", seed, draw) for utterance_id in utterance_ids]
    if law == "uniform":
        return torch.tensor([generator.random(dtype=np.float32) for generator in generators], dtype=torch.float32)
    normal_B = torch.tensor([generator.standard_normal() for generator in generators], dtype=torch.float64)
    return torch.sigmoid(mean + std * normal_B).float()


def _generator(utterance_id: str, purpose: str, seed: int, draw: int) -> np.random.Generator:
    key = f"{purpose}/{seed}/{draw}/{utterance_id}".encode("utf-8", "surrogatepass")
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little"))


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma < 1:
        raise ValueError(f"sigma={sigma} must be in [0, 1); 0 is rectified flow, 1e-4 usual")

"""Samples of a flow: solvers that follow a velocity from noise at time 0 to data at time 1.

Grids of times: equal steps; EPSS, empirically pruned ones for few steps (the tables that F5-TTS ships); and sway sampling on top
of either (Chen et al. 2024, "F5-TTS", section 3.3), which moves the steps towards the noise, where they matter most. Guidance
without a classifier: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", section 3.2, as extrapolation from the condition.

Every operation here is row by row: a row depends on its mates only if the velocity does.

Shape legend: B batch, T frames, D channels, N = 2 B rows of a doubled batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Grid = Literal["uniform", "epss"]
Solver = Literal["euler", "midpoint"]
# Velocity of points (B, T, D) at the times (B,) of their rows, same shape as the points.
Velocity = Callable[[Tensor, Tensor], Tensor]

MAX_SWAY = 2 / (math.pi - 2)
# Steps -> ends of the steps in 32nds.
_EPSS: dict[int, tuple[int, ...]] = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}


def time_grid(num_steps: int, *, grid: Grid = "uniform", sway: float = 0.0) -> tuple[float, ...]:
    """Ends of the steps, ascending from 0 to 1.

    Args:
        num_steps: how many steps, at least 1.
        grid: "uniform", or "epss" for one of the tables of 5, 6, 7, 10, 12 or 16 steps.
        sway: s of t + s (cos(pi t / 2) - 1 + t), in [-1, 2 / (pi - 2)]: -1, as in F5-TTS, is dense near the noise, 0 changes
            nothing, above it is dense near the data.

    Returns:
        `num_steps` + 1 times.

    Raises:
        ValueError: no such grid, or `sway` is out of range: time would run backwards.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if not -1 <= sway <= MAX_SWAY:
        raise ValueError(f"sway={sway} must be in [-1, {MAX_SWAY:.4f}]; outside of it time runs backwards")
    if grid == "uniform":
        times = [step / num_steps for step in range(num_steps + 1)]
    elif grid == "epss":
        if num_steps not in _EPSS:
            raise ValueError(f"num_steps={num_steps} has no EPSS table; choose one of {sorted(_EPSS)}, or grid='uniform'")
        times = [end / 32 for end in _EPSS[num_steps]]
    else:
        raise ValueError(f"grid={grid!r} is unknown; choose uniform or epss")
    swayed = [t + sway * (math.cos(math.pi / 2 * t) - 1 + t) for t in times]
    return (0.0, *swayed[1:-1], 1.0)


def solve(velocity: Velocity, x0_BTD: Tensor, times: Sequence[float], *, solver: Solver = "euler") -> Tensor:
    """Follows a velocity over a grid of times.

    Euler's method asks for one velocity a step, the midpoint method for two and errs by the square of the step. The state stays
    in fp32 (fp64 for fp64 noise), also under autocast and where the velocity comes in half precision. Gradients flow if enabled.

    Args:
        velocity: called with points (B, T, D) and the time of each row (B,).
        x0_BTD: noise, shape (B, T, D).
        times: of `time_grid`, or any ascending ones; the first is the time of `x0_BTD`.
        solver: "euler" or "midpoint".

    Returns:
        points at the last time, shape (B, T, D).

    Raises:
        ValueError: `solver` is unknown, or the times do not ascend.
    """
    if solver not in ("euler", "midpoint"):
        raise ValueError(f"solver={solver!r} is unknown; choose euler or midpoint")
    if any(start >= end for start, end in pairwise(times)):
        raise ValueError(f"times={tuple(times)} must ascend; take them from time_grid")
    x_BTD = x0_BTD.to(torch.promote_types(x0_BTD.dtype, torch.float32))
    for start, end in pairwise(times):
        step, at = end - start, start
        at_BTD = x_BTD
        if solver == "midpoint":
            at_BTD = x_BTD + step / 2 * _velocity(velocity, x_BTD, start)
            at = start + step / 2
        x_BTD = x_BTD + step * _velocity(velocity, at_BTD, at)
    return x_BTD


def guided(velocity: Velocity, guidance_B: Tensor) -> Velocity:
    """Moves a velocity away from that without the condition: v_c + w (v_c - v_u), both from one call with a doubled batch.

    Args:
        velocity: called with (N, T, D) and (N,), N = 2 B: the B rows with their condition, then the same rows without it. The
            caller doubles what else the network needs once for all steps.
        guidance_B: weight w of each row, shape (B,); 0 is the conditional velocity, -1 the unconditional one. F5-TTS takes 2.

    Returns:
        the velocity of B rows, in fp32 at least.

    Raises:
        ValueError: when called with another number of rows than there are weights.
    """

    def at(x_BTD: Tensor, t_B: Tensor) -> Tensor:
        if guidance_B.shape != x_BTD.shape[:1]:
            raise ValueError(f"guidance of shape {tuple(guidance_B.shape)} for {x_BTD.shape[0]} rows; give one weight for each")
        v_NTD = velocity(torch.cat((x_BTD, x_BTD)), torch.cat((t_B, t_B)))
        with_BTD, without_BTD = v_NTD.to(torch.promote_types(v_NTD.dtype, torch.float32)).chunk(2)
        return with_BTD + guidance_B.to(with_BTD)[:, None, None] * (with_BTD - without_BTD)

    return at


def _velocity(velocity: Velocity, x_BTD: Tensor, time: float) -> Tensor:
    v_BTD = velocity(x_BTD, x_BTD.new_full(x_BTD.shape[:1], time))
    assert v_BTD.shape == x_BTD.shape, f"velocity of shape {tuple(v_BTD.shape)} for points of {tuple(x_BTD.shape)}"
    return v_BTD.to(x_BTD.dtype)

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.search.ode import MAX_SWAY, Solver, Velocity, guided, solve, time_grid

EPSS_STEPS = [5, 6, 7, 10, 12, 16]


def gaussian_velocity(mean: float, std: float, sigma: float) -> Velocity:
    """Velocity of the straight paths from N(0, 1) to N(mean, std^2): E[x1 - (1 - sigma) x0 | x_t]."""

    def velocity(x: Tensor, t_B: Tensor) -> Tensor:
        t = t_B[:, None, None]
        a = 1 - (1 - sigma) * t
        return mean + (t * std**2 - (1 - sigma) * a) / (a**2 + t**2 * std**2) * (x - t * mean)

    return velocity


@settings(max_examples=60, deadline=None)
@given(num_steps=st.integers(1, 64), sway=st.floats(-1, MAX_SWAY))
def test_uniform_and_swayed_grids_ascend_from_0_to_1(num_steps: int, sway: float) -> None:
    times = time_grid(num_steps, sway=sway)
    assert len(times) == num_steps + 1
    assert times[0] == 0
    assert times[-1] == 1
    assert all(start < end for start, end in pairwise(times))


@pytest.mark.parametrize("num_steps", EPSS_STEPS)
@pytest.mark.parametrize("sway", [-1.0, 0.0, MAX_SWAY])
def test_epss_grids_ascend_from_0_to_1(num_steps: int, sway: float) -> None:
    times = time_grid(num_steps, grid="epss", sway=sway)
    assert len(times) == num_steps + 1
    assert times[0] == 0
    assert times[-1] == 1
    assert all(start < end for start, end in pairwise(times))


def test_values_of_grids() -> None:
    assert time_grid(4) == (0, 0.25, 0.5, 0.75, 1)
    assert time_grid(5, grid="epss") == (0, 2 / 32, 4 / 32, 8 / 32, 16 / 32, 1)
    expected = [1 - math.cos(math.pi / 2 * step / 8) for step in range(9)]
    assert time_grid(8, sway=-1.0) == pytest.approx(expected)
    assert time_grid(6, grid="epss", sway=-1.0)[1] == pytest.approx(1 - math.cos(math.pi / 2 / 16)), "sway on top of the table"


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize("sigma", [0.0, 1e-4, 0.2])
def test_samples_of_the_closed_form_have_its_mean_and_variance(solver: Solver, sigma: float) -> None:
    torch.manual_seed(0)
    mean, std = 1.5, 0.4
    noise = torch.randn(2, 20_000, 1, dtype=torch.float64)
    x1 = solve(gaussian_velocity(mean, std, sigma), noise, time_grid(200), solver=solver)
    # the flow itself is known: x_t = t m + sqrt(a^2 + t^2 s^2) x0
    width = math.sqrt(sigma**2 + std**2)
    torch.testing.assert_close(x1, mean + width * noise, atol=0.05 if solver == "euler" else 1e-3, rtol=0)
    assert x1.mean().item() == pytest.approx(mean, abs=0.02)
    assert x1.std().item() == pytest.approx(width, abs=0.02)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
def test_order_of_the_solvers(solver: Solver, order: int) -> None:
    # dx/dt = t x has the solution x0 exp(t^2 / 2)
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[None, :, None]
    coarse, fine = (
        (solve(lambda x, t_B: t_B[:, None, None] * x, noise, time_grid(steps), solver=solver) - noise * math.exp(0.5)).abs().max()
        for steps in (64, 128)
    )
    assert (coarse / fine).item() == pytest.approx(2**order, rel=0.05)


def test_one_euler_step_along_the_exact_path_recovers_the_data() -> None:
    torch.manual_seed(0)
    noise, data = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    x1 = solve(lambda x, t_B: data - noise, noise, time_grid(1))
    torch.testing.assert_close(x1, data, atol=1e-6, rtol=0)


def test_number_and_times_of_velocities_asked_for() -> None:
    asked: list[float] = []

    def velocity(x: Tensor, t_B: Tensor) -> Tensor:
        assert t_B.shape == (2,)
        asked.append(t_B[0].item())
        return torch.zeros_like(x)

    noise = torch.randn(2, 3, 1)
    assert torch.equal(solve(velocity, noise, (0.0, 0.5, 1.0)), noise)
    assert asked == [0.0, 0.5]
    asked.clear()
    solve(velocity, noise, (0.0, 0.5, 1.0), solver="midpoint")
    assert asked == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_state_stays_in_fp32(dtype: torch.dtype) -> None:
    noise = torch.ones(1, 2, 1, dtype=dtype)
    x1 = solve(lambda x, t_B: torch.full_like(x, 1e-2).to(dtype), noise, time_grid(100))
    assert x1.dtype == torch.float32
    torch.testing.assert_close(x1, torch.full((1, 2, 1), 1.01), atol=2e-5, rtol=0)


def toy_network(condition_N: Tensor) -> Velocity:
    """A velocity that depends on the point, the time and the condition of a row."""
    return lambda x, t_B: torch.tanh(x) * condition_N[:, None, None] + (t_B * condition_N)[:, None, None]


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_guidance_extrapolates_from_one_doubled_batch(solver: Solver) -> None:
    torch.manual_seed(0)
    condition, nothing = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])
    doubled = toy_network(torch.cat((condition, nothing)))
    noise, times = torch.randn(3, 4, 2), time_grid(5, grid="epss", sway=-1.0)
    alone = toy_network(condition)
    assert torch.equal(
        solve(guided(doubled, torch.zeros(3)), noise, times, solver=solver), solve(alone, noise, times, solver=solver)
    )
    weights, t_B = torch.tensor([0.0, 1.0, 2.5]), torch.full((3,), 0.3)
    expected = alone(noise, t_B) + weights[:, None, None] * (alone(noise, t_B) - toy_network(nothing)(noise, t_B))
    torch.testing.assert_close(guided(doubled, weights)(noise, t_B), expected)
    without = solve(guided(doubled, torch.full((3,), -1.0)), noise, times, solver=solver)
    torch.testing.assert_close(without, solve(toy_network(nothing), noise, times, solver=solver))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), frames=st.integers(0, 4), solver=st.sampled_from(["euler", "midpoint"]))
def test_rows_do_not_depend_on_mates(rows: int, frames: int, solver: Solver) -> None:
    condition, nothing, weights = torch.randn(rows), torch.randn(rows), torch.rand(rows) * 3
    noise, times = torch.randn(rows, frames, 2), time_grid(4, sway=-1.0)
    x1 = solve(guided(toy_network(torch.cat((condition, nothing))), weights), noise, times, solver=solver)
    assert x1.shape == noise.shape
    for row in range(rows):
        own = slice(row, row + 1)
        alone = guided(toy_network(torch.cat((condition[own], nothing[own]))), weights[own])
        torch.testing.assert_close(solve(alone, noise[own], times, solver=solver), x1[own])


def test_misuse_is_refused() -> None:
    noise = torch.zeros(2, 1, 1)
    with pytest.raises(ValueError, match="num_steps=0 must be"):
        time_grid(0)
    with pytest.raises(ValueError, match="num_steps=8 has no EPSS table"):
        time_grid(8, grid="epss")
    with pytest.raises(ValueError, match="grid='cosine' is unknown"):
        time_grid(8, grid="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sway=-1\.5 must be"):
        time_grid(8, sway=-1.5)
    with pytest.raises(ValueError, match="must ascend"):
        solve(lambda x, t_B: x, noise, (0.0, 0.5, 0.5))
    with pytest.raises(ValueError, match="solver='heun' is unknown"):
        solve(lambda x, t_B: x, noise, (0.0, 1.0), solver="heun")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"guidance of shape \(3,\) for 2 rows"):
        guided(lambda x, t_B: x, torch.zeros(3))(noise, torch.zeros(2))

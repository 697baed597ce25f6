from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.losses.flow_matching import (
    TimeLaw,
    conditional_flow,
    flow_matching_loss,
    path_end,
    utterance_noise,
    utterance_times,
)

SIGMAS = [0.0, 1e-4, 0.3]


def valid_frames(lens: list[int], num_frames: int) -> torch.Tensor:
    return torch.arange(num_frames) < torch.tensor(lens)[:, None]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_path_leads_from_noise_to_data_at_the_stated_velocity(sigma: float) -> None:
    torch.manual_seed(0)
    x1, x0 = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    start = conditional_flow(x1, x0, torch.zeros(3), sigma)
    end = conditional_flow(x1, x0, torch.ones(3), sigma)
    torch.testing.assert_close(start.x_t_BTD, x0)
    torch.testing.assert_close(end.x_t_BTD, x1 + sigma * x0)
    t = torch.rand(3, dtype=torch.float64, requires_grad=True)
    x_t, target = conditional_flow(x1, x0, t, sigma)
    # each row has its own time, so the derivative of a row's sum by it is the sum of the velocity
    (slope,) = torch.autograd.grad(x_t.sum(), t)
    torch.testing.assert_close(slope, target.sum((1, 2)))
    torch.testing.assert_close(path_end(x_t, target, t, sigma), x1)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_best_velocity_is_that_of_the_closed_form_for_gaussian_data(sigma: float) -> None:
    """For x1 ~ N(m, s^2) the loss is least at E[target | x_t], which is linear in x_t with known coefficients."""
    torch.manual_seed(0)
    mean, std, time, n = 1.5, 0.4, 0.7, 400_000
    x1 = mean + std * torch.randn(1, n, 1, dtype=torch.float64)
    x_t, target = conditional_flow(x1, torch.randn_like(x1), torch.tensor([time]), sigma)
    design = torch.stack((x_t.flatten() - time * mean, torch.ones(n, dtype=torch.float64)), dim=1)
    slope, offset = torch.linalg.lstsq(design, target.flatten()).solution.tolist()
    a = 1 - (1 - sigma) * time
    assert slope == pytest.approx((time * std**2 - (1 - sigma) * a) / (a**2 + time**2 * std**2), abs=0.02)
    assert offset == pytest.approx(mean, abs=0.01)


def test_half_precision_keeps_sigma() -> None:
    x1, x0 = torch.zeros(1, 1, 1, dtype=torch.bfloat16), torch.ones(1, 1, 1, dtype=torch.bfloat16)
    x_t, target = conditional_flow(x1, x0, torch.ones(1, dtype=torch.bfloat16), 1e-4)
    assert x_t.dtype == target.dtype == torch.float32
    assert x_t.item() == pytest.approx(1e-4, rel=1e-2)


def test_loss_is_the_mean_over_marked_frames() -> None:
    torch.manual_seed(0)
    velocity, target = torch.randn(2, 6, 3, requires_grad=True), torch.randn(2, 6, 3)
    lens = [6, 2]
    marked = valid_frames(lens, 6)
    out = flow_matching_loss(velocity, target, marked)
    torch.testing.assert_close(out.loss, (velocity - target)[marked].square().mean())
    for row, length in enumerate(lens):
        torch.testing.assert_close(out.sums_B[row], (velocity - target)[row, :length].square().mean(1).sum())
    assert out.frames_B.tolist() == lens


@settings(max_examples=30, deadline=None)
@given(lens=st.lists(st.integers(0, 7), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_loss_and_gradient_do_not_read_padding(lens: list[int], extra: int) -> None:
    frames = max(lens) + extra
    marked = valid_frames(lens, frames)
    target = torch.randn(len(lens), frames, 2).masked_fill(~marked[..., None], float("inf"))
    velocity = torch.randn(len(lens), frames, 2).masked_fill(~marked[..., None], float("nan")).requires_grad_()
    out = flow_matching_loss(velocity, target, marked)
    (gradient,) = torch.autograd.grad(out.loss, velocity)
    assert out.loss.isfinite()
    assert gradient.masked_select(~marked[..., None]).abs().sum() == 0
    assert gradient.isfinite().all()
    for row, length in enumerate(lens):
        own = (slice(row, row + 1), slice(length))
        alone = flow_matching_loss(velocity[own], target[own], marked[own])
        torch.testing.assert_close(alone.sums_B[0], out.sums_B[row])
    assert sum(lens) > 0 or out.loss == 0


@settings(max_examples=30, deadline=None)
@given(lens=st.lists(st.integers(0, 9), min_size=1, max_size=4), extra=st.integers(0, 3), seed=st.integers(0, 2**40))
def test_noise_belongs_to_the_utterance(lens: list[int], extra: int, seed: int) -> None:
    ids = [f"utt-{row}" for row in range(len(lens))]
    frames = max(lens) + extra
    noise = utterance_noise(ids, torch.tensor(lens), num_channels=3, num_frames=frames, seed=seed)
    for row, length in enumerate(lens):
        longer = utterance_noise([ids[row]], torch.tensor([length + 2]), num_channels=3, num_frames=length + 2, seed=seed)
        assert torch.equal(noise[row, :length], longer[0, :length])
        assert noise[row, length:].abs().sum() == 0


def test_noise_differs_by_id_seed_and_draw_and_is_standard_normal() -> None:
    lens = torch.tensor([20_000])

    def draw(utterance_id: str, seed: int, number: int) -> torch.Tensor:
        return utterance_noise([utterance_id], lens, num_channels=4, num_frames=20_000, seed=seed, draw=number)[0]

    draws = [draw("a", 0, 0), draw("b", 0, 0), draw("a", 1, 0), draw("a", 0, 1)]
    correlations = torch.stack(draws).flatten(1).corrcoef() - torch.eye(4)
    assert correlations.abs().max() < 0.02
    for noise in draws:
        assert noise.dtype == torch.float32
        assert abs(noise.mean().item()) < 0.015
        assert noise.std().item() == pytest.approx(1, abs=0.015)
    assert torch.equal(draw("\ud800 \u00fc", 0, 0), draw("\ud800 \u00fc", 0, 0)), "an id from a file name need not be valid text"


@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
def test_times_belong_to_the_utterance_and_follow_their_law(law: TimeLaw) -> None:
    ids = [f"utt-{row}" for row in range(4000)]
    times = utterance_times(ids, seed=3, law=law)
    assert torch.equal(times[7:9], utterance_times(ids[7:9], seed=3, law=law))
    assert not torch.equal(times[:9], utterance_times(ids[:9], seed=3, draw=1, law=law))
    assert times.min() >= 0
    assert times.max() <= 1
    if law == "uniform":
        expected = torch.linspace(0, 1, len(ids))
    else:
        quantiles = (torch.arange(len(ids)) + 0.5) / len(ids)
        expected = torch.distributions.Normal(0.0, 1.0).icdf(quantiles).sigmoid()
    assert (times.sort().values - expected).abs().max() < 0.035
    assert utterance_times([], seed=3, law=law).shape == (0,)


def test_logit_normal_moves_with_its_mean() -> None:
    ids = [f"utt-{row}" for row in range(500)]
    late = utterance_times(ids, seed=0, law="logit_normal", mean=2.0, std=0.1)
    torch.testing.assert_close(late.median(), torch.tensor(2.0).sigmoid(), atol=0.005, rtol=0)


def test_misuse_is_refused() -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"t \(2, 1\)"):
        conditional_flow(x, x, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"sigma=1\.0 must be"):
        conditional_flow(x, x, torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="1 utterance_ids and 2 lengths"):
        utterance_noise(["a"], torch.tensor([1, 2]), num_channels=1, num_frames=2, seed=0)
    with pytest.raises(ValueError, match="num_frames=2 is less than the longest row, 3"):
        utterance_noise(["a"], torch.tensor([3]), num_channels=1, num_frames=2, seed=0)
    with pytest.raises(ValueError, match="law='cosine' is unknown"):
        utterance_times(["a"], seed=0, law="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"std=0\.0 must be positive"):
        utterance_times(["a"], seed=0, law="logit_normal", std=0.0)

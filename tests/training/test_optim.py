"""Schedules against their closed forms; parameter groups against a list of names."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from speechkit.training import optim


def _rates(schedule: Callable[..., object], steps: int, *, lr: float = 0.5) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]
    return rates


def test_noam_is_the_formula_of_the_paper() -> None:
    rates = _rates(lambda o: optim.noam(o, 1000, model_dim=64, warmup_steps=10), 40, lr=2.0)
    expected = [2.0 * 64**-0.5 * min(step**-0.5, step * 10**-1.5) for step in range(1, 41)]
    assert rates == pytest.approx(expected)
    assert max(range(40), key=rates.__getitem__) == 9  # the peak is the last step of the warm-up


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (lambda o: optim.cosine(o, 100, warmup_steps=0.1), 0.0),
        (lambda o: optim.cosine(o, 100, warmup_steps=10, final_factor=0.2), 0.1),
        (lambda o: optim.exponential(o, 100, warmup_steps=10, final_factor=0.01), 0.005),
        (lambda o: optim.linear(o, 100, warmup_steps=10, final_factor=0.4), 0.2),
        (lambda o: optim.constant(o, 100, warmup_steps=10), 0.5),
        (lambda o: optim.inverse_sqrt(o, 100, warmup_steps=10), 0.5 * 0.1**0.5),
    ],
)
def test_warm_up_is_linear_to_the_peak_and_the_end_is_right(schedule: Callable[..., object], last: float) -> None:
    rates = _rates(schedule, 100)
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(rates) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(last)
    assert all(later <= earlier for earlier, later in pairwise(rates[9:]))


def test_exponential_has_a_constant_ratio() -> None:
    rates = _rates(lambda o: optim.exponential(o, 60, warmup_steps=10, final_factor=0.1), 60)
    ratios = [later / earlier for earlier, later in pairwise(rates[9:])]
    assert ratios == pytest.approx([0.1 ** (1 / 50)] * len(ratios))


def test_negative_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps=-1"):
        _rates(lambda o: optim.constant(o, 100, warmup_steps=-1), 1)


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 3))
    model[2].weight.requires_grad_(False)
    groups = optim.parameter_groups(model)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    decay, no_decay = optimizer.param_groups
    assert [p.shape for p in decay["params"]] == [(4, 3)]
    assert decay["weight_decay"] == 0.1
    assert no_decay["weight_decay"] == 0.0
    assert len(no_decay["params"]) == 4  # bias, norm weight, norm bias, conv bias
    with pytest.raises(ValueError, match="no trainable parameter"):
        optim.parameter_groups(model.requires_grad_(False))

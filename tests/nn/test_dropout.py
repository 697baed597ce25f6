"""Dropout by bytes."""

from __future__ import annotations

import pytest
import torch

from speechkit.nn.dropout import Dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_rate_expectation_and_gradient(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.full((1000, 1001), 2.0, requires_grad=True)
    y = Dropout(rate)(x)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(round(rate * 256) / 256, abs=0.002)
    assert y.double().mean().item() == pytest.approx(2.0, abs=0.01)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    torch.testing.assert_close(x.grad * 2, y.detach())


def test_every_position_is_treated_alike() -> None:
    torch.manual_seed(0)
    dropped = torch.stack([Dropout(0.25)(torch.ones(64)) == 0 for _ in range(4000)]).double().mean(0)
    assert (dropped - 0.25).abs().max() < 0.04  # six standard deviations


def test_identity_in_evaluation_and_at_rate_zero() -> None:
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_default_generator_decides() -> None:
    x = torch.ones(100)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first)
    assert not torch.equal(Dropout(0.5)(x), first)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_bad_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout rate"):
        Dropout(rate)

"""Adversarial losses by hand; what lies past a length is not judged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkit.losses.adversarial import Judgement, discriminator_loss, feature_matching_loss, generator_loss


def judge(scores: list[list[float]], lens: list[int], *, weight: float = 1.0, first: Tensor | None = None) -> Judgement:
    """Scores of rows, behind one layer of two channels."""
    map_BCTE = torch.tensor(scores)[:, None, :, None]
    layer = torch.zeros(len(scores), 2, 3, 1) if first is None else first
    return Judgement((layer, map_BCTE), (torch.tensor([3] * len(lens)), torch.tensor(lens)), weight)


def test_hinge() -> None:
    real, fake = judge([[0.5, 2.0, 9.0]], [2]), judge([[-0.5, -3.0, 9.0]], [2])
    assert float(discriminator_loss([real], [fake])) == pytest.approx((0.5 + 0.5) / 2)
    assert float(generator_loss([fake])) == pytest.approx((1.5 + 4.0) / 2)


def test_least_squares() -> None:
    real, fake = judge([[0.5, 2.0, 9.0]], [2]), judge([[-0.5, 1.0, 9.0]], [2])
    assert float(discriminator_loss([real], [fake], kind="least_squares")) == pytest.approx((0.25 + 0.25 + 1.0 + 1.0) / 2)
    assert float(generator_loss([fake], kind="least_squares")) == pytest.approx((1.5**2 + 0.0) / 2)


def test_places_count_equally_over_rows_and_parts_by_weight() -> None:
    fake = [judge([[0.0, 0.0, 0.0], [1.0, 9.0, 9.0]], [3, 1], weight=0.5), judge([[-1.0], [-1.0]], [1, 1], weight=2.0)]
    assert float(generator_loss(fake)) == pytest.approx(0.5 * 3 / 4 + 2.0 * 2.0)


def test_feature_matching_counts_layers_and_spares_the_real_side() -> None:
    real_layer = torch.zeros(1, 2, 3, 1, requires_grad=True)
    fake_layer = torch.tensor([[[[1.0], [2.0], [3.0]], [[0.0], [0.0], [0.0]]]], requires_grad=True)
    real, fake = judge([[0.0, 0.0]], [1], first=real_layer), judge([[0.5, 7.0]], [1], first=fake_layer)
    loss = feature_matching_loss([real], [fake])
    assert loss.item() == pytest.approx(6.0 / 6 + 0.5)
    loss.backward()
    assert real_layer.grad is None
    assert fake_layer.grad is not None


def test_rows_without_samples_are_worth_nothing() -> None:
    nothing = Judgement((torch.ones(1, 1, 2, 1),), (torch.tensor([0]),), 1.0)
    assert discriminator_loss([nothing], [nothing]) == 0.0
    assert generator_loss([nothing]) == 0.0
    assert feature_matching_loss([nothing], [nothing]) == 0.0


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kind='wgan' is unknown"):
        generator_loss([], kind="wgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one part"):
        generator_loss([])

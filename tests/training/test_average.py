"""Averaging states: exact in double precision, whatever the order and number."""

from __future__ import annotations

import pytest
import torch

from speechkit.training.average import average_states


def test_mean_is_taken_in_double_precision() -> None:
    states = [(str(k), {"w": torch.full((2,), 1.0 + k * 2.0**-20), "n": torch.tensor([k])}) for k in range(4)]
    mean = average_states(iter(states))
    assert torch.equal(mean["w"], torch.full((2,), 1.0 + 1.5 * 2.0**-20))
    assert mean["w"].dtype == torch.float32
    assert mean["n"].tolist() == [0]


def test_the_same_weights_come_back_bit_for_bit() -> None:
    weights = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0)), "h": torch.randn(9).half()}
    mean = average_states([("a", weights)] * 3)
    assert all(torch.equal(mean[name], tensor) for name, tensor in weights.items())
    assert list(mean) == list(weights)


def test_nothing_to_average() -> None:
    with pytest.raises(ValueError, match="no weights to average"):
        average_states([])

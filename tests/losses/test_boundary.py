from __future__ import annotations

import torch

from speechkit.losses.boundary import boundary_loss


def test_weights_that_add_up_between_spikes_cost_nothing() -> None:
    alphas = torch.tensor([[0.5, 0.5, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    assert boundary_loss(alphas, torch.tensor([[1, 2], [1, -1]]), torch.tensor([2, 1])).tolist() == [0.0, 0.0]


def test_every_stretch_costs_what_it_has_too_little_or_too_much() -> None:
    alphas = torch.tensor([[0.2, 0.5, 1.5, 0.3, 0.1]])
    loss = boundary_loss(alphas, torch.tensor([[1, 2]]), torch.tensor([2]))
    torch.testing.assert_close(loss, torch.tensor([0.3 + 0.5 + 0.4]))


def test_rows_without_tokens_cost_nothing_and_take_no_gradient() -> None:
    alphas = torch.rand(2, 6, requires_grad=True)
    loss = boundary_loss(alphas, torch.tensor([[2, 4], [-1, -1]]), torch.tensor([2, 0]))
    loss.sum().backward()
    assert loss[1] == 0.0
    assert alphas.grad is not None
    assert alphas.grad[1].abs().sum() == 0.0
    assert alphas.grad[0].abs().sum() > 0.0


def test_no_tokens_at_all() -> None:
    assert boundary_loss(torch.rand(2, 4), torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0])).tolist() == [0.0, 0.0]

"""Generalised end-to-end loss against a loop over utterances and speakers as the paper writes it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.losses.ge2e import ge2e_loss

SCALE, BIAS = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-5.0, dtype=torch.float64)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of two vectors."""
    return (one * other).sum() / (one.norm() * other.norm())


def by_loops(embeddings: Tensor, speakers: list[int], scale: Tensor, bias: Tensor) -> list[Tensor | None]:
    """Equations 1, 5, 6, 8 and 9 of the paper for each row; None for those that do not count."""
    unit = [row / row.norm() for row in embeddings]
    members = {name: [i for i, own in enumerate(speakers) if own == name] for name in sorted(set(speakers))}
    members = {name: rows for name, rows in members.items() if len(rows) > 1}
    losses: list[Tensor | None] = []
    for i, own in enumerate(speakers):
        if own not in members or len(members) < 2:
            losses.append(None)
            continue
        scores = {}
        for name, rows in members.items():
            others = [unit[j] for j in rows if j != i]
            scores[name] = scale * cosine(unit[i], torch.stack(others).mean(0)) + bias
        losses.append(-scores[own] + torch.stack(list(scores.values())).exp().sum().log())
    return losses


@settings(max_examples=40, deadline=None)
@given(speakers=st.lists(st.sampled_from([-3, 0, 4, 7]), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_value_and_gradient_equal_the_loops(speakers: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    embeddings = torch.randn(len(speakers), 5, dtype=torch.float64, requires_grad=True)
    scale, bias = SCALE.clone().requires_grad_(), BIAS.clone().requires_grad_()
    found = ge2e_loss(embeddings, torch.tensor(speakers), scale, bias)
    rows = by_loops(embeddings, speakers, scale, bias)
    assert found.counted_B.tolist() == [row is not None for row in rows]
    kept = [row for row in rows if row is not None]
    expected = torch.stack(kept).mean() if kept else embeddings.sum() * 0.0 + scale * 0.0
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.loss_B, torch.stack([embeddings.sum() * 0.0 if row is None else row for row in rows]))
    ours = torch.autograd.grad(found.loss, (embeddings, scale, bias))
    theirs = torch.autograd.grad(expected, (embeddings, scale), retain_graph=True)
    torch.testing.assert_close(ours[:2], theirs)
    assert ours[2].abs() < 1e-12  # a softmax does not see what all scores share
    assert (ours[0][~found.counted_B] == 0).all()


def test_two_speakers_apart_by_hand() -> None:
    """Equal directions within, right angles between: cosines 1 and 0."""
    embeddings = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 1.0], [0.0, 3.0]])
    found = ge2e_loss(embeddings, torch.tensor([1, 1, 2, 2]), torch.tensor(3.0), torch.tensor(-1.0))
    torch.testing.assert_close(found.loss, torch.tensor(math.log(1 + math.exp(-3.0))))
    assert found.accuracy == 1
    crossed = ge2e_loss(embeddings, torch.tensor([1, 2, 1, 2]), torch.tensor(3.0), torch.tensor(-1.0))
    assert crossed.accuracy == 0
    torch.testing.assert_close(crossed.loss, torch.tensor(math.log(1 + math.exp(3.0 / math.sqrt(2)))))


def test_an_utterance_is_left_out_of_its_own_mean() -> None:
    """With itself in it, the first utterance would be as near to its own speaker as to the other."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = ge2e_loss(embeddings, torch.tensor([0, 0, 1, 1]), SCALE, BIAS)
    torch.testing.assert_close(found.loss_B[0].item(), math.log(1 + math.exp(10 / math.sqrt(2))))


def test_order_names_lengths_and_rows_that_do_not_count_change_nothing() -> None:
    torch.manual_seed(0)
    embeddings, speakers = torch.randn(7, 4), torch.tensor([0, 1, 0, 1, 2, 2, 2])
    plain = ge2e_loss(embeddings, speakers, SCALE, BIAS)
    order = torch.randperm(7)
    other = ge2e_loss(embeddings[order] * 5.0, 100 - speakers[order], SCALE, BIAS)
    torch.testing.assert_close(other.loss, plain.loss)
    torch.testing.assert_close(other.loss_B, plain.loss_B[order])
    mixed = torch.cat([embeddings, torch.full((1, 4), math.nan)]).requires_grad_()
    with_stranger = ge2e_loss(mixed, torch.cat([speakers, torch.tensor([9])]), SCALE, BIAS)
    torch.testing.assert_close(with_stranger.loss, plain.loss, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(with_stranger.loss, mixed)
    assert (gradient[7] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("speakers", [[], [3], [1, 1, 1], [1, 2, 3], [1, 1, 2]])
def test_nothing_to_tell_apart(speakers: list[int]) -> None:
    embeddings, scale = torch.randn(len(speakers), 4, requires_grad=True), torch.tensor(10.0, requires_grad=True)
    found = ge2e_loss(embeddings, torch.tensor(speakers, dtype=torch.long), scale, torch.tensor(-5.0))
    assert found.loss == found.accuracy == 0
    assert not found.counted_B.any()
    found.loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() == 0


def test_the_scale_stays_above_zero() -> None:
    embeddings, speakers = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    found = ge2e_loss(embeddings, speakers, torch.tensor(-10.0), torch.tensor(0.0))
    torch.testing.assert_close(found.loss, torch.tensor(math.log(3.0)), atol=1e-5, rtol=0)


def test_equal_and_zero_embeddings_have_finite_gradients() -> None:
    for embeddings in (torch.ones(4, 3), torch.zeros(4, 3), torch.eye(4)[[0, 0, 0, 0]]):
        embeddings.requires_grad_()
        found = ge2e_loss(embeddings, torch.tensor([0, 0, 1, 1]), torch.tensor(10.0), torch.tensor(-5.0))
        torch.testing.assert_close(found.loss, torch.tensor(math.log(2.0)))
        assert torch.autograd.grad(found.loss, embeddings)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_halves_and_autocast_compute_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embeddings, speakers = torch.randn(6, 8).to(dtype).requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2])
    scale, bias = torch.tensor(10.0), torch.tensor(-5.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = ge2e_loss(embeddings, speakers, scale, bias)
    assert found.loss.dtype == torch.promote_types(dtype, torch.float32)
    exact = ge2e_loss(embeddings.detach().double(), speakers, SCALE, BIAS)
    torch.testing.assert_close(found.loss.double(), exact.loss, atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(found.loss, embeddings)[0].dtype == dtype


def test_what_does_not_fit_is_refused() -> None:
    one, two = torch.tensor(1.0), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"embeddings has shape \(2,\) and dtype torch.float32; give floats, \(B, D\)"):
        ge2e_loss(torch.zeros(2), two, one, one)
    with pytest.raises(ValueError, match=r"speakers has shape \(2,\); give \(3,\), one number per row"):
        ge2e_loss(torch.zeros(3, 2), two, one, one)
    with pytest.raises(ValueError, match=r"bias has shape \(1,\); give a scalar"):
        ge2e_loss(torch.zeros(2, 2), two, one, one[None])

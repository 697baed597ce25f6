"""Forward-sum against all paths and against a loop over rows; binarisation against a loop over frames."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.ctc_loss import BACKENDS, ctc_loss
from speechkit.kernels.mas import mas
from speechkit.losses import forward_sum
from speechkit.losses.forward_sum import binarization_loss, forward_sum_loss


def all_durations(frames: int, phones: int) -> list[tuple[int, ...]]:
    """Every way to give each phone at least one frame."""
    cuts = itertools.combinations(range(1, frames), phones - 1) if phones else ()
    return [tuple(np.diff([0, *cut, frames]).tolist()) for cut in cuts] if frames >= phones else []


def over_all_paths(scores_TP: Tensor, blank_score: float) -> Tensor | None:
    """-log of the summed probability of all sequences of classes that spell 1, ..., P; None when there is none."""
    frames, phones = scores_TP.shape
    log_probs = F.pad(scores_TP, (1, 0), value=blank_score).log_softmax(-1)
    sums = []
    for path in itertools.product(range(phones + 1), repeat=frames):
        if [label for label, _ in itertools.groupby(path) if label] == list(range(1, phones + 1)):
            sums.append(sum((log_probs[t, label] for t, label in enumerate(path)), torch.tensor(0.0)))
    return -torch.stack(sums).logsumexp(0) if sums else None


def row_by_row(scores: Tensor, frame_lens: Tensor, phone_lens: Tensor) -> Tensor:
    """As the authors' code has it: a row at a time, cut to its lengths."""
    losses = []
    for row, (frames, phones) in enumerate(zip(frame_lens.tolist(), phone_lens.tolist())):
        own = F.pad(scores[row, :frames, :phones], (1, 0), value=-1.0).log_softmax(-1)
        targets = torch.arange(1, phones + 1)
        losses.append(F.ctc_loss(own, targets, torch.tensor(frames), torch.tensor(phones), reduction="sum", zero_infinity=True))
    return torch.stack(losses)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=3),
    blank_score=st.sampled_from([-1.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_value_and_gradient_equal_all_paths(rows: list[tuple[int, int]], blank_score: float, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.randn(len(rows), max(t for t, _ in rows) + 1, max(p for _, p in rows) + 1)
    frame_lens, phone_lens = (torch.tensor(lens) for lens in zip(*rows))
    scores.requires_grad_()
    found = forward_sum_loss(scores, frame_lens, phone_lens, blank_score=blank_score)
    (gradient,) = torch.autograd.grad(found.loss, scores)
    per_phone, expected_gradient = [], torch.zeros_like(gradient)
    for row, (frames, phones) in enumerate(rows):
        own = scores[row, :frames, :phones].detach().requires_grad_()
        assert found.feasible_B[row].item() == (phones <= frames and (phones > 0 or frames == 0))
        expected = over_all_paths(own, blank_score)
        if not found.feasible_B[row]:
            assert found.nll_B[row] == 0
            continue
        assert expected is not None
        torch.testing.assert_close(found.nll_B[row], expected, atol=1e-5, rtol=1e-5)
        if phones:
            per_phone.append(found.nll_B[row].item() / phones)
            expected_gradient[row, :frames, :phones] = torch.autograd.grad(expected / phones, own)[0]
    torch.testing.assert_close(found.loss.item(), sum(per_phone) / max(len(per_phone), 1))
    torch.testing.assert_close(gradient, expected_gradient / max(len(per_phone), 1), atol=1e-5, rtol=1e-4)
    assert (gradient[expected_gradient == 0] == 0).all()  # exactly so: padding and infeasible rows


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 7), phones=st.integers(1, 5), seed=st.integers(0, 99))
def test_without_a_blank_it_is_the_sum_over_all_alignments(frames: int, phones: int, seed: int) -> None:
    scores = torch.randn(1, frames, phones, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = forward_sum_loss(scores, torch.tensor([frames]), torch.tensor([phones]), blank_score=-200.0)
    log_probs = scores[0].log_softmax(-1)
    paths = [log_probs[range(frames), np.repeat(range(phones), own)].sum() for own in all_durations(frames, phones)]
    assert found.feasible_B.item() == bool(paths)
    if paths:
        torch.testing.assert_close(found.nll_B[0], -torch.stack(paths).logsumexp(0))
        best = mas(log_probs[None], torch.tensor([frames]), torch.tensor([phones]))
        assert best.scores_B.double() <= -found.nll_B + 1e-5  # one of them


def test_equals_a_loop_over_rows_with_torch() -> None:
    torch.manual_seed(0)
    scores = (torch.randn(5, 60, 20) * 3.0).requires_grad_()
    frame_lens, phone_lens = torch.tensor([60, 41, 20, 7, 1]), torch.tensor([20, 13, 20, 1, 1])
    found, theirs = forward_sum_loss(scores, frame_lens, phone_lens), row_by_row(scores, frame_lens, phone_lens)
    assert found.feasible_B.all()
    torch.testing.assert_close(found.nll_B, theirs)
    torch.testing.assert_close(found.loss, (theirs / phone_lens).mean())
    gradients = [torch.autograd.grad(x.sum(), scores, retain_graph=True)[0] for x in (found.nll_B, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_every_backend_agrees_that_hidden_columns_have_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scores, lens = torch.randn(2, 7, 4, requires_grad=True), (torch.tensor([7, 5]), torch.tensor([4, 2]))
    expected = row_by_row(scores, *lens)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), scores)
    for backend in BACKENDS:
        monkeypatch.setattr(forward_sum, "ctc_loss", partial(ctc_loss, backend=backend))
        found = forward_sum_loss(scores, *lens)
        torch.testing.assert_close(found.nll_B, expected)
        (gradient,) = torch.autograd.grad(found.nll_B.sum(), scores)
        torch.testing.assert_close(gradient, expected_gradient)
        assert gradient[1, :, 2:].abs().sum() == 0


@pytest.mark.parametrize("filler", [float("-inf"), float("nan"), 50.0])
def test_padding_and_mates_change_nothing(filler: float) -> None:
    torch.manual_seed(0)
    own, lens = torch.randn(1, 30, 9), (torch.tensor([30]), torch.tensor([9]))
    batch = torch.full((3, 50, 21), filler)
    batch[0, :30, :9], batch[1] = own[0], torch.randn(50, 21) * 5.0
    batch.requires_grad_()
    batch_lens = torch.tensor([30, 50, 0]), torch.tensor([9, 21, 0])
    alone, together = forward_sum_loss(own, *lens), forward_sum_loss(batch, *batch_lens)
    torch.testing.assert_close(together.nll_B[:1], alone.nll_B, atol=1e-5, rtol=1e-6)
    assert together.feasible_B.all()
    path = torch.full((3, 50), -1)
    path[0, :30] = mas(own, *lens).frame_phone_BT[0]
    torch.testing.assert_close(binarization_loss(batch, path, batch_lens[1]), binarization_loss(own, path[:1, :30], lens[1]))
    (gradient,) = torch.autograd.grad(together.loss + binarization_loss(batch, path, batch_lens[1]), batch)
    assert gradient.isfinite().all()
    assert gradient[0, 30:].abs().sum() + gradient[0, :, 9:].abs().sum() + gradient[2].abs().sum() == 0


def test_binarisation_equals_a_loop_over_frames() -> None:
    torch.manual_seed(0)
    scores, frame_lens, phone_lens = torch.randn(4, 9, 5), torch.tensor([9, 6, 1, 3]), torch.tensor([5, 2, 1, 4])
    found = mas(scores, frame_lens, phone_lens)
    assert found.feasible_B.tolist() == [True, True, True, False]
    terms = [
        -scores[row, t, : int(phone_lens[row])].log_softmax(0)[found.frame_phone_BT[row, t]]
        for row in range(3)
        for t in range(int(frame_lens[row]))
    ]
    torch.testing.assert_close(binarization_loss(scores, found.frame_phone_BT, phone_lens), torch.stack(terms).mean())


def test_binarisation_of_a_hard_attention_costs_nothing() -> None:
    path = torch.tensor([[0, 0, 1, 2, -1]])
    scores = torch.full((1, 5, 3), float("-inf")).scatter(2, path.clamp(min=0)[..., None], 0.0).requires_grad_()
    loss = binarization_loss(scores, path, torch.tensor([3]))
    assert loss == 0
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum() == 0


def test_nothing_at_all() -> None:
    for shape in ((2, 3, 0), (2, 0, 3), (0, 3, 2)):
        scores = torch.zeros(shape, requires_grad=True)
        lens = torch.zeros(shape[0], dtype=torch.long)
        loss = forward_sum_loss(scores, lens, lens).loss + binarization_loss(scores, torch.full(shape[:2], -1), lens)
        assert loss == 0
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scores, lens = torch.randn(2, 12, 4).to(dtype).requires_grad_(), (torch.tensor([12, 9]), torch.tensor([4, 3]))
    path = mas(scores, *lens).frame_phone_BT
    with torch.autocast("cpu", torch.bfloat16):
        losses = forward_sum_loss(scores, *lens).loss, binarization_loss(scores, path, lens[1])
    exact = scores.detach().double()
    expected = forward_sum_loss(exact, *lens).loss, binarization_loss(exact, path, lens[1])
    for ours, theirs in zip(losses, expected):
        assert ours.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(losses[0] + losses[1], scores)[0].dtype == dtype


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log_attention has shape \(3, 2\) and dtype torch.float32; give floats, \(B, T, P\)"):
        forward_sum_loss(torch.zeros(3, 2), torch.tensor([3]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"frame_lens has shape \(2,\); give \(1,\), one length per row"):
        forward_sum_loss(torch.zeros(1, 3, 2), torch.tensor([3, 3]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"frame_phone has shape \(1, 2\); give \(1, 3\)"):
        binarization_loss(torch.zeros(1, 3, 2), torch.zeros(1, 2, dtype=torch.long), torch.tensor([2]))

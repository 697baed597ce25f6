from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.losses import ctc as losses_ctc
from speechkit.losses.ctc import CtcTargets, Unscored, ctc_branch_loss, ctc_loss, ctc_min_frames, scores_for_loss


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != 0)


def brute_force(logits_TV: Tensor, tokens: tuple[int, ...]) -> Tensor | None:
    """-log of the summed probability of all paths that spell the tokens; None when there is none."""
    log_probs = logits_TV.log_softmax(-1)
    frames, vocab = log_probs.shape
    paths = [path for path in itertools.product(range(vocab), repeat=frames) if collapse(path) == tokens]
    if not paths:
        return None
    scores = [sum((log_probs[t, label] for t, label in enumerate(path)), torch.tensor(0.0)) for path in paths]
    return -torch.stack(scores).logsumexp(0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(1, 2), max_size=3).map(tuple)), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_value_and_gradient_equal_all_paths(rows: list[tuple[int, tuple[int, ...]]], seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(len(rows), 4, 3, requires_grad=True)
    tokens = torch.full((len(rows), max(len(t) for _, t in rows)), 2)  # padding may hold anything
    for row, (_, ids) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    lens = torch.tensor([frames for frames, _ in rows])
    token_lens = torch.tensor([len(ids) for _, ids in rows])
    loss = ctc_loss(logits, lens, tokens, token_lens)
    (gradient,) = torch.autograd.grad(loss.nll_B.sum(), logits)
    for row, (frames, ids) in enumerate(rows):
        own = logits[row, :frames].detach().requires_grad_()
        expected = brute_force(own, ids)
        assert loss.feasible_B[row].item() == (expected is not None)
        assert gradient[row, frames:].abs().sum() == 0
        if expected is None:
            assert loss.nll_B[row] == 0
            assert gradient[row].abs().sum() == 0
            continue
        torch.testing.assert_close(loss.nll_B[row], expected, atol=1e-5, rtol=1e-5)
        if frames:
            (own_gradient,) = torch.autograd.grad(expected, own)
            torch.testing.assert_close(gradient[row, :frames], own_gradient, atol=1e-5, rtol=1e-4)


def test_equals_torch_on_a_usual_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 30, 11, requires_grad=True)
    tokens, lens, token_lens = torch.randint(1, 11, (3, 8)), torch.tensor([30, 25, 20]), torch.tensor([8, 5, 1])
    ours = ctc_loss(logits, lens, tokens, token_lens)
    theirs = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), tokens, lens, token_lens, reduction="none")
    torch.testing.assert_close(ours.nll_B, theirs)
    assert ours.feasible_B.all()
    gradients = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (ours.nll_B, theirs)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][1, 25:].abs().max() == 0


def test_gradient_is_the_softmax_minus_the_posterior() -> None:
    logits = torch.randn(1, 12, 5, dtype=torch.float32, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([12]), torch.tensor([[1, 3, 3]]), torch.tensor([3]))
    (gradient,) = torch.autograd.grad(loss.nll_B.sum(), logits)
    posterior = logits.softmax(-1) - gradient
    torch.testing.assert_close(posterior.sum(-1), torch.ones(1, 12))
    assert posterior.min() > -1e-5
    assert posterior[..., [2, 4]].abs().max() < 1e-5  # labels that no path contains


def test_half_precision_is_computed_in_fp32() -> None:
    logits = torch.randn(2, 20, 7).bfloat16().requires_grad_()
    arguments = torch.tensor([20, 15]), torch.randint(1, 7, (2, 4)), torch.tensor([4, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ctc_loss(logits, *arguments)
    assert loss.nll_B.dtype == torch.float32
    torch.testing.assert_close(loss.nll_B, ctc_loss(logits.float(), *arguments).nll_B)
    loss.nll_B.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("tokens", "length", "frames"), [([1, 2, 3], 3, 3), ([1, 1, 1], 3, 5), ([1, 1, 1], 2, 3), ([4, 4], 0, 0)]
)
def test_frames_needed(tokens: list[int], length: int, frames: int) -> None:
    assert ctc_min_frames(torch.tensor([tokens]), torch.tensor([length])).tolist() == [frames]


def test_no_tokens_in_the_whole_batch() -> None:
    logits = torch.randn(2, 5, 4)
    loss = ctc_loss(logits, torch.tensor([5, 0]), torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0]))
    torch.testing.assert_close(loss.nll_B[0], -logits[0].log_softmax(-1)[:, 0].sum())
    assert loss.nll_B[1] == 0
    assert loss.feasible_B.all()


@pytest.mark.parametrize("views", [1, 2])
def test_scores_of_a_large_vocabulary_are_never_made(views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(6, 9), torch.randn(3 * views, 8, 6, requires_grad=True)
    lens = torch.tensor([8, 7, 3]).repeat(views)
    tokens, token_lens = torch.randint(1, 9, (3, 4)), torch.tensor([4, 2, 4])  # the last does not fit
    known = torch.tensor([True, False, True])
    other = CtcTargets(tokens.flip(1), torch.tensor([1, 0, 2]))
    found = []
    for least in (1000, 9):
        monkeypatch.setattr(losses_ctc, "LARGE_VOCAB", least)
        scores = scores_for_loss(head, hidden)
        assert isinstance(scores, Unscored) == (least == 9)
        out = ctc_branch_loss(
            scores, (scores, scores), lens, tokens, token_lens, inter_targets=(other, other), known_B=known, views=views
        )
        found.append((out.loss, *out.parts.values(), *torch.autograd.grad(out.loss, (hidden, head.weight, head.bias))))
    for late, early in zip(*found):
        torch.testing.assert_close(late, early)
    assert found[0][0] > 0

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.losses.mwer import edit_distances, mwer_loss, sample_candidates

SEQUENCES = st.lists(st.integers(1, 3), max_size=9)


def levenshtein(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    @lru_cache(None)
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))


@given(st.lists(st.tuples(SEQUENCES, SEQUENCES), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_edit_distances_equal_the_recursion(pairs: list[tuple[list[int], list[int]]]) -> None:
    padded = []
    for side in (0, 1):
        rows = [torch.tensor(pair[side], dtype=torch.long) for pair in pairs]
        padded += [torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7), torch.tensor([len(r) for r in rows])]
    found = edit_distances(*padded)
    assert found.tolist() == [levenshtein(tuple(a), tuple(b)) for a, b in pairs]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_candidates_take_the_runner_up_at_drawn_positions(lens: list[int], ratio: float) -> None:
    log_probs = torch.randn(len(lens), max(lens), 5).log_softmax(-1)
    found = sample_candidates(log_probs, torch.tensor(lens), num_candidates=3, flip_ratio=ratio)
    first, second = log_probs.topk(2).indices.unbind(-1)
    for row, length in enumerate(lens):
        assert torch.equal(found[row, 0], first[row])
        for candidate in found[row, 1:]:
            flipped = candidate[:length] != first[row, :length]
            assert int(flipped.sum()) == max(int(length * ratio), min(length, 1))
            assert torch.equal(candidate[:length][flipped], second[row, :length][flipped])


def test_equals_its_formula_candidate_by_candidate() -> None:
    torch.manual_seed(0)
    logits, tokens, lens = torch.randn(3, 6, 5), torch.randint(0, 5, (3, 6)), torch.tensor([6, 0, 3])
    found = mwer_loss(logits, tokens, lens, num_candidates=4, generator=torch.Generator().manual_seed(1))
    log_probs = logits.log_softmax(-1)
    candidates = sample_candidates(
        log_probs, lens, num_candidates=4, flip_ratio=0.1, generator=torch.Generator().manual_seed(1)
    )
    for row, length in enumerate(lens.tolist()):
        reference = tuple(tokens[row, :length].tolist())
        errors = torch.tensor([levenshtein(tuple(c[:length].tolist()), reference) for c in candidates[row]])
        scores = torch.stack([sum((log_probs[row, u, c[u]] for u in range(length)), torch.tensor(0.0)) for c in candidates[row]])
        expected = (scores.softmax(0) * (errors - errors.float().mean())).sum()
        torch.testing.assert_close(found[row], expected)
    assert found[1] == 0


def expected_errors(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Over all token sequences of this length."""
    probs = logits.softmax(-1)
    total = 0.0
    for sequence in itertools.product(range(logits.shape[1]), repeat=len(tokens)):
        weight = float(torch.stack([probs[u, token] for u, token in enumerate(sequence)]).prod())
        total += weight * levenshtein(sequence, tuple(tokens.tolist()))
    return total


def test_descending_lowers_the_expected_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([[1, 2, 0, 1]])
    logits = torch.randn(1, 4, 3, generator=generator)
    logits.scatter_add_(2, tokens[..., None], torch.full((1, 4, 1), 0.3))  # the right token is often among the best two
    logits.requires_grad_()
    before = expected_errors(logits[0].detach(), tokens[0])
    for _ in range(150):
        loss = mwer_loss(logits, tokens, torch.tensor([4]), flip_ratio=0.3, generator=generator).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.5 * gradient
    after = expected_errors(logits[0].detach(), tokens[0])
    assert after < 0.6 * before


def test_all_rows_alike_have_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    tokens = torch.full((2, 3), 9)  # never among the candidates: all have the same errors
    loss = mwer_loss(logits, tokens, torch.tensor([3, 2]))
    torch.testing.assert_close(loss, torch.zeros(2))
    loss.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)


def test_half_precision_is_summed_in_fp32() -> None:
    logits, tokens = torch.randn(2, 8, 5), torch.randint(0, 5, (2, 8))
    out = [
        mwer_loss(x, tokens, torch.tensor([8, 5]), generator=torch.Generator().manual_seed(0))
        for x in (logits.bfloat16(), logits.bfloat16().float())
    ]
    assert out[0].dtype == torch.float32
    torch.testing.assert_close(*out)


@pytest.mark.parametrize("width", [0, 1])
def test_short_batches(width: int) -> None:
    logits = torch.randn(2, width, 5)
    out = mwer_loss(logits, torch.zeros(2, width, dtype=torch.long), torch.tensor([width, 0]))
    assert out.shape == (2,)
    assert out.isfinite().all()
    assert out[1] == 0

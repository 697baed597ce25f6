from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.losses.label_smoothing import smoothed_cross_entropy


@settings(max_examples=30, deadline=None)
@given(
    lens=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    vocab=st.integers(1, 6),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition(lens: list[int], vocab: int, smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(lens), max(lens), vocab, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocab, (len(lens), max(lens)), generator=generator)
    valid = torch.arange(max(lens)) < torch.tensor(lens)[:, None]
    out = smoothed_cross_entropy(logits, targets, valid, smoothing=smoothing)
    total, correct = 0.0, 0
    for row, length in enumerate(lens):
        for place in range(length):
            log_probs = logits[row, place].detach().double().log_softmax(-1)
            token = int(targets[row, place])
            wanted = torch.full((vocab,), smoothing / vocab, dtype=torch.float64)
            wanted[token] += 1.0 - smoothing
            total -= float((wanted * log_probs).sum())
            correct += int(log_probs.argmax()) == token
    count = sum(lens)
    assert float(out.loss.detach()) == pytest.approx(total / max(count, 1), abs=1e-5)
    assert float(out.accuracy) == pytest.approx(correct / max(count, 1))
    assert out.num_targets == count
    out.loss.backward()
    assert logits.grad is not None
    assert (logits.grad[~valid] == 0).all()


def test_what_is_not_valid_may_hold_anything() -> None:
    logits, targets = torch.randn(1, 3, 4), torch.tensor([[1, 99, -7]])
    valid = torch.tensor([[True, False, False]])
    out = smoothed_cross_entropy(logits.bfloat16(), targets, valid)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, -logits[0, 0].bfloat16().float().log_softmax(-1)[1])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_impossible_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"label_smoothing={smoothing}"):
        smoothed_cross_entropy(torch.zeros(1, 1, 2), torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), smoothing=smoothing)

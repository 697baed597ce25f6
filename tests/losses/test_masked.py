from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.losses.masked import (
    MIN_PROMPT,
    NUM_ROW_DRAWS,
    draw_codebooks,
    draw_masks,
    finish_loss,
    masked_token_loss,
    training_uniforms,
    utterance_uniforms,
)

ROWS = 4000


@settings(max_examples=60, deadline=None)
@given(
    lens=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    extra=st.integers(0, 3),
    span=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_what_is_hidden(lens: list[int], extra: int, span: int, seed: int) -> None:
    torch.manual_seed(seed)
    lens_B, frames = torch.tensor(lens), max(lens) + extra
    draw = draw_masks(training_uniforms(lens_B, frames), lens_B, min_rate=0.2, max_prompt=0.6, span=span)
    assert (draw.rate_B >= 0.2).all()
    for row, length in enumerate(lens):
        prompt = int(draw.prompt_lens_B[row])
        assert prompt <= 0.6 * length
        assert not draw.dropped_B[row] or prompt == 0
        assert not draw.masked_BT[row, :prompt].any()
        assert not draw.masked_BT[row, length:].any()
        assert draw.masked_BT[row].any() == (length > 0), "at least one token of every row that has any"
        runs = "".join("x" if hidden else "." for hidden in draw.masked_BT[row, prompt:length].tolist()).strip(".")
        inner = runs.split(".")[1:-1]  # runs that end neither at the prompt nor at the end
        assert all(len(run) % span == 0 for run in inner if run)


def test_laws_of_the_draws() -> None:
    torch.manual_seed(0)
    lens_B = torch.full((ROWS,), 50)
    draw = draw_masks(training_uniforms(lens_B, 50), lens_B, prompt_prob=0.85, drop_prob=0.15, max_prompt=0.5)
    torch.testing.assert_close(draw.rate_B, torch.sin(math.pi / 2 * draw.t_B))
    assert draw.dropped_B.float().mean() == pytest.approx(0.15, abs=0.02)
    prompted = draw.prompt_lens_B[~draw.dropped_B] > 0
    assert prompted.float().mean() == pytest.approx(0.85, abs=0.02)
    lengths = draw.prompt_lens_B[draw.prompt_lens_B > 0]
    assert (lengths.min(), lengths.max()) == (MIN_PROMPT, 25)
    assert lengths.float().mean() == pytest.approx(15, abs=0.5)
    shares = draw.masked_BT.sum(1) / (50 - draw.prompt_lens_B)
    assert (shares - draw.rate_B).mean() == pytest.approx(0, abs=0.01)
    assert (shares - draw.rate_B).abs().mean() < 0.06


@pytest.mark.parametrize("span", [1, 3])
def test_spans_have_the_rate_at_every_place(span: int) -> None:
    torch.manual_seed(0)
    lens_B = torch.full((ROWS,), 40)
    uniforms = training_uniforms(lens_B, 40)
    uniforms[:, 0] = 1 / 3  # of which the sine is a half
    masked = draw_masks(uniforms, lens_B, prompt_prob=0.0, span=span).masked_BT.float()
    assert (masked.mean(0) - 0.5).abs().max() < 0.03
    together = (masked[:, 4] == masked[:, 5]).float().mean()
    assert together == pytest.approx(0.5 + 0.5 * (span - 1) / span, abs=0.03)


def test_codebooks_are_drawn_with_decreasing_weights() -> None:
    torch.manual_seed(0)
    uniforms = training_uniforms(torch.zeros(40_000, dtype=torch.long), 0)
    counts = torch.bincount(draw_codebooks(uniforms, 4), minlength=4) / 40_000
    torch.testing.assert_close(counts, torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=0.01, rtol=0)
    counts = torch.bincount(draw_codebooks(uniforms, 3, first=1), minlength=3) / 40_000
    torch.testing.assert_close(counts, torch.tensor([0, 2 / 3, 1 / 3]), atol=0.01, rtol=0)
    ends = torch.tensor([[0.0] * NUM_ROW_DRAWS, [1.0] * NUM_ROW_DRAWS])
    assert draw_codebooks(ends, 4).tolist() == [0, 3]


def test_numbers_of_an_utterance_are_its_own() -> None:
    ids, lens_B = ["a", "b", "c"], torch.tensor([7, 3, 0])
    together = draw_masks(utterance_uniforms(ids, lens_B, 9), lens_B, span=2)
    for row, (name, length) in enumerate(zip(ids, lens_B.tolist())):
        own_B = torch.tensor([length])
        alone = draw_masks(utterance_uniforms([name], own_B, length), own_B, span=2)
        assert torch.equal(together.masked_BT[row, :length], alone.masked_BT[0])
        assert torch.equal(together.t_B[row : row + 1], alone.t_B)
    many = utterance_uniforms([str(i) for i in range(300)], torch.full((300,), 40), 40)
    assert many.mean() == pytest.approx(0.5, abs=0.01)
    assert many.std() == pytest.approx(12**-0.5, abs=0.01)
    assert not torch.equal(many[:1], utterance_uniforms(["0"], torch.tensor([40]), 40, seed=1))


def test_loss_and_accuracy_are_those_of_hidden_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4, requires_grad=True)
    targets, masked = torch.randint(4, (3, 5)), torch.rand(3, 5) < 0.5
    rates = torch.tensor([0.1, 0.9, 1.0])
    out = masked_token_loss(logits, targets, masked, rates)
    picked = -logits.log_softmax(2).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(out.loss, picked[masked].mean())
    assert out.num_masked == masked.sum()
    right = (logits.argmax(2) == targets).float()
    assert set(out.accuracy) == {"all", "low", "high"}
    torch.testing.assert_close(out.accuracy["all"], right[masked].mean())
    torch.testing.assert_close(out.accuracy["low"], right[0][masked[0]].mean())
    torch.testing.assert_close(out.accuracy["high"], right[1:][masked[1:]].mean())
    out.loss.backward()
    assert logits.grad is not None
    assert logits.grad[~masked].abs().sum() == 0
    nothing = masked_token_loss(logits, targets, torch.zeros_like(masked), rates)
    assert nothing.loss == 0
    assert set(nothing.accuracy) == {"all"}


def test_filter_learns_which_best_tokens_are_right() -> None:
    torch.manual_seed(0)
    logits, targets, masked = torch.randn(2, 6, 3), torch.randint(3, (2, 6)), torch.rand(2, 6) < 0.6
    said = torch.randn(2, 6, requires_grad=True)
    loss = finish_loss(said, logits, targets, masked)
    right = (logits.argmax(2) == targets)[masked].float()
    expected = -(right * said.sigmoid()[masked].log() + (1 - right) * (1 - said.sigmoid()[masked]).log()).mean()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, said)
    assert gradient[~masked].abs().sum() == 0
    assert finish_loss(said, logits, targets, torch.zeros_like(masked)) == 0


def test_misuse_is_refused() -> None:
    lens_B = torch.tensor([3])
    uniforms = training_uniforms(lens_B, 3)
    with pytest.raises(ValueError, match=r"prompt_prob=1\.5 must be in"):
        draw_masks(uniforms, lens_B, prompt_prob=1.5)
    with pytest.raises(ValueError, match="span=0 must be at least 1"):
        draw_masks(uniforms, lens_B, span=0)
    with pytest.raises(ValueError, match=r"max_prompt=1\.0"):
        draw_masks(uniforms, lens_B, max_prompt=1.0)

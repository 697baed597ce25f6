from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.kernels.cif import cif, count_tokens, crossings, running_sums
from speechkit.kernels.cif.reference import integrate, integrate_dense, token_weights

LENGTHS = st.lists(st.integers(0, 17), min_size=1, max_size=5)
LARGEST = st.sampled_from([0.2, 0.9, 3.5])  # of a weight: silence, ordinary frames, frames with several tokens


def draw(lens: list[int], largest: float, *, dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + sum(lens))
    alphas = torch.rand(len(lens), max(lens), generator=generator, dtype=torch.float64) * largest
    hidden = torch.randn(len(lens), max(lens), dim, generator=generator, dtype=torch.float64)
    return alphas, hidden, torch.tensor(lens)


def fire_one_by_one(alphas: Tensor, hidden: Tensor, *, tail: float) -> tuple[list[Tensor], list[float]]:
    """Integrate and fire, a frame at a time and as often per frame as its weight allows; a frame of zeros at the end."""
    tokens, fires = [], []
    room, summed = 1.0, torch.zeros(hidden.shape[1], dtype=hidden.dtype)
    for t, (alpha, frame) in enumerate([*zip(alphas.tolist(), hidden), (tail, torch.zeros_like(summed))]):
        left = alpha
        while left >= room:
            tokens.append(summed + room * frame)
            left -= room
            fires.append(t + (alpha - left) / alpha if t < len(alphas) else float(t))
            room, summed = 1.0, torch.zeros_like(summed)
        summed, room = summed + left * frame, room - left
    return tokens, fires


@given(LENGTHS, LARGEST, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(lens: list[int], largest: float, seed: int) -> None:
    alphas, hidden, frame_lens = draw(lens, largest, seed=seed)
    out = cif(alphas, hidden, frame_lens)
    for row, length in enumerate(lens):
        tokens, fires = fire_one_by_one(alphas[row, :length], hidden[row, :length], tail=0.45)
        assert out.lens_B[row] == len(tokens)
        assert (out.embeddings_BUD[row, len(tokens) :] == 0).all()
        assert (out.fires_BU[row, len(tokens) :] == 0).all()
        if tokens:
            torch.testing.assert_close(out.embeddings_BUD[row, : len(tokens)], torch.stack(tokens))
            torch.testing.assert_close(out.fires_BU[row, : len(tokens)], torch.tensor(fires), atol=1e-5, rtol=1e-5)


@given(LENGTHS, LARGEST)
@settings(max_examples=40, deadline=None)
def test_weights_sum_to_one_by_token_and_to_alpha_by_frame(lens: list[int], largest: float) -> None:
    alphas, _, frame_lens = draw(lens, largest)
    alphas = alphas * (torch.arange(max(lens)) < frame_lens[:, None])
    whole = count_tokens(alphas, tail=0.0)
    more = whole + 1  # the rest is given to a token of its own
    weights = token_weights(running_sums(alphas), more, int(more.max()))
    torch.testing.assert_close(weights.sum((1, 2)), alphas.sum(1))
    torch.testing.assert_close(weights.sum(1), alphas)
    assert (weights >= 0).all()
    for row, count in enumerate(whole.tolist()):
        torch.testing.assert_close(weights[row, :count].sum(1), torch.ones(count, dtype=torch.float64))
        assert (weights[row, count + 1 :] == 0).all()


def test_a_frame_can_complete_several_tokens() -> None:
    alphas, hidden = torch.tensor([[0.5, 2.75, 0.75]]), torch.eye(3)[None]
    out = cif(alphas, hidden, torch.tensor([3]))
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.25, 0.75]])
    torch.testing.assert_close(out.embeddings_BUD[0], expected)
    torch.testing.assert_close(out.fires_BU[0], torch.tensor([1 + 0.5 / 2.75, 1 + 1.5 / 2.75, 1 + 2.5 / 2.75, 3.0]))


def test_the_last_token_is_kept_after_scaling() -> None:
    generator = torch.Generator().manual_seed(0)
    alphas = torch.rand(500, 60, generator=generator)
    tokens = torch.randint(1, 30, (500,), generator=generator)
    scaled = alphas * (tokens / alphas.sum(1))[:, None]
    out = cif(scaled, torch.ones(500, 60, 1), torch.full((500,), 60), token_lens_B=tokens)
    present = torch.arange(29) < tokens[:, None]
    assert out.lens_B is tokens
    assert (out.embeddings_BUD[..., 0][present] - 1).abs().max() < 1e-5
    assert (out.embeddings_BUD[..., 0][~present] == 0).all()
    lost = sum(len(fire_one_by_one(a, torch.ones(60, 1), tail=0.0)[0]) < n for a, n in zip(scaled, tokens.tolist()))
    assert lost > 50  # what a loop that waits for S >= 1 does


@pytest.mark.parametrize(("total", "count"), [(0.0, 0), (0.54, 0), (0.56, 1), (1.54, 1), (1.56, 2), (3.0, 3)])
def test_a_rest_above_the_tail_is_a_token(total: float, count: int) -> None:
    out = cif(torch.full((1, 8), total / 8), torch.ones(1, 8, 2), torch.tensor([8]))
    assert out.embeddings_BUD.shape == (1, count, 2)
    assert out.lens_B.tolist() == [count]
    if count:
        torch.testing.assert_close(out.embeddings_BUD[0, -1], torch.full((2,), min(total - count + 1, 1.0)))


@pytest.mark.parametrize("largest", [0.4, 2.9])
def test_closed_form_gradient_equals_finite_differences(largest: float) -> None:
    alphas, hidden, frame_lens = draw([9, 0, 1, 6], largest)
    alphas = (alphas + 0.05) * (torch.arange(9) < frame_lens[:, None])
    for tokens in (count_tokens(alphas), count_tokens(alphas, tail=1.0), (count_tokens(alphas) - 1).clamp(min=0)):
        width = int(tokens.max())

        def run(a: Tensor, h: Tensor, tokens: Tensor = tokens, width: int = width) -> Tensor:
            return integrate(a, h, tokens, width)

        inside = alphas.clamp(min=1e-3)  # finite differences step to both sides
        assert torch.autograd.gradcheck(run, (inside.requires_grad_(), hidden.requires_grad_()))


@given(LENGTHS, LARGEST)
@settings(max_examples=40, deadline=None)
def test_closed_form_gradient_equals_autograd(lens: list[int], largest: float) -> None:
    alphas, hidden, _ = draw(lens, largest)
    tokens = count_tokens(alphas)
    width = max(int(tokens.max()), 1)
    upstream = torch.randn(len(lens), width, 3, dtype=torch.float64)
    results = []
    for operation in (integrate, integrate_dense):
        a, h = alphas.clone().requires_grad_(), hidden.clone().requires_grad_()
        out = operation(a, h, tokens, width)
        results.append((out, *torch.autograd.grad((out * upstream).sum(), (a, h))))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


def test_padding_and_batch_mates_change_nothing() -> None:
    alphas, hidden, frame_lens = draw([12, 0, 1, 7], 1.5)
    alphas, hidden = alphas.float(), hidden.float()
    outside = torch.arange(12) >= frame_lens[:, None]
    alphas[outside], hidden[outside] = float("nan"), float("nan")
    a, h = alphas.clone().requires_grad_(), hidden.clone().requires_grad_()
    together = cif(a, h, frame_lens)
    together.embeddings_BUD.square().sum().backward()
    assert a.grad is not None
    assert h.grad is not None
    assert (a.grad[outside] == 0).all()
    assert (h.grad[outside] == 0).all()
    for row, length in enumerate(frame_lens.tolist()):
        own_a = alphas[row : row + 1, :length].clone().requires_grad_()
        own_h = hidden[row : row + 1, :length].clone().requires_grad_()
        alone = cif(own_a, own_h, frame_lens[row : row + 1])
        count = int(alone.lens_B[0])
        assert together.lens_B[row] == count
        torch.testing.assert_close(together.embeddings_BUD[row, :count], alone.embeddings_BUD[0])
        assert torch.equal(together.fires_BU[row, :count], alone.fires_BU[0])
        alone.embeddings_BUD.square().sum().backward()
        torch.testing.assert_close(a.grad[row, :length], own_a.grad[0])  # type: ignore[index]
        torch.testing.assert_close(h.grad[row, :length], own_h.grad[0])  # type: ignore[index]


def test_half_precision_frames_are_summed_in_fp32() -> None:
    alphas, hidden, frame_lens = draw([400, 320], 0.6, dim=8)
    exact = cif(alphas, hidden.bfloat16().double(), frame_lens).embeddings_BUD
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = cif(alphas, hidden.bfloat16(), frame_lens)
        full = cif(alphas, hidden.bfloat16().float(), frame_lens)
    assert out.embeddings_BUD.dtype == torch.bfloat16
    assert torch.equal(out.embeddings_BUD, exact.bfloat16())
    torch.testing.assert_close(full.embeddings_BUD, exact.float(), atol=1e-5, rtol=1e-5)


def test_crossings_of_levels() -> None:
    alphas = torch.tensor([[0.5, 0.0, 0.5, 1.0]])
    levels = torch.tensor([[0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5]])
    expected = torch.tensor([[0.5, 1.0, 2.5, 3.0, 3.5, 4.0, 4.0]])
    torch.testing.assert_close(crossings(alphas, torch.tensor([4]), levels), expected)
    assert crossings(torch.zeros(1, 0), torch.tensor([0]), levels).tolist() == [[0.0] * 7]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alphas of shape \(2, 4\) .* expected \(2, 5\) and \(2,\)"):
        cif(torch.ones(2, 4), torch.ones(2, 5, 3), torch.tensor([4, 4]))


def test_equals_funasr() -> None:
    predictor = pytest.importorskip("funasr.models.paraformer.cif_predictor", reason="funasr is not installed")
    alphas, hidden, _ = draw([40, 40], 0.5)
    theirs, _ = predictor.cif(hidden.float(), alphas.float(), 1.0)
    whole = count_tokens(alphas, tail=0.0)
    ours = cif(alphas.float(), hidden.float(), torch.tensor([40, 40]), token_lens_B=whole)
    for row, count in enumerate(whole.tolist()):
        torch.testing.assert_close(ours.embeddings_BUD[row, :count], theirs[row, :count], atol=1e-4, rtol=1e-4)

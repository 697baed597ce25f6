from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.kernels import backend as forced_backend
from speechkit.kernels.case import check_against_fp64
from speechkit.kernels.cif import cif, count_tokens, crossings, integrate, running_sums
from speechkit.kernels.cif.cases import OPS, TEST_SHAPES
from speechkit.kernels.cif.cases import draw as draw_case
from speechkit.kernels.cif.reference import integrate_dense, token_weights
from speechkit.kernels.cif.torch_impl import band_operation

LENGTHS = st.lists(st.integers(0, 17), min_size=1, max_size=5)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ("reference", "torch", "triton")
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_batch_mates_change_nothing(backend: str) -> None:
    with forced_backend(backend):
        check_invariance(exactly=backend != "reference")


def check_invariance(*, exactly: bool) -> None:
    alphas, hidden, frame_lens = draw([12, 0, 1, 7], 1.5)
    alphas, hidden, frame_lens = alphas.float().to(DEVICE), hidden.float().to(DEVICE), frame_lens.to(DEVICE)
    close = {"rtol": 0.0, "atol": 0.0} if exactly else {}
    outside = torch.arange(12, device=DEVICE) >= frame_lens[:, None]
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
        torch.testing.assert_close(together.embeddings_BUD[row, :count], alone.embeddings_BUD[0], **close)
        assert torch.equal(together.fires_BU[row, :count], alone.fires_BU[0])
        alone.embeddings_BUD.square().sum().backward()
        torch.testing.assert_close(a.grad[row, :length], own_a.grad[0], **close)  # type: ignore[index]
        torch.testing.assert_close(h.grad[row, :length], own_h.grad[0], **close)  # type: ignore[index]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", TEST_SHAPES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_backends_against_fp64(backend: str, shape: str, dtype: torch.dtype) -> None:
    arguments = draw_case(TEST_SHAPES[shape], dtype=dtype, device=DEVICE, seed=1)
    check_against_fp64(OPS[0], arguments, backend, tiny=1e-6)


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.2, 0.9, 3.5]), st.integers(0, 9))
@settings(max_examples=8, deadline=None)
def test_any_shape_against_fp64(rows: int, frames: int, dim: int, largest: float, seed: int) -> None:
    shape = {"B": rows, "T": frames, "U": round(frames * largest) + 1, "D": dim, "largest": largest}
    arguments = draw_case(shape, dtype=torch.float32, device=DEVICE, seed=seed)
    for backend in ("torch", "triton"):
        check_against_fp64(OPS[0], arguments, backend)


def test_the_reference_differentiates_towards_smaller_sums() -> None:
    arguments = draw_case(TEST_SHAPES["sums that are whole numbers"], dtype=torch.float64, device="cpu", seed=0)
    check_against_fp64(OPS[0], arguments, "torch", tiny=1e-14)
    alphas, hidden = torch.tensor([[0.5, 0.5, 1.0]], dtype=torch.float64), torch.eye(3, dtype=torch.float64)[None]
    grad = torch.tensor([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]], dtype=torch.float64)
    for backend in ("reference", "torch"):
        leaf = alphas.clone().requires_grad_()
        integrate(leaf, hidden, torch.tensor([2]), 2, backend=backend).backward(grad)
        by_sums = torch.tensor([1.0 - 2.0, 2.0 - 3.0, 30.0])  # open at the ends of frames: tokens 1, 1, 2
        torch.testing.assert_close(leaf.grad[0], by_sums.flip(0).cumsum(0).flip(0).double())  # type: ignore[index]


def test_gradient_of_the_reference_equals_finite_differences() -> None:
    alphas, hidden, frame_lens = draw([6, 1, 4], 1.9)
    alphas = ((alphas + 0.05) * (torch.arange(6) < frame_lens[:, None])).clamp(min=1e-3)
    tokens = count_tokens(alphas)
    width = int(tokens.max())
    leaves = alphas.requires_grad_(), hidden.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, h: integrate(a, h, tokens, width, backend="reference"), leaves)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_strides_do_not_matter(backend: str) -> None:
    arguments = draw_case({"B": 2, "T": 7, "U": 4, "D": 6, "largest": 0.9}, dtype=torch.float32, device=DEVICE, seed=0)
    turned = dict(arguments)
    turned["alphas_BT"] = arguments["alphas_BT"].t().contiguous().t()
    turned["hidden_BTD"] = arguments["hidden_BTD"].transpose(0, 1).contiguous().transpose(0, 1)
    results = []
    for inputs in (arguments, turned, {**turned, "hidden_BTD": arguments["hidden_BTD"].mT.contiguous().mT}):
        a, h = inputs["alphas_BT"].detach().requires_grad_(), inputs["hidden_BTD"].detach().requires_grad_()
        out = integrate(**{**inputs, "alphas_BT": a, "hidden_BTD": h}, backend=backend)
        grad = torch.ones(6, 2, 4, device=DEVICE).permute(1, 2, 0)
        results.append((out, *torch.autograd.grad(out, (a, h), grad)))
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], other))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_only_the_gradients_asked_for(backend: str) -> None:
    arguments = draw_case({"B": 2, "T": 7, "U": 4, "D": 6, "largest": 0.9}, dtype=torch.float32, device=DEVICE, seed=0)
    both = {name: arguments[name].clone().requires_grad_() for name in ("alphas_BT", "hidden_BTD")}
    integrate(**{**arguments, **both}, backend=backend).sum().backward()
    for name, leaf in both.items():
        alone = arguments[name].clone().requires_grad_()
        integrate(**{**arguments, name: alone}, backend=backend).sum().backward()
        assert torch.equal(alone.grad, leaf.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_into_one_graph(backend: str) -> None:
    arguments = draw_case({"B": 2, "T": 7, "U": 4, "D": 6, "largest": 0.9}, dtype=torch.float32, device=DEVICE, seed=0)
    del arguments["alphas_BT"], arguments["hidden_BTD"]

    def run(a: Tensor, h: Tensor) -> Tensor:
        return integrate(a, h, **arguments, backend=backend).square().sum()

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        fresh = draw_case({"B": 2, "T": 7, "U": 4, "D": 6, "largest": 0.9}, dtype=torch.float32, device=DEVICE, seed=0)
        leaves = fresh["alphas_BT"].requires_grad_(), fresh["hidden_BTD"].requires_grad_()
        loss = function(*leaves)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    assert all(torch.equal(eager, compiled) for eager, compiled in zip(*results))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_operators_keep_the_rules_of_torch_library(backend: str) -> None:
    from speechkit.kernels.cif.triton_impl import integrate_fused

    operator = band_operation if backend == "torch" else integrate_fused
    arguments = draw_case({"B": 2, "T": 5, "U": 3, "D": 4, "largest": 0.9}, dtype=torch.float32, device=DEVICE, seed=0)
    alphas, hidden = arguments["alphas_BT"].requires_grad_(), torch.randn(2, 5, 4, device=DEVICE, requires_grad=True)
    torch.library.opcheck(operator.overload, (alphas, hidden, arguments["frame_lens_B"], arguments["token_lens_B"], 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_shows(backend: str) -> None:
    alphas = torch.tensor([[0.5, float("nan"), 0.5], [0.5, 0.5, 0.5]], device=DEVICE)
    out = integrate(alphas, torch.ones(2, 3, 4, device=DEVICE), torch.tensor([2, 1], device=DEVICE), 2, backend=backend)
    assert out[0].isnan().any()
    assert torch.equal(out[1], torch.tensor([[1.0] * 4, [0.0] * 4], device=DEVICE))


def test_half_precision_under_the_kernel() -> None:
    arguments = draw_case({"B": 2, "T": 9, "U": 4, "D": 6, "largest": 0.9}, dtype=torch.bfloat16, device=DEVICE, seed=0)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        inside = integrate(**arguments, backend="triton")
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, integrate(**arguments, backend="triton"))


def test_backends_that_cannot_run_are_refused() -> None:
    arguments = draw_case({"B": 1, "T": 3, "U": 1, "D": 2, "largest": 0.9}, dtype=torch.float64, device="cpu", seed=0)
    with pytest.raises(ValueError, match=r"backend='triton' takes no float64"):
        integrate(**arguments, backend="triton")
    with pytest.raises(ValueError, match=r"backend='numba' is unknown to cif"):
        integrate(**arguments, backend="numba")


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

"""CTC loss: against its reference and torch, in every backend, at every length, in every dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.case import Arguments, cast, check_against_fp64, evaluate
from speechkit.kernels.ctc_loss import _backward, _forward, ctc_loss, reference, scaled, torch_impl
from speechkit.kernels.ctc_loss.cases import OPS, native

OP = OPS[0]
BACKENDS = ("torch", "triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(shape: dict | str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Arguments:
    return OP.draw(OP.test_shapes[shape] if isinstance(shape, str) else shape, dtype=dtype, device=DEVICE, seed=seed)


def gradient(arguments: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    found = evaluate(OP, arguments, lambda a: OP.run(a, backend))
    return found.outputs[0], found.gradients["logits_BTV"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", OP.test_shapes)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend: str, shape: str, dtype: torch.dtype) -> None:
    check_against_fp64(OP, draw(shape, dtype), backend)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=3),
    vocab=st.integers(2, 9),
    tokens=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_lengths(rows: list[tuple[int, int]], vocab: int, tokens: int, seed: int) -> None:
    lens, target_lens = (tuple(column) for column in zip(*rows))
    shape = {"B": len(rows), "T": 9, "U": 5, "V": vocab, "tokens": tokens, "lens": lens, "target_lens": target_lens}
    for backend in BACKENDS:
        check_against_fp64(OP, draw(shape, seed=seed), backend)


@pytest.mark.parametrize("shape", ["plain", "repeats", "lengths 0 and 1", "infeasible", "many tokens"])
def test_reference_equals_torch(shape: str) -> None:
    arguments = cast(draw(shape), torch.float64)
    ours, theirs = (evaluate(OP, arguments, run) for run in (lambda a: OP.run(a, "reference"), native_fp64))
    torch.testing.assert_close(ours.outputs[0], theirs.outputs[0])
    known = theirs.outputs[0].isfinite()  # torch gives nan for the others
    torch.testing.assert_close(ours.gradients["logits_BTV"][known], theirs.gradients["logits_BTV"][known])
    assert (ours.gradients["logits_BTV"][~known] == 0).all()


def native_fp64(arguments: Arguments) -> tuple[Tensor, ...]:
    log_probs = arguments["logits_BTV"].log_softmax(-1).transpose(0, 1)
    lengths = arguments["logit_lens_B"], arguments["target_lens_B"]
    return (F.ctc_loss(log_probs, arguments["targets_BU"], *lengths, blank=arguments["blank"], reduction="none"),)


def test_baseline_equals_ours() -> None:
    arguments = draw("plain")
    torch.testing.assert_close(native(arguments)[0], OP.run(arguments, "torch")[0])


def test_gradcheck_of_reference() -> None:
    arguments = cast(draw({"B": 3, "T": 6, "U": 3, "V": 4, "tokens": 2}), torch.float64)
    logits = arguments.pop("logits_BTV").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference.neg_log_likelihood(x, *arguments.values()), (logits,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_closed_form(backend: str) -> None:
    if backend == "triton":
        pytest.skip("the kernel computes in fp32; check_against_fp64 holds its gradient")
    arguments = cast(draw({"B": 2, "T": 6, "U": 3, "V": 4, "tokens": 2}), torch.float64)
    logits = arguments.pop("logits_BTV").requires_grad_()
    run = lambda x: ctc_loss(x, **arguments, reduction="none", backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(run, (logits,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_mates_change_no_bit(backend: str) -> None:
    lens, target_lens = (11, 5, 0, 1, 7), (4, 3, 0, 1, 5)
    arguments = draw({"B": 5, "T": 16, "U": 40, "V": 7, "tokens": 3, "lens": lens, "target_lens": target_lens})
    arguments["logits_BTV"][torch.arange(16)[None] >= arguments["logit_lens_B"].cpu()[:, None]] = 50.0  # what padding holds
    arguments["targets_BU"] = torch.where(
        torch.arange(40, device=DEVICE) < arguments["target_lens_B"][:, None], arguments["targets_BU"], -3
    )
    together, to_together = gradient_of_sum(arguments, backend)
    for row, (length, count) in enumerate(zip(lens, target_lens)):
        alone = {
            "logits_BTV": arguments["logits_BTV"][row : row + 1, :length],
            "logit_lens_B": arguments["logit_lens_B"][row : row + 1],
            "targets_BU": arguments["targets_BU"][row : row + 1, :count],
            "target_lens_B": arguments["target_lens_B"][row : row + 1],
            "blank": 0,
        }
        loss, grad = gradient_of_sum(alone, backend)
        assert torch.equal(loss[0], together[row])
        assert torch.equal(grad[0], to_together[row, :length])
        assert (to_together[row, length:] == 0).all()


def gradient_of_sum(arguments: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    logits = arguments["logits_BTV"].clone().requires_grad_()
    (loss,) = OP.run({**arguments, "logits_BTV": logits}, backend)
    return loss.detach(), torch.autograd.grad(torch.where(loss.isfinite(), loss, 0.0).sum(), logits)[0]


def long_and_peaked(sharpness: float, frames: int = 300) -> Arguments:
    lens, target_lens = (frames, frames - 50), (frames // 8, frames // 12)
    arguments = draw({"B": 2, "T": frames, "U": frames // 8, "V": 30, "lens": lens, "target_lens": target_lens})
    return {**arguments, "logits_BTV": sharpness * arguments["logits_BTV"]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_recordings_are_closer_than_torch(backend: str) -> None:
    frames = 100 if backend == "triton" else 300  # the interpreter is slow
    check_against_fp64(OP, long_and_peaked(2.0, frames), backend, tiny=1e-7, factor=0.5)


@pytest.mark.parametrize(("sharpness", "rows"), [(2.0, []), (30.0, [2])])
def test_probabilities_out_of_range_are_left_to_logarithms(
    sharpness: float, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    logarithms = torch_impl._in_logarithms
    monkeypatch.setattr(torch_impl, "_in_logarithms", lambda *a: left.append(len(a[0])) or logarithms(*a))
    check_against_fp64(OP, long_and_peaked(sharpness), "torch")
    assert left == rows


def test_a_model_that_only_says_blank_stays_in_range() -> None:
    arguments = draw({"B": 2, "T": 400, "U": 150, "V": 30, "lens": (400, 390), "target_lens": (150, 120)})
    arguments["logits_BTV"][..., 0] += 25.0
    columns = torch_impl.label_columns(arguments["targets_BU"].cpu(), arguments["target_lens_B"].cpu(), 0)
    log_probs = arguments["logits_BTV"].cpu().double().log_softmax(-1)
    emit_TLB = log_probs.gather(2, columns[:, None].expand(-1, 400, -1)).permute(1, 2, 0).contiguous().numpy()
    lens, target_lens = arguments["logit_lens_B"].cpu().numpy(), arguments["target_lens_B"].cpu().numpy()
    assert scaled.run(emit_TLB, lens, arguments["targets_BU"].T.cpu().numpy(), target_lens, wanted=True).sure_B.all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_do_not_lie_in_one_piece(backend: str) -> None:
    arguments = draw("plain")
    expected = gradient(arguments, backend)
    strided = {**arguments, "logits_BTV": arguments["logits_BTV"].transpose(1, 2).contiguous().transpose(1, 2)}
    strided["targets_BU"] = arguments["targets_BU"].repeat_interleave(2, dim=1)[:, ::2]
    sliced = {**arguments, "logits_BTV": F.pad(arguments["logits_BTV"], (0, 3, 2, 0))[:, 2:, :-3]}
    for other in (strided, sliced):
        for ours, theirs in zip(gradient(other, backend), expected):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_minus_infinity_and_nan(backend: str) -> None:
    arguments = draw("plain")
    never = {**arguments, "logits_BTV": arguments["logits_BTV"].clone()}
    never["logits_BTV"][0, :, arguments["targets_BU"][0, 0]] = -torch.inf
    loss, grad = gradient(never, backend)
    assert loss[0] == torch.inf
    assert loss[1:].isfinite().all()
    assert (grad[0] == 0).all()
    broken = {**arguments, "logits_BTV": arguments["logits_BTV"].clone()}
    broken["logits_BTV"][1, 2] = torch.nan
    loss = OP.run(broken, backend)[0]
    assert loss[1].isnan()
    assert loss[0].isfinite()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_reductions(backend: str) -> None:
    arguments = draw("infeasible")
    each = ctc_loss(**arguments, reduction="none", backend=backend)
    assert each.isinf().tolist() == [True, False, True]
    finite = each[1]
    assert ctc_loss(**arguments, reduction="sum", zero_infinity=True, backend=backend) == finite
    torch.testing.assert_close(ctc_loss(**arguments, zero_infinity=True, backend=backend), finite / 3 / 3)
    assert ctc_loss(**arguments, backend=backend) == torch.inf


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("graph", ["aot_eager", "inductor"])
def test_compiles_without_a_break(backend: str, graph: str) -> None:
    if graph == "inductor" and backend == "triton" and DEVICE == "cpu":
        pytest.skip("the interpreter and the compiler do not go together")
    arguments = draw("repeats")
    expected = gradient(arguments, backend)
    compiled = torch.compile(lambda a: OP.run(a, backend), fullgraph=True, backend=graph)
    found = evaluate(OP, arguments, compiled)
    torch.testing.assert_close(found.outputs[0], expected[0])
    torch.testing.assert_close(found.gradients["logits_BTV"], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_are_well_formed(backend: str) -> None:
    arguments = draw("repeats")
    logits, lens, targets, target_lens, _ = arguments.values()
    inputs = (logits.requires_grad_(), lens, targets, target_lens, 0, True, backend)
    torch.library.opcheck(_forward.overload, inputs)
    nll, lse, gamma = (x.detach() for x in _forward(*inputs))
    inputs = (torch.ones_like(nll), logits.detach(), targets, target_lens, lse, gamma, 0, backend)
    torch.library.opcheck(_backward.overload, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_fp32_inside(backend: str) -> None:
    arguments = draw("plain", torch.bfloat16)
    expected = OP.run(arguments, backend)[0]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = OP.run(arguments, backend)[0]
        full = OP.run({**arguments, "logits_BTV": arguments["logits_BTV"].float()}, backend)[0]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    torch.testing.assert_close(full, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits_BTV": torch.zeros(3, 5)}, r"scores of shape \(3, 5\)"),
        ({"logit_lens_B": torch.tensor([1, 2])}, r"logit_lens has shape \(2,\); expected \(3,\)"),
        ({"target_lens_B": torch.tensor([[1]])}, r"target_lens has shape \(1, 1\)"),
        ({"blank": 11}, "blank=11 must be an id below the 11"),
        ({"reduction": "average"}, "reduction='average' is unknown; choose none, sum or mean"),
        ({"backend": "cuda"}, "backend='cuda' is unknown to ctc_loss; choose auto or one of torch, reference, triton"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ctc_loss(**{**draw("plain"), **change})

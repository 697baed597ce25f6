"""CTC behind an output layer: against its reference, against the layer and the loss apart, and what it holds in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.case import Arguments, Op, cast, check_against_fp64, evaluate
from speechkit.kernels.ctc_loss import ctc_loss
from speechkit.kernels.linear_ctc_loss import _each, _total, chunked, linear_ctc_loss
from speechkit.kernels.linear_ctc_loss.cases import OPS, TEST_SHAPES

BACKENDS = ("torch", "triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYER = ("hidden_BTD", "weight_VD", "bias_V")


def draw(shape: dict | str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Arguments:
    return OPS[0].draw(TEST_SHAPES[shape] if isinstance(shape, str) else shape, dtype=dtype, device=DEVICE, seed=seed)


def check(op: Op, arguments: Arguments, backend: str) -> None:
    if arguments["bias_V"] is None:
        op = Op(**{**op.__dict__, "differentiable": LAYER[:2]})
    check_against_fp64(op, arguments, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", TEST_SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_values_and_gradients(op: Op, backend: str, shape: str, dtype: torch.dtype) -> None:
    if backend == "triton" and shape not in ("plain", "infeasible") and (dtype != torch.float32 or op is not OPS[0]):
        pytest.skip("the interpreter is slow, and the other cases show it")
    check(op, draw(shape, dtype), backend)


@settings(max_examples=5, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4)), min_size=1, max_size=3),
    vocab=st.integers(2, 9),
    dim=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_any_lengths(rows: list[tuple[int, int]], vocab: int, dim: int, seed: int) -> None:
    lens, target_lens = (tuple(column) for column in zip(*rows))
    shape = {"B": len(rows), "T": 7, "U": 4, "V": vocab, "D": dim, "lens": lens, "target_lens": target_lens}
    for backend in BACKENDS:
        check(OPS[0], draw(shape, seed=seed), backend)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_equals_layer_and_loss_apart(backend: str, reduction: str) -> None:
    arguments = draw("repeats")
    lengths = {name: value for name, value in arguments.items() if name not in LAYER}
    ours, theirs = ({name: arguments[name].clone().requires_grad_() for name in LAYER} for _ in range(2))
    loss = linear_ctc_loss(**ours, **lengths, reduction=reduction, backend=backend)
    apart = ctc_loss(F.linear(*theirs.values()), **lengths, reduction=reduction, backend="reference")
    torch.testing.assert_close(loss, apart)
    for found, expected in zip(gradients(loss, ours), gradients(apart, theirs)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> tuple[Tensor, ...]:
    weights = torch.arange(1.0, 1.0 + loss.numel(), device=loss.device).view(loss.shape)
    return torch.autograd.grad((2.0 * weights * loss).sum(), tuple(leaves.values()))


def test_gradcheck_of_closed_form() -> None:
    arguments = cast(draw({"B": 2, "T": 5, "U": 2, "V": 4, "D": 3, "tokens": 1}), torch.float64)
    leaves = [arguments.pop(name).requires_grad_() for name in LAYER]
    for reduction in ("none", "mean"):
        run = lambda *layer: linear_ctc_loss(*layer, **arguments, reduction=reduction, backend="torch")  # noqa: B023, E731
        assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_mates_change_no_bit(backend: str) -> None:
    lens, target_lens = (66, 5, 0, 1), (4, 3, 0, 1)
    shape = {"B": 4, "T": 66, "U": 66, "V": 31, "D": 24, "lens": lens, "target_lens": target_lens}
    arguments = draw(shape)
    beyond = torch.arange(66, device=DEVICE) >= arguments["logit_lens_B"][:, None]
    arguments["hidden_BTD"][beyond] = 50.0
    together, to_together = losses(arguments, backend)
    assert (to_together[beyond] == 0).all()
    for row, (length, count) in enumerate(zip(lens, target_lens)):
        alone = dict(arguments)
        alone["hidden_BTD"] = arguments["hidden_BTD"][row : row + 1, :length]
        alone["targets_BU"] = arguments["targets_BU"][row : row + 1, :count]
        for name in ("logit_lens_B", "target_lens_B"):
            alone[name] = arguments[name][row : row + 1]
        loss, grad = losses(alone, backend)
        assert torch.equal(loss[0], together[row])
        assert torch.equal(grad[0], to_together[row, :length])


def losses(arguments: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    hidden = arguments["hidden_BTD"].clone().requires_grad_()
    loss = linear_ctc_loss(**{**arguments, "hidden_BTD": hidden}, reduction="none", backend=backend)
    return loss.detach(), torch.autograd.grad(loss.sum(), hidden)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_do_not_lie_in_one_piece(backend: str) -> None:
    arguments = draw({"B": 2, "T": 64, "U": 3, "V": 11, "D": 6, "lens": (9, 7), "target_lens": (3, 2)})
    strided = {
        **arguments,
        "hidden_BTD": arguments["hidden_BTD"].transpose(0, 2).contiguous().transpose(0, 2),
        "weight_VD": arguments["weight_VD"].T.contiguous().T,
        "bias_V": arguments["bias_V"].repeat_interleave(2)[::2],
        "targets_BU": arguments["targets_BU"].T.contiguous().T,
    }
    results = []
    for each in (arguments, strided):
        leaves = [each[name].requires_grad_() for name in LAYER]
        (loss,) = OPS[0].run(each, backend)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    assert not strided["hidden_BTD"].is_contiguous()
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_cross_chunks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = draw("plain")
    whole = evaluate(OPS[0], arguments, lambda a: OPS[0].run(a, backend))
    monkeypatch.setattr(chunked, "chunk_rows", lambda vocab, device: 5)
    pieces = evaluate(OPS[0], arguments, lambda a: OPS[0].run(a, backend))
    torch.testing.assert_close(pieces.outputs, whole.outputs)
    for name in LAYER:
        torch.testing.assert_close(pieces.gradients[name], whole.gradients[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_ruled_out_by_the_bias(backend: str) -> None:
    arguments = draw("plain")
    arguments["targets_BU"].clamp_(max=9)[0, 0] = 10
    arguments["bias_V"][10] = -torch.inf
    each = linear_ctc_loss(**arguments, reduction="none", backend=backend)
    assert each[0] == torch.inf
    assert each[1:].isfinite().all()
    found = evaluate(OPS[0], arguments, lambda a: OPS[0].run(a, backend)).gradients
    assert (found["hidden_BTD"][0] == 0).all()
    assert all(grad.isfinite().all() for grad in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_asks_gets_a_gradient(backend: str) -> None:
    arguments = draw("plain")
    everything = evaluate(OPS[0], arguments, lambda a: OPS[0].run(a, backend)).gradients
    for op in OPS:
        for names in (LAYER[:1], LAYER[1:]):
            partial = Op(**{**op.__dict__, "differentiable": names, "run": OPS[0].run})
            some = evaluate(partial, arguments, lambda a: OPS[0].run(a, backend)).gradients
            assert all(torch.equal(some[name], everything[name]) for name in names)
    assert not OPS[0].run(arguments, backend)[0].requires_grad


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_break(backend: str, op: Op) -> None:
    arguments = draw("plain")
    expected = evaluate(op, arguments, lambda a: op.run(a, backend))
    compiled = torch.compile(lambda a: op.run(a, backend), fullgraph=True, backend="aot_eager")
    found = evaluate(op, arguments, compiled)
    torch.testing.assert_close(found.outputs, expected.outputs)
    for name in LAYER:
        torch.testing.assert_close(found.gradients[name], expected.gradients[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_are_well_formed(backend: str) -> None:
    arguments = draw({"B": 2, "T": 4, "U": 2, "V": 5, "D": 3})
    layer = [arguments[name].requires_grad_() for name in LAYER]
    lengths = [arguments[name] for name in ("logit_lens_B", "targets_BU", "target_lens_B")]
    torch.library.opcheck(_each.overload, (*layer, *lengths, 0, True, True, backend))
    torch.library.opcheck(_total.overload, (*layer, *lengths, 0, torch.ones(2, device=DEVICE), True, True, True, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_multiplies_in_its_dtype(backend: str) -> None:
    arguments = draw("plain")
    half = {**arguments, **{name: arguments[name].bfloat16() for name in LAYER}}
    expected = OPS[0].run(half, backend)[0]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = evaluate(OPS[0], arguments, lambda a: OPS[0].run(a, backend))
    assert found.outputs[0].dtype == torch.float32
    assert torch.equal(found.outputs[0], expected)
    assert all(grad.dtype == torch.float32 for grad in found.gradients.values())


MEASURE = """
import re, sys, torch
from pathlib import Path
from torch.nn import functional as F
from speechkit.kernels.linear_ctc_loss import linear_ctc_loss
hidden = torch.randn(4, 200, 64, requires_grad=True)
weight = torch.randn(20_000, 64, requires_grad=True)
lengths = torch.tensor([200] * 4), torch.randint(1, 20_000, (4, 40)), torch.tensor([40] * 4)
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # of this process alone
before = peak()
if sys.argv[1] == "ours":
    linear_ctc_loss(hidden, weight, None, *lengths).backward()
else:
    log_probs = F.linear(hidden, weight).log_softmax(-1).transpose(0, 1)
    F.ctc_loss(log_probs, lengths[1], lengths[0], lengths[2]).backward()
print(peak() - before)
"""


def test_never_holds_all_scores() -> None:
    peaks = []
    for which in ("ours", "torch"):
        done = subprocess.run([sys.executable, "-c", MEASURE, which], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[0] < 0.5 * peaks[1]  # 64 MB of scores, of which torch holds four


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_VD": torch.zeros(11, 5)}, r"weight of shape \(11, 5\) and bias of shape \(11,\) do not fit hidden .*\(V, 6\)"),
        ({"bias_V": torch.zeros(4)}, r"bias of shape \(4,\) do not fit"),
        ({"target_lens_B": torch.tensor([1])}, r"target_lens has shape \(1,\)"),
        ({"reduction": "average"}, "reduction='average' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    arguments = draw("plain")
    arguments["hidden_BTD"].requires_grad_()
    with pytest.raises(ValueError, match=message):
        linear_ctc_loss(**{**arguments, **change})

"""The comparison that every kernel is held to: what it lets pass and what it catches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op, Shape, cast, check_against_fp64, evaluate

Fault = Callable[[Tensor], Tensor]


def draw(shape: Shape, *, dtype: torch.dtype, device: str, seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(shape["N"], generator=generator).to(device, dtype), "shift": 1}


class Scaled(torch.autograd.Function):
    """exp(x + shift) with a fault in its value or its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: int, on_value: Fault, on_gradient: Fault) -> Tensor:
        y = (x + shift).exp()
        ctx.save_for_backward(y)
        ctx.on_gradient = on_gradient
        return on_value(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return ctx.on_gradient(grads[0] * y), None, None, None


def identity(x: Tensor) -> Tensor:
    return x


def make_op(on_value: Fault = identity, on_gradient: Fault = identity, extra: Callable[[Tensor], Tensor] | None = None) -> Op:
    """An operation whose backend "torch" has faults; `extra` makes a second output, without gradient."""

    def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
        faulty = backend == "torch"
        pair = (on_value, on_gradient) if faulty else (identity, identity)
        outputs = (Scaled.apply(arguments["x"], arguments["shift"], *pair),)
        if extra is not None:
            ranks = arguments["x"].detach().argsort()
            outputs += (extra(ranks) if faulty else ranks,)
        return outputs

    return Op(name="scaled", backends=("torch", "reference"), draw=draw, run=run, differentiable=("x",))


def arguments(dtype: torch.dtype = torch.float32, num: int = 40) -> Arguments:
    return draw({"N": num}, dtype=dtype, device="cpu", seed=0)


def changed(place: int, value: float) -> Fault:
    def fault(y: Tensor) -> Tensor:
        y = y.clone()
        y[place] = y[place] * value if value == value and abs(value) < 100 else value
        return y

    return fault


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_right_passes(dtype: torch.dtype) -> None:
    check_against_fp64(make_op(), arguments(dtype), "torch")
    check_against_fp64(make_op(extra=identity), arguments(dtype), "torch")
    check_against_fp64(make_op(), arguments(dtype, num=0), "torch")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.001, r"scaled \(torch\), output 0: error .* exceeds"),
        (float("nan"), "output 0: nan in 1 places"),
        (float("inf"), "output 0: not finite where the exact result is"),
        (float("-inf"), "output 0: not finite"),
    ],
)
def test_a_wrong_value_is_caught(value: float, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_against_fp64(make_op(on_value=changed(3, value)), arguments(), "torch")


@pytest.mark.parametrize(("value", "message"), [(0.99, "error"), (float("nan"), "nan"), (float("inf"), "not finite")])
def test_a_wrong_gradient_is_caught(value: float, message: str) -> None:
    with pytest.raises(AssertionError, match=rf"scaled \(torch\), gradient of x: .*{message}|gradient of x: {message}"):
        check_against_fp64(make_op(on_gradient=changed(7, value)), arguments(), "torch")


def test_an_infinity_must_be_the_same_infinity() -> None:
    given = arguments()
    given["x"][5] = 1000.0  # exp of it is infinite in fp64 too
    check_against_fp64(make_op(), given, "torch")
    with pytest.raises(AssertionError, match="infinite values differ"):
        check_against_fp64(make_op(on_value=changed(5, float("-inf"))), given, "torch")
    with pytest.raises(AssertionError, match="infinite values differ"):
        check_against_fp64(make_op(on_value=lambda y: y.clamp(max=1e30)), given, "torch")


def test_whole_numbers_must_be_equal() -> None:
    with pytest.raises(AssertionError, match="output 1: differs in 40 of 40 places"):
        check_against_fp64(make_op(extra=lambda ranks: ranks + 1), arguments(), "torch")


def test_shapes_must_be_equal() -> None:
    with pytest.raises(AssertionError, match=r"output 1: shape \(39,\), expected \(40,\)"):
        check_against_fp64(make_op(extra=lambda ranks: ranks[1:]), arguments(), "torch")


def test_as_much_error_as_the_dtype_brings_is_allowed() -> None:
    off = changed(3, 1.001)
    check_against_fp64(make_op(on_value=off), arguments(torch.bfloat16), "torch")
    with pytest.raises(AssertionError, match="exceeds"):
        check_against_fp64(make_op(on_value=off), arguments(torch.float32), "torch")
    check_against_fp64(make_op(on_value=off), arguments(torch.float32), "torch", tiny=1e-2)


def test_casting_leaves_whole_numbers_alone() -> None:
    given = cast({"x": torch.ones(2), "lens": torch.ones(2, dtype=torch.long), "shift": 3}, torch.float64)
    assert given["x"].dtype == torch.float64
    assert given["lens"].dtype == torch.long
    assert given["shift"] == 3


def test_upstream_gradients_are_random_but_repeatable() -> None:
    op, given = make_op(), arguments()

    def gradient(seed: int) -> Tensor:
        return evaluate(op, given, lambda a: op.run(a, "reference"), seed=seed).gradients["x"]

    assert torch.equal(gradient(0), gradient(0))
    assert not torch.equal(gradient(0), gradient(1))
    assert given["x"].grad is None
    assert not given["x"].requires_grad

"""What tests and benchmarks know of an operation, and how a kernel is compared with its reference.

A kernel is right when its values and gradients are no further from the reference in fp64 than twice what torch is in the dtype
of the kernel's inputs: as much rounding as people live with is forgiven, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Arguments = dict[str, Any]
Shape = Mapping[str, Any]
Run = Callable[[Arguments, str], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Op:
    """An operation as tests and benchmarks see it.

    Attributes:
        name: of the folder.
        backends: its implementations.
        draw: makes the arguments of a call: draw(shape, dtype=, device=, seed=).
        run: calls the operation: run(arguments, backend) gives its outputs.
        differentiable: arguments that take a gradient; none for operations without one.
        test_shapes: by name, small ones that hold every special case.
        bench_shapes: by name, sizes of real use.
        baselines: by name, what else does the same: baseline(arguments) gives the same outputs. They may raise
            `ImportError` where a package is missing and `NotImplementedError` where they do not support the arguments.
        yardstick: the baseline whose error in the dtype of the inputs is the measure; None for the reference.
    """

    name: str
    backends: tuple[str, ...]
    draw: Callable[..., Arguments]
    run: Run
    differentiable: tuple[str, ...] = ()
    test_shapes: Mapping[str, Shape] = field(default_factory=dict)
    bench_shapes: Mapping[str, Shape] = field(default_factory=dict)
    baselines: Mapping[str, Callable[[Arguments], tuple[Tensor, ...]]] = field(default_factory=dict)
    yardstick: str | None = None


def draw_lengths(rows: int, longest: int, generator: torch.Generator) -> list[int]:
    """Lengths from two thirds of the longest on; the first row is as long as it can be."""
    drawn = torch.randint((2 * longest + 2) // 3, longest + 1, (rows,), generator=generator).tolist()
    return [longest, *drawn[1:]] if rows else []


class Evaluation(NamedTuple):
    """Outputs, and gradients by the name of the argument."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """The same arguments with every floating tensor in `dtype`."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def evaluate(op: Op, arguments: Arguments, run: Callable[[Arguments], tuple[Tensor, ...]], *, seed: int = 0) -> Evaluation:
    """Runs forward and, where there is one, backward with a random upstream gradient that depends on `seed` only."""
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in op.differentiable if name in arguments}
    outputs = run({**arguments, **leaves})
    flowing = [output for output in outputs if output.requires_grad]
    if not leaves or not flowing:
        return Evaluation(tuple(output.detach() for output in outputs), {})
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64, device=flowing[0].device)
    for output in flowing:
        upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
        finite = torch.where(output.isfinite(), output, torch.zeros_like(output))
        loss = loss + (finite.double() * upstream).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in zip(leaves.items(), found)}
    return Evaluation(tuple(output.detach() for output in outputs), gradients)


def check_against_fp64(op: Op, arguments: Arguments, backend: str, *, tiny: float = 4e-6, factor: float = 2.0) -> None:
    """Holds outputs and gradients of an implementation against the reference.

    Args:
        op: the operation.
        arguments: of one call, in the dtype to be tested.
        backend: the implementation to be tested.
        tiny: error allowed besides, relative to the largest value of the exact result or 1, whichever is more.
        factor: by how much the error may exceed that of the yardstick.

    Raises:
        AssertionError: it is further off than allowed, or infinite elsewhere than the exact result; says what and where.
    """
    exact = evaluate(op, cast(arguments, torch.float64), lambda a: op.run(a, "reference"))
    same = _measure(op, arguments)
    found = evaluate(op, arguments, lambda a: op.run(a, backend))
    names = [f"output {i}" for i in range(len(exact.outputs))]
    named = [*zip(names, exact.outputs, same.outputs, found.outputs, strict=True)]
    named += [(f"gradient of {n}", g, same.gradients[n], found.gradients[n]) for n, g in exact.gradients.items()]
    for name, truth, rounded, ours in named:
        _check_one(f"{op.name} ({backend}), {name}", truth, rounded, ours, tiny, factor)


def _measure(op: Op, arguments: Arguments) -> Evaluation:
    """What the yardstick gives, or the reference where it takes no such arguments."""
    if op.yardstick:
        with suppress(NotImplementedError):
            return evaluate(op, arguments, op.baselines[op.yardstick])
    return evaluate(op, arguments, lambda a: op.run(a, "reference"))


def _check_one(name: str, truth: Tensor, rounded: Tensor, ours: Tensor, tiny: float, factor: float) -> None:
    assert truth.shape == ours.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    if not truth.numel():
        return
    if not truth.is_floating_point():
        assert torch.equal(truth, ours), f"{name}: differs in {int((truth != ours).sum())} of {truth.numel()} places"
        return
    assert not ours.isnan().any() or truth.isnan().any(), f"{name}: nan in {int(ours.isnan().sum())} places"
    finite = truth.isfinite()
    theirs, mine = truth[~finite], ours[~finite].double()
    assert ((mine == theirs) | (mine.isnan() & theirs.isnan())).all(), f"{name}: infinite values differ"
    assert ours[finite].isfinite().all(), f"{name}: not finite where the exact result is"
    if not finite.any():
        return
    scale = max(1.0, float(truth[finite].abs().max()))
    error = (ours[finite].double() - truth[finite]).abs()
    allowed = factor * float((rounded[finite].double() - truth[finite]).abs().nan_to_num(0.0, 0.0, 0.0).max()) + tiny * scale
    worst = int(error.argmax())
    assert float(error[worst]) <= allowed, (
        f"{name}: error {float(error[worst]):.3g} exceeds {allowed:.3g}; got {float(ours[finite][worst]):.6g}, "
        f"expected {float(truth[finite][worst]):.6g}"
    )

"""An operation for the tests of scripts/bench_kernels.py: sums of rows with weights, and baselines of every fate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op, Shape


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device, seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    weights, rows = torch.rand(shape["B"], generator=generator), torch.randn(shape["B"], shape["D"], generator=generator)
    return {"weights": weights.to(device, dtype), "rows": rows.to(device, dtype)}


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    assert backend in ("torch", "reference"), backend
    return ((arguments["weights"][:, None] * arguments["rows"]).sum(0),)


def matrix_product(arguments: Arguments) -> tuple[Tensor, ...]:
    return (arguments["weights"] @ arguments["rows"],)


def in_pieces(arguments: Arguments) -> tuple[Tensor, ...]:
    return (sum((w * row for w, row in zip(arguments["weights"], arguments["rows"])), torch.zeros(())),)


def raising(error: Exception) -> Any:
    def baseline(arguments: Arguments) -> tuple[Tensor, ...]:
        raise error

    return baseline


OP = Op(
    name="weighted_sum",
    backends=("torch", "reference", "triton"),
    draw=draw,
    run=run,
    differentiable=("weights", "rows"),
    test_shapes={"tiny": {"B": 2, "D": 3}},
    bench_shapes={"tall": {"B": 64, "D": 8}, "wide": {"B": 8, "D": 250_000}},
    baselines={
        "matrix product": matrix_product,
        "in pieces": in_pieces,
        "absent": raising(ImportError("no module named absent")),
        "strict": raising(NotImplementedError("only fp64")),
        "large": raising(torch.OutOfMemoryError("CUDA out of memory")),
    },
)
BROKEN = Op(
    name="broken", backends=("torch",), draw=draw, run=run, bench_shapes={"tall": {"B": 4, "D": 8}},
    baselines={"faulty": raising(KeyError("faulty"))},
)  # fmt: skip
OPS = (OP, BROKEN)

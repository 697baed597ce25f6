"""Arguments of CTC losses behind an output layer for tests and benchmarks, and what else computes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.case import Arguments, Op, Shape
from speechkit.kernels.ctc_loss import cases
from speechkit.kernels.linear_ctc_loss import BACKENDS, linear_ctc_loss

SKIPPED = ("more than a block", "many tokens")
TEST_SHAPES: dict[str, Shape] = {
    **{name: {"D": 6} | dict(shape) for name, shape in cases.TEST_SHAPES.items() if name not in SKIPPED},
    "no bias": {"B": 2, "T": 7, "U": 3, "V": 9, "D": 5, "bias": False},
    "several tiles": {"B": 1, "T": 70, "U": 66, "V": 99, "D": 4},
}
BENCH_SHAPES: dict[str, Shape] = {
    "V=8k": {"B": 16, "T": 400, "U": 60, "V": 8192, "D": 256},
    "V=50k": {"B": 8, "T": 400, "U": 100, "V": 50_000, "D": 256},
    "V=250k": {"B": 2, "T": 400, "U": 100, "V": 250_000, "D": 256},
}


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> Arguments:
    """Frames and a layer whose scores have peaks; lengths and targets as those of `ctc_loss`."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, tokens, vocab, dim = (shape[name] for name in "BTUVD")
    blank = shape.get("blank", 0)
    bias_V = torch.randn(vocab, generator=generator).to(device, dtype) if shape.get("bias", True) else None
    return {
        "hidden_BTD": torch.randn(batch, frames, dim, generator=generator).to(device, dtype),
        "weight_VD": (2.0 * dim**-0.5 * torch.randn(vocab, dim, generator=generator)).to(device, dtype),
        "bias_V": bias_V,
        **cases.draw_targets(shape, (batch, frames, tokens, vocab), blank, generator, device),
        "blank": blank,
    }


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Loss of each row."""
    return (linear_ctc_loss(**arguments, reduction="none", backend=backend),)


def run_sum(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Sum of the losses of rows that can be spelt, whose gradient is made on the way forward."""
    return (linear_ctc_loss(**arguments, reduction="sum", zero_infinity=True, backend=backend),)


def scores_first(arguments: Arguments) -> tuple[Tensor, ...]:
    """Torch's linear, log_softmax and its own ctc_loss."""
    layer = [arguments[name] for name in ("hidden_BTD", "weight_VD", "bias_V")]
    lengths = {name: arguments[name] for name in ("logit_lens_B", "targets_BU", "target_lens_B", "blank")}
    return cases.native({"logits_BTV": F.linear(*layer), **lengths})


def sum_of_scores_first(arguments: Arguments) -> tuple[Tensor, ...]:
    """As `scores_first`, summed."""
    return (scores_first(arguments)[0].sum(),)


OPS = (
    Op(
        name="linear_ctc_loss",
        backends=BACKENDS,
        draw=draw,
        run=run_sum,
        differentiable=("hidden_BTD", "weight_VD", "bias_V"),
        test_shapes=TEST_SHAPES,
        bench_shapes=BENCH_SHAPES,
        baselines={"torch.ctc_loss": sum_of_scores_first},
        yardstick="torch.ctc_loss",
    ),
    Op(
        name="linear_ctc_loss, each row",
        backends=BACKENDS,
        draw=draw,
        run=run,
        differentiable=("hidden_BTD", "weight_VD", "bias_V"),
        test_shapes=TEST_SHAPES,
        bench_shapes=BENCH_SHAPES,
        baselines={"torch.ctc_loss": scores_first},
        yardstick="torch.ctc_loss",
    ),
)

"""Arguments of the convolution module for tests and benchmarks, and what else computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op, Shape, draw_lengths
from speechkit.kernels.glu_conv import BACKENDS, Norm, glu_conv

# B, T, D, K, and where it matters the lengths of rows, whether causal, whether there is a norm.
TEST_SHAPES: dict[str, Shape] = {
    "plain": {"B": 2, "T": 7, "D": 33, "K": 5},
    "all frames valid": {"B": 1, "T": 5, "D": 40, "K": 3, "lens": None},
    "causal": {"B": 2, "T": 5, "D": 37, "K": 3, "causal": True},
    "causal, even": {"B": 1, "T": 5, "D": 48, "K": 4, "causal": True, "norm": False},
    "without norm": {"B": 2, "T": 5, "D": 35, "K": 3, "norm": False},
    "one tap": {"B": 1, "T": 3, "D": 64, "K": 1},
    "lengths 0 and 1": {"B": 3, "T": 4, "D": 36, "K": 3, "lens": (4, 0, 1)},
    "one frame under a long kernel": {"B": 1, "T": 1, "D": 100, "K": 15, "lens": None},
    "one channel": {"B": 2, "T": 9, "D": 1, "K": 3, "norm": False},
    "only padding": {"B": 2, "T": 3, "D": 33, "K": 3, "lens": (0, 0)},
    "no rows": {"B": 0, "T": 3, "D": 4, "K": 3},
}
LONG_SHAPES: dict[str, Shape] = {
    "longer than a chunk": {"B": 1, "T": 134, "D": 3, "K": 5, "lens": (131,)},
    "wider than a block": {"B": 1, "T": 3, "D": 131, "K": 3, "norm": False},
    "too wide for norm in the kernel": {"B": 1, "T": 3, "D": 520, "K": 17},
}
BENCH_SHAPES: dict[str, Shape] = {
    "D=256 K=31": {"B": 32, "T": 400, "D": 256, "K": 31},
    "D=512 K=9": {"B": 32, "T": 250, "D": 512, "K": 9},
    "D=512 K=31": {"B": 32, "T": 500, "D": 512, "K": 31},
}


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> Arguments:
    """Lengths between two thirds and all of the shape unless it says which; invalid frames hold numbers too."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, dim, taps = (shape[name] for name in ("B", "T", "D", "K"))
    lens = shape.get("lens", draw_lengths(batch, frames, generator))
    valid_BT = None if lens is None else torch.arange(frames) < torch.tensor(lens, dtype=torch.long)[:, None]
    x_BTC = torch.randn(batch, frames, 2 * dim, generator=generator)
    weight_D1K, bias_D, shift_D = (torch.randn(size, generator=generator) for size in ((dim, 1, taps), dim, dim))
    arguments = {"x_BTC": x_BTC, "weight_D1K": weight_D1K / taps**0.5, "bias_D": 0.3 * bias_D}
    if shape.get("norm", True):
        arguments |= {"norm_weight_D": 0.5 + torch.rand(dim, generator=generator), "norm_bias_D": 0.3 * shift_D}
    moved = {name: value.to(device, dtype) for name, value in arguments.items()}
    return moved | {"valid_BT": None if valid_BT is None else valid_BT.to(device), "causal": shape.get("causal", False)}


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """All frames, those outside the valid ones too."""
    rest = dict(arguments)
    norm_weight_D, norm_bias_D = rest.pop("norm_weight_D", None), rest.pop("norm_bias_D", None)
    norm = None if norm_weight_D is None else Norm(norm_weight_D, norm_bias_D)
    return (glu_conv(**rest, norm=norm, backend=backend),)


def eager(arguments: Arguments) -> tuple[Tensor, ...]:
    """Torch's own operations one after another."""
    return run(arguments, "torch")


OPS: tuple[Op, ...] = (
    Op(
        name="glu_conv",
        backends=BACKENDS,
        draw=draw,
        run=run,
        differentiable=("x_BTC", "weight_D1K", "bias_D", "norm_weight_D", "norm_bias_D"),
        test_shapes=TEST_SHAPES | LONG_SHAPES,
        bench_shapes=BENCH_SHAPES,
        baselines={"eager": eager},
        yardstick="eager",
    ),
)

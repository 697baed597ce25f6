"""Arguments of integrate-and-fire for tests and benchmarks, and what else computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op, Shape, draw_lengths
from speechkit.kernels.cif import BACKENDS, integrate
from speechkit.kernels.cif.reference import running_sums, token_weights

# B, T, U, D, the largest weight of a frame, and where it matters the lengths of rows and the step in which weights come.
TEST_SHAPES: dict[str, Shape] = {
    "plain": {"B": 3, "T": 17, "U": 9, "D": 5, "largest": 0.9},
    "sums that are whole numbers": {"B": 3, "T": 15, "U": 8, "D": 6, "largest": 1.0, "step": 0.25},
    "silence": {"B": 2, "T": 60, "U": 2, "D": 4, "largest": 0.03},
    "several tokens in a frame": {"B": 2, "T": 9, "U": 30, "D": 20, "largest": 5.9},
    "fewer tokens than weight": {"B": 3, "T": 12, "U": 3, "D": 7, "largest": 1.5, "token_lens": (3, 1, 0)},
    "more tokens than weight": {"B": 2, "T": 6, "U": 5, "D": 3, "largest": 0.5, "token_lens": (5, 4)},
    "lengths 0 and 1": {"B": 4, "T": 5, "U": 3, "D": 8, "largest": 0.9, "lens": (5, 0, 1, 1)},
    "one of each": {"B": 1, "T": 1, "U": 1, "D": 1, "largest": 1.0},
    "only padding": {"B": 2, "T": 4, "U": 1, "D": 3, "largest": 1.0, "lens": (0, 0)},
    "no frames at all": {"B": 2, "T": 0, "U": 1, "D": 3, "largest": 1.0},
    "no tokens at all": {"B": 2, "T": 6, "U": 0, "D": 3, "largest": 0.1},
    "no rows": {"B": 0, "T": 3, "U": 2, "D": 3, "largest": 1.0},
    "wider than a block": {"B": 1, "T": 6, "U": 3, "D": 270, "largest": 0.8},
}
BENCH_SHAPES: dict[str, Shape] = {
    "T=250": {"B": 32, "T": 250, "U": 60, "D": 512, "largest": 0.48},
    "T=500": {"B": 16, "T": 500, "U": 120, "D": 512, "largest": 0.48},
    "T=2000": {"B": 4, "T": 2000, "U": 480, "D": 512, "largest": 0.48},
}


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> Arguments:
    """Weights up to the largest, as many tokens as they come to unless the shape says how many; padding holds nan."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, tokens, dim = (shape[name] for name in "BTUD")
    lens = shape.get("lens") or draw_lengths(batch, frames, generator)
    lens_B = torch.tensor(lens, dtype=torch.long)
    padding_BT = torch.arange(frames) >= lens_B[:, None]
    alphas_BT = torch.rand(batch, frames, generator=generator) * shape["largest"]
    if "step" in shape:
        alphas_BT = (alphas_BT / shape["step"]).round() * shape["step"]
    alphas_BT = alphas_BT.masked_fill(padding_BT, 0.0).to(dtype)
    hidden_BTD = torch.randn(batch, frames, dim, generator=generator).masked_fill(padding_BT[..., None], float("nan"))
    given = shape.get("token_lens")
    token_lens_B = alphas_BT.double().sum(1).add(0.45).long().clamp(max=tokens) if given is None else torch.tensor(given)
    return {
        "alphas_BT": alphas_BT.to(device),
        "hidden_BTD": hidden_BTD.to(device, dtype),
        "token_lens_B": token_lens_B.to(device),
        "max_tokens": tokens,
        "frame_lens_B": lens_B.to(device),
    }


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Token embeddings."""
    return (integrate(**arguments, backend=backend),)


class _Dense(torch.autograd.Function):
    """The whole weight matrix, and the gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, alphas_BT: Tensor, hidden_BTD: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
        sums_BT = running_sums(alphas_BT)
        weights_BUT = token_weights(sums_BT, token_lens_B, max_tokens).float()
        ctx.save_for_backward(sums_BT, hidden_BTD, weights_BUT, token_lens_B, alphas_BT)
        return (weights_BUT @ hidden_BTD.float()).to(hidden_BTD.dtype)

    @staticmethod
    def backward(ctx: Any, grad_BUD: Tensor) -> tuple[Tensor | None, ...]:
        sums_BT, hidden_BTD, weights_BUT, token_lens_B, alphas_BT = ctx.saved_tensors
        grad_BUD = grad_BUD.float()
        open_BT = sums_BT.ceil().clamp(min=1.0).long()
        kept_BT = open_BT <= token_lens_B[:, None]
        index_BT1 = torch.where(kept_BT, open_BT - 1, 0)[..., None]
        step_BTD = hidden_BTD.float() - torch.nn.functional.pad(hidden_BTD[:, 1:].float(), (0, 0, 0, 1))
        product_BT = (grad_BUD.gather(1, index_BT1.expand(-1, -1, grad_BUD.shape[2])) * step_BTD).sum(2)
        to_alphas = product_BT.double().masked_fill(~kept_BT, 0.0).flip(1).cumsum(1).flip(1).to(alphas_BT.dtype)
        return to_alphas, (weights_BUT.transpose(1, 2) @ grad_BUD).to(hidden_BTD.dtype), None, None


def dense(arguments: Arguments) -> tuple[Tensor, ...]:
    """Matrix products with all of W, B U T numbers."""
    padding_BT = torch.arange(arguments["hidden_BTD"].shape[1], device=arguments["hidden_BTD"].device)
    is_padding_BT1 = (padding_BT >= arguments["frame_lens_B"][:, None])[..., None]
    hidden_BTD = arguments["hidden_BTD"].masked_fill(is_padding_BT1, 0.0)
    return (_Dense.apply(arguments["alphas_BT"], hidden_BTD, arguments["token_lens_B"], arguments["max_tokens"]),)


OPS: tuple[Op, ...] = (
    Op(
        name="cif",
        backends=BACKENDS,
        draw=draw,
        run=run,
        differentiable=("alphas_BT", "hidden_BTD"),
        test_shapes=TEST_SHAPES,
        bench_shapes=BENCH_SHAPES,
        baselines={"dense": dense},
    ),
)

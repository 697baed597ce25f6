"""Arguments of CTC losses for tests and benchmarks, and what else computes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.case import Arguments, Op, Shape, draw_lengths
from speechkit.kernels.ctc_loss import BACKENDS, ctc_loss

# B, T, U, V, and where it matters the lengths of rows, the blank, and how many different tokens there are.
TEST_SHAPES: dict[str, Shape] = {
    "plain": {"B": 3, "T": 14, "U": 4, "V": 11},
    "repeats": {"B": 2, "T": 13, "U": 6, "V": 5, "tokens": 2},
    "lengths 0 and 1": {"B": 6, "T": 5, "U": 2, "V": 4, "lens": (5, 0, 1, 0, 1, 2), "target_lens": (0, 0, 1, 1, 0, 2)},
    "infeasible": {"B": 3, "T": 6, "U": 6, "V": 4, "tokens": 1, "lens": (6, 6, 5), "target_lens": (4, 3, 6)},
    "one frame": {"B": 2, "T": 1, "U": 1, "V": 3, "lens": (1, 1), "target_lens": (1, 0)},
    "no tokens at all": {"B": 2, "T": 4, "U": 0, "V": 3},
    "no frames at all": {"B": 2, "T": 0, "U": 1, "V": 3},
    "no rows": {"B": 0, "T": 3, "U": 2, "V": 3},
    "only padding": {"B": 2, "T": 5, "U": 2, "V": 4, "lens": (0, 0), "target_lens": (0, 2)},
    "last id is blank": {"B": 2, "T": 9, "U": 3, "V": 6, "blank": 5},
    "more than a block": {"B": 1, "T": 5, "U": 2, "V": 5003},
    "many tokens": {"B": 1, "T": 70, "U": 66, "V": 99},
}
BENCH_SHAPES: dict[str, Shape] = {
    "V=64": {"B": 32, "T": 400, "U": 100, "V": 64},
    "V=1k": {"B": 16, "T": 400, "U": 60, "V": 1000},
    "V=5k": {"B": 8, "T": 400, "U": 60, "V": 5000},
    "V=5k, large": {"B": 32, "T": 400, "U": 60, "V": 5000},
}


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> Arguments:
    """Scores with peaks, lengths between two thirds and all of the shape unless it says which, targets without the blank."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, tokens, vocab = (shape[name] for name in "BTUV")
    blank = shape.get("blank", 0)
    return {
        "logits_BTV": (2.0 * torch.randn(batch, frames, vocab, generator=generator)).to(device, dtype),
        **draw_targets(shape, (batch, frames, tokens, vocab), blank, generator, device),
        "blank": blank,
    }


def draw_targets(
    shape: Shape, sizes: tuple[int, int, int, int], blank: int, generator: torch.Generator, device: torch.device | str
) -> Arguments:
    """Lengths and transcripts of a shape."""
    batch, frames, tokens, vocab = sizes
    lens = shape.get("lens") or draw_lengths(batch, frames, generator)
    target_lens = shape.get("target_lens") or draw_lengths(batch, tokens, generator)
    ids = [token for token in range(vocab) if token != blank][: shape.get("tokens", vocab)]
    chosen_BU = torch.randint(len(ids), (batch, tokens), generator=generator)
    return {
        "logit_lens_B": torch.tensor(lens, dtype=torch.long, device=device),
        "targets_BU": torch.tensor(ids)[chosen_BU].to(device),
        "target_lens_B": torch.tensor(target_lens, dtype=torch.long, device=device),
    }


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Loss of each row."""
    return (ctc_loss(**arguments, reduction="none", backend=backend),)


def native(arguments: Arguments) -> tuple[Tensor, ...]:
    """Torch's log_softmax and its own ctc_loss; 0 for rows that no path can spell, whose gradient is nan otherwise.

    Raises:
        NotImplementedError: there are no rows or no frames.
    """
    if not arguments["logits_BTV"].numel():
        raise NotImplementedError("torch refuses empty scores")
    log_probs_TBV = F.log_softmax(arguments["logits_BTV"].float(), dim=-1).transpose(0, 1)
    lengths = arguments["logit_lens_B"], arguments["target_lens_B"]
    options = {"blank": arguments["blank"], "reduction": "none", "zero_infinity": True}
    with torch.backends.cudnn.flags(enabled=False):
        return (F.ctc_loss(log_probs_TBV, arguments["targets_BU"], *lengths, **options),)


def cudnn(arguments: Arguments) -> tuple[Tensor, ...]:
    """Torch's log_softmax and the ctc_loss of cuDNN, which wants targets of int32 on the host, one after the other.

    Raises:
        NotImplementedError: not on a GPU, another blank than 0, or more tokens than cuDNN takes.
    """
    logits_BTV, target_lens = arguments["logits_BTV"], arguments["target_lens_B"].tolist()
    if logits_BTV.device.type != "cuda" or arguments["blank"] != 0 or max(target_lens) > 256:
        raise NotImplementedError("cuDNN needs a GPU, blank 0, and transcripts of up to 256 tokens")
    targets_N = torch.cat([row[:length] for row, length in zip(arguments["targets_BU"].cpu(), target_lens)]).int()
    log_probs_TBV = F.log_softmax(logits_BTV.float(), dim=-1).transpose(0, 1).contiguous()
    lens = [logits_BTV.shape[1]] * len(logits_BTV)  # it takes no others
    return (F.ctc_loss(log_probs_TBV, targets_N, torch.tensor(lens).int(), torch.tensor(target_lens).int(), reduction="none"),)


OPS = (
    Op(
        name="ctc_loss",
        backends=BACKENDS,
        draw=draw,
        run=run,
        differentiable=("logits_BTV",),
        test_shapes=TEST_SHAPES,
        bench_shapes=BENCH_SHAPES,
        baselines={"torch.ctc_loss": native, "cudnn": cudnn},
        yardstick="torch.ctc_loss",
    ),
)

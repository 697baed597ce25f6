"""Arguments of CTC alignments for tests and benchmarks, and what else computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op, Shape
from speechkit.kernels.ctc_align import BACKENDS, ctc_viterbi, reference
from speechkit.kernels.ctc_loss import cases

TEST_SHAPES: dict[str, Shape] = {
    **{name: shape for name, shape in cases.TEST_SHAPES.items() if name not in ("more than a block", "many tokens")},
    "more than a warp": {"B": 1, "T": 90, "U": 70, "V": 30},
}
BENCH_SHAPES: dict[str, Shape] = {
    "characters": {"B": 32, "T": 400, "U": 120, "V": 64},
    "subwords": {"B": 32, "T": 400, "U": 60, "V": 500},
    "subwords, one row": {"B": 1, "T": 400, "U": 60, "V": 500},
    "many subwords": {"B": 8, "T": 750, "U": 90, "V": 5000},
    "long": {"B": 1, "T": 15000, "U": 2000, "V": 500},
}


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> Arguments:
    """Log-probabilities; lengths and transcripts as those of `ctc_loss`."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, tokens, vocab = (shape[name] for name in "BTUV")
    blank = shape.get("blank", 0)
    log_probs_BTV = torch.randn(batch, frames, vocab, generator=generator).log_softmax(dim=-1)
    lens_B, tokens_BU, token_lens_B = cases.draw_targets(shape, (batch, frames, tokens, vocab), blank, generator, device).values()
    return {
        "log_probs_BTV": log_probs_BTV.to(device, dtype),
        "lens_B": lens_B,
        "tokens_BU": tokens_BU,
        "token_lens_B": token_lens_B,
        "blank": blank,
    }


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Score of each row; all else is computed besides. The reference takes fp64 as it comes."""
    if arguments["log_probs_BTV"].dtype == torch.float64 and backend == "reference":
        return (reference.align(**arguments, dtype=torch.float64).scores_B,)
    return (ctc_viterbi(**arguments, backend=backend).scores_B,)


def torchaudio(arguments: Arguments) -> tuple[Tensor, ...]:
    """`torchaudio.functional.forced_align`, one utterance after the other, as it refuses batches.

    Raises:
        ImportError: torchaudio is not installed.
        NotImplementedError: a dtype that it does not take, or a row that it refuses.
    """
    from torchaudio.functional import forced_align

    log_probs_BTV, tokens_BU = arguments["log_probs_BTV"], arguments["tokens_BU"]
    lens, token_lens = arguments["lens_B"].tolist(), arguments["token_lens_B"].tolist()
    if log_probs_BTV.dtype == torch.bfloat16 or not all(lens) or not all(token_lens):
        raise NotImplementedError("forced_align takes no bf16, and no row without frames or tokens")
    scores = []
    for row, (length, count) in enumerate(zip(lens, token_lens)):
        own = log_probs_BTV[row : row + 1, :length], tokens_BU[row : row + 1, :count]
        scores.append(forced_align(*own, blank=arguments["blank"])[1].sum())
    return (torch.stack(scores),)


OPS = (
    Op(
        name="ctc_align",
        backends=BACKENDS,
        draw=draw,
        run=run,
        test_shapes=TEST_SHAPES,
        bench_shapes=BENCH_SHAPES,
        baselines={"torchaudio": torchaudio},
    ),
)

"""Arguments of CTC alignments for tests and benchmarks, and what else computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op, Shape
from speechkit.kernels.ctc_align import BACKENDS, ctc_viterbi, reference

# B, T, U, V, and where it matters the lengths of rows, the blank, and how many different tokens there are.
TEST_SHAPES: dict[str, Shape] = {
    "plain": {"B": 3, "T": 14, "U": 4, "V": 11},
    "repeats": {"B": 2, "T": 13, "U": 6, "V": 5, "tokens": 2},
    "lengths 0 and 1": {"B": 6, "T": 5, "U": 2, "V": 4, "lens": (5, 0, 1, 0, 1, 2), "token_lens": (0, 0, 1, 1, 0, 2)},
    "infeasible": {"B": 3, "T": 6, "U": 6, "V": 4, "tokens": 1, "lens": (6, 6, 5), "token_lens": (4, 3, 6)},
    "one frame": {"B": 2, "T": 1, "U": 1, "V": 3, "lens": (1, 1), "token_lens": (1, 0)},
    "no tokens at all": {"B": 2, "T": 4, "U": 0, "V": 3},
    "no frames at all": {"B": 2, "T": 0, "U": 1, "V": 3},
    "no rows": {"B": 0, "T": 3, "U": 2, "V": 3},
    "only padding": {"B": 2, "T": 5, "U": 2, "V": 4, "lens": (0, 0), "token_lens": (0, 2)},
    "last id is blank": {"B": 2, "T": 9, "U": 3, "V": 6, "blank": 5},
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
    """Log-probabilities, lengths between two thirds and all of the shape unless it says which, transcripts without the blank."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, tokens, vocab = (shape[name] for name in "BTUV")
    blank = shape.get("blank", 0)
    ids = torch.tensor([token for token in range(vocab) if token != blank][: shape.get("tokens", vocab)])
    lens = shape.get("lens") or _lengths(batch, frames, generator)
    token_lens = shape.get("token_lens") or _lengths(batch, tokens, generator)
    return {
        "log_probs_BTV": torch.randn(batch, frames, vocab, generator=generator).log_softmax(dim=-1).to(device, dtype),
        "lens_B": torch.tensor(lens, dtype=torch.long, device=device),
        "tokens_BU": ids[torch.randint(len(ids), (batch, tokens), generator=generator)].to(device),
        "token_lens_B": torch.tensor(token_lens, dtype=torch.long, device=device),
        "blank": blank,
    }


def _lengths(rows: int, longest: int, generator: torch.Generator) -> list[int]:
    """The first row is as long as it can be."""
    drawn = torch.randint((2 * longest + 2) // 3, longest + 1, (rows,), generator=generator).tolist()
    return [longest, *drawn[1:]] if rows else []


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

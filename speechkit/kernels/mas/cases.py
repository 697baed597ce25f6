"""Arguments of monotonic alignment searches for tests and benchmarks, and what else computes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op, Shape, draw_lengths
from speechkit.kernels.mas import BACKENDS, mas, reference

# B, T, P, and where it matters the lengths of rows.
TEST_SHAPES: dict[str, Shape] = {
    "plain": {"B": 3, "T": 14, "P": 5},
    "as many phones as frames": {"B": 2, "T": 7, "P": 7, "frame_lens": (7, 5), "phone_lens": (7, 5)},
    "lengths 0 and 1": {"B": 6, "T": 5, "P": 2, "frame_lens": (5, 0, 1, 0, 1, 2), "phone_lens": (0, 0, 1, 1, 0, 2)},
    "infeasible": {"B": 3, "T": 6, "P": 8, "frame_lens": (6, 6, 5), "phone_lens": (7, 6, 8)},
    "one frame": {"B": 2, "T": 1, "P": 1, "frame_lens": (1, 1), "phone_lens": (1, 1)},
    "one phone": {"B": 1, "T": 9, "P": 1, "frame_lens": (9,), "phone_lens": (1,)},
    "no phones at all": {"B": 2, "T": 4, "P": 0},
    "no frames at all": {"B": 2, "T": 0, "P": 1},
    "no rows": {"B": 0, "T": 3, "P": 2},
    "only padding": {"B": 2, "T": 5, "P": 2, "frame_lens": (0, 0), "phone_lens": (0, 2)},
    "more than a warp": {"B": 1, "T": 100, "P": 71},
}
BENCH_SHAPES: dict[str, Shape] = {
    "sentences": {"B": 16, "T": 800, "P": 150},
    "one sentence": {"B": 1, "T": 800, "P": 150},
    "short": {"B": 32, "T": 200, "P": 40},
    "paragraph": {"B": 4, "T": 4000, "P": 800},
}


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int) -> Arguments:
    """Log-likelihoods, lengths between two thirds and all of the shape unless it says which."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames, phones = (shape[name] for name in "BTP")
    frame_lens = shape.get("frame_lens") or draw_lengths(batch, frames, generator)
    phone_lens = shape.get("phone_lens") or draw_lengths(batch, phones, generator)
    return {
        "log_likelihood_BTP": (torch.randn(batch, frames, phones, generator=generator) - 1.0).to(device, dtype),
        "frame_lens_B": torch.tensor(frame_lens, dtype=torch.long, device=device),
        "phone_lens_B": torch.tensor(phone_lens, dtype=torch.long, device=device),
    }


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Score of each row; all else is computed besides. The reference takes fp64 as it comes."""
    if arguments["log_likelihood_BTP"].dtype == torch.float64 and backend == "reference":
        return (reference.align(**arguments, dtype=torch.float64).scores_B,)
    return (mas(**arguments, backend=backend).scores_B,)


def loop_over_cells(arguments: Arguments) -> tuple[Tensor, ...]:
    """Algorithm 1 as it is printed: cell by cell in Python, on numpy arrays."""
    return _one_by_one(arguments, _scores_by_cells)


def loop_over_rows(arguments: Arguments) -> tuple[Tensor, ...]:
    """The same with all phones of a frame in one numpy operation, one utterance after the other."""
    return _one_by_one(arguments, _scores_by_frames)


def _one_by_one(arguments: Arguments, scores_of: Callable[[np.ndarray], np.ndarray]) -> tuple[Tensor, ...]:
    """Scores of the batch, with the durations found and thrown away.

    Raises:
        NotImplementedError: rows without a path.
    """
    frame_lens, phone_lens = arguments["frame_lens_B"].tolist(), arguments["phone_lens_B"].tolist()
    if any(not 0 < phones <= frames for frames, phones in zip(frame_lens, phone_lens)):
        raise NotImplementedError("the loops know no infeasible rows")
    found = []
    for row, (frames, phones) in enumerate(zip(frame_lens, phone_lens)):
        values_TP = scores_of(arguments["log_likelihood_BTP"][row, :frames, :phones].float().cpu().numpy())
        durations, phone = np.zeros(phones, dtype=np.int64), phones - 1
        for t in reversed(range(frames)):
            durations[phone] += 1
            if phone and (phone == t or values_TP[t - 1, phone] < values_TP[t - 1, phone - 1]):
                phone -= 1
        found.append(float(values_TP[-1, -1]))
    return (torch.tensor(found),)


def _scores_by_cells(log_likelihood_TP: np.ndarray) -> np.ndarray:
    frames, phones = log_likelihood_TP.shape
    values_TP = np.full((frames, phones), -np.inf, dtype=np.float32)
    for t in range(frames):
        for p in range(max(phones - (frames - t), 0), min(t + 1, phones)):
            stay = values_TP[t - 1, p] if t else 0.0
            step = values_TP[t - 1, p - 1] if p else -np.inf
            values_TP[t, p] = log_likelihood_TP[t, p] + max(stay, step)
    return values_TP


def _scores_by_frames(log_likelihood_TP: np.ndarray) -> np.ndarray:
    values_TP = np.full(log_likelihood_TP.shape, -np.inf, dtype=np.float32)
    values_TP[0, 0] = log_likelihood_TP[0, 0]
    for t in range(1, len(values_TP)):
        values_TP[t, 0] = values_TP[t - 1, 0]
        np.maximum(values_TP[t - 1, 1:], values_TP[t - 1, :-1], out=values_TP[t, 1:])
        values_TP[t] += log_likelihood_TP[t]
    return values_TP


OPS = (
    Op(
        name="mas",
        backends=BACKENDS,
        draw=draw,
        run=run,
        test_shapes=TEST_SHAPES,
        bench_shapes=BENCH_SHAPES,
        baselines={"python loop": loop_over_cells, "numpy rows": loop_over_rows},
    ),
)

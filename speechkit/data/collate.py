"""Examples to batches: padding, with the lengths kept beside the tensors.

Shape legend: B batch, N samples, U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speechkit.data.dataset import Example
from speechkit.types import AsrBatch


def collate_asr(examples: Sequence[Example | None]) -> AsrBatch:
    """Pads examples into a batch.

    Args:
        examples: as the dataset gives them, None where one was skipped.

    Returns:
        A batch of the others, in their order, with `num_skipped` telling how many were None. It has no rows where all
        were skipped, so that ranks stay in step; its user must be ready for that.
    """
    kept = [example for example in examples if example is not None]
    wave_BN, wave_lens_B = _pad([example.wave_N for example in kept], torch.float32)
    tokens_BU, token_lens_B = _pad([example.tokens_U for example in kept], torch.int64)
    return AsrBatch(
        wave_BN=wave_BN,
        wave_lens_B=wave_lens_B,
        tokens_BU=tokens_BU,
        token_lens_B=token_lens_B,
        ids=tuple(example.id for example in kept),
        texts=tuple(example.text for example in kept),
        langs=tuple(example.lang for example in kept),
        num_skipped=len(examples) - len(kept),
    )


def _pad(rows: Sequence[np.ndarray], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, zero past each length, and the lengths."""
    lens = [len(row) for row in rows]
    padded = torch.zeros(len(rows), max(lens, default=0), dtype=dtype)
    for target, row in zip(padded.numpy(), rows, strict=True):
        target[: len(row)] = row
    return padded, torch.tensor(lens, dtype=torch.int64)

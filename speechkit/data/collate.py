"""Examples to batches: padding, with the lengths kept beside the tensors.

Shape legend: B batch, N samples, U tokens, P phones, T mel frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speechkit.data.dataset import Example
from speechkit.data.tts_dataset import TtsExample
from speechkit.types import AsrBatch, TtsBatch


def collate_asr(examples: Sequence[Example | None]) -> AsrBatch:
    """Pads examples into a batch.

    Args:
        examples: as the dataset gives them, None where one was skipped.

    Returns:
        A batch of the others, in their order, with `num_skipped` telling how many were None. It has no rows where all
        were skipped, so that ranks stay in step; its user must be ready for that. Targets of tasks, names of tasks and
        prompts are there if an example has one; the other rows then have their transcript, "" and an empty prompt.
    """
    kept = [example for example in examples if example is not None]
    wave_BN, wave_lens_B = _pad([example.wave_N for example in kept], torch.float32)
    tokens_BU, token_lens_B = _pad([example.tokens_U for example in kept], torch.int64)
    targets_BU, target_lens_B = _pad_if_any([e.task_tokens_U for e in kept], instead=[e.tokens_U for e in kept])
    prompts_BU, prompt_lens_B = _pad_if_any([e.prompt_tokens_U for e in kept], instead=[e.tokens_U[:0] for e in kept])
    return AsrBatch(
        wave_BN=wave_BN,
        wave_lens_B=wave_lens_B,
        tokens_BU=tokens_BU,
        token_lens_B=token_lens_B,
        ids=tuple(example.id for example in kept),
        texts=tuple(example.text for example in kept),
        langs=tuple(example.lang for example in kept),
        num_skipped=len(examples) - len(kept),
        task_tokens_BU=targets_BU,
        task_token_lens_B=target_lens_B,
        tasks=tuple(example.task for example in kept) if any(example.task for example in kept) else (),
        prompt_tokens_BU=prompts_BU,
        prompt_token_lens_B=prompt_lens_B,
    )


def collate_tts(examples: Sequence[TtsExample | None]) -> TtsBatch:
    """Pads examples of synthesis into a batch.

    Args:
        examples: as the dataset gives them, None where one was skipped. Either all or none have durations, and pitch.

    Returns:
        A batch of the others, in their order; as `collate_asr` where examples were skipped.
    """
    kept = [example for example in examples if example is not None]
    wave_BN, wave_lens_B = _pad([example.wave_N for example in kept], torch.float32)
    phones_BP, phone_lens_B = _pad([example.phones_P for example in kept], torch.int64)
    return TtsBatch(
        wave_BN=wave_BN,
        wave_lens_B=wave_lens_B,
        phones_BP=phones_BP,
        phone_lens_B=phone_lens_B,
        speakers_B=torch.tensor([example.speaker for example in kept], dtype=torch.int64),
        languages_B=torch.tensor([example.language for example in kept], dtype=torch.int64),
        ids=tuple(example.id for example in kept),
        texts=tuple(example.text for example in kept),
        langs=tuple(example.lang for example in kept),
        num_skipped=len(examples) - len(kept),
        durations_BP=_pad_all([example.durations_P for example in kept], torch.int64),
        pitch_BT=_pad_all([example.pitch_T for example in kept], torch.float32),
        energy_BT=_pad_all([example.energy_T for example in kept], torch.float32),
    )


def _pad_all(rows: Sequence[np.ndarray | None], dtype: torch.dtype) -> Tensor | None:
    """`_pad` without the lengths; None where no row has values."""
    present = [row for row in rows if row is not None]
    assert len(present) in (0, len(rows)), "some examples have values that others lack"
    return _pad(present, dtype)[0] if present else None


def _pad(rows: Sequence[np.ndarray], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, zero past each length, and the lengths."""
    lens = [len(row) for row in rows]
    padded = torch.zeros(len(rows), max(lens, default=0), dtype=dtype)
    for target, row in zip(padded.numpy(), rows, strict=True):
        target[: len(row)] = row
    return padded, torch.tensor(lens, dtype=torch.int64)


def _pad_if_any(rows: Sequence[np.ndarray | None], *, instead: Sequence[np.ndarray]) -> tuple[Tensor | None, Tensor | None]:
    """`_pad` of token ids with others in place of those that are None; None where all are."""
    if all(row is None for row in rows):
        return None, None
    return _pad([other if row is None else row for row, other in zip(rows, instead, strict=True)], torch.int64)

"""What turns a failing batch into a message that a person can act on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch

from speechkit.data.batch_size import is_out_of_memory
from speechkit.types import AsrBatch, TextBatch, TtsBatch

MAX_IDS = 64


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what happened to which utterances, and what to set."""


def describe_batch(batch: AsrBatch | TtsBatch | TextBatch, sample_rate: int | None) -> str:
    """One line on the size of a batch: utterances, longest audio and target, padded seconds; of text without a rate."""
    if isinstance(batch, TextBatch):
        num_rows, longest_text = batch.tokens_BU.shape
        first = batch.ids[0] if batch.ids else "-"
        return f"{num_rows} sentences, the longest {longest_text} tokens, {batch.tokens_BU.numel()} padded, the first {first}"
    assert sample_rate is not None
    num_rows, num_samples = batch.wave_BN.shape
    longest = num_samples / sample_rate
    units = f"{batch.phones_BP.shape[1]} phones" if isinstance(batch, TtsBatch) else f"{batch.tokens_BU.shape[1]} tokens"
    return (
        f"{num_rows} utterances, the longest {longest:.2f} s and {units}, "
        f"{num_rows * longest:.1f} padded seconds in all, the first {batch.ids[0] if batch.ids else '-'}"
    )


def is_lost_somewhere(batch: AsrBatch | TtsBatch | TextBatch, trainer: pl.Trainer) -> bool:
    """Whether on some rank nothing of this step's batch could be read: then all ranks leave the step out.

    Models may sum over ranks inside of their loss (batch norm, codebooks), in which a rank without a batch cannot take part.
    Ranks ask each other only where unreadable recordings are skipped, as every answer has to be waited for.
    """
    is_lost = not batch.ids
    if trainer.world_size > 1 and getattr(trainer.datamodule.source, "on_error", "raise") == "skip":  # type: ignore[attr-defined]
        is_lost = trainer.strategy.reduce_boolean_decision(is_lost, all=False)
    return is_lost


@contextmanager
def explain_oom(batch: AsrBatch | TtsBatch | TextBatch, sample_rate: int | None) -> Iterator[None]:
    """Names the bucket when a step runs out of memory.

    Raises:
        TrainingError: the device (or the host) ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory in a batch of {describe_batch(batch, sample_rate)}. {_remedy(batch)}") from error


def _remedy(batch: AsrBatch | TtsBatch | TextBatch) -> str:
    """What makes batches smaller."""
    same_step = "(and raise trainer.accumulate_grad_batches to keep the step as large)"
    if isinstance(batch, TextBatch):
        return f"Lower data.max_batch_tokens {same_step}, or drop long sentences with data.max_tokens"
    return (
        f"Lower data.sampler.max_batch_seconds {same_step}, drop long utterances with data.max_seconds, or let "
        "`speechkit batch-size` find the largest safe batch of every bucket"
    )


def nonfinite_message(losses: Iterable[torch.Tensor], ids: Iterable[tuple[str, ...]]) -> str:
    """Names the utterances behind a step whose gradient is NaN or infinite.

    Args:
        losses: loss of each batch since the last optimizer step, scalars.
        ids: utterance ids of those batches.
    """
    pairs = [(bool(torch.isfinite(loss)), names) for loss, names in zip(losses, ids)]
    guilty = [name for finite, names in pairs for name in names if not finite]
    what = "loss" if guilty else "gradient"
    names = guilty or [name for _, names in pairs for name in names]
    shown = ", ".join(names[:MAX_IDS]) + (f" and {len(names) - MAX_IDS} more" if len(names) > MAX_IDS else "")
    return f"NaN or infinite {what} in a step over {len(names)} utterances: {shown}"

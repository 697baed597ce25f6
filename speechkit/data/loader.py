"""Loaders: batches that a sampler has planned, read by worker processes; exact resume; batches for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speechkit.data.padding import PaddingReport
from speechkit.types import Seconds


class ResumableSampler(Protocol):
    """Plans the batches of an epoch and can go on after any of them; `speechkit.data.sampler.BucketBatchSampler` is one."""

    @property
    def epoch(self) -> int:
        """The epoch being planned."""

    @property
    def position(self) -> int:
        """Batches of this epoch drawn so far, those before a restored state included."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, if it is another one."""

    def state_dict(self, *, next_batch: int | None = None) -> dict[str, Any]:
        """State from which the next batch is the one of that number."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""

    def padding_report(self) -> PaddingReport:
        """What the batches of this epoch cost."""


class ResumableLoader(DataLoader):
    """A DataLoader that knows how many batches its reader took, and can go on after them.

    Workers read ahead, so what the sampler has handed out tells nothing.

    Args:
        dataset: has `set_epoch`, which decides the augmentation where there is any.
        sampler: makes the batches.
        options: what else `DataLoader` takes.
    """

    def __init__(self, dataset: Dataset[Any], sampler: ResumableSampler, **options: Any) -> None:
        # The loader draws seeds for its workers, which we do not use; not from the global stream, which we do.
        super().__init__(dataset, batch_sampler=sampler, generator=torch.Generator().manual_seed(0), **options)
        self.batches = sampler
        self._taken = (0, 0)  # epoch, batches of it

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches that the sampler's epoch still holds. Nothing is read before the first one is asked for."""
        epoch = self.batches.epoch
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        iter(self.batches)  # brings `position` to where a pass begins
        self._taken = (epoch, self.batches.position)
        for batch in super().__iter__():
            self._taken = (epoch, self._taken[1] + 1)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of batches taken."""
        epoch, taken = self._taken
        return self.batches.state_dict(next_batch=taken if epoch == self.batches.epoch else 0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave: the next iteration starts with the first batch not taken."""
        self.batches.load_state_dict(state_dict)
        self._taken = (self.batches.epoch, self.batches.position)


def worker_options(num_workers: int) -> dict[str, Any]:
    """How a loader runs its worker processes."""
    return {"num_workers": num_workers, "persistent_workers": num_workers > 0, "pin_memory": torch.cuda.is_available()}


def validation_batches(durations: np.ndarray, *, max_batch_seconds: float, rank: int, world_size: int) -> list[list[int]]:
    """The `batches_by_length` that fall to one rank; smaller ones where there would be none for some ranks.

    Raises:
        ValueError: there are fewer utterances than ranks.
    """
    if len(durations) < world_size:
        raise ValueError(f"data.valid holds {len(durations)} utterances for {world_size} processes; give each at least one")
    while len(batches := batches_by_length(durations, max_batch_seconds=max_batch_seconds)) < world_size:
        max_batch_seconds /= 2  # a rank without a batch would let the others wait for its counts
    return batches[rank::world_size]


def batches_by_length(durations: np.ndarray, *, max_batch_seconds: Seconds) -> list[list[int]]:
    """Batches for evaluation: utterances by length, the longest first, as many as fit into the padded seconds.

    Args:
        durations: in seconds, shape (N,).
        max_batch_seconds: batch size times its longest utterance; an utterance longer than that is alone.
    """
    batches: list[list[int]] = []
    for index in np.argsort(-durations, kind="stable").tolist():
        if batches and (len(batches[-1]) + 1) * durations[batches[-1][0]] <= max_batch_seconds:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches

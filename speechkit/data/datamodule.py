"""Any source of data to the trainer: its loaders, at the right epoch, on the right rank."""

from __future__ import annotations

from typing import Any, Protocol

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset

from speechkit.data.loader import ResumableLoader
from speechkit.data.padding import PaddingReport


class DataSource(Protocol):
    """Where training and validation data come from; `speechkit.data.speech_data.SpeechData` is one."""

    def train_loader(self, *, rank: int, world_size: int) -> ResumableLoader:
        """Training data in the batches of one of several processes."""

    def valid_loader(self, *, rank: int, world_size: int) -> DataLoader:
        """Validation data, the same batches every time."""

    def describe(self, dataset: Dataset[Any]) -> str:
        """How much a dataset holds."""

    def describe_padding(self, report: PaddingReport) -> str:
        """What is to be said of the padding of an epoch."""


class BucketDataModule(pl.LightningDataModule):
    """Loaders of a source for the trainer.

    Args:
        source: makes the loaders, once each.
    """

    def __init__(self, source: DataSource) -> None:
        super().__init__()
        self.source = source
        self._train_loader: ResumableLoader | None = None
        self._valid_loader: DataLoader | None = None

    def setup(self, stage: str) -> None:
        """Reads the data and plans the first epoch."""
        trainer = self.trainer
        place = {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {"rank": 0, "world_size": 1}
        if stage == "fit" and self._train_loader is None:
            self._train_loader = self.source.train_loader(**place)
            self._num_batches = len(self._train_loader.batches)
        if self._valid_loader is None:
            self._valid_loader = self.source.valid_loader(**place)

    def train_dataloader(self) -> ResumableLoader:
        """The training loader, at the trainer's epoch; called at the start of each, since their lengths differ."""
        assert self._train_loader is not None
        assert self.trainer is not None
        self._train_loader.batches.set_epoch(self.trainer.current_epoch)
        return self._train_loader

    def val_dataloader(self) -> DataLoader:
        """The validation loader."""
        assert self._valid_loader is not None
        return self._valid_loader

    @property
    def train_dataset(self) -> Any:
        """The training data."""
        assert self._train_loader is not None
        return self._train_loader.dataset

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this rank in epoch 0."""
        assert self._train_loader is not None
        return self._num_batches

    def summary(self) -> str:
        """One line on the training and validation data."""
        assert self._valid_loader is not None
        train, valid = (self.source.describe(dataset) for dataset in (self.train_dataset, self._valid_loader.dataset))
        return f"training on {train} in {self._num_batches} batches, validating on {valid}"

    def padding_report(self) -> str:
        """What is to be said of the padding of the sampler's epoch."""
        assert self._train_loader is not None
        return self.source.describe_padding(self._train_loader.batches.padding_report())

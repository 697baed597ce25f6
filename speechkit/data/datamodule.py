"""Wires manifests to the trainer: dataset, batch sampler, loader. Nothing is decided here that a part decides itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from speechkit.data.collate import collate_asr
from speechkit.data.dataset import SpeechDataset
from speechkit.data.manifest import filter_manifest, read_manifest
from speechkit.data.mixing import consecutive_groups
from speechkit.text.normalize import get_normalizer
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import AsrBatch, Seconds, Utterance


class ResumableLoader(DataLoader):
    """A DataLoader that knows how many batches its reader took, and can go on after them.

    Workers read ahead, so the position of the sampler itself tells nothing. Needs a `batch_sampler` with `epoch`,
    `set_epoch`, `state_dict`, `load_state_dict` and a dataset with `set_epoch`.
    """

    def __init__(self, dataset: SpeechDataset, **kwargs: Any) -> None:
        # The loader draws seeds for its workers, which we do not use; not from the global stream, which we do.
        super().__init__(dataset, generator=torch.Generator().manual_seed(0), **kwargs)
        self._num_taken = 0

    def __iter__(self) -> Iterator[AsrBatch]:
        """Batches of the sampler's epoch. Nothing is read before the first one is asked for."""
        sampler: Any = self.batch_sampler
        self.dataset.set_epoch(sampler.epoch)  # type: ignore[attr-defined]
        self._num_taken = sampler.next_batch
        for batch in super().__iter__():
            self._num_taken += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of batches taken."""
        return self.batch_sampler.state_dict(next_batch=self._num_taken)  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave: the next iteration starts with the first batch not taken."""
        self.batch_sampler.load_state_dict(state_dict)  # type: ignore[union-attr]
        self._num_taken = self.batch_sampler.next_batch  # type: ignore[union-attr]


Manifests = str | Path | Sequence[str | Path] | Mapping[str, str | Path]


class SpeechDataModule(pl.LightningDataModule):
    """Manifests to loaders.

    Args:
        train: manifest, list of manifests, or names with their manifests.
        valid: the same for validation.
        tokenizer: makes the targets.
        sampler: makes the training batches: a partial of `BucketBatchSampler` over everything but the columns, the
            groups, rank and world size.
        weights: share of the named training manifests in an epoch; None takes every utterance once.
        sample_rate: what waveforms are resampled to, Hz.
        channel: "mean" downmixes; a number takes that channel.
        normalizer: name of the text normaliser applied to transcripts.
        transforms: augmenters of the training waveforms, `(wave_N, sample_rate, rng) -> wave_N`.
        min_seconds: shorter training utterances are left out, and reported.
        max_seconds: longer training utterances are left out, and reported.
        max_tokens_per_second: training utterances with more are left out, and reported; transcripts that do not
            belong to their audio show here.
        valid_batch_seconds: padded seconds of a validation batch.
        num_workers: processes that read training audio; 0 reads in the main process.
        on_error: what an unreadable training recording does: "raise", or "skip" and count.
        seed: of the augmentation.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # a rank may get no validation batch

    def __init__(
        self,
        *,
        train: Manifests,
        valid: Manifests,
        tokenizer: Tokenizer,
        sampler: Callable[..., Any],
        weights: Mapping[str, float] | None = None,
        sample_rate: int = 16000,
        channel: Literal["mean"] | int = "mean",
        normalizer: str = "none",
        transforms: Sequence[Callable[..., np.ndarray]] = (),
        min_seconds: Seconds = 0.1,
        max_seconds: Seconds = 40.0,
        max_tokens_per_second: float = math.inf,
        valid_batch_seconds: Seconds = 120.0,
        num_workers: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train_manifests, self.valid_manifests = name_manifests(train), name_manifests(valid)
        self.tokenizer, self.make_sampler, self.weights = tokenizer, sampler, weights
        self.sample_rate, self.channel, self.normalizer = sample_rate, channel, normalizer
        self.transforms, self.on_error, self.seed = transforms, on_error, seed
        self.limits = {"min_duration": min_seconds, "max_duration": max_seconds}
        self.max_tokens_per_second = max_tokens_per_second
        self.valid_batch_seconds, self.num_workers = valid_batch_seconds, num_workers
        self._train_loader: ResumableLoader | None = None
        self._valid_loader: DataLoader | None = None

    def setup(self, stage: str) -> None:
        """Reads the manifests and plans the first epoch."""
        if stage == "fit" and self._train_loader is None:
            self._train_loader = self._make_train_loader()
        if self._valid_loader is None:
            self._valid_loader = self._make_valid_loader()

    def train_dataloader(self) -> ResumableLoader:
        """The training loader, at the trainer's epoch; called at the start of each, since their lengths differ."""
        assert self._train_loader is not None
        assert self.trainer is not None
        self._train_loader.batch_sampler.set_epoch(self.trainer.current_epoch)
        return self._train_loader

    def val_dataloader(self) -> DataLoader:
        """The validation loader: utterances by length, the same batches every time."""
        assert self._valid_loader is not None
        return self._valid_loader

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this rank in epoch 0."""
        assert self._train_loader is not None
        return self._num_batches

    def summary(self) -> str:
        """One line on the training and validation data."""
        assert self._train_loader is not None
        assert self._valid_loader is not None
        train, valid = (loader.dataset.durations for loader in (self._train_loader, self._valid_loader))
        return (
            f"training on {len(train):,} utterances ({train.sum() / 3600:.2f} h) in {self._num_batches} batches, "
            f"validating on {len(valid):,} ({valid.sum() / 3600:.2f} h)"
        )

    def padding_report(self) -> str:
        """What the sampler says about the padding of its epoch."""
        assert self._train_loader is not None
        return str(self._train_loader.batch_sampler.padding_report())

    def _make_train_loader(self) -> ResumableLoader:
        utterances: list[Utterance] = []
        sizes: dict[str, int] = {}
        for name, path in self.train_manifests.items():
            kept, report = filter_manifest(
                _read(path, self.normalizer),
                **self.limits,
                max_tokens_per_second=self.max_tokens_per_second,
                encode=self.tokenizer.encode,
            )
            if report.num_left_out:
                print(f"{name}: {report.summary()}", flush=True)
            if not kept:
                raise ValueError(f"data.train: no utterance of {path} is left to train on; look at the limits in data")
            utterances += kept
            sizes[name] = len(kept)
        dataset = self._dataset(utterances, transforms=self.transforms, on_error=self.on_error)
        groups = {} if self.weights is None else {"groups": consecutive_groups(sizes, weights=self.weights)}
        trainer = self.trainer
        sampler = self.make_sampler(
            durations=dataset.durations,
            num_tokens=dataset.num_tokens,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            **groups,
        )
        self._num_batches = len(sampler)
        return ResumableLoader(dataset, batch_sampler=sampler, **self._worker_options())

    def _make_valid_loader(self) -> DataLoader:
        utterances = [u for path in self.valid_manifests.values() for u in _read(path, self.normalizer)]
        if not utterances:
            raise ValueError(f"data.valid: {list(self.valid_manifests.values())} hold no utterance")
        dataset = self._dataset(utterances)
        batches = batches_by_length(dataset.durations, max_batch_seconds=self.valid_batch_seconds)
        trainer = self.trainer
        mine = batches[trainer.global_rank :: trainer.world_size] if trainer else batches
        return DataLoader(dataset, batch_sampler=mine, generator=torch.Generator(), **self._worker_options())

    def _dataset(self, utterances: Sequence[Utterance], **options: Any) -> SpeechDataset:
        return SpeechDataset(
            utterances=utterances,
            tokenizer=self.tokenizer,
            sample_rate=self.sample_rate,
            channel=self.channel,
            seed=self.seed,
            **options,
        )

    def _worker_options(self) -> dict[str, Any]:
        return {
            "collate_fn": collate_asr,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def training_texts(train: Manifests, *, normalizer: str = "none") -> Iterator[str]:
    """Normalised transcripts of the training manifests that are not empty, e.g. to train a tokenizer on."""
    for path in name_manifests(train).values():
        yield from (utterance.text for utterance in _read(path, normalizer) if utterance.text)


def name_manifests(manifests: Manifests) -> dict[str, Path]:
    """Manifests by name; those without one are called by their place in the list."""
    if isinstance(manifests, str | Path):
        manifests = [manifests]
    if not isinstance(manifests, Mapping):
        manifests = {str(place): path for place, path in enumerate(manifests)}
    return {str(name): Path(path) for name, path in manifests.items()}


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


def _read(path: Path, normalizer: str) -> list[Utterance]:
    normalize = get_normalizer(normalizer)
    return [dataclasses.replace(utterance, text=normalize(utterance.text)) for utterance in read_manifest(path)]

"""Wires manifests to the trainer: dataset, batch sampler, loader. Nothing is decided here that a part decides itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speechkit.data.collate import collate_asr
from speechkit.data.dataset import SpeechDataset, field_text
from speechkit.data.index import Index
from speechkit.data.manifest import filter_manifest, read_manifest
from speechkit.data.mixing import consecutive_groups
from speechkit.data.sampler import BucketBatchSampler
from speechkit.text.normalize import get_normalizer
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Seconds, Utterance


class ResumableLoader(DataLoader):
    """A DataLoader that knows how many batches its reader took, and can go on after them.

    Workers read ahead, so what the sampler has handed out tells nothing.

    Args:
        dataset: has `set_epoch`, which decides the augmentation where there is any.
        sampler: makes the batches.
        options: what else `DataLoader` takes.
    """

    def __init__(self, dataset: Dataset[Any], sampler: BucketBatchSampler, **options: Any) -> None:
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
        cache: "memory" keeps decoded audio, 1.9 MB a minute, for codecs that are slow to decode.
        target_field: manifest field with the text that the task asks for, such as a translation; rows without it are to
            be transcribed. For models of several tasks, as the next; None when all rows are.
        task_field: manifest field with the name of the task; rows without it have the model's usual one.
        prompt_field: manifest field with the text that came before; for models with prompts.
        seed: of the augmentation.
    """

    def __init__(
        self,
        *,
        train: Manifests,
        valid: Manifests,
        tokenizer: Tokenizer,
        sampler: Callable[..., BucketBatchSampler],
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
        cache: Literal["memory"] | None = None,
        target_field: str | None = None,
        task_field: str | None = None,
        prompt_field: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train_manifests, self.valid_manifests = name_manifests(train), name_manifests(valid)
        self.tokenizer, self.make_sampler, self.weights = tokenizer, sampler, weights
        self.normalizer = get_normalizer(normalizer)
        self.fields: dict[str, Any] = {"target_field": target_field, "task_field": task_field, "prompt_field": prompt_field}
        self.reading: dict[str, Any] = {"sample_rate": sample_rate, "channel": channel, "seed": seed, "cache": cache}
        self.transforms, self.on_error = transforms, on_error
        self.limits: dict[str, Any] = {
            "min_duration": min_seconds,
            "max_duration": max_seconds,
            "max_tokens_per_second": max_tokens_per_second,
        }
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
        self._train_loader.batches.set_epoch(self.trainer.current_epoch)
        return self._train_loader

    def val_dataloader(self) -> DataLoader:
        """The validation loader: utterances by length, the same batches every time."""
        assert self._valid_loader is not None
        return self._valid_loader

    @property
    def train_dataset(self) -> SpeechDataset:
        """The training data."""
        assert self._train_loader is not None
        return self._train_loader.dataset  # type: ignore[return-value]

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this rank in epoch 0."""
        assert self._train_loader is not None
        return self._num_batches

    def summary(self) -> str:
        """One line on the training and validation data."""
        assert self._train_loader is not None
        assert self._valid_loader is not None
        datasets: list[Any] = [self._train_loader.dataset, self._valid_loader.dataset]
        train, valid = (dataset.durations for dataset in datasets)
        return (
            f"training on {len(train):,} utterances ({train.sum() / 3600:.2f} h) in {self._num_batches} batches, "
            f"validating on {len(valid):,} ({valid.sum() / 3600:.2f} h)"
        )

    def padding_report(self) -> str:
        """What the sampler says about the padding of its epoch."""
        assert self._train_loader is not None
        return str(self._train_loader.batches.padding_report())

    def _make_train_loader(self) -> ResumableLoader:
        parts = {name: self._training_part(name, path) for name, path in self.train_manifests.items()}
        sizes = {name: len(part) for name, part in parts.items()}
        joined = next(iter(parts.values())) if len(parts) == 1 else [u for part in parts.values() for u in part]
        self._check_fields(joined)
        dataset = self._dataset(joined, transforms=self.transforms, on_error=self.on_error)
        groups = {} if self.weights is None else {"groups": consecutive_groups(sizes, weights=self.weights)}
        sampler = self.make_sampler(
            durations=dataset.durations,
            num_tokens=dataset.num_tokens,
            **ranks(self.trainer),
            **groups,
        )
        self._num_batches = len(sampler)
        return ResumableLoader(dataset, sampler, **self._worker_options())

    def _training_part(self, name: str, path: Path) -> Sequence[Utterance] | Index:
        """The utterances of one manifest within the limits, or all of a compiled index, which is not read."""
        if (path / "index.json").is_file():
            return Index(path, tokenizer=self.tokenizer, normalizer=self.normalizer)
        kept, report = filter_manifest(
            read_manifest(path),
            **self.limits,
            encode=lambda text: self.tokenizer.encode(self.normalizer(text)),
        )
        if report.num_left_out:
            print(f"data.train {name}: {report.summary()}", flush=True)
        if not kept:
            raise ValueError(f"data.train: no utterance of {path} is left to train on; look at the limits in data")
        return kept

    def _check_fields(self, utterances: Sequence[Utterance] | Index) -> None:
        """Raises ValueError for a field that no training utterance has; an index is not read for that."""
        if isinstance(utterances, Index):
            return
        for option, name in self.fields.items():
            if name is not None and not any(field_text(utterance, name) for utterance in utterances):
                known = ", ".join(sorted({key for utterance in utterances for key in utterance.extra})) or "none"
                raise ValueError(f"data.{option}={name}: no training utterance has this field; further fields are: {known}")

    def _make_valid_loader(self) -> DataLoader:
        utterances = [utterance for path in self.valid_manifests.values() for utterance in read_manifest(path)]
        if not utterances:
            raise ValueError(f"data.valid: {[str(path) for path in self.valid_manifests.values()]} hold no utterance")
        dataset = self._dataset(utterances)
        mine = validation_batches(dataset.durations, max_batch_seconds=self.valid_batch_seconds, **ranks(self.trainer))
        return DataLoader(dataset, batch_sampler=mine, generator=torch.Generator(), **self._worker_options())

    def _dataset(self, utterances: Sequence[Utterance] | Index, **options: Any) -> SpeechDataset:
        return SpeechDataset(
            utterances=utterances,
            tokenizer=self.tokenizer,
            normalizer=self.normalizer,
            **self.reading,
            **self.fields,
            **options,
        )

    def _worker_options(self) -> dict[str, Any]:
        return {"collate_fn": collate_asr, **worker_options(self.num_workers)}


def training_texts(train: Manifests, *, normalizer: str = "none", target_field: str | None = None) -> Iterator[str]:
    """Normalised transcripts of the training manifests that are not empty, e.g. to train a tokenizer on.

    With `target_field`, the texts in that field too.
    """
    normalize = get_normalizer(normalizer)
    for path in name_manifests(train).values():
        for utterance in read_manifest(path):
            yield from filter(None, map(normalize, (utterance.text, field_text(utterance, target_field))))


def name_manifests(manifests: Manifests) -> dict[str, Path]:
    """Manifests by name; those without one are called by their place in the list."""
    if isinstance(manifests, str | Path):
        manifests = [manifests]
    if not isinstance(manifests, Mapping):
        manifests = {str(place): path for place, path in enumerate(manifests)}
    return {str(name): Path(path) for name, path in manifests.items()}


def ranks(trainer: pl.Trainer | None) -> dict[str, int]:
    """Rank of this process and number of processes; those of a single one without a trainer."""
    return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {"rank": 0, "world_size": 1}


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

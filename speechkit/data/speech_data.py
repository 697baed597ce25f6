"""Manifests of speech to loaders: dataset, batch sampler, loader. Nothing is decided here that a part decides itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speechkit.data.collate import collate_asr
from speechkit.data.dataset import SpeechDataset, field_text
from speechkit.data.index import Index
from speechkit.data.loader import ResumableLoader, validation_batches, worker_options
from speechkit.data.manifest import filter_manifest, read_manifest
from speechkit.data.mixing import consecutive_groups
from speechkit.data.padding import PaddingReport
from speechkit.data.sampler import BucketBatchSampler
from speechkit.text.normalize import get_normalizer
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Seconds, Utterance

Manifests = str | Path | Sequence[str | Path] | Mapping[str, str | Path]


class SpeechData:
    """Manifests to loaders; a `speechkit.data.datamodule.DataSource`.

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

    def train_loader(self, *, rank: int, world_size: int) -> ResumableLoader:
        """Training data in the batches of one rank; reads the manifests."""
        parts = {name: self._training_part(name, path) for name, path in self.train_manifests.items()}
        sizes = {name: len(part) for name, part in parts.items()}
        joined = next(iter(parts.values())) if len(parts) == 1 else [u for part in parts.values() for u in part]
        self._check_fields(joined)
        dataset = self._dataset(joined, transforms=self.transforms, on_error=self.on_error)
        groups = {} if self.weights is None else {"groups": consecutive_groups(sizes, weights=self.weights)}
        sampler = self.make_sampler(
            durations=dataset.durations,
            num_tokens=dataset.num_tokens,
            rank=rank,
            world_size=world_size,
            **groups,
        )
        return ResumableLoader(dataset, sampler, **self._worker_options())

    def valid_loader(self, *, rank: int, world_size: int) -> DataLoader:
        """Validation data: utterances by length, the same batches of one rank every time."""
        dataset = self._dataset(validation_utterances(self.valid_manifests))
        budget = self.valid_batch_seconds
        mine = validation_batches(dataset.durations, max_batch_seconds=budget, rank=rank, world_size=world_size)
        return DataLoader(dataset, batch_sampler=mine, generator=torch.Generator(), **self._worker_options())

    def describe(self, dataset: Dataset[Any]) -> str:
        """How much that is."""
        assert isinstance(dataset, SpeechDataset)
        return f"{len(dataset):,} utterances ({dataset.durations.sum() / 3600:.2f} h)"

    def describe_padding(self, report: PaddingReport) -> str:
        """What the sampler says about the padding of its epoch."""
        return str(report)

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


def training_utterances(manifests: Mapping[str, Path], *, min_seconds: Seconds, max_seconds: Seconds) -> list[Utterance]:
    """Utterances of the training manifests that last neither shorter nor longer; says how many are left out.

    Raises:
        ValueError: none is left.
    """
    kept: list[Utterance] = []
    for name, path in manifests.items():
        part, report = filter_manifest(read_manifest(path), min_duration=min_seconds, max_duration=max_seconds)
        if report.num_left_out:
            print(f"data.train {name}: {report.summary()}", flush=True)
        kept += part
    if not kept:
        raise ValueError(f"data.train: no utterance of {[*map(str, manifests.values())]} is left to train on")
    return kept


def validation_utterances(manifests: Mapping[str, Path]) -> list[Utterance]:
    """All utterances of the validation manifests.

    Raises:
        ValueError: there is none.
    """
    utterances = [utterance for path in manifests.values() for utterance in read_manifest(path)]
    if not utterances:
        raise ValueError(f"data.valid: {[*map(str, manifests.values())]} hold no utterance")
    return utterances


def name_manifests(manifests: Manifests) -> dict[str, Path]:
    """Manifests by name; those without one are called by their place in the list."""
    if isinstance(manifests, str | Path):
        manifests = [manifests]
    if not isinstance(manifests, Mapping):
        manifests = {str(place): path for place, path in enumerate(manifests)}
    return {str(name): Path(path) for name, path in manifests.items()}

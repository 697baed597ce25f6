"""Manifests of many speakers to loaders for speaker encoders: who speaks, and nothing of what is said.

Speakers of validation are best none of those of training: what is to be learnt is telling voices apart that nobody has heard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speechkit.data.collate import collate_tts
from speechkit.data.dataset import Example, SpeechDataset
from speechkit.data.loader import ResumableLoader, validation_batches, worker_options
from speechkit.data.padding import PaddingReport
from speechkit.data.speaker_batches import SpeakerBatchSampler
from speechkit.data.speech_data import Manifests, name_manifests, training_utterances, validation_utterances
from speechkit.data.tts_dataset import TtsExample
from speechkit.types import Seconds, TtsBatch, Utterance


class SpeakerData:
    """Manifests to loaders; a `speechkit.data.datamodule.DataSource`.

    Args:
        train: manifest, list of manifests, or names with their manifests; each row names its speaker.
        valid: the same for validation.
        sampler: makes the training batches: a partial of `SpeakerBatchSampler` over everything but the columns, rank and world
            size.
        sample_rate: what waveforms are resampled to, Hz.
        channel: "mean" downmixes; a number takes that channel.
        min_seconds: shorter training utterances are left out, and reported.
        max_seconds: longer training utterances are left out, and reported.
        valid_batch_seconds: padded seconds of a validation batch.
        num_workers: processes that read training audio; 0 reads in the main process.
        on_error: what an unreadable training recording does: "raise", or "skip" and count.
        cache: "memory" keeps decoded audio.
    """

    def __init__(
        self,
        *,
        train: Manifests,
        valid: Manifests,
        sampler: Callable[..., SpeakerBatchSampler],
        sample_rate: int = 16000,
        channel: Literal["mean"] | int = "mean",
        min_seconds: Seconds = 0.5,
        max_seconds: Seconds = 20.0,
        valid_batch_seconds: Seconds = 120.0,
        num_workers: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        cache: Literal["memory"] | None = None,
    ) -> None:
        self.train_manifests, self.valid_manifests = name_manifests(train), name_manifests(valid)
        self.make_sampler = sampler
        self.reading: dict[str, Any] = {"sample_rate": sample_rate, "channel": channel, "cache": cache}
        self.limits: dict[str, Any] = {"min_seconds": min_seconds, "max_seconds": max_seconds}
        self.valid_batch_seconds, self.num_workers, self.on_error = valid_batch_seconds, num_workers, on_error

    @cached_property
    def train_utterances(self) -> list[Utterance]:
        """Training utterances within the limits."""
        return _with_speakers(training_utterances(self.train_manifests, **self.limits), "data.train")

    @cached_property
    def valid_utterances(self) -> list[Utterance]:
        """Validation utterances, of which some pairs are of one speaker and others of two."""
        utterances = _with_speakers(validation_utterances(self.valid_manifests), "data.valid")
        counts = Counter(utterance.speaker for utterance in utterances)
        if len(counts) < 2 or max(counts.values()) < 2:
            raise ValueError(
                f"data.valid: {len(counts)} speakers with at most {max(counts.values())} utterances: voices can be compared only "
                "where there are two speakers, and two utterances of one of them"
            )
        return utterances

    @cached_property
    def speakers(self) -> dict[str, int]:
        """Number of each speaker of training and validation, by name."""
        names = {utterance.speaker for utterance in (*self.train_utterances, *self.valid_utterances)}
        return {name: number for number, name in enumerate(sorted(names))}

    def train_loader(self, *, rank: int, world_size: int) -> ResumableLoader:
        """Training data in the batches of one rank."""
        dataset = SpeechDataset(utterances=self.train_utterances, on_error=self.on_error, **self.reading)
        sampler = self.make_sampler(
            durations=dataset.durations,
            speakers=[utterance.speaker for utterance in self.train_utterances],
            rank=rank,
            world_size=world_size,
        )
        return ResumableLoader(dataset, sampler, **self._worker_options())

    def valid_loader(self, *, rank: int, world_size: int) -> DataLoader:
        """Validation data: utterances by length, the same batches of one rank every time."""
        known = {utterance.speaker for utterance in self.train_utterances}
        held_out = {utterance.speaker for utterance in self.valid_utterances}
        if held_out & known:
            print(f"data.valid: {len(held_out & known)} of {len(held_out)} speakers are trained on, too", flush=True)
        dataset = SpeechDataset(utterances=self.valid_utterances, **self.reading)
        mine = validation_batches(
            dataset.durations, max_batch_seconds=self.valid_batch_seconds, rank=rank, world_size=world_size
        )
        return DataLoader(dataset, batch_sampler=mine, generator=torch.Generator(), **self._worker_options())

    def describe(self, dataset: Dataset[Any]) -> str:
        """How much that is."""
        assert isinstance(dataset, SpeechDataset)
        num_speakers = len({dataset.utterances[i].speaker for i in range(len(dataset))})
        return f"{len(dataset):,} utterances ({dataset.durations.sum() / 3600:.2f} h, {num_speakers} speakers)"

    def describe_padding(self, report: PaddingReport) -> str:
        """What the sampler says about the padding of its epoch."""
        return str(report)

    def _worker_options(self) -> dict[str, Any]:
        return {"collate_fn": partial(collate_speakers, speakers=self.speakers), **worker_options(self.num_workers)}


def collate_speakers(examples: Sequence[Example | None], *, speakers: Mapping[str, int]) -> TtsBatch:
    """Pads utterances into a batch without phones; those that could not be read are left out, and counted.

    Args:
        examples: as `SpeechDataset` gives them.
        speakers: number of each speaker.
    """
    nothing_P = np.zeros(0, np.int64)
    return collate_tts(
        [
            None
            if example is None
            else TtsExample(
                id=example.id,
                wave_N=example.wave_N,
                phones_P=nothing_P,
                speaker=speakers[example.speaker],
                language=0,
                text=example.text,
                lang=example.lang,
            )
            for example in examples
        ]
    )


def _with_speakers(utterances: list[Utterance], name: str) -> list[Utterance]:
    """The same utterances.

    Raises:
        ValueError: one of them has no speaker.
    """
    nameless = next((utterance for utterance in utterances if not utterance.speaker), None)
    if nameless is not None:
        raise ValueError(f"{name}: utterance {nameless.id!r} has no speaker; give every row the field speaker")
    return utterances

"""Manifests of speech to loaders for synthesis: front end, known times, prosody, dataset, batch sampler, loader."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.data.alignment import PHONES_FIELD, phone_boundaries, timed_phones
from speechkit.data.collate import collate_tts
from speechkit.data.dataset import SpeechDataset, field_text
from speechkit.data.loader import ResumableLoader, validation_batches, worker_options
from speechkit.data.padding import PaddingReport
from speechkit.data.prosody import ProsodyIndex, ProsodyStats, compile_prosody
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.speech_data import Manifests, name_manifests, training_utterances, validation_utterances
from speechkit.data.tts_dataset import Script, TtsDataset
from speechkit.text.phonemes import is_boundary
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Seconds, Utterance

_MAX_MISFITS = 0.2  # share of the utterances whose phones may differ from those of the alignment


class PhoneFrontEnd(Protocol):
    """Text to phones; `speechkit.text.frontend.FrontEnd` is one."""

    def phones(self, text: str, *, lang: str | None = None) -> list[str]:
        """Symbols of a text."""


class TtsData:
    """Manifests to loaders; a `speechkit.data.datamodule.DataSource`.

    Args:
        train: manifest, list of manifests, or names with their manifests.
        valid: the same for validation; its speakers and languages must be among those of training.
        mel: frames that durations and pitch are counted in.
        sampler: makes the training batches: a partial of `BucketBatchSampler` over everything but the columns, rank and
            world size.
        frontend: texts to phones; None for models that read no text, such as vocoders.
        tokenizer: phones to ids; goes with the front end, and may be set as an attribute once `texts` has trained it.
        text_field: manifest field with the text to be spoken; "text" is the transcript.
        alignment: manifest field with phones and their times, as `speechkit align` writes it; None does without times.
            Utterances whose phones are not those of the front end are left out, and reported.
        margin_seconds: silence kept before the first and after the last known sound; what lies further out is cut off. None
            keeps all.
        prosody: compute pitch and energy.
        cache_dir: where pitch and energy are kept between runs.
        f_min: lowest pitch of the voices, Hz.
        f_max: highest pitch of the voices, Hz.
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
        mel: MelSpectrogram,
        sampler: Callable[..., BucketBatchSampler],
        frontend: PhoneFrontEnd | None = None,
        tokenizer: Tokenizer | None = None,
        text_field: str = "text",
        alignment: str | None = PHONES_FIELD,
        margin_seconds: Seconds | None = 0.05,
        prosody: bool = True,
        cache_dir: str | Path = "exp/cache",
        f_min: float = 65.0,
        f_max: float = 600.0,
        channel: Literal["mean"] | int = "mean",
        min_seconds: Seconds = 0.3,
        max_seconds: Seconds = 20.0,
        valid_batch_seconds: Seconds = 120.0,
        num_workers: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        cache: Literal["memory"] | None = None,
    ) -> None:
        if frontend is None and tokenizer is not None:
            raise ValueError("tokenizer without frontend: give both for models that read text, none for others")
        self.train_manifests, self.valid_manifests = name_manifests(train), name_manifests(valid)
        self.mel, self.make_sampler = mel, sampler
        self.frontend, self.tokenizer, self.text_field = frontend, tokenizer, text_field
        self._found_phones: dict[tuple[str, str], list[str]] = {}
        self.alignment, self.margin_seconds = alignment if frontend else None, margin_seconds
        self.prosody: dict[str, Any] | None = None
        if prosody:
            self.prosody = {"cache_dir": cache_dir, "f_min": f_min, "f_max": f_max, "channel": channel}
        self.reading: dict[str, Any] = {"sample_rate": mel.sample_rate, "channel": channel, "cache": cache}
        self.limits: dict[str, Any] = {"min_seconds": min_seconds, "max_seconds": max_seconds}
        self.valid_batch_seconds, self.num_workers, self.on_error = valid_batch_seconds, num_workers, on_error

    @cached_property
    def train_utterances(self) -> list[Utterance]:
        """Training utterances within the limits."""
        return training_utterances(self.train_manifests, **self.limits)

    @cached_property
    def speakers(self) -> dict[str, int]:
        """Number of each speaker of the training data, by name."""
        return {name: number for number, name in enumerate(sorted({each.speaker for each in self.train_utterances}))}

    @cached_property
    def languages(self) -> dict[str, int]:
        """Number of each language of the training data."""
        return {name: number for number, name in enumerate(sorted({each.lang for each in self.train_utterances}))}

    @cached_property
    def train_dataset(self) -> TtsDataset:
        """The training data; finds phones, times and prosody of all of them."""
        return self._dataset(self.train_utterances, name="data.train", on_error=self.on_error)

    @property
    def stats(self) -> ProsodyStats | None:
        """What pitch and energy are normalised by; None without them."""
        prosody = self.train_dataset.prosody
        return None if prosody is None else prosody.stats

    @property
    def longest_text(self) -> int:
        """Characters of the longest text to train on."""
        return max(len(self._text(utterance)) for utterance in self.train_utterances)

    def train_loader(self, *, rank: int, world_size: int) -> ResumableLoader:
        """Training data in the batches of one rank."""
        dataset = self.train_dataset
        sampler = self.make_sampler(
            durations=dataset.durations,
            num_tokens=dataset.num_tokens if self.frontend else None,
            rank=rank,
            world_size=world_size,
        )
        return ResumableLoader(dataset, sampler, **self._worker_options())  # type: ignore[arg-type]

    def valid_loader(self, *, rank: int, world_size: int) -> DataLoader:
        """Validation data: utterances by length, the same batches of one rank every time."""
        dataset = self._dataset(validation_utterances(self.valid_manifests), name="data.valid", like=self.train_dataset)
        mine = validation_batches(
            dataset.durations, max_batch_seconds=self.valid_batch_seconds, rank=rank, world_size=world_size
        )
        return DataLoader(dataset, batch_sampler=mine, generator=torch.Generator(), **self._worker_options())

    def describe(self, dataset: Dataset[Any]) -> str:
        """How much that is."""
        assert isinstance(dataset, TtsDataset)
        voices = f", {len(self.speakers)} speakers" if len(self.speakers) > 1 else ""
        return f"{len(dataset):,} utterances ({dataset.durations.sum() / 3600:.2f} h{voices})"

    def describe_padding(self, report: PaddingReport) -> str:
        """What the sampler says about the padding of its epoch."""
        return str(report)

    def texts(self) -> Iterator[str]:
        """Phones of the training texts, separated by blanks, for the tokenizer to learn its symbols from."""
        assert self.frontend is not None
        for utterance in self.train_utterances:
            symbols = self._phones(utterance)
            if symbols:
                yield " ".join(symbols)

    def _dataset(
        self,
        utterances: Sequence[Utterance],
        *,
        name: str,
        on_error: Literal["raise", "skip"] = "raise",
        like: TtsDataset | None = None,
    ) -> TtsDataset:
        """A dataset, its prosody normalised as that of another one, if given."""
        utterances, scripts = self._scripts(utterances, name)
        speech = SpeechDataset(utterances=utterances, on_error=on_error, **self.reading)
        prosody: ProsodyIndex | None = None
        if self.prosody is not None:
            stats = like.prosody.stats if like is not None and like.prosody is not None else None

            def read(i: int) -> np.ndarray | None:
                example = speech[i]
                return None if example is None else example.wave_N

            prosody = compile_prosody(utterances, read, mel=self.mel, stats=stats, **self.prosody)
            if prosody.silent:
                first = ", ".join(prosody.silent[:5])
                print(f"{name}: {len(prosody.silent)} utterances have no voice in them: {first}", flush=True)
        return TtsDataset(
            speech=speech, scripts=scripts, mel=self.mel, speakers=self.speakers, languages=self.languages, prosody=prosody
        )

    def _scripts(self, utterances: Sequence[Utterance], name: str) -> tuple[list[Utterance], list[Script]]:
        """What the utterances say, cut to where they say it; those whose phones do not fit their times are left out."""
        kept: list[tuple[Utterance, Script]] = []
        misfits: list[str] = []
        for utterance in utterances:
            try:
                kept.append(self._script(utterance))
            except ValueError as error:
                misfits.append(f"{utterance.id}: {error}")
        if misfits:
            print(f"{name}: left out {len(misfits)} of {len(utterances)} utterances, such as {misfits[0]}", flush=True)
        if len(misfits) > _MAX_MISFITS * len(utterances):
            raise ValueError(f"{name}: {len(misfits)} of {len(utterances)} utterances cannot be used, such as {misfits[0]}")
        return [utterance for utterance, _ in kept], [script for _, script in kept]

    def _script(self, utterance: Utterance) -> tuple[Utterance, Script]:
        text = self._text(utterance)
        if self.frontend is None:
            return utterance, Script(text, np.zeros(0, np.int64))
        assert self.tokenizer is not None, "the tokenizer has not been set"
        symbols = self._phones(utterance)
        if not symbols:
            raise ValueError(f"{self.text_field}={text!r} has nothing to say")
        phones_P = np.asarray(self.tokenizer.encode(" ".join(symbols)), np.int64)
        if self.alignment is None:
            return utterance, Script(text, phones_P)
        timed = timed_phones(utterance, self.alignment)
        if not timed:
            raise ValueError(
                f"no times in field {self.alignment!r}; run `speechkit align`, or pass data.alignment=null to a model that aligns"
            )
        start, end = 0.0, utterance.duration
        if self.margin_seconds is not None:
            sounds = [phone for phone in timed if not is_boundary(phone.symbol)] or timed
            start, end = max(start, sounds[0].start - self.margin_seconds), min(end, sounds[-1].end + self.margin_seconds)
        boundaries = phone_boundaries(symbols, timed, start=start, end=end) - start
        cut = dataclasses.replace(utterance, start=utterance.start + start, duration=end - start)
        return cut, Script(text, phones_P, boundaries)

    def _phones(self, utterance: Utterance) -> list[str]:
        """Phones of what an utterance says, found once."""
        assert self.frontend is not None
        key = (self._text(utterance), utterance.lang)
        if key not in self._found_phones:
            self._found_phones[key] = self.frontend.phones(key[0], lang=utterance.lang or None)
        return self._found_phones[key]

    def _text(self, utterance: Utterance) -> str:
        return utterance.text if self.text_field == "text" else field_text(utterance, self.text_field)

    def _worker_options(self) -> dict[str, Any]:
        return {"collate_fn": collate_tts, **worker_options(self.num_workers)}

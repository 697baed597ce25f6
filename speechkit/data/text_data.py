"""Text files to loaders, as `speechkit.data.speech_data` does with manifests of speech.

The same sampler makes the batches; the cost of a sentence is its tokens and the end, so that a budget of padded tokens
takes the place of padded seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speechkit.data.loader import ResumableLoader, validation_batches, worker_options
from speechkit.data.padding import PaddingReport
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.speech_data import Manifests, name_manifests
from speechkit.data.text import TextDataset, collate_text, sentence_texts
from speechkit.text.normalize import get_normalizer
from speechkit.text.tokenizers import Tokenizer


class TextData:
    """Text files to loaders; a `speechkit.data.datamodule.DataSource`.

    Args:
        train: text file, list of them, or names with their files: a sentence a line, a column of a TSV file, or the
            transcripts of a manifest. See `speechkit.data.text.iter_sentences`.
        valid: the same for validation.
        tokenizer: that of the recogniser which the model is to help.
        sampler: makes the training batches: a partial of `BucketBatchSampler` over everything but the columns, the
            budget, rank and world size.
        column: which column of TSV files holds the text, from 1.
        max_batch_tokens: padded tokens (ends included) of a batch.
        normalizer: name of the text normaliser; that of the recogniser.
        max_tokens: longer training sentences are left out, and reported; None for no limit.
        num_workers: processes that put batches together; 0 does it in the main process.

    Raises:
        ValueError: `max_batch_tokens` is below 2, a token and the end.
    """

    def __init__(
        self,
        *,
        train: Manifests,
        valid: Manifests,
        tokenizer: Tokenizer,
        sampler: Callable[..., BucketBatchSampler],
        column: int | None = None,
        max_batch_tokens: int = 8192,
        normalizer: str = "none",
        max_tokens: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if max_batch_tokens < 2:
            raise ValueError(f"max_batch_tokens={max_batch_tokens} must be at least 2, a token and the end of a sentence")
        self.train_files, self.valid_files = (list(name_manifests(files).values()) for files in (train, valid))
        self.reading: dict[str, Any] = {
            "tokenizer": tokenizer,
            "normalizer": get_normalizer(normalizer),
            "column": column,
        }
        self.make_sampler, self.max_batch_tokens, self.max_tokens = sampler, max_batch_tokens, max_tokens
        self.num_workers = num_workers

    def train_loader(self, *, rank: int, world_size: int) -> ResumableLoader:
        """Training sentences in the batches of one rank; reads the files."""
        dataset = TextDataset(files=self.train_files, max_tokens=self._limit(), **self.reading)
        if dataset.num_empty or dataset.num_too_long:
            print(f"data.train: left out {dataset.num_empty:,} empty and {dataset.num_too_long:,} too long sentences", flush=True)
        sampler = self.make_sampler(
            durations=_costs(dataset), max_batch_seconds=float(self.max_batch_tokens), rank=rank, world_size=world_size
        )
        return ResumableLoader(dataset, sampler, collate_fn=collate_text, **worker_options(self.num_workers))

    def valid_loader(self, *, rank: int, world_size: int) -> DataLoader:
        """Validation sentences by length, the same batches of one rank every time."""
        dataset = TextDataset(files=self.valid_files, **self.reading)
        budget = self.max_batch_tokens
        mine = validation_batches(_costs(dataset), max_batch_seconds=budget, rank=rank, world_size=world_size)
        options = worker_options(self.num_workers)
        return DataLoader(dataset, batch_sampler=mine, generator=torch.Generator(), collate_fn=collate_text, **options)

    def describe(self, dataset: Dataset[Any]) -> str:
        """How much that is."""
        assert isinstance(dataset, TextDataset)
        return f"{len(dataset):,} sentences ({int(dataset.num_tokens.sum()):,} tokens)"

    def describe_padding(self, report: PaddingReport) -> str:
        """One line on the padding of the sampler's epoch."""
        return (
            f"padding report: epoch {report.epoch}, {report.steps:,} steps on each of {report.world_size} rank(s), padding "
            f"{report.audio_percent:.2f} %, mean batch {report.mean_batch_size:.1f} sentences, "
            f"{report.mean_batch_seconds:.0f} padded tokens"
        )

    def _limit(self) -> int:
        """Most tokens of a training sentence: no more than a batch has room for."""
        room = self.max_batch_tokens - 1
        return room if self.max_tokens is None else min(self.max_tokens, room)


def training_sentences(train: Manifests, *, normalizer: str = "none", column: int | None = None) -> Iterator[str]:
    """Normalised sentences of the training files that are not empty, e.g. to train a tokenizer on."""
    return sentence_texts(name_manifests(train).values(), normalizer=get_normalizer(normalizer), column=column)


def _costs(dataset: TextDataset) -> np.ndarray:
    """Tokens and the end of each sentence."""
    return dataset.num_tokens.astype(np.float32) + 1.0

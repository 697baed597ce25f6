"""What a validation measures: error rates of transcripts, perplexities of text, how well voices are told apart, or the parts
of a loss.

All but voices, of which every pair counts, add up over batches, sum over ranks, and divide once.

Shape legend: B batch, T frames, F mel bins, U tokens, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from speechkit.metrics.speaker import equal_error_rate, score_pairs
from speechkit.metrics.wer import WerAccumulator
from speechkit.models.speaker.infer import embed
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import AsrBatch, Hypothesis, LossOutput, TextBatch, TtsBatch


class Evaluation(Protocol):
    """What a validation measures."""

    def update(self, model: Any, inputs: tuple[Tensor, ...], batch: Any, output: LossOutput) -> Any:
        """Adds a batch; may return what was decoded, for callbacks to show."""

    def take_sums(self) -> list[float]:
        """The sums so far, which begin anew; as many on all ranks."""

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics of sums of several ranks."""


class ErrorRates:
    """Word and character error rates: valid/wer, valid/cer.

    Args:
        infer: the family's `infer`, with its options bound.
        tokenizer: of the model.
        frame_shift: seconds between frames of the features.
    """

    def __init__(self, *, infer: Callable[..., list[Hypothesis]], tokenizer: Tokenizer, frame_shift: float) -> None:
        self.infer, self.tokenizer, self.frame_shift = infer, tokenizer, frame_shift
        self._counts = WerAccumulator()

    def update(self, model: Any, inputs: tuple[Tensor, ...], batch: AsrBatch, output: LossOutput) -> list[Hypothesis]:
        """Decodes a batch and counts errors; returns what was decoded."""
        hypotheses = self.infer(model, *inputs, tokenizer=self.tokenizer, frame_shift=self.frame_shift)
        self._counts.update(batch.texts, [hypothesis.text for hypothesis in hypotheses])
        return hypotheses

    def take_sums(self) -> list[float]:
        """The sums so far, which begin anew."""
        sums = [float(count) for count in self._counts.state()]
        self._counts.reset()
        return sums

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics of sums of several ranks."""
        counts = WerAccumulator()
        counts.load_state([round(value) for value in sums])
        return {"valid/wer": counts.wer, "valid/cer": counts.cer}


class Perplexities:
    """Perplexity per token, valid/ppl, and per word, valid/word_ppl; ends of sentences count as one token and one word.

    Words are the tokenizer's, see `speechkit.text.tokenizers`. Only the perplexity per word can be compared between models
    with different tokens.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, *, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._sums = [0.0, 0.0, 0.0]  # -log p, tokens, words; ends included

    def update(self, model: Any, inputs: tuple[Tensor, ...], batch: TextBatch, output: LossOutput) -> None:
        """Adds a batch."""
        rows = (row[:length] for row, length in zip(batch.tokens_BU.tolist(), batch.token_lens_B.tolist()))
        num_words = sum(len(self.tokenizer.split_words(row)) + 1 for row in rows)
        num_tokens = float(output.num_targets)
        added = (float(output.parts["nll"]) * num_tokens, num_tokens, num_words)
        self._sums = [total + more for total, more in zip(self._sums, added)]

    def take_sums(self) -> list[float]:
        """The sums so far, which begin anew."""
        sums, self._sums = self._sums, [0.0, 0.0, 0.0]
        return sums

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics of sums of several ranks."""
        nll, num_tokens, num_words = sums
        return {
            name: math.exp(min(nll / max(count, 1.0), 100.0))  # an untrained model must not overflow
            for name, count in (("valid/ppl", num_tokens), ("valid/word_ppl", num_words))
        }


class LossParts:
    """Means of the parts of a loss, such as valid/mel, for models whose output nobody can count errors in.

    A part of a batch counts by the batch's targets, whatever it is a mean over; batches without it do not count.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # of a part times targets, and of targets

    def update(self, model: Any, inputs: tuple[Tensor, ...], batch: TtsBatch, output: LossOutput) -> None:
        """Adds a batch."""
        num_targets = float(output.num_targets)
        for name, part in output.parts.items():
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0] += float(part) * num_targets
            sums[1] += num_targets

    def take_sums(self) -> list[float]:
        """The sums so far, which begin anew; their names are kept, and brought together with those of other ranks."""
        names: list[Any] = [list(self._sums)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            names = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(names, list(self._sums))
        own = self._sums
        self._sums = {name: [0.0, 0.0] for name in sorted({name for part in names for name in part})}
        return [value for name in self._sums for value in own.get(name, (0.0, 0.0))]

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics of sums of several ranks; a part that no batch has is none."""
        pairs = zip(self._sums, sums[::2], sums[1::2], strict=True)
        return {f"valid/{name}": part / num_targets for name, part, num_targets in pairs if num_targets}


class Verification:
    """Equal error rate over all pairs of the validation's utterances, valid/eer: is it one speaker, or are they two?

    Ranks bring their embeddings together, so that it depends on neither batches nor ranks. Pairs grow with the square of the
    utterances: 5,000 have 12 million.
    """

    def __init__(self) -> None:
        self._own: list[tuple[str, int, Tensor]] = []  # id, speaker, embedding
        self._all: list[tuple[str, int, Tensor]] = []

    def update(self, model: Any, inputs: tuple[Tensor, ...], batch: TtsBatch, output: LossOutput) -> None:
        """Embeds the utterances of a batch."""
        embeddings_BD = embed(model, *inputs).cpu()
        self._own += zip(batch.ids, batch.speakers_B.tolist(), embeddings_BD)

    def take_sums(self) -> list[float]:
        """Brings the utterances of all ranks together, and begins anew; nothing is left to add up."""
        parts: list[Any] = [self._own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self._own)
        self._own, self._all = [], sorted((row for part in parts for row in part), key=lambda row: row[0])
        return []

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics of what `take_sums` brought together."""
        _, speakers, embeddings = zip(*self._all)
        scores_K, same_K = score_pairs(np.stack([embedding_D.numpy() for embedding_D in embeddings]), speakers)
        return {"valid/eer": equal_error_rate(scores_K, same_K).rate}

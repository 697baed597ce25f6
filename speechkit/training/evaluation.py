"""What a validation measures: error rates of transcripts, perplexities of text, or the parts of a loss.

All add up over batches, sum over ranks, and divide once.

Shape legend: B batch, T frames, F mel bins, U tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from speechkit.metrics.wer import WerAccumulator
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import AsrBatch, Hypothesis, LossOutput, TextBatch, TtsBatch


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
    """Means of the parts of a loss over its targets, such as valid/mel: for models whose output nobody can count errors in."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._num_targets = 0.0

    def update(self, model: Any, inputs: tuple[Tensor, ...], batch: TtsBatch, output: LossOutput) -> None:
        """Adds a batch."""
        num_targets = float(output.num_targets)
        for name, part in output.parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(part) * num_targets
        self._num_targets += num_targets

    def take_sums(self) -> list[float]:
        """The sums so far, which begin anew; their names are kept, and the same on all ranks."""
        sums = [self._num_targets, *(self._sums[name] for name in sorted(self._sums))]
        self._num_targets, self._sums = 0.0, dict.fromkeys(self._sums, 0.0)
        return sums

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics of sums of several ranks."""
        num_targets, *parts = sums
        return {f"valid/{name}": part / max(num_targets, 1.0) for name, part in zip(sorted(self._sums), parts, strict=True)}

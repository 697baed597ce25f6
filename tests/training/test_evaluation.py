"""Perplexities against their definition; sums begin anew; what is said of batches of text."""

from __future__ import annotations

import math

import pytest
import torch

from speechkit.text.tokenizers import CharTokenizer
from speechkit.training.evaluation import Perplexities
from speechkit.training.guards import TrainingError, explain_oom
from speechkit.types import LossOutput, TextBatch

TOKENIZER = CharTokenizer(symbols=list(" ab"))
ROWS = ["ab a", "b"]


def make_batch() -> TextBatch:
    rows = [torch.tensor(TOKENIZER.encode(text)) for text in ROWS]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return TextBatch(tokens, torch.tensor([len(row) for row in rows]), ("x:1", "x:2"))


def output(nll: float, num_targets: int) -> LossOutput:
    return LossOutput(torch.tensor(9.0), {"nll": torch.tensor(nll)}, torch.tensor(num_targets))


def test_perplexities_per_token_and_per_word() -> None:
    evaluation = Perplexities(tokenizer=TOKENIZER)
    evaluation.update(None, (), make_batch(), output(0.5, 7))  # 5 tokens, 3 words, 2 ends
    evaluation.update(None, (), make_batch(), output(1.5, 7))
    metrics = evaluation.metrics(evaluation.take_sums())
    assert metrics == pytest.approx({"valid/ppl": math.exp(1.0), "valid/word_ppl": math.exp(14.0 / 10)})
    assert evaluation.take_sums() == [0.0, 0.0, 0.0]


def test_an_untrained_model_does_not_overflow() -> None:
    evaluation = Perplexities(tokenizer=TOKENIZER)
    evaluation.update(None, (), make_batch(), output(1000.0, 7))
    assert all(math.isfinite(value) for value in evaluation.metrics(evaluation.take_sums()).values())


def test_memory_running_out_on_text_is_explained() -> None:
    said = "2 sentences, the longest 4 tokens, 8 padded, the first x:1. Lower data.max_batch_tokens"
    with pytest.raises(TrainingError, match=said), explain_oom(make_batch(), None):
        raise MemoryError

"""Perplexities and equal error rates against their definition; sums begin anew; what is said of batches of text."""

from __future__ import annotations

import math

import pytest
import torch

from speechkit.metrics.speaker import equal_error_rate, score_pairs
from speechkit.models.speaker.infer import embed
from speechkit.models.speaker.model import SpeakerModel
from speechkit.text.tokenizers import CharTokenizer
from speechkit.training.evaluation import LossParts, Perplexities, Verification
from speechkit.training.guards import TrainingError, explain_oom
from speechkit.types import LossOutput, TextBatch, TtsBatch

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


def test_parts_of_a_loss_are_means_over_the_batches_that_have_them() -> None:
    evaluation = LossParts()
    batches = [({"mel": 1.0, "low": 0.5}, 10), ({"mel": 3.0}, 30), ({"mel": 2.0, "low": 0.9}, 30)]
    for parts, num_targets in batches:
        made = {name: torch.tensor(part) for name, part in parts.items()}
        evaluation.update(None, (), speaker_batch([], []), LossOutput(torch.tensor(9.0), made, torch.tensor(num_targets)))
    metrics = evaluation.metrics(evaluation.take_sums())
    assert metrics == pytest.approx({"valid/low": (5.0 + 27.0) / 40, "valid/mel": 160 / 70})
    assert evaluation.take_sums() == [0.0, 0.0, 0.0, 0.0]  # as many as other ranks, whose names are known


def test_memory_running_out_on_text_is_explained() -> None:
    said = "2 sentences, the longest 4 tokens, 8 padded, the first x:1. Lower data.max_batch_tokens"
    with pytest.raises(TrainingError, match=said), explain_oom(make_batch(), None):
        raise MemoryError


def speaker_batch(ids: list[str], speakers: list[int]) -> TtsBatch:
    nothing_B, wave_BN = torch.zeros(len(ids), dtype=torch.int64), torch.zeros(len(ids), 0)
    phones_BP = torch.zeros(len(ids), 0, dtype=torch.int64)
    names = tuple(ids)
    return TtsBatch(wave_BN, nothing_B, phones_BP, nothing_B, torch.tensor(speakers), nothing_B, names, names, names)


def test_the_equal_error_rate_is_of_all_pairs() -> None:
    torch.manual_seed(0)
    model = SpeakerModel(num_mels=5, hidden_dim=8, num_layers=1, embedding_dim=4, segment_frames=6).eval()
    feats, lens, speakers = 3 * torch.randn(9, 12, 5), torch.tensor([12, 3, 9, 8, 12, 5, 1, 7, 11]), [0, 1, 2, 0, 1, 2, 0, 1, 2]
    expected = equal_error_rate(*score_pairs(embed(model, feats, lens).numpy(), speakers))
    assert (expected.num_same, expected.num_different) == (9, 27)
    evaluation = Verification()
    for _ in range(2):  # it begins anew
        for own in (slice(5, 9), slice(0, 5)):
            ids = [f"u{row}" for row in range(9)][own]
            evaluation.update(model, (feats[own], lens[own]), speaker_batch(ids, speakers[own]), output(0.0, 1))
        assert evaluation.metrics(evaluation.take_sums()) == {"valid/eer": pytest.approx(expected.rate)}


def test_ranks_bring_their_utterances_together(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = SpeakerModel(num_mels=5, hidden_dim=8, num_layers=1, embedding_dim=4, segment_frames=6).eval()
    feats, lens, speakers = 3 * torch.randn(6, 9, 5), torch.full((6,), 9), [0, 1, 0, 1, 0, 1]
    ranks = [Verification(), Verification()]
    for evaluation, own in zip(ranks, (slice(0, 4), slice(4, 6))):
        ids = [f"u{row}" for row in range(6)][own]
        evaluation.update(model, (feats[own], lens[own]), speaker_batch(ids, speakers[own]), output(0.0, 1))
    shares = [[*evaluation._own] for evaluation in ranks]

    def gather(parts: list[object], mine: object) -> None:
        assert mine in shares
        parts[:] = shares

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    expected = equal_error_rate(*score_pairs(embed(model, feats, lens).numpy(), speakers)).rate
    for evaluation in ranks:
        assert evaluation.take_sums() == []
        assert evaluation.metrics([]) == {"valid/eer": pytest.approx(expected)}

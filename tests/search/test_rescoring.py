from __future__ import annotations

import pytest
import torch

from speechkit.nn.decoder import TransformerDecoder
from speechkit.search import rescoring
from speechkit.search.ctc_prefix_beam import BeamResult
from speechkit.search.rescoring import rescore, score_sequences

EOS, SOS = 3, 2
SEQUENCES = [[(4, 5), (), (6, 6, 6, 4)], [], [(1,)]]


def decoder_and_source() -> tuple[TransformerDecoder, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    decoder = TransformerDecoder(vocab_size=7, dim=8, num_layers=2, num_heads=2, ff_dim=16, source_dim=6).eval()
    return decoder.requires_grad_(False), torch.randn(3, 5, 6), torch.tensor([5, 3, 0])


@pytest.mark.parametrize("max_logits", [1, 2**26])
def test_scores_are_those_of_single_sequences(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "MAX_LOGITS", max_logits)
    decoder, x, lens = decoder_and_source()
    prompts = torch.tensor([[SOS, 4], [SOS, 5], [SOS, 4]])
    found = score_sequences(decoder, decoder.read(x, lens), prompts, SEQUENCES, eos=EOS)
    assert [len(own) for own in found] == [3, 0, 1]
    for b, own in enumerate(SEQUENCES):
        for tokens, score in zip(own, found[b]):
            source = decoder.read(x[b : b + 1], lens[b : b + 1])
            log_probs = decoder(torch.tensor([[*prompts[b].tolist(), *tokens]]), source)[0, 1:].log_softmax(-1)
            expected = log_probs[range(len(tokens) + 1), [*tokens, EOS]]
            assert score.log_probs == pytest.approx(expected[:-1].tolist(), abs=1e-5)
            assert score.total == pytest.approx(float(expected.sum()), abs=1e-4)


def test_nothing_to_score() -> None:
    decoder, x, lens = decoder_and_source()
    assert score_sequences(decoder, decoder.read(x, lens), torch.full((3, 1), SOS), [[], [], []], eos=EOS) == [[], [], []]


def test_ranking_joins_decoder_ctc_scorers_and_length() -> None:
    decoder, x, lens = decoder_and_source()
    prompts, source = torch.full((3, 1), SOS), decoder.read(x, lens)
    nbest = [[BeamResult(tokens, (), -1.0 * i - 0.5, -1.0 * i) for i, tokens in enumerate(own)] for own in SEQUENCES]
    scores = score_sequences(decoder, source, prompts, SEQUENCES, eos=EOS)
    ranked = rescore(decoder, source, prompts, nbest, eos=EOS, ctc_weight=0.3, length_bonus=0.2)
    for own, own_scores, results in zip(SEQUENCES, scores, ranked):
        expected = [0.7 * s.total + 0.3 * -i - 0.5 + 0.2 * len(t) for i, (t, s) in enumerate(zip(own, own_scores))]
        assert [result.score for result in results] == pytest.approx(sorted(expected, reverse=True))
        assert {result.tokens for result in results} == set(own)
    by_ctc = rescore(decoder, source, prompts, nbest, eos=EOS, ctc_weight=1.0)
    assert [result.tokens for result in by_ctc[0]] == SEQUENCES[0]

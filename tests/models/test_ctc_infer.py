from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.models.ctc.infer import CtcDecodeOptions, decode_log_probs
from speechkit.search.lm import estimate_arpa
from speechkit.text.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer.train(["ab ba cab"])


def spoken(text: str, *, frames_each: int = 2, sure: float = 0.9) -> Tensor:
    """Log-probabilities that spell a text: each token for some frames, then a blank."""
    labels = []
    for token in TOKENIZER.encode(text):
        labels += [token] * frames_each + [0]
    vocab = TOKENIZER.vocab_size
    probs = torch.full((len(labels), vocab), (1 - sure) / (vocab - 1))
    probs[range(len(labels)), labels] = sure
    return probs.log()


def batch(*rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), torch.tensor([len(row) for row in rows])


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_words_tokens_and_times(method: Any) -> None:
    log_probs, lens = batch(spoken("ab ba"), spoken(""), spoken("cab"))
    options = CtcDecodeOptions(method=method, timestamps="word")
    hyps = decode_log_probs(log_probs, lens, tokenizer=TOKENIZER, options=options, frame_shift=0.04)
    assert [hyp.text for hyp in hyps] == ["ab ba", "", "cab"]
    assert hyps[0].tokens == tuple(TOKENIZER.encode("ab ba"))
    assert [w.text for w in hyps[0].words] == ["ab", "ba"]
    first, second = hyps[0].words
    # a: frames 0-1, b: 3-4, space: 6-7, b: 9-10, a: 12-13
    assert (first.start, first.end) == pytest.approx((0.0, 5 * 0.04))
    assert (second.start, second.end) == pytest.approx((9 * 0.04, 14 * 0.04))
    assert [w.start for w in hyps[0].token_times] == pytest.approx([0.0, 0.12, 0.24, 0.36, 0.48])
    assert first.confidence == pytest.approx(0.9, abs=1e-5)
    assert hyps[0].confidence == pytest.approx(0.9, abs=1e-5)
    assert (hyps[1].words, hyps[1].tokens, hyps[1].confidence) == ((), (), 1.0)


def test_times_only_when_asked_for() -> None:
    log_probs, lens = batch(spoken("ab"))
    plain = decode_log_probs(log_probs, lens, tokenizer=TOKENIZER, frame_shift=0.04)[0]
    assert (plain.words, plain.token_times) == ((), ())
    assert plain.confidence == pytest.approx(0.9, abs=1e-5)
    options = CtcDecodeOptions(timestamps="token")
    tokens = decode_log_probs(log_probs, lens, tokenizer=TOKENIZER, options=options, frame_shift=0.04)[0]
    assert tokens.words == ()
    assert [t.text for t in tokens.token_times] == TOKENIZER.pieces(TOKENIZER.encode("ab"))


def test_language_model_and_hotwords_change_a_close_call(tmp_path: Path) -> None:
    log_probs, lens = batch(spoken("ab"))
    a, c = (TOKENIZER.encode(x)[0] for x in "ac")
    log_probs[0, 0:2, [a, c]] = torch.tensor([0.40, 0.42]).log()  # "cb" is a little likelier than "ab"

    def text(**settings: Any) -> str:
        options = CtcDecodeOptions(method="beam", token_min_logp=None, **settings)
        return decode_log_probs(log_probs, lens, tokenizer=TOKENIZER, options=options, frame_shift=0.04)[0].text

    assert text() == "cb"
    assert text(hotwords=["ab"]) == "ab"
    assert text(hotwords={"ab": 1.0}) == "ab"
    path = tmp_path / "words.arpa"
    estimate_arpa(["ab", "ab ba", "cab"], order=2).save(path)
    assert text(lm=str(path)) == "ab"
    assert text(lm=str(path), lm_weight=0.0) == "cb"
    pieces = tmp_path / "pieces.arpa"
    estimate_arpa(["a b", "a b a b"], order=2).save(pieces)
    assert text(lm=str(pieces), lm_unit="token", hotwords=["cb"], hotword_weight=1e-6) == "ab"


def test_impossible_rows_give_an_empty_transcript() -> None:
    log_probs, lens = batch(torch.full((3, TOKENIZER.vocab_size), float("-inf")), spoken("ab"))
    options = CtcDecodeOptions(method="beam", timestamps="word")
    hyps = decode_log_probs(log_probs, lens, tokenizer=TOKENIZER, options=options, frame_shift=0.04)
    assert [hyp.text for hyp in hyps] == ["", "ab"]
    assert hyps[0].score == float("-inf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "viterbi"}, "method='viterbi' is unknown"),
        ({"timestamps": "char"}, "timestamps='char' is unknown"),
        ({"lm": "x.arpa"}, "lm and hotwords need method=beam"),
        ({"hotwords": ["a"]}, "lm and hotwords need method=beam"),
        ({"method": "beam", "hotwords": "abc"}, "hotwords='abc' is one string"),
        ({"method": "beam", "lm_unit": "char", "lm": "x"}, "lm_unit='char' is unknown"),
        ({"method": "beam", "word_bonus": 1.0}, "word_bonus=1.0 needs lm"),
    ],
)
def test_impossible_options_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CtcDecodeOptions(**settings)

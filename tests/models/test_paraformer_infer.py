from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.models.paraformer.infer import ParaformerDecodeOptions, infer, token_spans
from speechkit.models.paraformer.model import Prediction
from speechkit.text.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer.train(["ab ba cab"])


class Scripted:
    """Stands for a trained model: what it predicts is given."""

    subsampling_factor = 4

    def __init__(self, texts: list[str], alphas: list[list[float]], *, sure: float = 0.9) -> None:
        ids = [self._ids(text) for text in texts]
        width, vocab = max(len(row) for row in ids), TOKENIZER.vocab_size
        probs = torch.full((len(ids), width, vocab), (1 - sure) / (vocab - 1))
        for row, tokens in enumerate(ids):
            probs[row, range(len(tokens)), tokens] = sure
        frames = max(len(row) for row in alphas)
        padded = torch.tensor([row + [0.0] * (frames - len(row)) for row in alphas])
        lens = torch.tensor([len(row) for row in alphas])
        self.prediction = Prediction(probs.log(), torch.tensor([len(row) for row in ids]), padded, lens)

    @staticmethod
    def _ids(text: str) -> list[int]:
        return [{"_": 0, "<": 2, ">": 3}.get(char) or TOKENIZER.encode(f"a{char}b")[1] if char != "_" else 0 for char in text]

    def predict(self, feats: Tensor, lens: Tensor) -> Prediction:
        return self.prediction


def run(model: Any, timestamps: Any = None) -> Any:
    options = ParaformerDecodeOptions(timestamps=timestamps)
    return infer(model, torch.empty(0), torch.empty(0), tokenizer=TOKENIZER, options=options, frame_shift=0.01)


def test_words_tokens_and_times() -> None:
    # silence, a, b over two frames, silence, space, b + a in one frame, silence
    alphas = [0.01, 0.99, 0.5, 0.5, 0.0, 1.0, 2.0, 0.0]
    hyps = run(Scripted(["ab ba", ""], [alphas, [0.1, 0.2]]), "word")
    assert [hyp.text for hyp in hyps] == ["ab ba", ""]
    assert [word.text for word in hyps[0].words] == ["ab", "ba"]
    spans = [(t.start / 0.04, t.end / 0.04) for t in hyps[0].token_times]
    expected = [(1 + 0.09 / 0.99, 1 + 0.89 / 0.99), (2.2, 3.8), (5.1, 5.9), (6.05, 6.45), (6.55, 6.95)]
    assert [x for span in spans for x in span] == pytest.approx([x for span in expected for x in span], abs=1e-4)
    first, second = hyps[0].words
    assert (first.start, first.end) == (hyps[0].token_times[0].start, hyps[0].token_times[1].end)
    assert (second.start, second.end) == (hyps[0].token_times[3].start, hyps[0].token_times[4].end)
    assert first.confidence == pytest.approx(0.9, abs=1e-5)
    assert hyps[0].score == pytest.approx(5 * torch.tensor(0.9).log().item(), abs=1e-5)
    assert (hyps[1].tokens, hyps[1].words, hyps[1].confidence, hyps[1].score) == ((), (), 1.0, 0.0)


def test_the_last_token_ends_within_its_own_weight() -> None:
    prediction = Scripted(["ab"], [[0.0, 1.0, 0.6, 0.0, 0.0]]).prediction
    spans = token_spans(prediction)
    torch.testing.assert_close(spans, torch.tensor([[[1.1, 1.9], [2.1, 2.9]]]))


def test_blank_start_and_end_are_left_out() -> None:
    hyp = run(Scripted(["_a<b>"], [[1.0] * 5]), "token")[0]
    assert hyp.tokens == tuple(TOKENIZER.encode("ab"))
    assert [(t.text, round(t.start / 0.04, 3)) for t in hyp.token_times] == [("a", 1.1), ("b", 3.1)]
    assert hyp.score == pytest.approx(5 * torch.tensor(0.9).log().item(), abs=1e-5)


def test_times_only_when_asked_for() -> None:
    model = Scripted(["ab"], [[1.0, 1.0]])
    assert (run(model)[0].words, run(model)[0].token_times) == ((), ())
    assert run(model, "token")[0].words == ()
    assert [t.text for t in run(model, "token")[0].token_times] == ["a", "b"]


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="timestamps='char' is unknown"):
        ParaformerDecodeOptions(timestamps="char")  # type: ignore[arg-type]

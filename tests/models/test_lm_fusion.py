"""A neural language model in the search of every family, against one that reads each prefix anew, one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechkit.models.aed.infer import AedDecodeOptions
from speechkit.models.aed.infer import infer as aed_infer
from speechkit.models.aed.model import AedModel
from speechkit.models.cassnat.infer import CassNatDecodeOptions
from speechkit.models.cassnat.infer import infer as cassnat_infer
from speechkit.models.cassnat.model import CassNatModel
from speechkit.models.ctc.infer import CtcDecodeOptions
from speechkit.models.ctc.infer import infer as ctc_infer
from speechkit.models.ctc.model import CtcModel
from speechkit.models.lm.model import LmModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.search.neural_lm import NeuralLm
from speechkit.text.tokenizers import EOS, SOS, CharTokenizer, Tokenizer

TOKENIZER = CharTokenizer(symbols=list(" abcd"))
FEATS, LENS = torch.randn(3, 48, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([48, 20, 37])


class SlowScorer:
    """The definition: the state is the prefix, and nothing is remembered."""

    def __init__(self, model: LmModel, weight: float, bonus: float) -> None:
        self.model, self.weight, self.bonus = model, weight, bonus

    def initial_state(self) -> tuple[int, ...]:
        return (SOS,)

    def score(self, state: tuple[int, ...], token: int) -> tuple[float, tuple[int, ...]]:
        return self.weight * self._log_prob(state, token) + self.bonus, (*state, token)

    def final(self, state: tuple[int, ...]) -> float:
        return self.weight * self._log_prob(state, EOS)

    def _log_prob(self, state: tuple[int, ...], token: int) -> float:
        return float(self.model.decoder(torch.tensor([state]), None)[0, -1].log_softmax(-1)[token])


class SlowLm(NeuralLm):
    """Takes the place of the real one."""

    model: LmModel

    def scorer(self, tokenizer: Tokenizer, *, weight: float = 0.5, token_bonus: float = 0.0) -> Any:
        return SlowScorer(self.model, weight, token_bonus)


def encoder() -> ConformerEncoder:
    return ConformerEncoder(
        input_dim=12, dim=16, num_layers=1, num_heads=2, ff_dim=16, kernel_size=5, subsampling="dw4", dropout=0.0
    )


def sharpen(head: Any) -> None:
    """Random networks are sure of nothing; searches should have something to find."""
    head.requires_grad_(False).weight.mul_(6.0)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.manual_seed(1)
    vocab = TOKENIZER.vocab_size
    small = {"decoder_layers": 1, "decoder_heads": 2, "decoder_ff_dim": 16}
    built: dict[str, Any] = {
        "ctc": CtcModel(encoder=encoder(), vocab_size=vocab).eval(),
        "aed": AedModel(encoder=encoder(), vocab_size=vocab, **small).eval(),
        "cassnat": CassNatModel(encoder=encoder(), vocab_size=vocab).eval(),
        "lm": LmModel(vocab_size=vocab, dim=16, num_layers=2, num_heads=2, ff_dim=16).eval().requires_grad_(False),
    }
    for model in (built["ctc"], built["aed"]):
        sharpen(model.head)
    sharpen(built["lm"].decoder.head)
    return built


@pytest.mark.parametrize(
    ("family", "infer", "options", "settings"),
    [
        ("ctc", ctc_infer, CtcDecodeOptions, {"method": "beam", "beam_size": 4}),
        ("ctc", ctc_infer, CtcDecodeOptions, {"method": "beam", "beam_size": 4, "hotwords": ["ab"]}),
        ("aed", aed_infer, AedDecodeOptions, {"method": "beam", "beam_size": 3, "ctc_weight": 0.3}),
        ("aed", aed_infer, AedDecodeOptions, {"method": "beam", "beam_size": 3, "hotwords": ["ab"]}),
        ("aed", aed_infer, AedDecodeOptions, {"method": "rescore", "beam_size": 3, "ctc_weight": 0.5}),
        ("aed", aed_infer, AedDecodeOptions, {"method": "ctc", "beam_size": 3}),
        ("cassnat", cassnat_infer, CassNatDecodeOptions, {"num_samples": 6, "threshold": 1.0, "rank_by": "lm"}),
    ],
)
def test_every_search_takes_it(models: dict[str, Any], family: str, infer: Any, options: Any, settings: dict[str, Any]) -> None:
    lm: LmModel = models["lm"]
    slow = SlowLm(decoder=lm.decoder, tokenizer=TOKENIZER, name="slow")
    slow.model = lm
    fast = NeuralLm(decoder=lm.decoder, tokenizer=TOKENIZER, name="fast")
    found = []
    for each in (slow, fast):
        chosen = options(lm=each, lm_weight=0.8, word_bonus=0.5, **settings)
        found.append(infer(models[family], FEATS, LENS, tokenizer=TOKENIZER, options=chosen))
    assert [hypothesis.tokens for hypothesis in found[1]] == [hypothesis.tokens for hypothesis in found[0]]
    assert [h.score for h in found[1]] == pytest.approx([h.score for h in found[0]], abs=1e-3)
    assert any(hypothesis.tokens for hypothesis in found[1])

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from speechkit.models.aed.model import AedModel
from speechkit.models.aed.ranker import AedRanker
from speechkit.models.cassnat.infer import CassNatDecodeOptions, infer
from speechkit.models.cassnat.model import CassNatModel, Encoding, Prediction
from speechkit.nn.conformer import ConformerEncoder
from speechkit.search.alignment_sampling import Alignments, sample_alignments
from speechkit.search.decoder_calls import count_calls
from speechkit.search.lm import estimate_arpa
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import Hypothesis

TOKENIZER = CharTokenizer.train(["ab ba cab"])
FEATS, LENS = torch.randn(5, 120, 12, generator=torch.Generator().manual_seed(4)), torch.tensor([120, 3, 77, 0, 118])
A, B, C = (TOKENIZER.encode(char)[0] for char in "abc")


class Echo:
    """Stands in for a model: features are CTC probabilities, and each token is what CTC saw, with certainty `sure`."""

    subsampling_factor = 4

    def __init__(self, *, sure: float = 0.5, replace: dict[int, int] | None = None) -> None:
        self.sure, self.replace = sure, replace or {}
        self.num_alignments: list[int] = []

    def encode(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Encoding:
        return Encoding(feats_BTF, feat_lens_B, feats_BTF.log())

    def predict(self, encoding: Encoding, alignments: Alignments) -> Prediction:
        self.num_alignments.append(len(alignments.rows_R))
        tokens_RU = alignments.tokens_RU.clone()
        for old, new in self.replace.items():
            tokens_RU[alignments.tokens_RU == old] = new
        shape = len(tokens_RU), tokens_RU.shape[1] + 1
        log_probs_RQ = torch.full(shape, self.sure).log()
        return Prediction(tokens_RU, log_probs_RQ.masked_fill(torch.arange(shape[1]) > alignments.token_lens_R[:, None], 0.0))


def spoken(text: str, *, doubts: dict[int, str] | None = None) -> Tensor:
    """Probabilities that spell a text, two frames a token and a blank; a frame in doubt is 0.5 to 0.4 for another."""
    labels = [label for token in TOKENIZER.encode(text) for label in (token, token, 0)]
    probs = torch.full((len(labels), TOKENIZER.vocab_size), 0.01)
    probs[range(len(labels)), labels] = 0.95
    for frame, rival in (doubts or {}).items():
        probs[frame, labels[frame]], probs[frame, TOKENIZER.encode(rival)[0]] = 0.5, 0.4
    return probs / probs.sum(1, keepdim=True)


def decode(model: Any, *rows: Tensor, **settings: Any) -> list[Hypothesis]:
    feats = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lens = torch.tensor([len(row) for row in rows])
    options = CassNatDecodeOptions(**settings)
    return infer(cast(CassNatModel, model), feats, lens, tokenizer=TOKENIZER, options=options, frame_shift=0.01)


def test_words_tokens_times_and_confidences() -> None:
    hyps = decode(Echo(sure=0.8), spoken("ab ba"), spoken(""), spoken("cab"), timestamps="word")
    assert [hyp.text for hyp in hyps] == ["ab ba", "", "cab"]
    assert [word.text for word in hyps[0].words] == ["ab", "ba"]
    # a: frames 0-1, b: 3-4, space: 6-7, b: 9-10, a: 12-13; 40 ms each
    assert [time.start for time in hyps[0].token_times] == pytest.approx([0.0, 0.12, 0.24, 0.36, 0.48])
    assert [time.end for time in hyps[0].token_times] == pytest.approx([0.08, 0.20, 0.32, 0.44, 0.56])
    assert hyps[0].confidence == pytest.approx(0.8, abs=1e-6)
    assert hyps[0].score == pytest.approx(float(torch.tensor(0.8).log()), abs=1e-6)  # per token
    assert (hyps[1].tokens, hyps[1].words, hyps[1].confidence) == ((), (), 1.0)
    plain = decode(Echo(), spoken("ab"))[0]
    assert (plain.words, plain.token_times) == ((), ())


@pytest.mark.parametrize("silent", [0, 2, 3])
def test_blank_start_and_end_are_left_out_of_the_text(silent: int) -> None:
    [hyp] = decode(Echo(replace={B: silent}), spoken("abca"), timestamps="token")
    assert hyp.text == "aca"
    assert [time.start for time in hyp.token_times] == pytest.approx([0.0, 0.24, 0.36])


def test_only_distinct_alignments_are_decoded() -> None:
    model = Echo()
    decode(model, spoken("ab ba"), spoken("cab", doubts={0: "b", 4: "c"}), num_samples=40)
    # frames 0 and 4 in doubt: "ca", "bca", with "ab" or with "acb": the first utterance has one alignment, the second four
    assert model.num_alignments == [1 + 4]


def test_a_language_model_chooses(tmp_path: Path) -> None:
    path = tmp_path / "words.arpa"
    estimate_arpa(["ab", "ab ba", "ab"], order=2).save(path)
    rows = spoken("cb", doubts={0: "a", 1: "a"}), spoken("ba")
    assert [hyp.text for hyp in decode(Echo(), *rows, num_samples=30)][1] == "ba"
    chosen = decode(Echo(), *rows, num_samples=30, rank_by="lm", lm=str(path), lm_weight=2.0)
    assert [hyp.text for hyp in chosen] == ["ab", "ba"]
    assert decode(Echo(), *rows, num_samples=1, rank_by="lm", lm=str(path))[0].text == "cb"  # nothing to choose from
    pieces = tmp_path / "pieces.arpa"
    estimate_arpa(["a b", "a b"], order=2).save(pieces)
    assert decode(Echo(), *rows, num_samples=30, rank_by="lm", lm=str(pieces), lm_unit="token")[0].text == "ab"


class PrefersLength:
    """A ranker that wants `length` tokens; keeps what it was asked."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked: list[list[tuple[int, ...]]] = []

    def score(
        self, sequences: Sequence[Sequence[tuple[int, ...]]], feats_BTF: Tensor, feat_lens_B: Tensor
    ) -> Sequence[Sequence[float]]:
        assert len(sequences) == len(feats_BTF) == len(feat_lens_B)
        self.asked += [list(own) for own in sequences]
        return [[-(len(ids) + 1) * (1.0 + abs(len(ids) - self.length)) for ids in own] for own in sequences]


@pytest.mark.parametrize("length", [2, 3])
def test_a_ranker_chooses_and_is_asked_once_for_each_candidate(length: int) -> None:
    ranker = PrefersLength(length)
    # The second frame of "a" may be a "c"; the first frame of "c" may be an "a", or just move the spike with the blank.
    rows = spoken("ab", doubts={1: "c"}), spoken("cab", doubts={0: "a"})
    hyps = decode(Echo(), *rows, num_samples=30, rank_by="ranker", ranker=ranker)
    assert len(hyps[0].tokens) == length
    assert hyps[0].score == pytest.approx(-1.0)
    assert [sorted(own) for own in ranker.asked] == [sorted([(A, B), (A, C, B)]), sorted([(C, A, B), (A, C, A, B)])]


def aed_ranker() -> AedRanker:
    torch.manual_seed(1)
    encoder = ConformerEncoder(input_dim=12, dim=16, num_layers=1, num_heads=2, ff_dim=32, kernel_size=5)
    sizes: dict[str, Any] = {"decoder_layers": 1, "decoder_heads": 2, "decoder_ff_dim": 32}
    return AedRanker(model=AedModel(encoder=encoder, vocab_size=TOKENIZER.vocab_size, **sizes).eval())


def test_an_attention_decoder_fits_as_ranker() -> None:
    ranker = aed_ranker()
    settings: dict[str, Any] = {"num_samples": 8, "rank_by": "ranker", "ranker": ranker}
    hyps = infer(real_model(), FEATS, LENS, tokenizer=TOKENIZER, options=CassNatDecodeOptions(**settings))
    totals = ranker.score([[hyp.tokens] for hyp in hyps], FEATS, LENS)
    assert [hyp.score * (len(hyp.tokens) + 1) for hyp in hyps] == pytest.approx([own[0] for own in totals], abs=1e-4)
    with count_calls(ranker.model.decoder) as calls:
        infer(real_model(), FEATS, LENS, tokenizer=TOKENIZER, options=CassNatDecodeOptions(**settings))
    assert calls.num_calls == 1, "all candidates of all utterances together"
    unloaded = CassNatDecodeOptions(rank_by="ranker", ranker="a/folder")
    with pytest.raises(ValueError, match="ranker=a/folder is not loaded"):
        infer(real_model(), FEATS, LENS, tokenizer=TOKENIZER, options=unloaded)


def real_model() -> CassNatModel:
    torch.manual_seed(0)
    encoder = ConformerEncoder(input_dim=12, dim=16, num_layers=2, num_heads=2, ff_dim=32, kernel_size=5)
    model = CassNatModel(
        encoder=encoder, vocab_size=TOKENIZER.vocab_size, sad_layers=1, mad_layers=1, decoder_heads=2, decoder_ff_dim=32
    ).eval()
    with torch.no_grad():
        model.head.weight.mul_(8)
        model.head.bias.copy_(-model.head.weight @ model.encoder(FEATS[:1], LENS[:1])[0].mean(dim=(0, 1)))  # labels vary
        model.token_head.weight.mul_(8)
        model.token_head.bias[:4] -= 20  # no special tokens
    return model


def test_best_path_is_sample_zero_and_ranking_never_loses() -> None:
    model = real_model()
    encoding = model.encode(FEATS, LENS)
    greedy = sample_alignments(encoding.log_probs_BTV, encoding.lens_B, num_samples=1)
    best = infer(model, FEATS, LENS, tokenizer=TOKENIZER)
    assert [len(hyp.tokens) for hyp in best] == greedy.token_lens_R.tolist()
    certain = infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=CassNatDecodeOptions(num_samples=8, threshold=0.0))
    assert certain == best
    previous = [hyp.score for hyp in best]
    for num_samples in (4, 16):
        options = CassNatDecodeOptions(num_samples=num_samples)
        scores = [hyp.score for hyp in infer(model, FEATS, LENS, tokenizer=TOKENIZER, options=options)]
        assert all(score >= before - 1e-5 for score, before in zip(scores, previous))
        assert sum(scores) > sum(previous)
        previous = scores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"rank_by": "at"}, "rank_by='at' is unknown"),
        ({"rank_by": "lm"}, "rank_by=lm and lm=None do not fit"),
        ({"lm": "words.arpa"}, "rank_by=model and lm=words.arpa do not fit"),
        ({"rank_by": "ranker"}, "rank_by=ranker and ranker=None do not fit"),
        ({"timestamps": "char"}, "timestamps='char' is unknown"),
        ({"rank_by": "lm", "lm": "x", "lm_unit": "char"}, "lm_unit='char' is unknown"),
    ],
)
def test_impossible_options_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CassNatDecodeOptions(**settings)

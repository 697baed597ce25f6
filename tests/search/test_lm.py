"""N-gram models against KenLM and by hand; scorers through real tokenizers."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from speechkit.search.ctc_prefix_beam import ctc_prefix_beam
from speechkit.search.lm import (
    ArpaLm,
    KenLm,
    LanguageModel,
    Scorer,
    SumScorer,
    TokenScorer,
    WordScorer,
    estimate_arpa,
    lm_tokens,
    load_lm,
)
from speechkit.text.tokenizers import CharTokenizer, PhonemeTokenizer, SentencePieceTokenizer

ARPA = """\

\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.5\ta\t-0.25
-0.7\tb\t-0.125

\\2-grams:
-0.2\t<s> a\t-0.1
-0.4\ta b\t-0.6
-0.3\tb </s>
-0.45\tb a\t-0.05

\\3-grams:
-0.15\t<s> a b
-0.35\ta b a

\\end\\
"""
TEXTS = ["a b", "a b a", "b a", "a a b c", "c", ""]


def sentence_logp(lm: LanguageModel, words: list[str]) -> float:
    state, total = lm.initial_state(), 0.0
    for word in words:
        logp, state = lm.score(state, word)
        total += logp
    return total + lm.final(state)


def fused(scorer: Scorer, tokens: list[int]) -> float:
    state, total = scorer.initial_state(), 0.0
    for token in tokens:
        added, state = scorer.score(state, token)
        total += added
    return total + scorer.final(state)


@pytest.fixture
def arpa_path(tmp_path: Path) -> Path:
    path = tmp_path / "hand.arpa"
    path.write_text(ARPA, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "log10"),
    [
        (["a", "b"], -0.2 - 0.15 + (-0.6 - 0.3)),  # </s> after "a b": back-off of "a b", then "b </s>"
        (["b"], (-0.3 - 0.7) - 0.3),
        (["a", "b", "a"], -0.2 - 0.15 - 0.35 + (-0.05 - 0.25 - 0.9)),
        (["what"], (-0.3 - 1.5) - 0.9),
        ([], -0.3 - 0.9),
    ],
)
def test_back_off_by_hand(arpa_path: Path, words: list[str], log10: float) -> None:
    assert sentence_logp(ArpaLm.load(arpa_path), words) == pytest.approx(log10 * math.log(10), abs=1e-9)


@pytest.mark.parametrize("source", ["hand", "no_unk", "estimated"])
def test_parity_with_kenlm(arpa_path: Path, source: str) -> None:
    pytest.importorskip("kenlm")
    if source == "estimated":
        estimate_arpa(TEXTS, order=3).save(arpa_path)
    elif source == "no_unk":
        arpa_path.write_text(ARPA.replace("-1.5\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4"), encoding="utf-8")
    ours, theirs = load_lm(arpa_path), KenLm(arpa_path)
    assert isinstance(ours, ArpaLm)
    assert ours.order == theirs.order == 3
    for length in range(5):
        for words in itertools.product(["a", "b", "zz"], repeat=length):
            assert sentence_logp(ours, list(words)) == pytest.approx(sentence_logp(theirs, list(words)), abs=1e-4)


@pytest.mark.parametrize("name", ["copy.arpa", "copy.arpa.gz"])
def test_saved_model_is_the_same(arpa_path: Path, tmp_path: Path, name: str) -> None:
    lm = ArpaLm.load(arpa_path)
    lm.save(tmp_path / name)
    again = load_lm(tmp_path / name)
    for words in itertools.product(["a", "b", "zz"], repeat=3):
        assert sentence_logp(again, list(words)) == pytest.approx(sentence_logp(lm, list(words)), rel=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("\\data\\", "data", 24, "no .data. section"),
        ("ngram 2=4", "ngram 3=4", 4, "ngram 2=<count>"),
        ("ngram 1=5", "ngram 1=6", 14, "5 entries where .data. says 6"),
        ("-0.5\ta\t-0.25", "-0.5\ta b c d", 11, "has 5 fields"),
        ("-0.5\ta\t-0.25", "half\ta\t-0.25", 11, "numbers"),
        ("-0.5\ta\t-0.25", "0.5\ta\t-0.25", 11, "above 0"),
        ("-0.7\tb\t-0.125", "-0.7\ta\t-0.125", 12, "twice"),
        ("\\2-grams:", "\\3-grams:", 14, "where .2-grams: or"),
        ("ngram 3=2", "ngram 3=2\nngram 4=1", 25, "announces 4 orders"),
        ("\\end\\", "", 24, "ends before"),
    ],
)
def test_broken_files_name_the_line(arpa_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert ARPA.count(old) >= 1
    arpa_path.write_text(ARPA.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        ArpaLm.load(arpa_path)
    assert str(error.value).startswith(f"{arpa_path}:{line}: "), error.value


def test_truncated_gzip_and_wrong_encoding_are_named(tmp_path: Path) -> None:
    packed = tmp_path / "cut.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode())[:-20])
    latin = tmp_path / "latin.arpa"
    latin.write_bytes(ARPA.replace("\ta\t", "\t\u00e9\t").encode("latin-1"))
    for path in (packed, latin):
        with pytest.raises(ValueError, match=path.name):
            ArpaLm.load(path)


def test_kenlm_errors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kenlm")
    bad = tmp_path / "bad.bin"
    bad.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.bin"):
        load_lm(bad)
    monkeypatch.setitem(__import__("sys").modules, "kenlm", None)
    with pytest.raises(ImportError, match=r"speechkit\[lm\]"):
        KenLm(bad)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_estimated_probabilities_sum_to_one(order: int) -> None:
    lm = estimate_arpa(TEXTS, order=order)
    assert lm.order == order
    for length in range(4):
        for words in itertools.product(["a", "b", "c", "zz"], repeat=length):
            state = lm.initial_state()
            for word in words:
                state = lm.score(state, word)[1]
            total = sum(math.exp(lm.score(state, word)[0]) for word in ["a", "b", "c", "</s>", "<unk>"])
            assert total == pytest.approx(1.0, abs=1e-9)


def test_witten_bell_by_hand() -> None:
    """Two sentences "a" and "a b": unigrams a 2, b 1, </s> 2; vocabulary of four with <unk>."""
    lm = estimate_arpa(["a", "a b"], order=2)
    unigram_a, unigram_unk = (2 + 3 / 4) / (5 + 3), (3 / 4) / (5 + 3)
    state = lm.initial_state()
    assert math.exp(lm.score(state, "a")[0]) == pytest.approx((2 + unigram_a) / 3)
    assert math.exp(lm.score(state, "new")[0]) == pytest.approx(1 / 3 * unigram_unk)


@pytest.mark.parametrize(("texts", "order", "message"), [([""], 2, "no words"), (["a"], 0, "order"), (["a <s>"], 2, "<s>")])
def test_wrong_training_arguments_are_named(texts: list[str], order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_arpa(texts, order=order)


@pytest.mark.parametrize("kind", ["char", "sentencepiece", "phoneme"])
def test_word_scorer_scores_each_word_once(kind: str) -> None:
    texts = ["ab ba", "a b", "ab", "ba ab a b", ""]
    if kind == "char":
        tokenizer = CharTokenizer.train(texts)
    elif kind == "sentencepiece":
        tokenizer = SentencePieceTokenizer.train(texts * 5, vocab_size=12)
    else:
        texts = ["a b | b a", "a | b", "a b", ""]
        tokenizer = PhonemeTokenizer.train(texts)
    words_of = {text: [word for word, _ in tokenizer.split_words(tokenizer.encode(text))] for text in texts}
    lm = estimate_arpa(["ab ba ab", "a b ab", "zz"], order=2)
    scorer = WordScorer(lm=lm, tokenizer=tokenizer, weight=0.7, word_bonus=0.4)
    for text, words in words_of.items():
        expected = 0.7 * sentence_logp(lm, words) + 0.4 * len(words)
        assert fused(scorer, tokenizer.encode(text)) == pytest.approx(expected)


def test_token_scorer_and_sum() -> None:
    tokenizer = CharTokenizer.train(["ab ba"])
    texts = ["ab ba", "ba ba"]
    lm = estimate_arpa([" ".join(lm_tokens(tokenizer, tokenizer.encode(text))) for text in texts], order=3)
    scorer = TokenScorer(lm=lm, tokenizer=tokenizer, weight=0.5, token_bonus=0.1)
    tokens = tokenizer.encode("ab ba")
    expected = 0.5 * sentence_logp(lm, ["a", "b", "\u2581", "b", "a"]) + 0.1 * 5
    assert fused(scorer, tokens) == pytest.approx(expected)
    assert fused(SumScorer([scorer, scorer]), tokens) == pytest.approx(2 * expected)


def test_language_model_corrects_a_word() -> None:
    tokenizer = CharTokenizer.train(["the cat sat"])
    lm = estimate_arpa(["the cat sat"] * 5 + ["the hat"], order=2)
    log_probs = np.full((1, 40, tokenizer.vocab_size), 1e-4)
    log_probs[0, :, 0] = 1.0
    for i, char in enumerate("the cat sat"):
        log_probs[0, 2 + 3 * i, tokenizer.encode(char)[0] if char != " " else tokenizer.encode("a b")[1]] = 5.0
    log_probs[0, 2 + 3 * 5] = 1e-4
    log_probs[0, 2 + 3 * 5, [tokenizer.encode("e")[0], tokenizer.encode("a")[0]]] = 0.55, 0.45
    x = torch.from_numpy(log_probs / log_probs.sum(-1, keepdims=True)).log()
    lens = torch.tensor([40])
    assert tokenizer.decode(ctc_prefix_beam(x, lens)[0][0].tokens) == "the cet sat"
    scorer = WordScorer(lm=lm, tokenizer=tokenizer, weight=0.5)
    assert tokenizer.decode(ctc_prefix_beam(x, lens, scorer=scorer)[0][0].tokens) == "the cat sat"

"""Phonemisation in the notation of the phoneme tokenizer, and its fallback."""

from __future__ import annotations

import warnings

import pytest

from speechkit.text import espeak, phonemes
from speechkit.text.tokenizers import PhonemeTokenizer


def test_espeak_notation_feeds_the_tokenizer() -> None:
    pytest.importorskip("espeakng_loader")
    texts = phonemes.phonemize(["Hello world.", "The straße, please!"], "en")
    assert texts[0] == "h ə l ˈoʊ | w ˈɜː l d"
    tokenizer = PhonemeTokenizer.train(texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids) == text
    assert len(tokenizer.split_words(tokenizer.encode(texts[0]))) == 2


def test_stress_and_separator() -> None:
    pytest.importorskip("espeakng_loader")
    assert phonemes.phonemize(["hello world"], "en", stress=False, separator="#") == ["h ə l oʊ # w ɜː l d"]


@pytest.mark.parametrize(("lang", "voice"), [("en", "en-us"), ("en-GB", "en-gb"), ("fr", "fr-fr"), ("pt_BR", "pt-br"),
                                             ("zh", "cmn"), ("de-AT", "de"), ("vi", "vi")])  # fmt: skip
def test_language_codes(lang: str, voice: str) -> None:
    pytest.importorskip("espeakng_loader")
    assert phonemes.voice_of(lang) == voice


def test_unknown_language_and_backend() -> None:
    pytest.importorskip("espeakng_loader")
    with pytest.raises(ValueError, match="lang='zz'"):
        phonemes.phonemize(["a"], "zz")
    with pytest.raises(ValueError, match="backend='festival'"):
        phonemes.phonemize(["a"], "en", "festival")  # type: ignore[arg-type]


def test_characters() -> None:
    texts = ["It's 2 o'clock!", "Café — Ünï", "", "你好 世界"]
    assert phonemes.phonemize(texts, "en", "characters") == [
        "i t s | 2 | o c l o c k", "c a f é | ü n ï", "", "你 好 | 世 界",
    ]  # fmt: skip


def test_fallback_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "available", lambda: False)
    phonemes._warn_of_characters.cache_clear()
    with pytest.warns(UserWarning, match=r"speechkit\[demo\]"):
        assert phonemes.phonemize(["ab c"], "en") == ["a b | c"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert phonemes.phonemize(["ab c"], "en") == ["a b | c"]
    phonemes._warn_of_characters.cache_clear()

"""Normalisers: what they do, that they are versioned, and that they fail clearly."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.text import espeak
from speechkit.text.normalize import NORMALIZER_NAMES, get_normalizer


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Don’t  STOP -- it's\t3.5 %!", "don't stop it's 3 5"),
        ("'quoted' dogs' ‘n’ rock'n'roll", "quoted dogs n rock'n'roll"),
        ("ﬁne Ｆｕｌｌ ① Œuvre Große ÄÖ", "fine full 1 œuvre große äö"),
        ("snake_case a/b <noise> [x] €5", "snake case a b noise x 5"),
        ("你好，世界。", "你好 世界"),
        ("นี่ก็คือ हिन्दी", "นี่ก็คือ हिन्दी"),
        ("😀\u200b\x00 \u3000", ""),
        ("e\u0301te\u0301", "été"),
    ],
)
def test_basic(text: str, wanted: str) -> None:
    assert get_normalizer("basic")(text) == unicodedata.normalize("NFKC", wanted)


def test_char_removes_spaces_and_none_does_nothing() -> None:
    assert get_normalizer("char")("你 好， W o\u3000rld!") == "你好world"
    assert get_normalizer("none")("  A, b ") == "  A, b "


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_basic_is_idempotent_and_clean(text: str) -> None:
    basic = get_normalizer("basic")
    once = basic(text)
    assert basic(once) == once
    assert once == " ".join(once.split())
    assert not any(unicodedata.category(c)[0] in "PSC" for c in once if c not in "' ")


def test_whisper_en() -> None:
    pytest.importorskip("whisper_normalizer")
    whisper = get_normalizer("whisper_en")
    assert whisper("Um, Mr. Smith's colour is twenty-one, [noise] won't it?") == "mister smith is color is 21 will not it"
    assert whisper.id.startswith("whisper_en-1+whisper-normalizer-0.")


def test_versions() -> None:
    for name in NORMALIZER_NAMES[:3]:
        normalizer = get_normalizer(name)
        assert normalizer.id == f"{name}-1" == f"{normalizer.name}-{normalizer.version}"
        assert get_normalizer(normalizer.id) == normalizer
    with pytest.raises(ValueError, match="'basic-7' was asked for, but 'basic-1' is installed"):
        get_normalizer("basic-7")
    with pytest.raises(ValueError, match="'nope' is unknown; use one of: none, basic, char, whisper_en"):
        get_normalizer("nope")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "whisper_normalizer.english", None)
    get_normalizer.cache_clear()
    with pytest.raises(ImportError, match=r"pip install \"speechkit\[train\]\""):
        get_normalizer("whisper_en")


@pytest.mark.skipif(not espeak.available(), reason="espeakng-loader is not installed")
def test_phones_are_what_a_phoneme_tokenizer_encodes() -> None:
    normalizer = get_normalizer("phones_en")
    assert normalizer("Good morning, how?") == "ɡ ʊ d | m ɔːɹ n ɪ ŋ | h aʊ"
    assert normalizer("?!") == normalizer("") == ""
    assert normalizer.id == "phones_en-2+espeak"
    assert get_normalizer("phones_pt_br")("bom").split()[0] == "b"
    assert pickle.loads(pickle.dumps(normalizer)).id == normalizer.id
    with pytest.raises(ValueError, match="xx"):
        get_normalizer("phones_xx")

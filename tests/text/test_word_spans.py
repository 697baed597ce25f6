"""Words of a text and their phones: every sound belongs to one word, whatever the front end joins or spells out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.text import espeak
from speechkit.text.frontend import FrontEnd
from speechkit.text.phonemes import is_boundary
from speechkit.text.word_spans import text_words, word_spans

NUMBERS = {"25": "| t w e n | f a v |", "of": "| o v |", "out": "| a u t |", "the": "| th e |", "-": ""}


def read(word: str) -> list[str]:
    """A word alone, by the table or letter by letter."""
    return NUMBERS.get(word, f"| {' '.join(word)} .").split()


def spelt(words: list[str], phones: str) -> list[str]:
    """What each word is made of."""
    symbols = phones.split()
    sounds = [symbol for symbol in symbols if not is_boundary(symbol)]
    return ["".join(sounds[span]) for span in word_spans(words, symbols, read)]


@pytest.mark.parametrize(
    ("words", "phones", "wanted"),
    [
        (["ab", "cd"], "| a b | c d .", ["ab", "cd"]),
        (["ab", "25", "cd"], "| a b | t w e n | f a v , c d .", ["ab", "twenfav", "cd"]),
        (["out", "of", "ab"], "| a u d o v | a b .", ["aud", "ov", "ab"]),
        (["25", "out", "of"], "| t w e n | f a v | a u d o v .", ["twenfav", "aud", "ov"]),
        (["ab", "-", "cd"], "| a b , c d .", ["ab", "", "cd"]),
        (["the", "ab"], "| th i | a b .", ["thi", "ab"]),
        (["ab"], "| x y z .", ["xyz"]),
        ([], "| a .", []),
        (["ab"], "", [""]),
    ],
)
def test_words_find_their_sounds(words: list[str], phones: str, wanted: list[str]) -> None:
    assert spelt(words, phones) == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=5), st.text("abc|", max_size=16))
def test_ranges_tile_the_sounds(words: list[str], phones: str) -> None:
    symbols = list(f"|{phones}.")
    num_sounds = sum(not is_boundary(symbol) for symbol in symbols)
    spans = word_spans(words, symbols, read)
    edges = [0, *(edge for span in spans for edge in (span.start, span.stop))]
    assert edges == sorted(edges)
    assert sum(span.stop - span.start for span in spans) in (num_sounds, 0)


def test_words_are_as_written() -> None:
    assert text_words('He said: "25% of \u00abthem\u00bb \u2014 don\'t!" \u2026 {h \u0259} $5') == [
        "He", "said", "25%", "of", "them", "\u2014", "don't", "\u2026", "{h \u0259}", "$5",
    ]  # fmt: skip
    assert text_words("\u4f60\u597d\uff0c\u4e16\u754c\u3002") == ["\u4f60", "\u597d", "\u4e16", "\u754c"]
    assert text_words(" \n") == []


@pytest.mark.skipif(not espeak.available(), reason="espeakng-loader is not installed")
def test_numbers_and_joined_words_of_english() -> None:
    front = FrontEnd(lang="en")
    text = "It's on the 3rd; Dr. Smith's 50% off, 25 out of them came."
    symbols = front.phones(text)
    sounds = [symbol for symbol in symbols if not is_boundary(symbol)]
    words = text_words(text)
    found = {word: "".join(sounds[span]) for word, span in zip(words, word_spans(words, symbols, front.phones))}
    assert found["50%"].startswith("f")
    assert found["50%"].endswith("nt")
    assert (found["on"], found["the"]) == ("\u0254n", "\u00f0\u0259")
    assert found["25"].startswith("tw")
    assert all(found.values())

"""Long texts in pieces."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.text.sentences import split_text


@pytest.mark.parametrize(
    ("lang", "pieces"),
    [
        ("en", ["Dr. Smith paid 3.5 kg to J. R. Jones.", "He left at 5 p.m. with No. 7.", "Then he came!", "Really?"]),
        ("en", ['"Really?" she said... and left.', "(It is so.)", "“Yes!”", "That is it…", "The U.S.A. is, e.g. big"]),
        ("en", ["One etc.", "Two Inc.", "Three vs. four.", "St. Louis has 1.000 people.", "Wait... yes", "\n\nNew paragraph"]),
        ("de", ["Das ist z. B. gut.", "Am 3. Mai kam Dr. Meier usw.", "Es war 1984.", "Dann ging er um 300 v. Chr.", "Ende"]),
        ("fr", ["M. Dupont a 1 234 euros.", "C'est, p. ex. bon !", "Oui ?"]),
        ("es", ["¿Qué tal?", "¡Hola!", "El Sr. Pérez, p. ej. va a EE. UU. hoy.", "Bien."]),
        ("zh", ["你好，世界。", "今天！", "“好。”", "好"]),
    ],
)
def test_sentences(lang: str, pieces: list[str]) -> None:
    text = ("" if lang == "zh" else " ").join(pieces)
    assert split_text(text, lang=lang) == [piece.strip() for piece in pieces]


def test_long_sentences_are_cut_at_clauses_then_at_words() -> None:
    text = "One two, three four; five six seven eight nine ten eleven twelve, thirteen - fourteen (fifteen sixteen)."
    assert split_text(text, max_chars=30) == [
        "One two, three four;", "five six seven eight nine ten", "eleven twelve,", "thirteen -", "fourteen (fifteen sixteen).",
    ]  # fmt: skip
    assert split_text("Short. " + text, max_chars=200) == ["Short.", text]


def test_what_belongs_together_stays_together() -> None:
    text = "5 kg of Dr. Smith 1 234 500 and No. 5 {a , b . c} J. R. X. y extraordinarily"
    assert split_text(text, max_chars=1) == [
        "5 kg", "of", "Dr. Smith", "1 234 500", "and", "No. 5", "{a , b . c}", "J. R. X. y", "extraordinarily",
    ]  # fmt: skip
    assert split_text("am 3. Mai z. B. Hr. X 5 € usw. und", max_chars=1, lang="de") == [
        "am", "3. Mai", "z. B. Hr. X", "5 €", "usw.", "und",
    ]  # fmt: skip
    assert split_text("你好，世界", max_chars=3, lang="zh") == ["你好，", "世界"]


def test_nothing_to_split() -> None:
    assert split_text("") == split_text(" \n") == []
    assert split_text(" a ") == ["a"]
    with pytest.raises(ValueError, match="max_chars=0"):
        split_text("a", max_chars=0)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=100) | st.text("abAB12.,;:!?…—-'\")({} \n世。", max_size=100),
    max_chars=st.integers(1, 60),
    lang=st.sampled_from(["en", "de", "fr", "es", "zh", "ru"]),
)
def test_pieces_hold_the_text(text: str, max_chars: int, lang: str) -> None:
    pieces = split_text(text, max_chars=max_chars, lang=lang)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and piece == piece.strip() for piece in pieces)
    words = [word for piece in pieces for word in piece.split()]
    assert set(text.split()) <= set(words) or any(mark in text for mark in "—。世，、") or not text.isascii()
    assert split_text(text, max_chars=max_chars, lang=lang) == pieces


@given(words=st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=60), max_chars=st.integers(10, 40))
def test_pieces_are_as_long_as_they_may_be(words: list[str], max_chars: int) -> None:
    pieces = split_text(" ".join(words), max_chars=max_chars)
    assert all(len(piece) <= max_chars for piece in pieces)
    assert all(len(first) + 1 + len(second.split()[0]) > max_chars for first, second in pairwise(pieces))


@pytest.mark.parametrize("unit", ["a. ", "a ", "a", ". ", "世", "{", "{a} ", "'", "1 ", "。", "a—"])
def test_time_grows_with_the_text_alone(unit: str) -> None:
    text = (unit * 20000)[:20000]
    begin = time.process_time()
    split_text(text, max_chars=50)
    assert time.process_time() - begin < 2.0


ENDLESS = {
    "numbers in lines": "\n".join(map(str, range(1, 3001))),
    "numbers": " ".join(map(str, range(1, 3001))),
    "numbers with commas": ",".join(map(str, range(1, 3001))),
    "a word": "a" * 20000,
    "initials": "A. B. C. D. " * 2000,
    "lines of initials": "A. B. C. D. E.\n" * 900,
    "dashes": "5 - " * 5000,
    "phones between": ("a" * 30 + "{x y z}") * 600,
    "phones": "{" + "a " * 20000 + "}",
    "a phone": "{" + "a" * 20000 + "}",
    "open braces": "{" * 20000,
    "marks": "." * 20000,
    "accents": "a" + "\u0301" * 20000,
}


@pytest.mark.parametrize("max_chars", [10, 200])
@pytest.mark.parametrize("name", ENDLESS)
def test_what_is_never_cut_is_cut_at_last(name: str, max_chars: int) -> None:
    text = ENDLESS[name]
    pieces = split_text(text, max_chars=max_chars)
    assert all(0 < len(piece) <= max(4 * max_chars, 200) for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    if name.startswith("numbers"):
        assert [word for piece in pieces for word in piece.replace(",", " ").split()] == [str(i) for i in range(1, 3001)]
    if name == "lines of initials":
        assert all(piece.startswith("A.") and piece.endswith("E.") for piece in pieces)
    if name == "phones between":
        assert sum(piece.count("{x y z}") for piece in pieces) == 600


def test_numbers_in_lines_are_cut_between_lines() -> None:
    assert split_text("1\n2\n3 4\n5\nkm", max_chars=3) == ["1\n2", "3 4", "5\nkm"]


def test_milliseconds_end_a_sentence() -> None:
    assert split_text("It took 5 ms. Then Ms. Smith came.") == ["It took 5 ms.", "Then Ms. Smith came."]


def test_feet_and_inches_stay_together() -> None:
    assert split_text("He is 5 ft. 3 in. tall. She left.") == ["He is 5 ft. 3 in. tall.", "She left."]

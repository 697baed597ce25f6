"""What is said for phones that a model never saw."""

from __future__ import annotations

import pytest

from speechkit.text.known_phones import KnownPhones, describe

NAMES = ["<unk>", *"|,.bdt\u0283hn", "i\u02d0", "\u026a", "\u02c8\u0254", "\u02cco\u028a", "e\u026a"]


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ("b", "b"),
        ("\u02c8e\u026a", "e\u026a"),
        ("o\u028a", "\u02cco\u028a"),
        ("\u02c8o\u028a", "\u02cco\u028a"),
        ("!", "."),
        ("?", "."),
        (";", ","),
        (":", ","),
        ("|", "|"),
        ("\u02c8\u0254\u026a", "\u02c8\u0254 \u026a"),
        ("t\u0283", "t \u0283"),
        ("i", "i\u02d0"),
        ("\u026a\u02d0", "\u026a"),
        ("n\u0329", "n"),
        ("a\u026a", "\u026a"),
        ("x", ""),
        ("<unk>", "n"),
        ("\u02c8", ""),
    ],
)
def test_what_is_said_for_a_symbol(symbol: str, said: str) -> None:
    assert KnownPhones(NAMES).stand_in(symbol) == said.split()


def test_marks_end_as_the_boundary_of_words() -> None:
    poor = KnownPhones(["|", "b"])
    assert [poor.stand_in(mark) for mark in ",.!?;:"] == [["|"]] * 6
    assert KnownPhones(["b"]).stand_in("!") == []


def test_one_boundary_between_words_where_one_is_left_out() -> None:
    known = KnownPhones(NAMES)
    assert known.said("|b|x,x|d!") == [*"|b,d."]
    assert known.said("|x.") == []
    assert known.ids(known.said("|bd!")) == [1, 4, 5, 3]


def test_words_for_warnings() -> None:
    known = KnownPhones(NAMES)
    assert describe({symbol: known.stand_in(symbol) for symbol in ("!", "x")}) == "! (said as .), x (left out)"

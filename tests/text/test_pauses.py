"""Pauses between pieces of a text."""

from __future__ import annotations

import time

import pytest

from speechkit.text.pauses import CLAUSE_PAUSE, PARAGRAPH_PAUSE, SENTENCE_PAUSE, pauses_before
from speechkit.text.sentences import split_text


@pytest.mark.parametrize(
    ("text", "pauses"),
    [
        ("One. Two! Three? Four\u2026 Five", [SENTENCE_PAUSE] * 4),
        ('"One." (Two!) Three', [SENTENCE_PAUSE] * 2),
        ("one two three, four five six seven", [CLAUSE_PAUSE, 0.0]),
        ("one two three four, five", [0.0, CLAUSE_PAUSE]),
        ("one two three - four five", [CLAUSE_PAUSE]),
        ("one two semi-detached", [0.0]),
        ("one two th semi- detached", [0.0]),
        ("Heading\n\nOne.\n \nTwo. Three", [PARAGRAPH_PAUSE, PARAGRAPH_PAUSE, SENTENCE_PAUSE]),
        ("\u5317\u98ce\u3002\u592a\u9633\u3002", [SENTENCE_PAUSE]),
        ("A line\nwith a break of", [0.0]),
        ("one", []),
        ("One. One. One.", [SENTENCE_PAUSE] * 2),
    ],
)
def test_pauses_by_what_stands_before(text: str, pauses: list[float]) -> None:
    pieces = split_text(text, max_chars=16)
    assert pauses_before(text, pieces) == [0.0, *pauses]


def test_marks_before_closing_quotes_and_brackets() -> None:
    pieces = ['(so," )', "{a, b}", "well- ", "- -", 'yes." )', "no"]
    assert pauses_before("".join(pieces), pieces) == [0.0, CLAUSE_PAUSE, 0.0, 0.0, CLAUSE_PAUSE, SENTENCE_PAUSE]


@pytest.mark.parametrize("mark", [".", "!", ",", "-", "\u2014", "'", "a"])
def test_time_grows_with_the_text_alone(mark: str) -> None:
    pieces = [mark * 20000 + "a", mark * 20000, "a"]
    begin = time.process_time()
    pauses_before(" ".join(pieces), pieces)
    assert time.process_time() - begin < 0.2


def test_no_pieces_no_pauses() -> None:
    assert pauses_before(" ", []) == []

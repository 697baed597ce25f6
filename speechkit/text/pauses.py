"""How long to pause between the pieces of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from speechkit.types import Seconds

CLAUSE_PAUSE: Seconds = 0.12
SENTENCE_PAUSE: Seconds = 0.25
PARAGRAPH_PAUSE: Seconds = 0.5

_EMPTY_LINE = re.compile(r"\n\s*\n")
_BACK = r"[^\w{}]*?"  # marks after the last word, from the end of the text on
_SENTENCE_END = re.compile(_BACK + "[.!?\u2026\u203d\u3002\uff0e\uff01\uff1f\u061f\u06d4\u0964\u0965]")
_CLAUSE_END = re.compile(_BACK + r"(?:[,;:\u2013\u2014\u060c\u061b\u3001\uff0c\uff1b\uff1a]|-(?!\w))")


def pauses_before(text: str, pieces: Sequence[str]) -> list[Seconds]:
    """Seconds of silence before each piece of a text, by what the piece before it ends with.

    An empty line counts most, then the end of a sentence, then that of a clause; pieces cut between words, and the first, have
    none.

    Args:
        text: the whole text.
        pieces: its pieces in order, as `speechkit.text.sentences.split_text` gives them.
    """
    pauses: list[Seconds] = []
    end = 0
    for number, piece in enumerate(pieces):
        begin = max(text.find(piece, end), end)
        pauses.append(_pause(pieces[number - 1], text[end:begin]) if number else 0.0)
        end = begin + len(piece)
    return pauses


def _pause(before: str, between: str) -> Seconds:
    if _EMPTY_LINE.search(between):
        return PARAGRAPH_PAUSE
    backwards = before[::-1]
    if _SENTENCE_END.match(backwards):
        return SENTENCE_PAUSE
    return CLAUSE_PAUSE if _CLAUSE_END.match(backwards) else 0.0

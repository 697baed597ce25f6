"""Phones that a model never saw, said by those that it knows.

What is said in the place of an unknown symbol, the first that is known:

- the same sound with other or no stress;
- for a mark, the next one that is known on the way "!" or "?" - "." - "," - "|", likewise ";" or ":" - "," - "|";
- the sounds that its letters make, the longest first, vowels also where they are known with another length, letters also
  without diacritics: a diphthong in its two parts, an affricate likewise;
- nothing: it is left out, and with the last sound of a word the boundary before it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from speechkit.text.phonemes import WORD_BOUNDARY, is_boundary, strip_stress

_STRESSES = ("\u02c8", "\u02cc", "")
_LONG = "\u02d0"
_WEAKER = {"!": ".", "?": ".", ";": ",", ":": ",", ".": ",", ",": WORD_BOUNDARY}
_STRENGTH = (WORD_BOUNDARY, *(",;:.!?"))


class KnownPhones:
    """The symbols of a model.

    Args:
        names: of its ids, in their order; those in angle brackets are no phones.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._ids = {name: i for i, name in enumerate(names) if not (name.startswith("<") and name.endswith(">"))}
        self._said: dict[str, list[str]] = {}

    def ids(self, symbols: Iterable[str]) -> list[int]:
        """Ids of symbols that are known."""
        return [self._ids[symbol] for symbol in symbols]

    def same_sound(self, symbol: str) -> str | None:
        """The symbol, or else the same sound with other or no stress, whichever the model knows; None for neither."""
        if symbol in self._ids or is_boundary(symbol):
            return symbol if symbol in self._ids else None
        bare = strip_stress(symbol)
        stressed = symbol != bare
        candidates = (stress + bare for stress in (_STRESSES if stressed else reversed(_STRESSES)))
        return next((candidate for candidate in candidates if candidate in self._ids), None)

    def stand_in(self, symbol: str) -> list[str]:
        """What is said for a symbol: itself where it is known, [] where it is left out."""
        if symbol not in self._said:
            same = self.same_sound(symbol)
            if same is not None:
                self._said[symbol] = [same]
            else:
                self._said[symbol] = self._mark(symbol) if is_boundary(symbol) else self._parts(symbol)
        return self._said[symbol]

    def said(self, symbols: Iterable[str]) -> list[str]:
        """Symbols of a text by those that are known, one boundary between words; [] where no sound is left."""
        found: list[str] = []
        for symbol in symbols:
            for name in self.stand_in(symbol):
                if found and is_boundary(name) and is_boundary(found[-1]):  # the word between them is gone
                    found[-1] = max(found[-1], name, key=_STRENGTH.index)
                else:
                    found.append(name)
        return found if not all(map(is_boundary, found)) else []

    def _mark(self, mark: str) -> list[str]:
        while mark in _WEAKER:
            mark = _WEAKER[mark]
            if mark in self._ids:
                return [mark]
        return []

    def _parts(self, symbol: str) -> list[str]:
        """The known sounds that the letters of a symbol make; its stress stays with the first."""
        bare = strip_stress(symbol)
        stress = symbol[: len(symbol) - len(symbol.lstrip("".join(_STRESSES)))][:1]
        found: list[str] = []
        begin = 0
        while begin < len(bare):
            for end in range(len(bare), begin, -1):
                name = self._sound(bare[begin:end], "" if found else stress)
                if name is not None:
                    found.append(name)
                    break
            begin = end
        return found

    def _sound(self, bare: str, stress: str) -> str | None:
        """A known symbol for a sound as it is, with the other length, or without diacritics."""
        plain = "".join(char for char in unicodedata.normalize("NFD", bare) if not unicodedata.combining(char))
        for spelt in dict.fromkeys((bare, plain)):
            for length in (spelt, spelt.rstrip(_LONG), spelt + _LONG):
                name = self.same_sound(stress + length) if length else None
                if name is not None:
                    return name
        return None


def describe(replaced: dict[str, list[str]]) -> str:
    """Replaced symbols in words: "! (said as .), x (left out)"."""
    said = ((symbol, f"said as {' '.join(names)}" if names else "left out") for symbol, names in replaced.items())
    return ", ".join(f"{symbol} ({what})" for symbol, what in said)

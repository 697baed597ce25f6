"""The text front end of synthesis: any text to the phones that a model speaks.

    text -> own pronunciations put aside -> numbers and signs in words (verbalize) -> espeak-ng, clause by clause -> phones

Phones begin with the word boundary "|" and end with a punctuation mark (of `, . ? ! ; :`); the sounds of each word stand
between two boundaries, marks where the text has them and "|" elsewhere. Sounds are those of `espeak.speak`, one by one.

What becomes of what:

- Punctuation where espeak-ng ends a clause is a mark, the strongest of several ("?!" is "?"); an ellipsis is ".", a dash is
  ",", an empty line is ".". Where it pauses within a clause (brackets, quotation marks, dashes) stands ",".
- `{h ə l ˈoʊ}` in a text are phones; whole words of the lexicon have the phones given there. Both keep their neighbours'
  pronunciation: for espeak-ng another word stands in their place.
- Emoji and other signs that nobody reads out are left out, with one warning that names them; `normalize=False` leaves them
  to espeak-ng, which reads the name of some. Control characters and lone surrogates are white space.
- Letters of another script than the language's are read as espeak-ng does: by their names ("Chinese letter"), or code
  points. A warning names them once; give such text by itself, with its `lang`.
- Text without anything to say (empty, marks or emoji alone) has no phones: [].
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

from speechkit.text import espeak
from speechkit.text.lexicon import lexicon_key, lexicon_of, load_lexicon
from speechkit.text.phonemes import (
    BETWEEN_PHONEMES,
    MARKS,
    WORD_BOUNDARY,
    Backend,
    choose_backend,
    is_boundary,
    is_sound,
    letters,
    strip_stress,
    symbols_of,
    voice_of,
)
from speechkit.text.sentences import split_text
from speechkit.text.verbalize import base_language, drop_signs, verbalize

VERSION = 2  # raised with every change in the phones of a text

Reading: TypeAlias = "list[list[str] | str]"  # words (lists of sounds) and the boundaries between and around them

_STRENGTH = "|,;:.!?"
_MARK_OF = {mark: mark for mark in MARKS} | {
    "\uff1f": "?", "\u061f": "?", "\u2047": "?", "\u2048": "?", "\u2049": "?", "\u203d": "?",
    "\uff01": "!", "\u203c": "!", "\u3002": ".", "\uff0e": ".", "\u2026": ".", "\u0964": ".", "\u0965": ".", "\u06d4": ".",
    "\u060c": ",", "\u3001": ",", "\uff0c": ",", "\u2013": ",", "\u2014": ",", "\u061b": ";", "\uff1b": ";", "\uff1a": ":",
}  # fmt: skip
_EMPTY_LINE = re.compile(r"\n\s*\n")
_UNREADABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MARKS_APART = re.compile(r"[.,!?;:\u2026]*(?:[ \t]+[.,!?;:\u2026]+)+(?=\s|$)")  # espeak-ng takes a mark by itself for a word
_BRACED = re.compile(r"\{([^{}]*)\}")
_WORD = re.compile("(?:[^\\W_]|[\u0300-\u036f])+(?:[-'\u2019](?:[^\\W_]|[\u0300-\u036f])+)*")
_STAND_IN = "zazu"  # spoken in place of phones that are given
_SCRIPTS = {
    "CYRILLIC": "ru uk bg sr mk be kk ky tt ba cv mn ce os tg uz", "GREEK": "el grc", "HEBREW": "he iw yi",
    "ARABIC": "ar fa ur ug sd ps ku", "DEVANAGARI": "hi mr ne kok sa", "BENGALI": "bn as bpy", "GURMUKHI": "pa",
    "GUJARATI": "gu", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "MALAYALAM": "ml", "SINHALA": "si", "THAI": "th",
    "MYANMAR": "my shn", "GEORGIAN": "ka", "ARMENIAN": "hy hyw", "ETHIOPIC": "am ti", "CJK": "zh cmn yue hak ja ko",
    "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "BOPOMOFO": "zh cmn yue hak",
}  # fmt: skip


class _Pin(NamedTuple):
    """Phones that are given, and what is written in their place."""

    stand_in: str
    phones: list[str]


class FrontEnd:
    """Text to phones.

    Args:
        lang: BCP-47 code of the language ("en", "pt-BR"), where a call gives no other.
        backend: "espeak" gives IPA by espeak-ng, "characters" the letters themselves; "auto" the first where it is
            installed, else the second with a warning.
        lexicon: own pronunciations: path of a TSV or JSON file (`speechkit.text.lexicon`), or a mapping of words to phones.
        stress: keep the marks of stress.
        normalize: write numbers, dates, signs and abbreviations in words first (`speechkit.text.verbalize`); False leaves
            the text to espeak-ng as it is, which is what speech made by espeak-ng says.

    Raises:
        ImportError: the backend is "espeak" and espeakng-loader is not installed.
        ValueError: the backend or language is unknown, or the lexicon is wrong.
    """

    def __init__(
        self,
        *,
        lang: str = "en",
        backend: Backend = "auto",
        lexicon: str | Mapping[str, str] | None = None,
        stress: bool = True,
        normalize: bool = True,
    ) -> None:
        self._lang = lang
        self._backend = choose_backend(backend)
        if self._backend == "espeak":
            voice_of(lang)
        entries = load_lexicon(lexicon) if isinstance(lexicon, str) else lexicon_of(lexicon or {})
        self._lexicon = {word: phones.split() for word, phones in entries.items()}
        self._stress = stress
        self._normalize = normalize
        self._warned: set[str] = set()

    @property
    def lang(self) -> str:
        """The language where a call gives no other."""
        return self._lang

    def settings(self) -> dict[str, Any]:
        """Constructor arguments that make the same front end anywhere: the backend in use, the words of the lexicon."""
        words = {word: " ".join(phones) for word, phones in self._lexicon.items()}
        return {
            "lang": self._lang,
            "backend": self._backend,
            "lexicon": words or None,
            "stress": self._stress,
            "normalize": self._normalize,
        }

    def fingerprint(self) -> str:
        """Hash of all that decides phones here, 16 hexadecimal digits."""
        text = json.dumps({"version": VERSION, **self.settings()}, sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

    def phones(self, text: str, *, lang: str | None = None) -> list[str]:
        """Phones of a text, [] where there is nothing to say. Never fails on a text, whatever is in it.

        Args:
            text: what to say; phones in braces stand for themselves ("say {h ə l ˈoʊ} now").
            lang: its language; None takes the front end's.

        Raises:
            ValueError: espeak-ng does not know the language.
        """
        lang = lang or self._lang
        parts = self._parts(_UNREADABLE.sub(" ", text))
        pins = [part for part in parts if not isinstance(part, str)]
        if not pins:
            return _joined(self._read("".join(part for part in parts if isinstance(part, str)), lang))
        standing = "".join(part if isinstance(part, str) else part.stand_in for part in parts)
        reading = self._read(standing, lang)
        alone = [_bare(item) for item in self._read(_STAND_IN, lang) if not isinstance(item, str)]
        places = [i for i, item in enumerate(reading) if not isinstance(item, str) and [_bare(item)] == alone]
        if len(places) == len(pins):
            for place, pin in zip(reversed(places), reversed(pins)):
                reading[place : place + 1] = self._given(pin.phones)
        else:  # the stand-in became part of another word, or the text has it too: what lies between is read by itself
            nested = (self._read(p, lang) if isinstance(p, str) else self._given(p.phones) for p in parts)
            reading = [item for items in nested for item in [*items, WORD_BOUNDARY]]
        return _joined(reading)

    def phone_text(self, text: str, *, lang: str | None = None) -> str:
        """`phones` as one string, separated by blanks: what `PhonemeTokenizer` encodes."""
        return " ".join(self.phones(text, lang=lang))

    def from_symbols(self, text: str) -> list[str]:
        """Phones of a string of symbols, such as "h ə l ˈoʊ | w ˈɜː l d !": put into the form that `phones` gives.

        Args:
            text: symbols separated by blanks, words by "|" or marks; braces around it are left out.

        Raises:
            ValueError: something in it is no symbol.
        """
        whole = _BRACED.fullmatch(text.strip())
        symbols = (whole[1] if whole else text).split()
        wrong = [symbol for symbol in symbols if not is_sound(symbol) and not is_boundary(symbol)]
        if wrong:
            raise ValueError(
                f"phones: {wrong[0]!r} is no phone; give symbols separated by blanks, words by {WORD_BOUNDARY} or any of "
                f"{' '.join(MARKS)} (phones() reads text with phones in braces)"
            )
        return _joined(self._given(symbols))

    def split(self, text: str, *, max_chars: int = 200, lang: str | None = None) -> list[str]:
        """A long text in pieces to say one after the other: see `speechkit.text.sentences.split_text`."""
        return split_text(text, max_chars=max_chars, lang=lang or self._lang)

    def _parts(self, text: str) -> list[str | _Pin]:
        """The text, cut around what has phones of its own."""
        parts: list[str | _Pin] = []
        begin = 0
        for match in _BRACED.finditer(text):
            parts += self._lexicon_parts(text[begin : match.start()])
            symbols = match[1].split()
            kept = [symbol for symbol in symbols if is_sound(symbol) or is_boundary(symbol)]
            self._warn_once((s for s in symbols if s not in kept), "no phones, left out of braces: {}")
            if any(map(is_sound, kept)):
                before, after = text[match.start() - 1 : match.start()].isalnum(), text[match.end() : match.end() + 1].isalnum()
                parts.append(_Pin(" " * before + _STAND_IN + " " * after, kept))
            begin = match.end()
        return parts + self._lexicon_parts(text[begin:])

    def _lexicon_parts(self, text: str) -> list[str | _Pin]:
        parts: list[str | _Pin] = []
        begin = 0
        for match in _WORD.finditer(text) if self._lexicon else ():
            phones = self._lexicon.get(lexicon_key(match[0]))
            if phones is not None:
                stand_in = _STAND_IN.capitalize() if match[0][0].isupper() else _STAND_IN
                parts += [text[begin : match.start()], _Pin(stand_in, phones)]
                begin = match.end()
        return [*parts, text[begin:]]

    def _given(self, symbols: Iterable[str]) -> Reading:
        """Given symbols as words and boundaries."""
        reading: Reading = []
        for symbol in symbols:
            if is_boundary(symbol):
                reading.append(symbol)
                continue
            if not reading or isinstance(reading[-1], str):
                reading.append([])
            word = reading[-1]
            assert isinstance(word, list)
            word.append(symbol if self._stress else strip_stress(symbol))
        return reading

    def _read(self, text: str, lang: str) -> Reading:
        if self._normalize:
            text, dropped = drop_signs(verbalize(text, lang))
            text = _MARKS_APART.sub(_together, text)
            self._warn_once(dropped, "signs without a reading, left out: {}")
        if not any(map(str.isalnum, text)):
            return []
        if self._backend == "characters":
            return _letters_and_marks(text)
        base = base_language(lang)
        foreign = (char for char in set(text) if char > "\u024f" and _is_foreign(char, base))
        self._warn_once(foreign, f"letters that are not of lang={lang!r}, read by their names: {{}}; give such text its own lang")
        return self._spoken(text, voice_of(lang))

    def _spoken(self, text: str, voice: str) -> Reading:
        reading: Reading = []
        for clause in espeak.clauses(text, voice, separator=BETWEEN_PHONEMES):
            boundary = WORD_BOUNDARY
            for word in clause.spoken.split():
                reading += [boundary, symbols_of(word, stress=self._stress)]
                pauses = len(word) - len(word.rstrip(BETWEEN_PHONEMES)) > 1
                boundary = "," if pauses else WORD_BOUNDARY
            reading.append(_mark(clause.written))
        return reading

    def _warn_once(self, found: Iterable[str], message: str) -> None:
        new = sorted(set(found) - self._warned)
        if new:
            self._warned.update(new)
            warnings.warn(message.format(", ".join(map(_named, new[:20])) + (", ..." if len(new) > 20 else "")), stacklevel=4)


def _named(sign: str) -> str:
    return f"{sign} ({unicodedata.name(sign, f'U+{ord(sign):04X}')})" if len(sign) == 1 else sign


@cache
def _is_foreign(char: str, base: str) -> bool:
    """Whether a character is a letter of a script that a language is not written in."""
    script = unicodedata.name(char, "").split(" ")[0] if char.isalpha() else ""
    return script in _SCRIPTS and base not in _SCRIPTS[script].split()


def _bare(word: list[str]) -> list[str]:
    return [strip_stress(symbol) for symbol in word]


def _mark(written: str) -> str:
    """The boundary that the end of a written clause stands for."""
    tail = "".join(takewhile(lambda char: not char.isalnum(), reversed(written)))
    marks = [_MARK_OF[char] for char in tail if char in _MARK_OF]
    if _EMPTY_LINE.search(tail):
        marks.append(".")
    return max(marks, key=_STRENGTH.index, default=WORD_BOUNDARY)


def _together(match: re.Match[str]) -> str:
    """Marks with blanks between them as espeak-ng takes them for punctuation: the strongest, but the points of an ellipsis."""
    mark = _mark(match[0])
    return mark if mark != "." else "".join(match[0].split())


def _letters_and_marks(text: str) -> Reading:
    reading: Reading = []
    for chunk in re.split(r"(\s+)", text):
        reading += [list(word) for word in letters(chunk)]
        reading.append(_mark(chunk))
    return reading


def _joined(reading: Reading) -> list[str]:
    """Phones of words and boundaries: one boundary between words, the strongest of those there."""
    phones = [WORD_BOUNDARY]
    boundary = ""
    for item in reading:
        if isinstance(item, str):
            boundary = max(boundary, item, key=_STRENGTH.find)
        elif item:
            if len(phones) > 1:
                phones.append(boundary or WORD_BOUNDARY)
            phones += item
            boundary = ""
    if len(phones) == 1:
        return []
    return [*phones, boundary if boundary in MARKS else "."]

"""Long texts in pieces: sentences, then clauses, then words."""

from __future__ import annotations

import re

from speechkit.text.language_rules import RULES, LanguageRules
from speechkit.text.verbalize import base_language

_SENTENCE, _CLAUSE, _WORD, _LINE, _SPACE, _ANYWHERE = 5, 4, 3, 2, 1, 0  # how good a place is for a cut
_TOO_LONG = 4  # times max_chars: above, text is cut even where it belongs together
_LEAST_CHARS = 50  # max_chars that this counts from at least

_CLOSERS = "\"')]}\u2019\u201d\u201c\u00bb\u300d\u300f\uff09"
_OPENERS = "\"'([{\u2018\u201c\u201e\u00ab\u00bf\u00a1"
_DASHES = ("-", "--", "\u2013", "\u2014")
_UNSPACED = "[\u2e80-\u2fdf\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # scripts without spaces: every character is a word
_PLACE = re.compile(
    rf"(?P<space>\s+)|(?<=[\u3002\uff01\uff1f])(?P<stop>[\u2019\u201d\u300d\u300f\uff09]*)(?!\s|$)"
    rf"|(?<=[\u3001\uff0c\uff1b\uff1a])(?P<comma>)(?!\s|$)|(?<=\w\u2014)(?P<dash>)(?=\w)|(?<={_UNSPACED})(?P<letter>)(?={_UNSPACED})"
)
_TOKEN_END = re.compile(r"\S{1,40}$")
_TOKEN = re.compile(r"\S{1,40}")
_INITIAL = re.compile(r"[^\W\d_](?:\.[^\W\d_])*\.")  # "J.", "U.S."


def split_text(text: str, *, max_chars: int = 200, lang: str = "en") -> list[str]:
    """Pieces of a text, to be said one after the other: its sentences; longer ones at their clauses, then between words.

    Nothing is cut within words, numbers ("1 234,5", "3.5"), abbreviations and what belongs to them ("Dr. Smith", "z. B.",
    "5 km") or phones in braces. What is left between two such cuts is one piece, even if longer; only above four times
    max_chars, or 200 characters where that is more, it is cut all the same: between lines, at any white space, at marks, at
    last within words. The pieces hold every character of the text but the white space between them.

    Args:
        text: any text.
        max_chars: characters of a piece, at least 1.
        lang: BCP-47 code of the text: abbreviations of "en", "de", "fr" and "es" are known, those of others taken as English.

    Raises:
        ValueError: max_chars is below 1.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars={max_chars} is too small: give 1 or more")
    text = text.strip()
    if not text:
        return []
    base = base_language(lang)
    size = max(max_chars, _LEAST_CHARS)
    braced = _braced(min(_TOO_LONG * size, len(text)))
    hidden = re.sub(braced, lambda match: "x" * len(match[0]), text)
    places = _places(hidden, RULES.get(base, RULES["en"]), base)
    return _pieces(text, (0, len(text)), places, _SENTENCE, max_chars)


def _pieces(text: str, span: tuple[int, int], places: list[tuple[int, int, int]], grade: int, max_chars: int) -> list[str]:
    """Pieces of a stretch of text: all its sentences, as much as fits of its clauses and words, and of what is too long."""
    begin, end = span
    if grade < _WORD:
        max_chars = max(max_chars, _LEAST_CHARS)
    longest = _TOO_LONG * max_chars if grade < _WORD else max_chars
    if grade < _SENTENCE and end - begin <= longest:
        return [text[begin:end]]
    if grade == _ANYWHERE:
        return _hard_pieces(text[begin:end], max_chars)
    cuts = [place for place in places if place[2] >= grade]
    starts = [begin, *(after for _, after, _ in cuts)]
    ends = [*(before for before, _, _ in cuts), end]
    spans: list[tuple[int, int]] = []
    for first, last in zip(starts, ends):
        if grade < _SENTENCE and spans and last - spans[-1][0] <= max_chars:
            spans[-1] = (spans[-1][0], last)
        else:
            spans.append((first, last))
    pieces: list[str] = []
    inner = iter(places)
    place = next(inner, None)
    for first, last in spans:
        within = []
        while place is not None and place[0] <= last:
            if place[0] > first and place[1] < last:
                within.append(place)
            place = next(inner, None)
        pieces += _pieces(text, (first, last), within, grade - 1, max_chars)
    return pieces


def _hard_pieces(text: str, max_chars: int) -> list[str]:
    """Pieces of text that has no place for a cut: between marks where it has them, phones in braces whole."""
    units = re.compile(rf"{_braced(_TOO_LONG * max_chars)}|[^\s!-/:-@\[-`{{-~]{{1,{max_chars}}}|(?s:.)")
    pieces = [""]
    for match in units.finditer(text):
        if pieces[-1] and len(pieces[-1]) + len(match[0]) > max_chars:
            pieces.append("")
        pieces[-1] += match[0]
    return pieces


def _braced(longest: int) -> str:
    """Finds phones in braces of up to so many characters."""
    return rf"\{{[^{{}}]{{0,{max(longest - 2, 0)}}}\}}"


def _places(text: str, rules: LanguageRules, base: str) -> list[tuple[int, int, int]]:
    """Where a text may be cut: the end of what is before, the beginning of what is after, how good a place it is."""
    places = []
    for match in _PLACE.finditer(text):
        if match["space"] is not None:
            grade = _grade(text, match, rules, base)
        elif match["stop"] is not None:
            grade = _SENTENCE
        elif match["letter"] is not None:
            grade = _WORD
        else:
            grade = _CLAUSE
        places.append((match.end() if match["stop"] else match.start(), match.end(), grade))
    return places


def _grade(text: str, match: re.Match[str], rules: LanguageRules, base: str) -> int:
    """How good a place for a cut white space is."""
    if match[0].count("\n") > 1:
        return _SENTENCE
    before_match = _TOKEN_END.search(text, max(0, match.start() - 40), match.start())
    after_match = _TOKEN.match(text, match.end())
    if before_match is None or after_match is None:
        return _WORD
    joined = _LINE if "\n" in match[0] else _SPACE  # what belongs together
    before, after = before_match[0].lstrip(_OPENERS), after_match[0].lstrip(_OPENERS)
    bare = before.rstrip(_CLOSERS)
    belongs = after.rstrip(_CLOSERS + ".,;:!?")
    if before[-1:].isdigit() and (after[:1].isdigit() or belongs in rules.units or belongs in rules.currencies):
        return _WORD if "\n" in match[0] and after[:1].isdigit() else joined
    if bare.endswith("."):
        is_unit = bare[:-1] in rules.units and _after_digit(text, before_match.start())
        return _after_point(bare, after, rules, base, is_unit=is_unit) or joined
    if bare.endswith(("?", "!", "\u2026", "\u3002", "\uff01", "\uff1f", "\u061f", "\u0964")):
        return _SENTENCE if not after[:1].islower() else _CLAUSE
    if after in _DASHES:
        return joined
    if bare.endswith((",", ";", ":", "\u2013", "\u2014", "\u060c")) or bare in _DASHES:
        return _CLAUSE
    return joined if bare.lower() in rules.titles or bare in rules.before_name or bare in rules.before_number else _WORD


def _after_digit(text: str, position: int) -> bool:
    return text[max(0, position - 2) : position].rstrip()[-1:].isdigit()


def _after_point(before: str, after: str, rules: LanguageRules, base: str, *, is_unit: bool) -> int:
    """The same after a word that ends with a point."""
    word = before.lower()
    if word in rules.closing or word in ("u.s.", "p.m.", "a.m."):
        return _SENTENCE if after[:1].isupper() else _WORD
    is_title = word in rules.titles and not is_unit
    known = is_title or before in rules.before_name or before in rules.before_number or word in rules.abbreviations
    in_two = any(key.startswith(word) and key != word for key in rules.abbreviations)  # "EE." of "EE. UU."
    if known or in_two or _INITIAL.fullmatch(before) or (base == "de" and re.fullmatch(r"\d{1,2}\.", before)):
        return _ANYWHERE
    return _CLAUSE if after[:1].islower() or (before.endswith("..") and not after[:1].isupper()) else _SENTENCE

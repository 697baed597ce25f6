"""Text of the demo corpus: a closed grammar and a list of everyday sentences, parallel in four languages.

The text lies in demo_grammar.txt, which explains its own form; numbers, times and sums are made here. A sentence belongs
to one split by a hash of its English form, so that no seed and no language brings a test sentence into training.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

LANGUAGES = ("en", "de", "fr", "es")
GRAMMAR_PATH = Path(__file__).with_name("demo_grammar.txt")
SPLIT_PERCENT = {"test": 10, "dev": 10}  # share of all grammar sentences; the rest is for training

_DIGITS = {
    "en": "zero one two three four five six seven eight nine",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
}
_TEENS = {
    "en": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "de": "zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn",
    "fr": "dix onze douze treize quatorze quinze seize dix-sept dix-huit dix-neuf",
    "es": "diez once doce trece catorce quince dieciséis diecisiete dieciocho diecinueve",
}
_TENS = {
    "en": "twenty thirty forty fifty",
    "de": "zwanzig dreißig vierzig fünfzig",
    "fr": "vingt trente quarante cinquante",
    "es": "veinte treinta cuarenta cincuenta",
}
_COUNTS = np.array([n for n in range(2, 60) if n == 11 or n % 10 != 1])
_MINUTES = np.array([0, 10, 15, 20, 25, 30, 40, 45, 50])
_SPANISH_TWENTIES = "veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete veintiocho veintinueve"
_CONTRACTIONS = {
    "fr": ((r"\bà le\b", "au"), (r"\bà les\b", "aux"), (r"\bde le\b", "du"), (r"\bde les\b", "des")),
    "es": ((r"\ba el\b", "al"), (r"\bde el\b", "del")),
}
_SLOT = re.compile(r"\{(\w+?)(\d?)(\.acc)?(?::(\w+))?\}")
_NOT_SPOKEN = re.compile(r"[^\w' ]+")


@dataclass(frozen=True, slots=True)
class Sentence:
    """One meaning in all languages.

    Attributes:
        written: sentence with capitals and punctuation, by language.
        split: the split it belongs to; the same in every language and for every seed.
    """

    written: dict[str, str]
    split: str


def spoken_form(written: str) -> str:
    """Lower-case words of a written sentence, without punctuation (apostrophes stay)."""
    return " ".join(_NOT_SPOKEN.sub(" ", unicodedata.normalize("NFC", written).lower()).split())


def number_words(value: int, language: str) -> str:
    """A number from 0 to 59 in words."""
    if not 0 <= value <= 59:
        raise ValueError(f"value={value} is out of range: give 0 to 59")
    tens, units = divmod(value, 10)
    digits = _DIGITS[language].split()
    if tens == 0:
        return digits[units]
    if tens == 1:
        return _TEENS[language].split()[units]
    ten = _TENS[language].split()[tens - 2]
    if units == 0:
        return ten
    if language == "de":
        return ("ein" if units == 1 else digits[units]) + "und" + ten
    if language == "fr":
        return f"{ten} et un" if units == 1 else f"{ten}-{digits[units]}"
    if language == "es":
        return _SPANISH_TWENTIES.split()[units] if tens == 2 else f"{ten} y {digits[units]}"
    return f"{ten}-{digits[units]}"


def sentences(rng: np.random.Generator, split: str) -> Iterator[Sentence]:
    """Endless stream of different sentences of a split ("train" begins with the everyday sentences)."""
    seen: set[str] = set()
    if split == "train":
        for row in grammar()["sentences"]:
            yield Sentence({language: _as_written(cell) for language, cell in zip(LANGUAGES, row)}, "train")
    frames = grammar()["frames"]
    while True:
        frame = frames[int(rng.integers(len(frames)))]
        picks = _picks(frame[0], rng)
        english = _as_written(_render(frame[0], picks, 0))
        if english in seen or split_of(english) != split:
            continue
        seen.add(english)
        written = {language: _as_written(_render(frame[i], picks, i)) for i, language in enumerate(LANGUAGES)}
        yield Sentence(written, split)


def split_of(english: str) -> str:
    """Split of a grammar sentence, by a hash of its English form."""
    percent = int.from_bytes(hashlib.sha256(spoken_form(english).encode()).digest()[:8], "big") % 100
    for split, share in SPLIT_PERCENT.items():
        if percent < share:
            return split
        percent -= share
    return "train"


@cache
def grammar() -> dict[str, tuple[tuple[str, ...], ...]]:
    """The sections of demo_grammar.txt: rows with a cell per language."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    for line in GRAMMAR_PATH.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            rows = sections.setdefault(line.strip("[]"), [])
            continue
        row = tuple(cell.strip() for cell in line.split("|"))
        assert len(row) == len(LANGUAGES), f"a cell per language is needed: {line}"
        rows.append(row)
    return {name: tuple(rows) for name, rows in sections.items()}


def _as_written(text: str) -> str:
    first = 1 if text.startswith("¿") else 0
    return text[: first + 1].upper() + text[first + 1 :] + ("" if text.endswith("?") else ".")


def _picks(template: str, rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """A different entry for every slot of a template."""
    picks: dict[str, tuple[str, ...]] = {}
    for name, digit in dict.fromkeys(match.group(1, 2) for match in _SLOT.finditer(template)):
        pick = _pick(name, rng)
        while pick in picks.values():
            pick = _pick(name, rng)
        picks[name + digit] = pick
    return picks


def _pick(name: str, rng: np.random.Generator) -> tuple[str, ...]:
    """One entry, a cell per language."""
    if name == "number":  # no 1, 21, 31 ...: they change form before a noun
        value = int(rng.choice(_COUNTS))
        return tuple(number_words(value, language) for language in LANGUAGES)
    if name == "digits":
        digits = rng.integers(0, 10, size=int(rng.integers(4, 7)))
        return tuple(" ".join(number_words(int(digit), language) for digit in digits) for language in LANGUAGES)
    if name == "time":
        return _time(int(rng.integers(2, 12)), int(rng.choice(_MINUTES)))
    if name == "sum":
        a, b = int(rng.integers(2, 30)), int(rng.integers(2, 30))
        words = {language: [number_words(n, language) for n in (a, b, a + b)] for language in LANGUAGES}
        joined = {"en": ("plus", "is"), "de": ("plus", "ist"), "fr": ("plus", "font"), "es": ("más", "son")}
        return tuple(
            f"{words[language][0]} {joined[language][0]} {words[language][1]} {joined[language][1]} {words[language][2]}"
            for language in LANGUAGES
        )
    entries = grammar()[name]
    return entries[int(rng.integers(len(entries)))]


def _time(hour: int, minute: int) -> tuple[str, ...]:
    hours = [number_words(hour, language) for language in LANGUAGES]
    minutes = [number_words(minute, language) if minute else "" for language in LANGUAGES]
    return (
        f"at {hours[0]} {minutes[0]}" if minute else f"at {hours[0]} o'clock",
        f"um {hours[1]} Uhr {minutes[1]}".strip(),
        f"à {hours[2]} heures {minutes[2]}".strip(),
        f"a las {hours[3]} y {minutes[3]}" if minute else f"a las {hours[3]}",
    )


def _render(template: str, picks: dict[str, tuple[str, ...]], column: int) -> str:
    def replace(match: re.Match[str]) -> str:
        name, digit, accusative, agrees_with = match.groups()
        forms = [form.strip() for form in picks[name + digit][column].split("/")]
        if accusative and len(forms) == 1:
            return re.sub(r"^der ", "den ", forms[0])
        if agrees_with:
            feminine = picks[agrees_with][column].startswith("la ")
            return forms[-1] if feminine else forms[0]
        return forms[-1] if accusative else forms[0]

    text = _SLOT.sub(replace, template)
    for pattern, contracted in _CONTRACTIONS.get(LANGUAGES[column], ()):
        text = re.sub(pattern, contracted, text)
    return text

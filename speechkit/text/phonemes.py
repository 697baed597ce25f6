"""Text to phonemes, in the notation of `PhonemeTokenizer`: symbols separated by blanks, words by a separator symbol."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Literal

from speechkit.text import espeak

Backend = Literal["auto", "espeak", "characters"]

WORD_BOUNDARY = "|"
MARKS = (",", ".", "?", "!", ";", ":")  # punctuation that is a symbol of its own where speech is made
BETWEEN_PHONEMES = "_"

_USUAL_VOICE = {"en": "en-us", "fr": "fr-fr", "zh": "cmn", "no": "nb", "iw": "he"}
_STRESS = re.compile("[\\u02c8\\u02cc]")
_STRESS_WITHIN = re.compile("(?<=[^_\\u02c8\\u02cc])(?=[\\u02c8\\u02cc])")  # espeak-ng forgets a separator at times


def is_boundary(symbol: str) -> bool:
    """Whether a symbol stands between words, and so for a pause, rather than for a sound."""
    return symbol == WORD_BOUNDARY or symbol in MARKS


def is_sound(symbol: str) -> bool:
    """Whether a symbol of somebody's own can stand for a sound: with a letter or digit in it, without braces and "|"."""
    return any(map(str.isalnum, symbol)) and not set(symbol) & set("{}|")


def phonemize(
    texts: Iterable[str],
    lang: str,
    backend: Backend = "auto",
    *,
    stress: bool = True,
    separator: str = "|",
) -> list[str]:
    """Transcribe texts: "hello world" becomes "h ə l ˈoʊ | w ˈɜː l d".

    Args:
        texts: plain texts.
        lang: BCP-47 language code ("en", "pt-BR", "zh"); its usual voice is taken, or the exact one if it has it.
        backend: "espeak" gives IPA by espeak-ng; "characters" the letters themselves, in lower case; "auto" the first
            where it is installed, else the second with a warning.
        stress: keep the marks of stress, which stand before their vowel in one symbol.
        separator: symbol between words.

    Raises:
        ImportError: the backend is "espeak" and espeakng-loader is not installed.
        ValueError: the backend is unknown, or espeak-ng does not know the language.
    """
    if choose_backend(backend) == "characters":
        words = [[list(word) for word in letters(text)] for text in texts]
    else:
        voice = voice_of(lang)
        words = [_phonemes(text, voice, stress) for text in texts]
    return [f" {separator} ".join(" ".join(word) for word in text) for text in words]


def choose_backend(backend: Backend) -> Literal["espeak", "characters"]:
    """The backend that is used for "auto"; without espeak-ng it warns once.

    Raises:
        ValueError: the backend is unknown.
    """
    if backend not in ("auto", "espeak", "characters"):
        raise ValueError(f"backend={backend!r}: choose auto, espeak or characters")
    if backend != "auto":
        return backend
    if espeak.available():
        return "espeak"
    _warn_of_characters()
    return "characters"


@cache
def _warn_of_characters() -> None:
    warnings.warn(
        'espeak-ng is not installed: letters stand in for phonemes; pip install "speechkit[demo]" gives phonemes',
        stacklevel=4,
    )


@cache
def voice_of(lang: str) -> str:
    """espeak-ng's voice for a language code.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: espeak-ng does not know the language.
    """
    known = espeak.voices()
    code = lang.lower().replace("_", "-")
    base = code.split("-")[0]
    for candidate in (code, _USUAL_VOICE.get(code), _USUAL_VOICE.get(base), base):
        if candidate in known:
            return candidate
    regional = [voice for voice in known if voice.startswith(f"{base}-")]
    if not regional:
        raise ValueError(f"lang={lang!r} is unknown to espeak-ng; it knows {', '.join(known)}")
    return regional[0]


def symbols_of(word: str, *, stress: bool = True) -> list[str]:
    """Phoneme symbols of a word as espeak-ng gives it with `BETWEEN_PHONEMES` as the separator."""
    spaced = _STRESS_WITHIN.sub(BETWEEN_PHONEMES, word)
    if not stress:
        spaced = strip_stress(spaced)
    return [symbol for symbol in spaced.split(BETWEEN_PHONEMES) if symbol]


def strip_stress(symbols: str) -> str:
    """The same without marks of stress."""
    return _STRESS.sub("", symbols)


def letters(text: str) -> list[str]:
    """Words of a text, their letters and digits alone, in lower case."""
    normal = unicodedata.normalize("NFC", text).lower()
    return ["".join(filter(str.isalnum, word)) for word in normal.split() if any(map(str.isalnum, word))]


def _phonemes(text: str, voice: str, stress: bool) -> list[list[str]]:
    spoken = " ".join(clause.spoken for clause in espeak.clauses(text, voice, separator=BETWEEN_PHONEMES))
    words = (symbols_of(word, stress=stress) for word in spoken.split())
    return [word for word in words if word]

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

_USUAL_VOICE = {"en": "en-us", "fr": "fr-fr", "zh": "cmn", "no": "nb", "iw": "he"}
_STRESS = re.compile("[\\u02c8\\u02cc]")
_BETWEEN_PHONEMES = "_"


def is_boundary(symbol: str) -> bool:
    """Whether a symbol stands between words, and so for a pause, rather than for a sound."""
    return symbol == WORD_BOUNDARY or symbol in MARKS


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
    if backend not in ("auto", "espeak", "characters"):
        raise ValueError(f"backend={backend!r}: choose auto, espeak or characters")
    if backend == "auto" and not espeak.available():
        _warn_of_characters()
        backend = "characters"
    if backend == "characters":
        words = [[list(word) for word in _letters(text)] for text in texts]
    else:
        voice = _voice_of(lang)
        words = [_phonemes(text, voice, stress) for text in texts]
    return [f" {separator} ".join(" ".join(word) for word in text) for text in words]


@cache
def _warn_of_characters() -> None:
    warnings.warn(
        'espeak-ng is not installed: letters stand in for phonemes; pip install "speechkit[demo]" gives phonemes',
        stacklevel=3,
    )


@cache
def _voice_of(lang: str) -> str:
    """espeak-ng's voice for a language code."""
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


def _phonemes(text: str, voice: str, stress: bool) -> list[list[str]]:
    spoken = espeak.phonemize(text, voice, separator=_BETWEEN_PHONEMES).replace(",", " ")
    if not stress:
        spoken = _STRESS.sub("", spoken)
    words = ([symbol for symbol in word.split(_BETWEEN_PHONEMES) if symbol] for word in spoken.split())
    return [word for word in words if word]


def _letters(text: str) -> list[str]:
    normal = unicodedata.normalize("NFC", text).lower()
    return ["".join(filter(str.isalnum, word)) for word in normal.split() if any(map(str.isalnum, word))]

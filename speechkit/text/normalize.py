"""Versioned text normalisers, for transcripts before training and for reference and hypothesis before scoring.

A rate means nothing without its normaliser: swapping one moves English word error rates by tenths of a per cent. So
each has a version, raised with every change in its output, and an `id` that score files record:

- `none`: the text as it is.
- `basic`: Unicode NFKC, lower case, punctuation and symbols to spaces (an apostrophe between letters stays), white
  space unified. Diacritics stay. For every language.
- `char`: `basic` without any white space, for character error rates of languages written without spaces.
- `whisper_en`: Whisper's English normaliser (Radford et al. 2022, appendix C) from the package whisper-normalizer:
  numbers to digits, contractions, titles and British spellings expanded, fillers dropped. Its version names the
  package's.
- `phones_<language>` ("phones_en", "phones_pt_br"): the sounds of `speechkit.text.frontend` without stress, words set apart
  by "|": what a recogniser of phones learns, and `PhonemeTokenizer` encodes. Its version names the front end's and what it
  reads with.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\uff07\u0060\u00b4]")
_APOSTROPHE_IN_WORD = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_])")
_PHONES = "phones_"
_KEPT_APOSTROPHE = "\ue000"  # private use: stands in for an apostrophe while punctuation goes


@dataclass(frozen=True, slots=True)
class Normalizer:
    """A text normaliser; call it with a text.

    Attributes:
        name: what to give to `get_normalizer`.
        version: changes whenever the output does.
    """

    name: str
    version: str
    _function: Callable[[str], str] = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """Name and version, such as "basic-1"; recorded beside every score."""
        return f"{self.name}-{self.version}"

    def __call__(self, text: str) -> str:
        return self._function(text)


def _none(text: str) -> str:
    return text


def _basic(text: str) -> str:
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", text).replace(_KEPT_APOSTROPHE, " "))
    text = _APOSTROPHES.sub("'", unicodedata.normalize("NFKC", text.lower()))
    text = _APOSTROPHE_IN_WORD.sub(_KEPT_APOSTROPHE, text)
    chars = (" " if unicodedata.category(char)[0] in "PSZC" and char != _KEPT_APOSTROPHE else char for char in text)
    return " ".join("".join(chars).replace(_KEPT_APOSTROPHE, "'").split())


def _char(text: str) -> str:
    return "".join(_basic(text).split())


def _whisper_en() -> Normalizer:
    try:
        from importlib.metadata import version

        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise ImportError('normalizer "whisper_en" needs whisper-normalizer: pip install "speechkit[train]"') from error
    return Normalizer("whisper_en", f"1+whisper-normalizer-{version('whisper-normalizer')}", EnglishTextNormalizer())


def _phones(lang: str) -> Normalizer:
    from speechkit.text.frontend import VERSION, FrontEnd  # only now: it brings numpy, which scoring does without

    frontend = FrontEnd(lang=lang.replace("_", "-"), stress=False)
    return Normalizer(f"{_PHONES}{lang}", f"{VERSION}+{frontend.settings()['backend']}", partial(_phone_text, frontend.phones))


def _phone_text(phones: Callable[[str], list[str]], text: str) -> str:
    from speechkit.text.phonemes import WORD_BOUNDARY, is_boundary

    inner = phones(text)[1:-1]  # boundaries stand at both ends
    return " ".join(WORD_BOUNDARY if is_boundary(symbol) else symbol for symbol in inner)


_FACTORIES: dict[str, Callable[[], Normalizer]] = {
    "none": lambda: Normalizer("none", "1", _none),
    "basic": lambda: Normalizer("basic", "1", _basic),
    "char": lambda: Normalizer("char", "1", _char),
    "whisper_en": _whisper_en,
}
NORMALIZER_NAMES = tuple(_FACTORIES)


@cache
def get_normalizer(name: str) -> Normalizer:
    """The normaliser of a name.

    Args:
        name: one of `NORMALIZER_NAMES`, "phones_" and a language, or such a name with a version ("basic-1", or a whole
            `id`), which must then be the one installed.

    Raises:
        ValueError: the name is unknown, or the version asked for is not the one installed.
        ImportError: an optional package is missing.
    """
    base, _, version = name.partition("-")
    if base.startswith(_PHONES):
        normalizer = _phones(base.removeprefix(_PHONES))
    elif base in _FACTORIES:
        normalizer = _FACTORIES[base]()
    else:
        raise ValueError(f"normalizer: {name!r} is unknown; use one of: {', '.join(NORMALIZER_NAMES)}, phones_<language>")
    if version and version not in (normalizer.version, normalizer.version.partition("+")[0]):
        raise ValueError(f"normalizer: {name!r} was asked for, but {normalizer.id!r} is installed")
    return normalizer

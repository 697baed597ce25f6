"""Readers by name: what people have, as utterances.

Every reader is an iterator of utterances with real durations: where the source tells none, the audio is looked at. A row
that cannot be used raises, or, when the caller gives a `Rejects`, is told there and left out. Relative audio paths start
from `audio_root`; without it from the source's directory or, when the file is not there but is below the working
directory, from that (Kaldi and lhotse write such paths).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from speechkit.data.readers_external import read_huggingface, read_lhotse
from speechkit.data.readers_folder import read_folder
from speechkit.data.readers_kaldi import read_kaldi
from speechkit.data.readers_tables import read_csv, read_ljspeech, read_nemo
from speechkit.types import Utterance

__all__ = [
    "READERS",
    "read_any",
    "read_csv",
    "read_folder",
    "read_huggingface",
    "read_kaldi",
    "read_lhotse",
    "read_ljspeech",
    "read_nemo",
    "reader_options",
]

READERS: Mapping[str, Callable[..., Iterator[Utterance]]] = {
    "nemo": read_nemo,
    "kaldi": read_kaldi,
    "csv": read_csv,
    "ljspeech": read_ljspeech,
    "folder": read_folder,
    "lhotse": read_lhotse,
    "huggingface": read_huggingface,
}


def reader_options(kind: str) -> list[str]:
    """Names of the keyword options that a reader takes.

    Raises:
        ValueError: there is no such reader.
    """
    if kind not in READERS:
        raise ValueError(f"reader {kind!r} is not known; choose one of {', '.join(READERS)}")
    parameters = inspect.signature(READERS[kind]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def read_any(kind: str, source: Any, **options: Any) -> Iterator[Utterance]:
    """Read a source with the reader of this name.

    Args:
        kind: one of `READERS`.
        source: what that reader reads.
        options: its keyword options.

    Raises:
        ValueError: there is no such reader, or it does not take an option.
        ManifestError: as the reader raises it.
    """
    known = reader_options(kind)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"reader {kind!r} takes no option {', '.join(unknown)}; it takes {', '.join(known)}")
    return READERS[kind](source, **options)

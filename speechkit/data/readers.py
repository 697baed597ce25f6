"""Readers by name: what people have, as utterances; and `prepare`, from there to a manifest.

Every reader is an iterator of utterances with real durations: where the source tells none, the audio is looked at. A row
that cannot be used raises, or, when the caller gives a `Rejects`, is told there and left out. Relative audio paths start
from `audio_root`; without it from the source's directory or, when the file is not there but is below the working
directory, from that (Kaldi and lhotse write such paths).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from speechkit.data.manifest import OnError
from speechkit.data.prepare import AudioFormat, PrepareReport, audio_directory, manifest_path, prepare_manifest
from speechkit.data.readers_external import read_huggingface, read_lhotse
from speechkit.data.readers_folder import read_folder
from speechkit.data.readers_kaldi import read_kaldi
from speechkit.data.readers_tables import read_csv, read_ljspeech, read_nemo
from speechkit.data.rejects import Rejects
from speechkit.types import Utterance

__all__ = [
    "READERS",
    "prepare",
    "prepare_manifest",
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
    "ljspeech_metadata": read_ljspeech,
    "audio_folder": read_folder,
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


def prepare(
    kind: str,
    source: Any,
    out: str | os.PathLike[str],
    *,
    sample_rate: int | None = None,
    audio_format: AudioFormat | None = None,
    num_workers: int | None = None,
    on_error: OnError = "skip",
    **options: Any,
) -> PrepareReport:
    """Read a source and write its manifest: `read_any`, then `prepare_manifest`.

    Args:
        kind: name of the reader, see `READERS`.
        source: what that reader reads.
        out: the manifest (.jsonl or .jsonl.gz), or a directory for manifest.jsonl.
        sample_rate: as for `prepare_manifest`.
        audio_format: as for `prepare_manifest`.
        num_workers: as for `prepare_manifest`.
        on_error: "skip" leaves out what cannot be used and reports it; "raise" stops there.
        options: options of the reader.

    Raises:
        ValueError: no such reader or option.
        ManifestError: the source cannot be read, or a row cannot be used and `on_error` is "raise".
    """
    path = manifest_path(out)
    rejects = Rejects(on_error)
    known = reader_options(kind)
    if kind == "huggingface":
        options.setdefault("audio_dir", audio_directory(path))
    if num_workers is not None and "num_workers" in known:
        options["num_workers"] = num_workers
    utterances = read_any(kind, source, **{**options, "rejects": rejects})
    return prepare_manifest(
        utterances,
        path,
        sample_rate=sample_rate,
        audio_format=audio_format,
        num_workers=num_workers,
        rejects=rejects,
    )

"""What all readers share: drafts without durations, where audio paths start, the durations from the audio itself."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from speechkit.audio.io import AudioError, audio_info
from speechkit.data.manifest import RESERVED_FIELDS, ManifestError
from speechkit.data.parallel import available_cpus, ordered_map
from speechkit.data.rejects import Rejects
from speechkit.types import Seconds, Utterance

PathLike = str | os.PathLike[str]

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".webm", ".aac", ".aiff", ".aif")


class Draft(NamedTuple):
    """An utterance whose duration may still be NaN (to the end of its file), and where it was read."""

    where: str
    utterance: Utterance


class _Lengths:
    """Durations of files, remembered for a while: segments of one recording come one after another."""

    def __init__(self) -> None:
        self.of = functools.lru_cache(maxsize=4096)(lambda path: audio_info(path).duration)

    def complete(self, draft: Draft) -> Utterance | str:
        """The utterance with its duration, or why there is none."""
        utterance = draft.utterance
        if not math.isnan(utterance.duration):
            return utterance
        try:
            length: Seconds = self.of(utterance.audio_path)
        except (AudioError, OSError, ValueError) as error:
            return str(error)
        if length <= utterance.start:
            return f"{utterance.audio_path}: ends at {length:.2f} s, before the start at {utterance.start:.2f} s"
        return replace(utterance, duration=round(length - utterance.start, 6))


def with_durations(drafts: Iterable[Draft], rejects: Rejects, num_workers: int | None) -> Iterator[Utterance]:
    """Fill in missing durations from the audio, in threads, in order."""
    workers = available_cpus() * 2 if num_workers is None else num_workers
    for draft, result in ordered_map(_Lengths().complete, drafts, workers):
        if isinstance(result, str):
            rejects.add(draft.where, draft.utterance.id, result)
        else:
            yield result


def resolve_audio(written: str, audio_root: PathLike | None, source_dir: Path) -> Path:
    """The absolute path of an audio file named in a source; rule in the head of this file."""
    if audio_root is not None:
        return Path(os.path.abspath(Path(audio_root) / written))  # noqa: PTH100
    beside = Path(os.path.abspath(source_dir / written))  # noqa: PTH100
    here = Path(written).absolute()
    return here if not beside.exists() and here.exists() else beside


def existing(path: PathLike, what: str, *, directory: bool) -> Path:
    found = Path(path)
    if found.is_dir() if directory else found.is_file():
        return found
    kind = "directory" if directory else "file"
    problem = f"is no {kind}" if found.exists() else f"no such {kind}"
    raise ManifestError(f"{found}: {problem}; give {what}")


def parse_seconds(text: str, where: str) -> Seconds:
    """A time in seconds written as text.

    Raises:
        ManifestError: it is no number >= 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ManifestError(f"{where}: {text!r:.40} is no time; write seconds")
    return value


def extra_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Further fields of a source for `Utterance.extra`; names that a manifest row needs get the prefix `source_`."""
    taken = (*RESERVED_FIELDS, "language")
    return {f"source_{name}" if name in taken else name: value for name, value in fields.items()}


def safe_stem(id: str, *parts: object) -> str:
    """A file name without suffix for an utterance: its id, made safe, and a hash of id and `parts`."""
    key = "\n".join(map(str, (id, *parts))).encode("utf-8", "surrogatepass")
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', id)[:80]}-{hashlib.blake2b(key, digest_size=6).hexdigest()}"


def find_audio(directory: Path, stem: str) -> Path | None:
    """The audio file of this name without suffix, if there is one."""
    for suffix in AUDIO_SUFFIXES:
        for path in (directory / (stem + suffix), directory / (stem + suffix.upper())):
            if path.is_file():
                return path
    return None

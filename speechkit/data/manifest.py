"""Manifests: one JSON object per line, one utterance per row.

Field names are NeMo's, the widest used: `audio_filepath`, `duration`, `text`, `offset`, `lang`, `speaker`; ours: `id`.
Also read: `audio|wav|audio_path` for the audio, `utt_id|key` for the id, `language` for the language. All other fields
are kept in `Utterance.extra` and written back as they came. Audio paths are relative to the manifest's directory.
Files ending in .gz are read and written compressed.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import math
import os
import posixpath
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, NoReturn

from speechkit.types import Utterance

OnError = Literal["raise", "skip"]

MANIFEST_NAME = "manifest.jsonl"
MAX_LINE_BYTES = 16 * 2**20
_AUDIO_KEYS = ("audio_filepath", "audio_path", "audio", "wav")
_ID_KEYS = ("id", "utt_id", "key")
_LANG_KEYS = ("lang", "language")
RESERVED_FIELDS = ("id", "audio_filepath", "duration", "text", "offset", "speaker", "lang")
_MAX_PARENTS = 3  # audio at most this many levels above the manifest is still written as a relative path
_SHOWN = 5
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class ManifestError(ValueError):
    """A manifest, or another list of utterances, that cannot be read; the message names file, line and remedy."""


def base_directory(manifest: Path) -> str:
    """The absolute directory that relative audio paths in a manifest start from."""
    return os.path.abspath(manifest.parent)  # noqa: PTH100


class Line(NamedTuple):
    """One line of a text file: its number (from 1), the byte offset where it begins, and its bytes without newline."""

    number: int
    offset: int
    data: bytes


def resolve_manifest(path: str | os.PathLike[str]) -> Path:
    """The manifest file meant by `path`: the file itself, or manifest.jsonl[.gz] when `path` is a directory.

    Raises:
        ManifestError: there is no such file.
    """
    found = Path(path)
    if found.is_dir():
        for name in (MANIFEST_NAME, MANIFEST_NAME + ".gz"):
            if (found / name).is_file():
                return found / name
        raise ManifestError(f"{found}: the directory holds no {MANIFEST_NAME}; name the manifest file itself")
    if not found.exists():
        raise ManifestError(f"{found}: no such manifest; check the path, or make one with `speechkit prepare`")
    if not found.is_file():
        raise ManifestError(f"{found}: not a regular file; give a JSONL manifest")
    return found


def iter_lines(path: Path) -> Iterator[Line]:
    """Stream the non-blank lines of a (gzipped) text file; a line over 16 MiB comes cut at that size plus one byte.

    Raises:
        ManifestError: the file cannot be read or its gzip stream is damaged.
    """
    number, offset = 0, 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            while data := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                begin, offset = offset, offset + len(data)
                if not data.endswith(b"\n"):
                    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        offset += len(rest)
                    offset += len(rest)
                if number == 1 and data.startswith(b"\xef\xbb\xbf"):
                    data, begin = data[3:], begin + 3
                if data.strip():
                    yield Line(number, begin, data.rstrip(b"\r\n"))
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{path}:{number + 1}: cannot be read ({error}); restore or rewrite the file") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_row(data: bytes, where: str) -> dict[str, Any]:
    """One line of JSON to a dict.

    Args:
        data: the line.
        where: "path:line", for the error.

    Raises:
        ManifestError: the line is no JSON object.
    """
    if len(data) > MAX_LINE_BYTES:
        raise ManifestError(f"{where}: longer than {MAX_LINE_BYTES >> 20} MiB; write one JSON object per line")
    try:
        row = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: not UTF-8 (byte {error.start}); save the manifest as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: not valid JSON ({error}); write one JSON object per line") from error
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: a JSON object is needed, found {type(row).__name__}; write one object per line")
    return row


def _pop_first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Take the first of several names that is filled out of the row; names left empty go too."""
    found = None
    for name in names:
        if name in row and row[name] in (None, ""):
            del row[name]
        elif name in row and found is None:
            found = row.pop(name)
    return found


def _label(value: Any, name: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ManifestError(f"{where}: field {name!r} must be a string, is {value!r:.80}; write it as a JSON string")
    return str(value)


def _seconds(value: Any, name: str, where: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        seconds = float(value) if number else math.nan
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ManifestError(f"{where}: field {name!r} must be seconds >= 0, is {value!r:.80}; write a JSON number")
    return seconds


def derived_id(audio: str, start: float = 0.0) -> str:
    """The id of a row that has none: the file's stem and a hash of its path as written and of its offset."""
    written = posixpath.normpath(audio.replace(os.sep, "/"))
    key = f"{written}\n{round(start * 1e6)}".encode("utf-8", "surrogatepass")
    return f"{posixpath.splitext(posixpath.basename(written))[0]}-{hashlib.blake2b(key, digest_size=5).hexdigest()}"


def _has_parent(path: str) -> bool:
    return ".." in path and ".." in path.replace(os.sep, "/").split("/")


@functools.lru_cache(maxsize=64)
def _base(directory: str) -> tuple[Path, str]:
    return Path(directory), os.path.realpath(directory)


def absolute_path(written: str, base: str) -> Path:
    """The absolute path of `written`, which is relative to the directory `base` (".." goes by the real directory)."""
    if _has_parent(written):
        return Path(os.path.normpath(os.path.join(_base(base)[1], written)))  # noqa: PTH118
    return _base(base)[0] / written


def row_to_utterance(row: dict[str, Any], *, base: str, where: str, need_duration: bool = True) -> Utterance:
    """One row of a manifest as an Utterance. `row` is used up.

    Args:
        row: the fields; names as in the head of this file.
        base: absolute path of the directory that relative audio paths start from.
        where: "path:line", for errors.
        need_duration: refuse a row without duration; else its duration is NaN.

    Raises:
        ManifestError: a field is missing or has a wrong value.
    """
    audio = _pop_first(row, _AUDIO_KEYS)
    if not isinstance(audio, str) or not audio or "\0" in audio:
        raise ManifestError(f"{where}: field 'audio_filepath' must be a path, is {audio!r:.80}; name the audio file")
    if _URL.match(audio):
        raise ManifestError(f"{where}: audio_filepath {audio!r:.200} is a URL; download it and name the local file")
    start = _seconds(row.pop("offset", None) or 0.0, "offset", where)
    duration = row.pop("duration", None)
    if duration is None and need_duration:
        raise ManifestError(f"{where}: field 'duration' is missing; `speechkit prepare nemo` fills it in")
    text = row.pop("text", None)
    if text is not None and not isinstance(text, str):
        raise ManifestError(f"{where}: field 'text' must be a string, is {text!r:.80}; write it as a JSON string")
    return Utterance(
        id=_label(_pop_first(row, _ID_KEYS), "id", where) or derived_id(audio, start),
        audio_path=absolute_path(audio, base),
        duration=math.nan if duration is None else _seconds(duration, "duration", where),
        start=start,
        text=text or "",
        speaker=_label(row.pop("speaker", None), "speaker", where),
        lang=_label(_pop_first(row, _LANG_KEYS), "lang", where),
        extra=row,
    )


def iter_manifest(
    path: str | os.PathLike[str], *, on_error: OnError = "raise", need_duration: bool = True
) -> Iterator[Utterance]:
    """Stream a manifest.

    Args:
        path: JSONL file (.gz too), or a directory with a manifest.jsonl.
        on_error: "raise" stops at the first bad line; "skip" leaves bad lines out and, at the end, warns with their
            number and the first few of them.
        need_duration: refuse rows without duration; else their duration is NaN.

    Raises:
        ManifestError: the file cannot be read, or a line is bad and `on_error` is "raise".
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: must be 'raise' or 'skip'")
    file = resolve_manifest(path)
    base = base_directory(file)
    num_bad = 0
    shown: list[str] = []
    for line in iter_lines(file):
        where = f"{file}:{line.number}"
        try:
            row = parse_row(line.data, where)
            utterance = row_to_utterance(row, base=base, where=where, need_duration=need_duration)
        except ManifestError as error:
            if on_error == "raise":
                raise
            num_bad += 1
            if len(shown) < _SHOWN:
                shown.append(str(error))
            continue
        yield utterance
    if num_bad:
        more = f"\n  ... and {num_bad - len(shown)} more" if num_bad > len(shown) else ""
        warnings.warn(f"{file}: {num_bad} bad lines left out:\n  " + "\n  ".join(shown) + more, stacklevel=2)


def read_manifest(path: str | os.PathLike[str], on_error: OnError = "raise") -> list[Utterance]:
    """Read a whole manifest; arguments and errors as for `iter_manifest`."""
    return list(iter_manifest(path, on_error=on_error))


def _written_path(path: Path, base: str, real_base: str) -> str:
    text = str(path)
    if not path.is_absolute():
        text = os.path.abspath(text)  # noqa: PTH100
    if text.startswith(base.rstrip(os.sep) + os.sep) and not _has_parent(text):
        return text[len(base.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
    try:
        relative = os.path.relpath(text, real_base).replace(os.sep, "/")
        shared = os.path.commonpath([text, real_base])
    except ValueError:  # another drive
        return text
    near = relative.split("/").count("..") <= _MAX_PARENTS and shared != os.path.dirname(shared)  # noqa: PTH120
    return relative if near else text


def utterance_to_row(utterance: Utterance, base: Path) -> dict[str, Any]:
    """An utterance as the row that a manifest in directory `base` holds; paths below or near it become relative.

    Raises:
        ValueError: `extra` holds a field name that the row itself needs.
    """
    directory = os.path.abspath(base)  # noqa: PTH100
    return _row(utterance, directory, os.path.realpath(directory))


def _row(utterance: Utterance, base: str, real_base: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": utterance.id,
        "audio_filepath": _written_path(utterance.audio_path, base, real_base),
        "duration": utterance.duration,
        "text": utterance.text,
    }
    if utterance.start:
        row["offset"] = utterance.start
    if utterance.speaker:
        row["speaker"] = utterance.speaker
    if utterance.lang:
        row["lang"] = utterance.lang
    if not utterance.id:
        raise ValueError(f"the utterance of {utterance.audio_path} has an empty id; give it one")
    reserved = RESERVED_FIELDS if utterance.lang else (*RESERVED_FIELDS, "language")
    if clash := [name for name in reserved if name in utterance.extra]:
        raise ValueError(f"utterance {utterance.id!r}: extra has fields {clash}, which the row sets; rename them")
    row.update(utterance.extra)
    return row


def dump_row(row: Mapping[str, Any]) -> bytes:
    """A row as one line of UTF-8 JSON.

    Raises:
        ValueError: a field cannot be written as JSON.
    """
    try:
        try:
            return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        except UnicodeEncodeError:  # undecodable bytes in a file name
            return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"utterance {row.get('id')!r} cannot be written as JSON ({error}); mend its fields") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; it takes the place of `path` when the block ends without error.

    A path ending in .gz is compressed, without time stamp, so that equal content gives equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                    yield packed  # type: ignore[misc]
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def manifest_writer(path: str | os.PathLike[str]) -> Iterator[Callable[[Utterance], None]]:
    """Write a manifest row by row: gives a function to call with each utterance; atomic as `write_manifest` is."""
    file = Path(path)
    base = base_directory(file)
    real_base = os.path.realpath(base)
    with atomic_file(file) as out:

        def write(utterance: Utterance) -> None:
            out.write(dump_row(_row(utterance, base, real_base)))

        yield write


def write_manifest(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> int:
    """Write a manifest; the file appears only when it is complete. Audio below or near it is named relative to it.

    Returns:
        The number of rows written.

    Raises:
        ValueError: a row cannot be written as JSON.
    """
    count = 0
    with manifest_writer(path) as write:
        for utterance in utterances:
            write(utterance)
            count += 1
    return count


def spoken_characters(text: str) -> str:
    """The text without white space: the characters that speaking rates are counted in."""
    return "".join(text.split())


class LeftOut(NamedTuple):
    """Utterances left out for one reason: how many, how many seconds, and the first ids."""

    num: int
    seconds: float
    first_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FilterReport:
    """What `filter_manifest` kept and what it left out, by reason."""

    num_kept: int
    seconds_kept: float
    left_out: Mapping[str, LeftOut]

    @property
    def num_left_out(self) -> int:
        """Utterances left out, over all reasons."""
        return sum(entry.num for entry in self.left_out.values())

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Several lines of text: counts, hours and first ids."""
        lines = [f"kept {self.num_kept} utterances, {self.seconds_kept / 3600:.2f} h"]
        for reason, entry in self.left_out.items():
            more = ", ..." if entry.num > len(entry.first_ids) else ""
            hours = f"{entry.seconds / 3600:.2f} h"
            lines.append(f"left out {entry.num}, {hours}: {reason} ({', '.join(entry.first_ids)}{more})")
        return "\n".join(lines)


def filter_manifest(
    utterances: Iterable[Utterance],
    *,
    min_duration: float = 0.0,
    max_duration: float = math.inf,
    min_tokens_per_second: float = 0.0,
    max_tokens_per_second: float = math.inf,
    encode: Callable[[str], Sequence[Any]] = spoken_characters,
    need_text: bool = False,
) -> tuple[list[Utterance], FilterReport]:
    """Keep the utterances inside the limits and tell which were left out and why.

    Args:
        utterances: what to choose from.
        min_duration: shortest duration kept, in seconds.
        max_duration: longest duration kept, in seconds.
        min_tokens_per_second: lowest rate kept; only utterances with text are judged by rate.
        max_tokens_per_second: highest rate kept.
        encode: text to its tokens, for example `tokenizer.encode`; characters other than white space by default.
        need_text: leave out utterances without text.

    Returns:
        The utterances kept, in their order, and the report.
    """
    kept: list[Utterance] = []
    out: dict[str, LeftOut] = {}
    for utterance in utterances:
        reason = ""
        if utterance.duration < min_duration:
            reason = f"shorter than {min_duration:g} s"
        elif utterance.duration > max_duration:
            reason = f"longer than {max_duration:g} s"
        elif not utterance.text.strip():
            reason = "no text" if need_text else ""
        elif min_tokens_per_second > 0 or max_tokens_per_second < math.inf:
            rate = len(encode(utterance.text)) / max(utterance.duration, 1e-9)
            if rate < min_tokens_per_second:
                reason = f"fewer than {min_tokens_per_second:g} tokens per second"
            elif rate > max_tokens_per_second:
                reason = f"more than {max_tokens_per_second:g} tokens per second"
        if not reason:
            kept.append(utterance)
            continue
        old = out.get(reason, LeftOut(0, 0.0, ()))
        first = (*old.first_ids, utterance.id) if old.num < _SHOWN else old.first_ids
        out[reason] = LeftOut(old.num + 1, old.seconds + utterance.duration, first)
    return kept, FilterReport(len(kept), sum(utterance.duration for utterance in kept), out)

"""Readers of lists: NeMo JSONL, CSV and TSV tables (Common Voice), LJSpeech's metadata.csv."""

from __future__ import annotations

import csv
import functools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from speechkit.data.manifest import (
    ManifestError,
    base_directory,
    derived_id,
    iter_lines,
    parse_row,
    resolve_manifest,
    row_to_utterance,
)
from speechkit.data.reader_core import (
    Draft,
    PathLike,
    existing,
    extra_fields,
    find_audio,
    parse_seconds,
    resolve_audio,
    with_durations,
)
from speechkit.data.rejects import Rejects
from speechkit.types import Utterance

COLUMN_NAMES = {
    "audio": ("audio_filepath", "audio_path", "audio_file", "audio", "wav_filename", "wav", "path", "file_name")
    + ("filename", "file", "clip"),
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text", "label"),
    "id": ("id", "utt_id", "utterance_id", "key"),
    "duration": ("duration", "duration_s", "seconds"),
    "offset": ("offset", "start", "start_time"),
    "end": ("end", "end_time"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "lang": ("lang", "language", "locale"),
}


# ---- NeMo ----


def read_nemo(
    source: PathLike,
    *,
    audio_root: PathLike | None = None,
    rejects: Rejects | None = None,
    num_workers: int | None = None,
) -> Iterator[Utterance]:
    """Read a NeMo-like JSONL manifest, also one without durations.

    Args:
        source: JSONL file (.gz too), or a directory with a manifest.jsonl.
        audio_root: where relative audio paths start.
        rejects: collects the rows that cannot be used; without it they raise.
        num_workers: threads that look at audio; None takes two per core.

    Raises:
        ManifestError: the file cannot be read, or a row is bad and there is no `rejects`.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    file = resolve_manifest(source)

    def drafts() -> Iterator[Draft]:
        base = base_directory(file) if audio_root is None else os.path.abspath(audio_root)  # noqa: PTH100
        for line in iter_lines(file):
            where = f"{file}:{line.number}"
            try:
                row = parse_row(line.data, where)
                yield Draft(where, row_to_utterance(row, base=base, where=where, need_duration=False))
            except ManifestError as error:
                rejects.add(where, "", error)

    return with_durations(drafts(), rejects, num_workers)


# ---- CSV, TSV ----


def read_csv(
    source: PathLike,
    *,
    delimiter: str | None = None,
    quoted: bool | None = None,
    columns: Mapping[str, str] | None = None,
    audio_root: PathLike | None = None,
    lang: str = "",
    rejects: Rejects | None = None,
    num_workers: int | None = None,
) -> Iterator[Utterance]:
    """Read a table with a header line; Common Voice's TSV files as they are.

    Args:
        source: CSV or TSV file, UTF-8.
        delimiter: one character; None finds it in the header (tab, comma, semicolon or bar).
        quoted: fields may be in double quotes; None means yes, except where tabs separate.
        columns: which column is "audio", "text", "id", "duration", "offset", "end", "speaker" or "lang", where it has
            none of the usual names. Other columns are kept as extra fields.
        audio_root: where relative audio paths start; `clips/` beside the table is found by itself (Common Voice).
        lang: language of rows without one.
        rejects: collects the rows that cannot be used; without it they raise.
        num_workers: threads that look at audio; None takes two per core.

    Raises:
        ManifestError: there is no header with a column of audio, or a row is bad and there is no `rejects`.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    file = existing(source, "a CSV or TSV file with a header line", directory=False)
    return with_durations(_csv_drafts(file, delimiter, quoted, columns or {}, audio_root, lang, rejects), rejects, num_workers)


def _csv_columns(file: Path, header: list[str], asked: Mapping[str, str]) -> dict[str, str]:
    """Our name -> column."""
    if unknown := set(asked) - set(COLUMN_NAMES):
        raise ManifestError(f"columns={sorted(unknown)}: not among {', '.join(COLUMN_NAMES)}")
    if missing := [name for name in asked.values() if name not in header]:
        raise ManifestError(f"{file}:1: no column {missing}; the header has {header}")
    lowered = {name.strip().lower(): name for name in reversed(header)}
    found = {ours: lowered[name] for ours, names in COLUMN_NAMES.items() for name in reversed(names) if name in lowered}
    found.update(asked)
    if "audio" not in found:
        raise ManifestError(f"{file}:1: no column of audio among {header}; name it with columns={{'audio': ...}}")
    return found


def _csv_drafts(
    file: Path,
    delimiter: str | None,
    quoted: bool | None,
    asked: Mapping[str, str],
    audio_root: PathLike | None,
    lang: str,
    rejects: Rejects,
) -> Iterator[Draft]:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for line in iter_lines(file):
            number = line.number
            try:
                yield line.data.decode("utf-8") + "\n"
            except UnicodeDecodeError as error:
                rejects.add(f"{file}:{number}", "", f"not UTF-8 ({error.reason}); save the table as UTF-8")

    rest = lines()
    first = next(rest, "")
    delimiter = delimiter or max("\t,;|", key=first.count)
    plain = delimiter == "\t" if quoted is None else not quoted
    table = functools.partial(
        csv.reader, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=True
    )
    header = next(table([first]), [])
    columns = _csv_columns(file, header, asked)
    root = audio_root
    if root is None and (file.parent / "clips").is_dir():
        root = file.parent / "clips"
    reader = table(rest)
    while True:
        where = f"{file}:{number + 1}"
        try:
            fields = next(reader, None)
            if fields is None:
                return
            where = f"{file}:{number}"
            if len(fields) != len(header):
                raise ManifestError(f"{where}: {len(fields)} fields, the header has {len(header)}; mend the line")
            yield Draft(where, _csv_utterance(dict(zip(header, fields)), columns, where, root, file.parent, lang))
        except csv.Error as error:
            rejects.add(where, "", f"not a row ({error}); check its quotes, or read with quoted=False")
        except ManifestError as error:
            rejects.add(where, "", error)


def _csv_utterance(
    row: dict[str, str], columns: dict[str, str], where: str, root: PathLike | None, source_dir: Path, lang: str
) -> Utterance:
    own = {name: row.pop(column, "").strip() for name, column in columns.items()}
    if not own["audio"] or "\0" in own["audio"]:
        raise ManifestError(f"{where}: column {columns['audio']!r} is empty; name the audio file")
    times = {}
    for name in ("offset", "end", "duration"):
        if text := own.get(name, ""):
            times[name] = parse_seconds(text, where)
    start = times.get("offset", 0.0)
    duration = times.get("duration", math.nan)
    if "end" in times and math.isnan(duration):
        duration = round(times["end"] - start, 6)
        if duration <= 0:
            raise ManifestError(f"{where}: ends at {times['end']:g} s, before its start at {start:g} s")
    return Utterance(
        id=own.get("id") or derived_id(own["audio"], start),
        audio_path=resolve_audio(own["audio"], root, source_dir),
        duration=duration,
        start=start,
        text=own.get("text", ""),
        speaker=own.get("speaker", ""),
        lang=own.get("lang") or lang,
        extra=extra_fields({name: value for name, value in row.items() if name and value}),
    )


# ---- LJSpeech ----


def read_ljspeech(
    source: PathLike,
    *,
    normalized: bool = True,
    lang: str = "en",
    speaker: str = "lj",
    rejects: Rejects | None = None,
    num_workers: int | None = None,
) -> Iterator[Utterance]:
    """Read a corpus in LJSpeech's form: metadata.csv (`id|text|normalised text`) and wavs/<id>.wav.

    Args:
        source: the corpus directory, or its metadata.csv.
        normalized: take the third column as text, the second as extra field `text_raw`; else the second alone.
        lang: language of all rows.
        speaker: speaker of all rows.
        rejects: collects the rows that cannot be used; without it they raise.
        num_workers: threads that look at audio; None takes two per core.

    Raises:
        ManifestError: there is no metadata.csv, or a row is bad and there is no `rejects`.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    directory = Path(source)
    file = directory / "metadata.csv" if directory.is_dir() else directory
    existing(file, "LJSpeech's directory, with metadata.csv in it", directory=False)

    def drafts() -> Iterator[Draft]:
        for line in iter_lines(file):
            where = f"{file}:{line.number}"
            decoded = line.data.decode("utf-8", "replace")
            fields = [field.strip() for field in decoded.split("|")]
            if len(fields) not in (2, 3) or "\ufffd" in decoded or not re.fullmatch(r"[^/\\\0]+", fields[0]):
                rejects.add(where, fields[0], "must be 'id|text|normalised text' in UTF-8")
                continue
            name, raw, text = fields[0], fields[1], fields[-1]
            path = find_audio(file.parent / "wavs", name) or file.parent / "wavs" / f"{name}.wav"
            extra = {"text_raw": raw} if normalized and text != raw else {}
            utterance = Utterance(
                id=name,
                audio_path=path.absolute(),
                duration=math.nan,
                text=text if normalized else raw,
                speaker=speaker,
                lang=lang,
                extra=extra,
            )
            yield Draft(where, utterance)

    return with_durations(drafts(), rejects, num_workers)

"""Validation of manifests: every row and the audio behind it, each problem by line and id.

Rows are checked twice over the file: first what the rows say (fields, duplicate ids, speaking rates), then the audio,
block by block in helper processes that a hostile file may crash or hang without harm. Memory grows by 30 bytes per row.
"""

from __future__ import annotations

import os
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from speechkit.audio.decoders import open_decoder
from speechkit.audio.io import AudioError
from speechkit.data.manifest import (
    Line,
    ManifestError,
    atomic_file,
    base_directory,
    dump_row,
    iter_lines,
    parse_row,
    resolve_manifest,
    row_to_utterance,
    spoken_characters,
    utterance_to_row,
)
from speechkit.data.parallel import IsolatedWorkers, WorkerDied, available_cpus, ordered_map, progress_bar
from speechkit.data.rejects import rejects_path
from speechkit.data.shards import audio_source
from speechkit.types import Seconds, Utterance

KINDS = {
    "bad_row": "the line is no row of a manifest",
    "duplicate_id": "an earlier row has this id",
    "no_text": "the text is empty",
    "rate": "tokens per second unlike the rest of the manifest, or beyond the limits",
    "missing": "there is no such audio file",
    "unreadable": "the audio cannot be read",
    "empty": "the audio holds no samples, or the duration is 0",
    "truncated": "the header promises more audio than can be decoded: cut off, or damaged on the way",
    "wrong_duration": "the file is longer or shorter than the row says",
    "beyond_end": "offset + duration lie beyond the end of the file",
    "silent": "the loudest sample is below the silence level",
    "clipped": "too many samples are at full scale",
    "not_finite": "the audio holds NaN or infinite samples",
    "crash": "reading the audio crashed its helper process",
    "timeout": "reading the audio took too long",
}
_CLIP_LEVEL = 0.999
_MIN_FOR_OUTLIERS = 20  # rows of one language below which only the absolute limits of the rate are applied
_MIN_SPREAD = 0.1  # least standard deviation assumed for the logarithm of the rate
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of one row.

    Attributes:
        line: line of the manifest, from 1.
        id: utterance id; empty when the line cannot be read.
        kind: one of `KINDS`.
        detail: what was found, for people.
    """

    line: int
    id: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What `validate_manifest` found.

    Attributes:
        path: the manifest.
        num_rows: rows read, bad ones too.
        num_sound: rows without problem.
        seconds_sound: their total duration, as the rows say.
        problems: all problems, by line.
        fix_path: manifest of the sound rows, when asked for.
        rejects_path: the other rows with their reasons, when asked for.
    """

    path: Path
    num_rows: int
    num_sound: int
    seconds_sound: Seconds
    problems: list[Problem]
    fix_path: Path | None = None
    rejects_path: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether there are rows and none has a problem."""
        return self.num_rows > 0 and not self.problems

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind that occurs."""
        return dict(Counter(problem.kind for problem in self.problems))

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Several lines of text: totals, then each kind of problem with its first ids and lines."""
        lines = [f"{self.path}: {self.num_rows} rows, {self.num_sound} sound ({self.seconds_sound / 3600:.2f} h)"]
        if not self.num_rows:
            lines.append("  the manifest holds no rows")
        for kind, count in sorted(self.counts.items(), key=lambda entry: -entry[1]):
            lines.append(f"  {kind}: {count} ({KINDS[kind]})")
            found = [problem for problem in self.problems if problem.kind == kind]
            lines += [f"    line {entry.line} {entry.id}: {entry.detail}" for entry in found[:_SHOWN]]
            if count > _SHOWN:
                lines.append(f"    ... and {count - _SHOWN} more")
        if self.fix_path is not None:
            lines.append(f"  wrote {self.num_sound} sound rows to {self.fix_path}")
            lines.append(f"  wrote {self.num_rows - self.num_sound} rejected rows to {self.rejects_path}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Limits of the audio checks.

    Attributes:
        duration_tolerance: seconds by which row, header and samples may differ.
        silence_db: peak level in dB of full scale below which audio is silent.
        max_clipped: share of samples in clipped runs (three or more in a row at full scale) that is let pass.
    """

    duration_tolerance: Seconds = 0.1
    silence_db: float = -60.0
    max_clipped: float = 0.001


def validate_manifest(
    path: str | os.PathLike[str],
    *,
    fix: str | os.PathLike[str] | None = None,
    ignore: Collection[str] = (),
    limits: AudioLimits | None = None,
    encode: Callable[[str], Sequence[Any]] = spoken_characters,
    min_tokens_per_second: float = 0.3,
    max_tokens_per_second: float = 40.0,
    max_deviations: float = 5.0,
    check_audio: bool = True,
    num_workers: int | None = None,
    timeout: Seconds = 300.0,
) -> ValidationReport:
    """Check every row of a manifest and its audio.

    Args:
        path: the manifest, or a directory with a manifest.jsonl.
        fix: write the sound rows here, and the others with their reasons to <fix>.rejects.jsonl.
        ignore: kinds of problem (see `KINDS`) that are not looked for.
        limits: limits of the audio checks.
        encode: text to tokens, for their rate; characters other than white space by default.
        min_tokens_per_second: a lower rate is a problem.
        max_tokens_per_second: a higher rate is a problem.
        max_deviations: a rate whose logarithm is further from the median of its language, in robust standard
            deviations (1.4826 times the median absolute deviation), is a problem.
        check_audio: read the audio; else only the rows are checked.
        num_workers: helper processes; None takes one per core, 0 reads in this process, unprotected from crashes.
        timeout: seconds that the audio of one row may take.

    Returns:
        The report; `report.ok` tells whether all is well.

    Raises:
        ManifestError: the file cannot be read at all.
        ValueError: an option has a wrong value.
    """
    if unknown := set(ignore) - set(KINDS):
        raise ValueError(f"ignore={sorted(unknown)}: no such kind of problem; known are {', '.join(KINDS)}")
    file = resolve_manifest(path)
    fixed = None if fix is None else Path(fix)
    if fixed is not None and fixed.resolve() == file.resolve():
        raise ValueError(f"fix={str(fixed)!r} is the manifest itself; name another file")
    survey = _survey(file, encode, min_tokens_per_second, max_tokens_per_second, max_deviations)
    check = partial(_check_row, limits=limits or AudioLimits())
    workers = available_cpus() if num_workers is None else num_workers
    problems: list[Problem] = []
    num_sound, seconds = 0, 0.0
    with ExitStack() as stack:
        pool = stack.enter_context(IsolatedWorkers(workers if check_audio else 0, timeout=timeout))
        good = None if fixed is None else stack.enter_context(atomic_file(fixed))
        bad = None if fixed is None else stack.enter_context(atomic_file(rejects_path(fixed)))
        rows = progress_bar(_rows(file, survey), description="validate", total=survey.num_rows, unit="row")
        judged = ordered_map(partial(_audio_problems, pool, check, check_audio), rows, pool.num_workers)
        for row, found in judged:
            name = row.utterance.id if row.utterance else ""
            own = [Problem(row.line.number, name, *entry) for entry in (*row.found, *found) if entry[0] not in ignore]
            problems += own
            if not own and row.utterance is not None:
                num_sound += 1
                seconds += row.utterance.duration
            if fixed is not None:
                _write_row(row, own, fixed.parent, good, bad)
    rejects = None if fixed is None else rejects_path(fixed)
    return ValidationReport(file, survey.num_rows, num_sound, seconds, problems, fixed, rejects)


# ---- what the rows say ----

Found = tuple[str, str]  # kind, detail


class _Survey(NamedTuple):
    num_rows: int
    shares_file: np.ndarray  # bool: another row has the same audio file
    found: dict[int, list[Found]]  # problems by row


class _Row(NamedTuple):
    line: Line
    utterance: Utterance | None
    shares_file: bool
    found: list[Found]


def _parse(line: Line, file: Path) -> Utterance:
    where = f"{file}:{line.number}"
    return row_to_utterance(parse_row(line.data, where), base=base_directory(file), where=where)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _survey(
    file: Path,
    encode: Callable[[str], Sequence[Any]],
    min_rate: float,
    max_rate: float,
    max_deviations: float,
) -> _Survey:
    """First pass: what can be told without audio."""
    lines, ids, paths, groups, rates = array("Q"), array("Q"), array("Q"), array("L"), array("d")
    languages: dict[str, int] = {}
    found: dict[int, list[Found]] = {}
    for row, line in enumerate(iter_lines(file)):
        lines.append(line.number)
        try:
            utterance = _parse(line, file)
        except ManifestError as error:
            # Never equal to another row's: hashes of rows and of these numbers meet with probability 2**-64 per pair.
            utterance = None
            found.setdefault(row, []).append(("bad_row", str(error).removeprefix(f"{file}:{line.number}: ")))
        ids.append(_hash(f"\n{row}" if utterance is None else utterance.id))
        paths.append(_hash(f"\n{row}" if utterance is None else _audio_key(utterance)))
        groups.append(languages.setdefault("" if utterance is None else utterance.lang, len(languages)))
        rates.append(np.nan)
        if utterance is None:
            continue
        if not utterance.text.strip():
            found.setdefault(row, []).append(("no_text", "the text is empty"))
        elif utterance.duration > 0:
            rates[row] = len(encode(utterance.text)) / utterance.duration
    order, first = _first_of_equal(np.array(ids, dtype=np.uint64))
    for row in order.tolist():
        found.setdefault(row, []).append(("duplicate_id", f"line {lines[int(first[row])]} has this id already"))
    _judge_rates(np.array(rates), np.array(groups), min_rate, max_rate, max_deviations, found)
    keys = np.array(paths, dtype=np.uint64)
    repeated, first = _first_of_equal(keys)
    shares = np.zeros(len(keys), dtype=bool)
    shares[repeated] = shares[first[repeated]] = True
    return _Survey(len(lines), shares, found)


def _audio_key(utterance: Utterance) -> str:
    return f"{utterance.audio_path}\n{utterance.extra.get('tar_offset', '')}"


def _first_of_equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose key an earlier row has, and for every row the first row with its key."""
    order = np.argsort(keys, kind="stable")
    new = np.ones(len(keys), dtype=bool)
    new[1:] = keys[order][1:] != keys[order][:-1]
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = order[new][np.cumsum(new) - 1] if len(keys) else 0
    return np.flatnonzero(first != np.arange(len(keys))), first


def _judge_rates(
    rates: np.ndarray,
    groups: np.ndarray,
    min_rate: float,
    max_rate: float,
    max_deviations: float,
    found: dict[int, list[Found]],
) -> None:
    for group in np.unique(groups):
        rows = np.flatnonzero((groups == group) & np.isfinite(rates))
        values = rates[rows]
        low, high = min_rate, max_rate
        positive = values[values > 0]
        if len(positive) >= _MIN_FOR_OUTLIERS:
            logs = np.log(positive)
            median = float(np.median(logs))
            spread = max(1.4826 * float(np.median(np.abs(logs - median))), _MIN_SPREAD)
            low = max(low, float(np.exp(median - max_deviations * spread)))
            high = min(high, float(np.exp(median + max_deviations * spread)))
        for row, rate in zip(rows.tolist(), values.tolist(), strict=True):
            if not low <= rate <= high:
                detail = f"{rate:.2f} tokens per second, usual here are {low:.2f} to {high:.2f}"
                found.setdefault(row, []).append(("rate", detail))


def _rows(file: Path, survey: _Survey) -> Iterator[_Row]:
    """Second pass over the lines, with what the first found."""
    for row, line in enumerate(iter_lines(file)):
        if row >= survey.num_rows:
            raise ManifestError(f"{file}: changed while it was read; validate it again")
        found = survey.found.get(row, [])
        bad = any(kind == "bad_row" for kind, _ in found)
        yield _Row(line, None if bad else _parse(line, file), bool(survey.shares_file[row]), found)


def _write_row(row: _Row, problems: list[Problem], base: Path, good: IO[bytes] | None, bad: IO[bytes] | None) -> None:
    assert good is not None
    assert bad is not None
    fields = utterance_to_row(row.utterance, base) if row.utterance is not None else {}
    if row.utterance is not None and not problems:
        good.write(dump_row(fields))
        return
    if row.utterance is None:
        fields["reject_raw"] = row.line.data[:10_000].decode("utf-8", "replace")
    fields["reject_line"] = row.line.number
    fields["reject_reasons"] = [{"kind": entry.kind, "detail": entry.detail} for entry in problems]
    bad.write(dump_row(fields))


# ---- the audio ----


def _audio_problems(
    pool: IsolatedWorkers, check: Callable[[Utterance, bool], list[Found]], check_audio: bool, row: _Row
) -> list[Found]:
    if row.utterance is None or not check_audio:
        return []
    try:
        return pool.call(check, row.utterance, row.shares_file)
    except WorkerDied as error:
        return [("timeout" if error.timed_out else "crash", f"{row.utterance.audio_path}: {error}")]


def _check_row(utterance: Utterance, shares_file: bool, *, limits: AudioLimits) -> list[Found]:
    """The problems of one row's audio."""
    path = utterance.audio_path
    try:
        if not path.exists():
            return [("missing", f"{path}: no such file")]
        if path.is_file() and path.stat().st_size == 0:
            return [("empty", f"{path}: the file is empty")]
        if utterance.duration == 0:
            return [("empty", "the row says duration 0")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is told as a problem
            return _check_audio(utterance, whole=not shares_file and utterance.start == 0, limits=limits)
    except MemoryError:
        return [("unreadable", f"{path}: reading it takes more memory than there is")]
    except (AudioError, ManifestError, OSError, ValueError) as error:
        return [("unreadable", str(error))]


class _Scan(NamedTuple):
    num_samples: int
    peak: float
    num_bad: int
    clipped: float  # share


def _scan(blocks: Iterator[np.ndarray]) -> _Scan:
    num_samples, num_values, num_bad, num_clipped, peak = 0, 0, 0, 0, 0.0
    for block_NC in blocks:
        level_NC = np.abs(block_NC)
        finite_NC = np.isfinite(level_NC)
        if not finite_NC.all():
            num_bad += int(level_NC.size - finite_NC.sum())
            level_NC = np.where(finite_NC, level_NC, 0.0)
        block_peak = float(level_NC.max(initial=0.0))
        if block_peak >= _CLIP_LEVEL:
            hot_NC = np.pad(level_NC >= _CLIP_LEVEL, ((2, 2), (0, 0)))
            run_NC = hot_NC[:-2] & hot_NC[1:-1] & hot_NC[2:]  # begins a run of three
            num_clipped += int((run_NC[2:] | run_NC[1:-1] | run_NC[:-2]).sum())
        peak = max(peak, block_peak)
        num_samples += len(block_NC)
        num_values += block_NC.size
    return _Scan(num_samples, peak, num_bad, num_clipped / max(num_values, 1))


def _check_audio(utterance: Utterance, *, whole: bool, limits: AudioLimits) -> list[Found]:
    source = audio_source(utterance)
    with open_decoder(source) as decoder:
        rate = decoder.sample_rate
        first = round(utterance.start * rate)
        count = None if whole else max(1, round(utterance.duration * rate))
        try:
            scan = _scan(decoder.blocks(first, count))
        except AudioError as error:
            return [("truncated" if decoder.num_samples else "unreadable", str(error))]
        promised = None if decoder.num_samples is None else decoder.num_samples / rate
    lost = _missing_wav_seconds(source) if isinstance(source, Path) else 0.0
    found = _duration_problems(utterance, scan.num_samples / rate, promised, lost, whole, limits.duration_tolerance)
    if not scan.num_samples:
        return found or [("empty", f"{utterance.audio_path}: holds no samples")]
    if scan.num_bad:
        found.append(("not_finite", f"{scan.num_bad} samples are NaN or infinite"))
    elif scan.peak < 10 ** (limits.silence_db / 20):
        level = f"{20 * np.log10(scan.peak):.0f} dB" if scan.peak > 0 else "0"
        found.append(("silent", f"the loudest sample is {level}, the limit {limits.silence_db:g} dB"))
    if scan.clipped > limits.max_clipped:
        found.append(("clipped", f"{scan.clipped:.2%} of the samples are clipped, the limit is {limits.max_clipped:.2%}"))
    return found


def _duration_problems(
    utterance: Utterance, read: Seconds, promised: Seconds | None, lost: Seconds, whole: bool, tolerance: Seconds
) -> list[Found]:
    end = utterance.start + utterance.duration
    if lost > tolerance and (whole or read < utterance.duration - tolerance):
        return [("truncated", f"the file holds {lost:.2f} s less than its header promises")]
    if whole:
        if promised is not None and read < promised - tolerance:
            return [("truncated", f"the header promises {promised:.2f} s, the file holds {read:.2f} s")]
        if abs(read - utterance.duration) > tolerance and read > 0:
            return [("wrong_duration", f"the row says {utterance.duration:.2f} s, the file holds {read:.2f} s")]
        return []
    if read < utterance.duration - tolerance:
        if promised is not None and end <= promised + tolerance:
            return [("truncated", f"the header promises {promised:.2f} s, {utterance.start + read:.2f} s can be read")]
        return [("beyond_end", f"the row ends at {end:.2f} s, the file at {utterance.start + read:.2f} s")]
    return []


def _missing_wav_seconds(path: Path) -> Seconds:
    """Seconds that the data chunk of a WAV file promises and the file does not hold.

    libsndfile takes the file's size for the length without a word. Sizes that writers to a pipe leave (0, or near 2**31
    or 2**32) promise nothing.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
        size = os.fstat(file.fileno()).st_size
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return 0.0
    position, byte_rate = 12, 0
    while position + 8 <= len(head):
        name, length = head[position : position + 4], int.from_bytes(head[position + 4 : position + 8], "little")
        if name == b"fmt ":
            byte_rate = int.from_bytes(head[position + 16 : position + 20], "little")
        if name == b"data":
            known = 0 < length < 0x7FFFF000
            return max(0, position + 8 + length - size) / byte_rate if known and byte_rate else 0.0
        position += 8 + length + length % 2
    return 0.0

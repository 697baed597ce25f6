"""Tar shards: audio in numbered tar files, for object stores and discs that dislike small files.

A directory of shards holds, for every shard, `000000.tar` and `000000.jsonl` with one row per member, and two lists over
all: `manifest.jsonl` and `shards.jsonl` (one row per shard, written last). The rows are those of an ordinary manifest
whose `audio_filepath` is the tar and whose extras `tar_member`, `tar_offset` and `tar_size` say where in it the audio
lies. So there are two ways to read: `ShardDataset` streams shard after shard, and `compile_index` of manifest.jsonl
gives the bucketing sampler any utterance in any order, with `audio_source` for its bytes.

Nothing is ever unpacked to disk; members that are no plain files, or whose names leave the archive, are refused.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, TypeGuard

import soundfile

from speechkit.audio.io import AudioError, audio_info, load_audio
from speechkit.data.manifest import (
    MANIFEST_NAME,
    ManifestError,
    OnError,
    atomic_file,
    dump_row,
    iter_lines,
    iter_manifest,
    parse_row,
    utterance_to_row,
)
from speechkit.data.parallel import available_cpus, ordered_map, progress_bar
from speechkit.data.rejects import Rejects
from speechkit.types import Seconds, Utterance

AudioFormat = Literal["flac", "wav", "copy"]

SHARDS_NAME = "shards.jsonl"
TAR_FIELDS = ("tar_member", "tar_offset", "tar_size")
_BLOCK = 512
_COPY_TOLERANCE: Seconds = 0.1  # by which a whole file and its row may differ


class ShardInfo(NamedTuple):
    """One row of shards.jsonl: file name of the tar, its utterances, their seconds and the bytes of the tar."""

    tar: str
    num_utterances: int
    seconds: Seconds
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What `write_shards` wrote, and the utterances that it left out."""

    directory: Path
    shards: tuple[ShardInfo, ...]
    rejects: Rejects

    @property
    def num_utterances(self) -> int:
        """Utterances in all shards."""
        return sum(shard.num_utterances for shard in self.shards)

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Several lines of text: counts, hours, size, and what was left out."""
        seconds, size = sum(shard.seconds for shard in self.shards), sum(shard.num_bytes for shard in self.shards)
        lines = [
            f"{self.directory}: {len(self.shards)} shards, {self.num_utterances} utterances, "
            f"{seconds / 3600:.2f} h, {size / 2**20:.1f} MiB"
        ]
        return "\n".join(lines + [self.rejects.summary()] * bool(self.rejects))


# ---- writing ----


def write_shards(
    utterances: Iterable[Utterance],
    out_dir: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 256 * 2**20,
    max_shard_utterances: int | None = None,
    audio_format: AudioFormat = "flac",
    sample_rate: int | None = None,
    num_workers: int | None = None,
    on_error: OnError = "raise",
) -> ShardReport:
    """Pack the audio of utterances into tar shards, in the order given (shuffle first where order means something).

    Args:
        utterances: what to pack.
        out_dir: directory for the shards; made when missing; must not hold shards yet.
        max_shard_bytes: a shard is closed before it grows beyond this size (unless one member alone does).
        max_shard_utterances: a shard is closed at this number of members.
        audio_format: "flac" and "wav" write each utterance as one mono 16-bit file of its own; "copy" packs files as
            they are, which must then be whole.
        sample_rate: resample to this rate in Hz; None keeps each file's own.
        num_workers: threads that encode; None takes one per core.
        on_error: "raise" stops at audio that cannot be read, "skip" leaves it out and reports it.

    Raises:
        ValueError: an option is wrong, or the directory holds shards already.
        ManifestError: an utterance cannot be packed and `on_error` is "raise".
    """
    if audio_format not in ("flac", "wav", "copy"):
        raise ValueError(f"audio_format={audio_format!r}: must be 'flac', 'wav' or 'copy'")
    if audio_format == "copy" and sample_rate is not None:
        raise ValueError(f"sample_rate={sample_rate}: 'copy' keeps the audio as it is; use audio_format='flac'")
    for name, value in (("max_shard_bytes", max_shard_bytes), ("max_shard_utterances", max_shard_utterances)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be >= 1")
    directory = Path(out_dir)
    if (directory / SHARDS_NAME).exists():
        raise ValueError(f"{directory} holds shards already; give an empty directory or delete them first")
    directory.mkdir(parents=True, exist_ok=True)
    rejects = Rejects(on_error)
    encode = partial(_try_encode, audio_format=audio_format, sample_rate=sample_rate)
    workers = available_cpus() if num_workers is None else num_workers
    with atomic_file(directory / MANIFEST_NAME) as manifest, _ShardWriter(directory, manifest) as writer:
        for utterance, encoded in ordered_map(encode, progress_bar(utterances, description="shard"), workers):
            if isinstance(encoded, str):
                rejects.add("", utterance.id, encoded)
                continue
            too_many = max_shard_utterances is not None and writer.num_utterances >= max_shard_utterances
            if writer.num_utterances and (too_many or writer.size_with(encoded) > max_shard_bytes):
                writer.close_shard()
            writer.add(utterance, encoded)
        writer.close_shard()
    with atomic_file(directory / SHARDS_NAME) as out:
        for shard in writer.shards:
            out.write(dump_row(shard._asdict()))
    return ShardReport(directory, tuple(writer.shards), rejects)


def shard_manifest(
    manifest: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 256 * 2**20,
    max_shard_utterances: int | None = None,
    audio_format: AudioFormat = "flac",
    sample_rate: int | None = None,
    num_workers: int | None = None,
    on_error: OnError = "raise",
) -> ShardReport:
    """`write_shards` for the utterances of a manifest."""
    return write_shards(
        iter_manifest(manifest),
        out_dir,
        max_shard_bytes=max_shard_bytes,
        max_shard_utterances=max_shard_utterances,
        audio_format=audio_format,
        sample_rate=sample_rate,
        num_workers=num_workers,
        on_error=on_error,
    )


class _Encoded(NamedTuple):
    data: bytes
    suffix: str
    duration: Seconds


def _try_encode(utterance: Utterance, *, audio_format: AudioFormat, sample_rate: int | None) -> _Encoded | str:
    """The bytes of an utterance, or the reason why there are none."""
    try:
        if audio_format == "copy":
            return _whole_file(utterance)
        wave_N, rate = load_audio(
            audio_source(utterance), sample_rate=sample_rate, start=utterance.start, duration=utterance.duration or None
        )
        out = io.BytesIO()
        soundfile.write(out, wave_N, rate, format=audio_format.upper(), subtype="PCM_16")
        return _Encoded(out.getvalue(), f".{audio_format}", len(wave_N) / rate)
    except (ValueError, OSError, soundfile.SoundFileError) as error:
        return f"utterance {utterance.id}: {error}"


def _whole_file(utterance: Utterance) -> _Encoded:
    source = audio_source(utterance)
    duration = audio_info(source).duration
    if utterance.start or abs(duration - utterance.duration) > _COPY_TOLERANCE:
        raise ValueError(
            f"is {utterance.start:.2f} + {utterance.duration:.2f} s of a file of {duration:.2f} s, and 'copy' packs "
            "whole files; use audio_format='flac'"
        )
    name = str(utterance.extra["tar_member"]) if isinstance(source, bytes) else source.name
    suffix = re.sub(r"[^A-Za-z0-9.]", "", PurePosixPath(name).suffix)
    return _Encoded(source if isinstance(source, bytes) else source.read_bytes(), suffix, duration)


class _ShardWriter:
    """Writes members and rows; a context manager that throws an unfinished shard away."""

    def __init__(self, directory: Path, manifest: IO[bytes]) -> None:
        self.shards: list[ShardInfo] = []
        self.num_utterances = 0
        self.num_bytes = 0
        self._directory, self._manifest = directory, manifest
        self._seconds = 0.0
        self._files: ExitStack | None = None

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._files is not None:
            self._files.__exit__(*error)  # type: ignore[arg-type]

    @property
    def _name(self) -> str:
        return f"{len(self.shards):06d}"

    def add(self, utterance: Utterance, encoded: _Encoded) -> None:
        if self._files is None:
            self._files = ExitStack()
            self._tar = self._files.enter_context(atomic_file(self._directory / f"{self._name}.tar"))
            self._rows = self._files.enter_context(atomic_file(self._directory / f"{self._name}.jsonl"))
        label = re.sub(r"[^A-Za-z0-9_-]+", "-", utterance.id)[:60]
        member = tarfile.TarInfo(f"{self.num_utterances:06d}_{label}{encoded.suffix}")
        member.size = len(encoded.data)
        self._tar.write(member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        place = {"tar_member": member.name, "tar_offset": self._tar.tell(), "tar_size": member.size}
        self._tar.write(encoded.data)
        self._tar.write(b"\0" * (-member.size % _BLOCK))
        packed = replace(
            utterance,
            audio_path=(self._directory / f"{self._name}.tar").absolute(),
            start=0.0,
            duration=encoded.duration,
            extra={**utterance.extra, **place},
        )
        row = dump_row(utterance_to_row(packed, self._directory))
        self._rows.write(row)
        self._manifest.write(row)
        self.num_utterances += 1
        self.num_bytes = self._tar.tell()
        self._seconds += encoded.duration

    def size_with(self, encoded: _Encoded) -> int:
        """Bytes of the current shard if it were closed after this member."""
        return self.num_bytes + _BLOCK + len(encoded.data) + -len(encoded.data) % _BLOCK + 2 * _BLOCK

    def close_shard(self) -> None:
        if self._files is None:
            return
        self._tar.write(b"\0" * (2 * _BLOCK))
        info = ShardInfo(f"{self._name}.tar", self.num_utterances, self._seconds, self._tar.tell())
        self._files.close()
        self.shards.append(info)
        self._files, self.num_utterances, self.num_bytes, self._seconds = None, 0, 0, 0.0


# ---- reading ----


def audio_source(utterance: Utterance) -> Path | bytes:
    """What `load_audio` reads for an utterance: its file, or its bytes when it lies in a shard.

    Raises:
        AudioError: the shard is missing, shorter than the manifest says, or was written anew.
    """
    if "tar_offset" not in utterance.extra:
        return utterance.audio_path
    path = utterance.audio_path
    member, offset, size = (utterance.extra.get(name) for name in TAR_FIELDS)
    if not (isinstance(member, str) and _is_size(offset) and _is_size(size) and offset >= _BLOCK):
        raise AudioError(f"{path}: utterance {utterance.id} has bad fields {TAR_FIELDS}; write the shards again")
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            if offset + size > end:
                raise AudioError(f"{path}: truncated: {member} needs {offset + size} bytes of {end}; fetch it again")
            file.seek(offset - _BLOCK)
            header, data = file.read(_BLOCK), file.read(size)
    except OSError as error:
        raise AudioError(f"{path}: the shard cannot be read ({error.strerror}); check the path") from error
    if _member_name(header) != member:
        raise AudioError(f"{path}: {member} is not where the manifest says; the shard was changed, write it again")
    return data


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _member_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def iter_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """Stream the members of a plain tar of plain files, in order: (name, content).

    Raises:
        ManifestError: the archive is missing, truncated or damaged, or a member is a link, a directory or anything else
            than a plain file, or its name is absolute or goes upwards.
    """
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            while True:
                header = file.read(_BLOCK)
                left -= len(header)
                if len(header) < _BLOCK:
                    raise ManifestError(f"{path}: truncated: the shard has no end mark; fetch or write it again")
                if header == b"\0" * _BLOCK:
                    return
                name, size = _check_header(path, header)
                if size > left:
                    raise ManifestError(f"{path}: truncated in member {name}; fetch or write the shard again")
                data = file.read(size)
                file.seek(-size % _BLOCK, os.SEEK_CUR)
                left -= size + -size % _BLOCK
                yield name, data
    except OSError as error:
        raise ManifestError(f"{path}: the shard cannot be read ({error.strerror}); check the path") from error


def _check_header(path: Path, header: bytes) -> tuple[str, int]:
    name = _member_name(header)
    shown = name.encode("unicode_escape").decode("ascii")
    try:
        checksum = int(header[148:156].strip(b" \0") or b"x", 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise ManifestError(f"{path}: not a tar header where one is due; fetch or write the shard again") from error
    if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) or size < 0:
        raise ManifestError(f"{path}: damaged at member {shown}; fetch or write the shard again")
    if header[156:157] not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ManifestError(f"{path}: member {shown} is no plain file but a link, directory or the like; refused")
    parts = re.split(r"[/\\]", name)
    if not name or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise ManifestError(f"{path}: member {shown!r} has an absolute or upward path; refused, do not trust this tar")
    return name, size


class ShardReader:
    """Reads one shard from beginning to end: iterate for (utterance, bytes of its audio file).

    Args:
        tar: the tar; the rows are beside it, in the .jsonl of the same name.
    """

    def __init__(self, tar: str | os.PathLike[str]) -> None:
        self.tar = Path(tar)

    def __iter__(self) -> Iterator[tuple[Utterance, bytes]]:
        """
        Raises:
            ManifestError: the shard is truncated, unsafe, or does not hold what its rows say.
        """
        rows_path = self.tar.with_suffix(".jsonl")
        rows: dict[str, Utterance] = {}
        for utterance in iter_manifest(rows_path):
            rows[str(utterance.extra.get("tar_member"))] = utterance
        for name, data in iter_tar(self.tar):
            found = rows.pop(name, None)
            if found is None:
                raise ManifestError(f"{self.tar}: member {name} is not in {rows_path.name}; write the shard again")
            yield found, data
        if rows:
            raise ManifestError(
                f"{self.tar}: {len(rows)} members of {rows_path.name} are missing, first {next(iter(rows))}; "
                "fetch or write the shard again"
            )


def read_shard_list(directory: str | os.PathLike[str]) -> list[ShardInfo]:
    """The shards of a directory, as shards.jsonl tells them.

    Raises:
        ManifestError: there is no such list, it is damaged, or names a file outside the directory.
    """
    path = Path(directory) / SHARDS_NAME
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; write shards with `speechkit shard`")
    shards = []
    for line in iter_lines(path):
        row = parse_row(line.data, f"{path}:{line.number}")
        name = row.get("tar")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar", name):
            raise ManifestError(f"{path}:{line.number}: tar={name!r:.80} is no plain file name; refused")
        try:
            shards.append(ShardInfo(name, int(row["num_utterances"]), float(row["seconds"]), int(row["num_bytes"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{path}:{line.number}: not a row of a shard list ({error}); write it again") from error
    return shards

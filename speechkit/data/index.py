"""Index of a manifest: memory-mapped columns for the sampler, and any row of the manifest in constant time.

A directory holds `durations.f32`, `num_tokens.i32` (when a tokenizer was given), `offsets.i64` (byte offset of every
row in the JSONL) and `index.json`, written last. Compiling streams, opening maps: 100 million rows take 1.6 GB on disk
and none of it in memory until it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from speechkit.data.manifest import (
    MAX_LINE_BYTES,
    Line,
    ManifestError,
    atomic_file,
    base_directory,
    iter_lines,
    parse_row,
    resolve_manifest,
    row_to_utterance,
)
from speechkit.data.parallel import progress_bar
from speechkit.types import Utterance

if TYPE_CHECKING:
    from speechkit.text.normalize import Normalizer
    from speechkit.text.tokenizers import Tokenizer

_VERSION = 1
_META = "index.json"
_DURATIONS, _NUM_TOKENS, _OFFSETS = "durations.f32", "num_tokens.i32", "offsets.i64"
_DTYPES: dict[str, np.dtype[Any]] = {_DURATIONS: np.dtype("<f4"), _NUM_TOKENS: np.dtype("<i4"), _OFFSETS: np.dtype("<i8")}
_BUFFERED_ROWS = 1 << 15


class StaleIndexError(ValueError):
    """The index was compiled from another state of the manifest, or with another tokenizer; compile it again."""


class Index:
    """A compiled manifest. Opens its files at first use, also after being sent to another process.

    Args:
        directory: where `compile_index` wrote.
        tokenizer: when given, must be the one the index was compiled with; else its token counts are taken as they are.
        normalizer: likewise, checked when `tokenizer` is given.

    Raises:
        ManifestError: there is no complete index, or its manifest is gone.
        StaleIndexError: manifest or tokenizer have changed since.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        tokenizer: Tokenizer | None = None,
        normalizer: Normalizer | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        meta = _read_meta(self.directory)
        self.manifest = Path(os.path.normpath(self.directory / meta["manifest"]))
        self.num_rows: int = meta["num_rows"]
        self.total_seconds: float = meta["total_seconds"]
        self._meta = meta
        self._text: str | None = meta["text"]
        _check_manifest(self.directory, self.manifest, meta)
        if tokenizer is not None and self._text != (asked := _text_fingerprint(tokenizer, normalizer)):
            raise StaleIndexError(
                f"{self.directory}: compiled with tokenizer {self._text}, asked for is {asked}; compile the index again"
            )
        for name in _column_names(self._text is not None):
            size = _stat_size(self.directory / name)
            if size != self.num_rows * _DTYPES[name].itemsize:
                raise ManifestError(f"{self.directory / name}: not a column of {self.num_rows} rows; compile it again")
        self._columns: dict[str, np.ndarray] = {}
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"Index({str(self.directory)!r}: {self.num_rows} rows, {self.total_seconds / 3600:.1f} h)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}, "_file": None}

    @property
    def durations(self) -> np.ndarray:
        """Durations in seconds, float32, shape (len,), read-only and memory-mapped."""
        return self._column(_DURATIONS)

    @property
    def num_tokens(self) -> np.ndarray | None:
        """Tokens of every text, int32, shape (len,); None when compiled without tokenizer."""
        return None if self._text is None else self._column(_NUM_TOKENS)

    @property
    def offsets(self) -> np.ndarray:
        """Byte offset of every row in the manifest, int64, shape (len,)."""
        return self._column(_OFFSETS)

    def utterance(self, i: int) -> Utterance:
        """The utterance of row `i`; reads that one line of the manifest. Negative `i` count from the end.

        Raises:
            IndexError: there is no such row.
            ManifestError: the manifest was changed under the index.
        """
        row = i + self.num_rows if i < 0 else i
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {i} of an index of {self.num_rows} rows")
        offset = int(self.offsets[row])
        end = int(self.offsets[row + 1]) if row + 1 < self.num_rows else offset + MAX_LINE_BYTES
        where = f"{self.manifest}: row {row}"
        data = self._read(offset, min(end - offset, MAX_LINE_BYTES)).split(b"\n", 1)[0]
        return row_to_utterance(parse_row(data, where), base=base_directory(self.manifest), where=where)

    def __getitem__(self, i: int) -> Utterance:
        return self.utterance(i)

    def __iter__(self) -> Iterator[Utterance]:
        return (self.utterance(i) for i in range(self.num_rows))

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            if _read_meta(self.directory) != self._meta:
                raise StaleIndexError(f"{self.directory}: was compiled anew since it was opened; open it again")
            path, dtype = self.directory / name, _DTYPES[name]
            empty = self.num_rows == 0  # nothing to map
            self._columns[name] = np.empty(0, dtype) if empty else np.memmap(path, dtype, "r", shape=(self.num_rows,))
        return self._columns[name]

    def _read(self, offset: int, size: int) -> bytes:
        if self._file is None:
            _check_manifest(self.directory, self.manifest, self._meta)
            self._file = open(self.manifest, "rb")  # noqa: SIM115 (kept for the life of the index)
        if hasattr(os, "pread"):  # without a position that forked workers and threads would share
            return os.pread(self._file.fileno(), size, offset)
        with open(self.manifest, "rb") as file:
            file.seek(offset)
            return file.read(size)


def compile_index(
    manifest: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    normalizer: Normalizer | None = None,
) -> Index:
    """Compile a manifest into memory-mapped columns; an index that is up to date is returned as it is.

    Args:
        manifest: uncompressed JSONL manifest, or a directory with one.
        out_dir: directory for the columns; made when missing.
        tokenizer: fills the column of token counts.
        normalizer: applied to a text before it is tokenised, as the dataset does.

    Raises:
        ManifestError: the manifest cannot be read, has a bad line, is compressed, or changed meanwhile.
    """
    file, directory = resolve_manifest(manifest), Path(out_dir)
    if file.suffix == ".gz":
        raise ManifestError(f"{file}: rows of a compressed manifest cannot be reached by offset; decompress it (gunzip)")
    text = None if tokenizer is None else _text_fingerprint(tokenizer, normalizer)
    try:
        index = Index(directory)
        if index.manifest.samefile(file) and index._text == text:
            return index
    except (ManifestError, StaleIndexError):
        pass
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _META).unlink(missing_ok=True)  # from here to the end of the writing there is no index
    if text is None:
        (directory / _NUM_TOKENS).unlink(missing_ok=True)
    before = file.stat()
    num_rows, seconds = _write_columns(file, directory, tokenizer, normalizer)
    digest = _digest(file)
    after = file.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ManifestError(f"{file}: changed while it was read; compile the index again")
    meta = {
        "version": _VERSION,
        "manifest": os.path.relpath(file.absolute(), directory.absolute()),
        "manifest_size": after.st_size,
        "manifest_mtime_ns": after.st_mtime_ns,
        "manifest_digest": digest,
        "num_rows": num_rows,
        "total_seconds": seconds,
        "text": text,
    }
    with atomic_file(directory / _META) as out:
        out.write(json.dumps(meta, indent=1).encode() + b"\n")
    return Index(directory)


def _column_names(with_tokens: bool) -> tuple[str, ...]:
    return (_DURATIONS, _NUM_TOKENS, _OFFSETS) if with_tokens else (_DURATIONS, _OFFSETS)


def _text_fingerprint(tokenizer: Tokenizer, normalizer: Normalizer | None) -> str:
    return f"{tokenizer.fingerprint()}/{normalizer.id if normalizer is not None else 'none'}"


def _write_columns(file: Path, directory: Path, tokenizer: Tokenizer | None, normalizer: Normalizer | None) -> tuple[int, float]:
    base = base_directory(file)
    durations, num_tokens, offsets = array("f"), array("i"), array("q")
    buffers: dict[str, array[Any]] = {_DURATIONS: durations, _NUM_TOKENS: num_tokens, _OFFSETS: offsets}
    names = _column_names(tokenizer is not None)
    num_rows, seconds = 0, 0.0
    with ExitStack() as stack:
        outputs = {name: stack.enter_context(atomic_file(directory / name)) for name in names}

        def flush() -> None:
            for name, out in outputs.items():
                out.write(np.asarray(buffers[name]).astype(_DTYPES[name]).tobytes())
                del buffers[name][:]

        line: Line
        for line in progress_bar(iter_lines(file), description="index", unit="row"):
            where = f"{file}:{line.number}"
            utterance = row_to_utterance(parse_row(line.data, where), base=base, where=where)
            durations.append(utterance.duration)
            offsets.append(line.offset)
            if tokenizer is not None:
                text = utterance.text if normalizer is None else normalizer(utterance.text)
                num_tokens.append(len(tokenizer.encode(text)))
            seconds += utterance.duration
            num_rows += 1
            if len(offsets) == _BUFFERED_ROWS:
                flush()
        flush()
    return num_rows, seconds


def _read_meta(directory: Path) -> dict[str, Any]:
    path = directory / _META
    try:
        meta = parse_row(path.read_bytes(), str(path))
    except OSError as error:
        raise ManifestError(f"{directory}: no index here ({error.strerror}); make it with `speechkit index`") from error
    wanted: dict[str, Any] = {
        "manifest": str,
        "manifest_size": int,
        "manifest_mtime_ns": int,
        "manifest_digest": str,
        "num_rows": int,
        "total_seconds": (int, float),
        "text": (str, type(None)),
    }
    if meta.get("version") != _VERSION or not all(isinstance(meta.get(name), kind) for name, kind in wanted.items()):
        raise ManifestError(f"{path}: not an index of version {_VERSION}; compile it again")
    return meta


def _stat_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _check_manifest(directory: Path, manifest: Path, meta: dict[str, Any]) -> None:
    """Same size and time of change, or same size and content."""
    if not manifest.is_file():
        raise ManifestError(f"{directory}: its manifest {manifest} is gone; put it back, or compile the index again")
    now = manifest.stat()
    same = now.st_size == meta["manifest_size"]
    if same and now.st_mtime_ns != meta["manifest_mtime_ns"]:
        same = _digest(manifest) == meta["manifest_digest"]
    if not same:
        raise StaleIndexError(f"{directory}: {manifest} has changed since it was compiled; compile the index again")


def _digest(path: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()

"""Downloads that resume and are checked, and archives unpacked without trusting them.

A transfer goes to `<dest>.part` and takes its name only when it is whole and its checksum is right. An interrupted one
goes on with an HTTP range request (RFC 9110, section 14), guarded by If-Range so that a file that has changed at its
source starts over.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from speechkit.types import Seconds

_BLOCK_BYTES = 1 << 18
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
_HEADERS = {"User-Agent": "speechkit", "Accept-Encoding": "identity"}


class DownloadError(OSError):
    """A download that failed for good; the message names the address and the remedy."""


class ArchiveError(ValueError):
    """An archive that is damaged, of an unknown kind, or that tries to write outside its directory."""


class _Interrupted(Exception):
    """A transfer that may be taken up again; carries how long the server asks to wait, in seconds."""

    def __init__(self, reason: str, wait: Seconds | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _BadRange(Exception):
    """The partial file does not fit what the server has."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a file comes from and how it must come out."""

    url: str
    checksums: tuple[tuple[str, str], ...]  # (algorithm, hexadecimal digest)
    timeout: Seconds


def download(
    url: str,
    dest: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    retries: int = 5,
    backoff: Seconds = 1.0,
    timeout: Seconds = 30.0,
) -> Path:
    """Download a file, going on where an earlier call stopped.

    A file that is there already with the right checksum (with any content, when none is given) is left as it is.

    Args:
        url: http or https address.
        dest: the file to write; its directory is made if need be.
        sha256: expected digest, hexadecimal.
        md5: expected digest, hexadecimal; for sources that publish no other.
        retries: how many interruptions in a row without any progress are put up with.
        backoff: pause after the first of them in seconds; doubles each time, up to a minute.
        timeout: silence of the server that counts as an interruption, in seconds.

    Returns:
        `dest`.

    Raises:
        ValueError: the address is not http(s).
        DownloadError: the file is not there, the checksum is wrong, the disk is full, or the retries are used up.
    """
    if not re.match(r"https?://", url):
        raise ValueError(f"url={url!r}: only http and https addresses can be downloaded")
    dest = Path(dest)
    checksums = tuple((name, digest.lower()) for name, digest in (("sha256", sha256), ("md5", md5)) if digest)
    source = _Source(url, checksums, timeout)
    if dest.is_file() and _wrong_checksum(dest, checksums) is None:
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    resumed = part.exists()
    _transfer(source, part, retries=retries, backoff=backoff)
    wrong = _wrong_checksum(part, checksums)
    if wrong is not None and resumed:  # the beginning may have been another version's
        _discard(part)
        _transfer(source, part, retries=retries, backoff=backoff)
        wrong = _wrong_checksum(part, checksums)
    if wrong is not None:
        _discard(part)
        raise DownloadError(
            f"{url}: {wrong}; the transfer was damaged or the file has changed at its source: try again, and if it "
            "stays so, fetch the file by hand and check where it comes from"
        )
    part.replace(dest)
    _discard(part)
    return dest


def _transfer(source: _Source, part: Path, *, retries: int, backoff: Seconds) -> None:
    """Bring `part` to its full length."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _request(source, part)
            return
        except _BadRange:
            _discard(part)
            failures += 1
            reason, wait = "the server refused the range", 0.0
        except _Interrupted as error:
            progressed = part.exists() and part.stat().st_size > before
            failures = 1 if progressed else failures + 1
            reason, wait = str(error), backoff * 2 ** (failures - 1) if error.wait is None else error.wait
        if failures > retries:
            raise DownloadError(
                f"{source.url}: given up after {failures} attempts without progress ({reason}); check the connection "
                f"and call again: what has arrived is kept in {part}"
            )
        time.sleep(min(wait, 60.0))


def _request(source: _Source, part: Path) -> None:
    """One request: append what is missing to `part`, or write it from the beginning."""
    have = part.stat().st_size if part.exists() else 0
    headers = dict(_HEADERS)
    validator = _read_validator(part, source.url)
    if have and validator is None:  # of unknown origin: start over
        have = 0
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with urllib.request.urlopen(urllib.request.Request(source.url, headers=headers), timeout=source.timeout) as got:
            _receive(got, source, part, have)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return
            raise _BadRange from error
        if error.code in _RETRIED_STATUS:
            wait = error.headers.get("Retry-After", "")
            raise _Interrupted(f"HTTP status {error.code}", float(wait) if wait.isdigit() else None) from error
        raise DownloadError(f"{source.url}: HTTP status {error.code} {error.reason}; check the address") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from error


def _receive(response: Any, source: _Source, part: Path, have: int) -> None:
    length = response.headers.get("Content-Length", "")
    if response.status == 206:
        match = re.match(r"bytes (\d+)-(\d+)/", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _BadRange
        mode = "ab"
    else:
        mode, have = "wb", 0
        _write_validator(part, source.url, response.headers)
    total = have + int(length) if length.isdigit() else None
    if total is not None and shutil.disk_usage(part.parent).free < total - have:
        raise DownloadError(f"{source.url}: {total - have} bytes do not fit on the disk of {part.parent}: make room")
    with open(part, mode) as file, _byte_bar(source.url, total, have) as advance:
        while block := response.read(_BLOCK_BYTES):
            file.write(block)
            have += len(block)
            advance(len(block))
    if total is not None and have < total:
        raise _Interrupted(f"the connection ended after {have} of {total} bytes")


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_validator(part: Path, url: str, headers: Any) -> None:
    """Note which version of the file is being fetched; a weak ETag does not do (RFC 9110, section 13.1.5)."""
    tag = headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    _validator_path(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _read_validator(part: Path, url: str) -> str | None:
    """Validator of a partial file; "" when the server gave none, None when the part is not of this address."""
    try:
        noted = json.loads(_validator_path(part).read_text(encoding="utf-8"))
        return noted["validator"] if noted["url"] == url else None
    except (OSError, ValueError, KeyError):
        return None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_path(part).unlink(missing_ok=True)


def _wrong_checksum(path: Path, checksums: tuple[tuple[str, str], ...]) -> str | None:
    """What is wrong with the content, or None."""
    for name, expected in checksums:
        with path.open("rb") as file:
            found = hashlib.new(name, usedforsecurity=False)
            while block := file.read(1 << 20):
                found.update(block)
        if found.hexdigest() != expected:
            return f"{name} is {found.hexdigest()}, expected {expected}"
    return None


@contextlib.contextmanager
def _byte_bar(name: str, total: int | None, initial: int) -> Iterator[Any]:
    """A progress bar in bytes when standard error is a terminal and tqdm is installed; gives the function to call."""
    with contextlib.ExitStack() as stack:
        advance: Any = lambda count: None  # noqa: E731
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                label = name.rsplit("/", 1)[-1]
                bar = tqdm(desc=label, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024)
                advance = stack.enter_context(bar).update
        yield advance


# ---- archives ----


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    is_directory: bool
    size: int
    content: Any  # () -> file object


def extract_archive(path: str | Path, out_dir: str | Path) -> Path:
    """Unpack a tar (gz, bz2, xz) or zip archive.

    Only plain files and directories are unpacked, and only below `out_dir`; anything else refuses the whole archive.
    An archive that was unpacked there before and has not changed is not unpacked again.

    Returns:
        `out_dir`.

    Raises:
        FileNotFoundError: there is no such archive.
        ArchiveError: the archive is damaged or unknown, holds a link or a device, or names a place outside `out_dir`.
    """
    path, out_dir = Path(path), Path(out_dir)
    status = path.stat()
    note = {"archive": path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    marker = _marker_path(path.name, out_dir)
    if _read_marker(marker) == note:
        return out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    root = out_dir.resolve()
    try:
        with _byte_bar(path.name, None, 0) as advance:
            for member in _members(path):
                target = _target(member.name, root, path)
                if member.is_directory:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                if member.size > shutil.disk_usage(root).free:
                    raise ArchiveError(f"{path}: {member.name} ({member.size} bytes) does not fit on the disk of {root}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.content() as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _BLOCK_BYTES)
                advance(member.size)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ArchiveError(f"{path}: cannot be unpacked ({error}); delete it and download it again") from error
    marker.write_text(json.dumps(note), encoding="utf-8")
    return out_dir


def fetch_archive(
    url: str, out_dir: str | Path, *, sha256: str | None = None, md5: str | None = None, keep: bool = False
) -> Path:
    """Download an archive, unpack it, and delete it; does nothing when that was done before.

    Args:
        url: address of the archive.
        out_dir: where to unpack.
        sha256: as for `download`.
        md5: as for `download`.
        keep: keep the archive beside what it held.

    Returns:
        `out_dir`.

    Raises:
        DownloadError: as for `download`.
        ArchiveError: as for `extract_archive`.
    """
    out_dir = Path(out_dir)
    name = url.rsplit("/", 1)[-1]
    marker = _marker_path(name, out_dir)
    noted = _read_marker(marker)
    if noted is not None and noted.get("url") == url:
        return out_dir
    archive = download(url, out_dir / name, sha256=sha256, md5=md5)
    extract_archive(archive, out_dir)
    marker.write_text(json.dumps({**(_read_marker(marker) or {}), "url": url}), encoding="utf-8")
    if not keep:
        archive.unlink()
    return out_dir


def _marker_path(archive_name: str, out_dir: Path) -> Path:
    return out_dir / f".unpacked-{archive_name}.json"


def _read_marker(marker: Path) -> dict[str, Any] | None:
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _target(name: str, root: Path, archive: Path) -> Path:
    """Where a member goes; refuses what lies outside."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise ArchiveError(f"{archive}: {name!r} points outside the directory: the archive is not to be trusted")
    target = root / pure
    if not target.parent.resolve().is_relative_to(root) or target.is_symlink():
        raise ArchiveError(f"{archive}: {name!r} leads through a link in {root}: unpack into an empty directory")
    return target


def _members(path: Path) -> Iterator[_Member]:
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for info in archive:
                if not (info.isfile() or info.isdir()):
                    raise ArchiveError(f"{path}: {info.name!r} is a link or a device: the archive is not to be trusted")
                yield _Member(info.name, info.isdir(), info.size, lambda info=info: _opened(archive, info))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ArchiveError(f"{path}: {entry.filename!r} is a link: the archive is not to be trusted")
                yield _Member(entry.filename, entry.is_dir(), entry.file_size, lambda entry=entry: zipped.open(entry))
    else:
        raise ArchiveError(f"{path}: is neither a tar nor a zip archive, or is damaged; delete it and download it again")


def _opened(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None, info.name
    return file

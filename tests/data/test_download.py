"""Downloads against a local server that behaves well or badly; archives that try to escape."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import socketserver
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from speechkit.data import download as module
from speechkit.data.download import ArchiveError, DownloadError, download, extract_archive, fetch_archive

DATA = np.random.default_rng(0).bytes(700_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `data`; the fields say how it misbehaves."""

    daemon_threads = True
    data = DATA
    tag = '"one"'
    ranges = True
    send_length = True
    cut_after: int | None = None  # bytes of a response after which the connection ends
    statuses: list[int]  # answered first, one per request
    requests: list[dict[str, str]]

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without looking up the host's name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/corpus/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        begin = 0
        asked = self.headers.get("Range")
        if server.ranges and asked and self.headers.get("If-Range") in (None, server.tag):
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(server.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        body = server.data[begin:]
        if server.send_length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        self.wfile.write(body[: server.cut_after])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.statuses, running.requests = [], []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "new" / "data.bin"


def left_over(dest: Path) -> set[str]:
    return {path.name for path in dest.parent.iterdir()} - {dest.name}


def test_whole_file(server: Server, dest: Path) -> None:
    assert download(server.url, dest, sha256=SHA256) == dest
    assert dest.read_bytes() == DATA
    assert not left_over(dest)


def test_file_that_is_there_is_not_fetched_again(server: Server, dest: Path) -> None:
    download(server.url, dest, sha256=SHA256)
    download(server.url, dest, sha256=SHA256.upper())
    assert len(server.requests) == 1


def test_file_with_another_content_is_replaced(server: Server, dest: Path) -> None:
    dest.parent.mkdir()
    dest.write_bytes(b"old")
    download(server.url, dest, md5=hashlib.md5(DATA).hexdigest())
    assert dest.read_bytes() == DATA


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_call_goes_on(server: Server, dest: Path, ranges: bool) -> None:
    """With ranges only the rest is sent; without them it starts over."""
    server.cut_after = 300_000
    with pytest.raises(DownloadError, match="300000 of 700000 bytes"):
        download(server.url, dest, sha256=SHA256, retries=0)
    assert not dest.exists()
    assert dest.with_name("data.bin.part").stat().st_size == 300_000
    server.cut_after, server.ranges = None, ranges
    download(server.url, dest, sha256=SHA256)
    assert server.requests[-1]["Range"] == "bytes=300000-"
    assert server.requests[-1]["If-Range"] == server.tag
    assert dest.read_bytes() == DATA
    assert not left_over(dest)


def test_truncated_transfers_are_taken_up_within_a_call(server: Server, dest: Path) -> None:
    server.cut_after = 100_000
    download(server.url, dest, sha256=SHA256, retries=1, backoff=0.0)
    assert dest.read_bytes() == DATA
    assert [request.get("Range") for request in server.requests] == [None] + [f"bytes={n}00000-" for n in range(1, 7)]


def test_changed_file_starts_over(server: Server, dest: Path) -> None:
    server.cut_after = 300_000
    with pytest.raises(DownloadError):
        download(server.url, dest, retries=0)
    server.cut_after, server.tag, server.data = None, '"two"', bytes(reversed(DATA))
    download(server.url, dest)
    assert dest.read_bytes() == server.data


def test_part_of_another_address_is_not_used(server: Server, dest: Path) -> None:
    dest.parent.mkdir()
    dest.with_name("data.bin.part").write_bytes(b"x" * 1000)
    dest.with_name("data.bin.part.json").write_text(json.dumps({"url": "http://elsewhere", "validator": ""}))
    download(server.url, dest)
    assert dest.read_bytes() == DATA
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize("content", [DATA, DATA + b"more", b"!" + DATA[1:500]], ids=["whole", "long", "bad"])
def test_part_that_is_whole_too_long_or_damaged(server: Server, dest: Path, content: bytes) -> None:
    """A 416 for the exact length means whole; else the checksum tells, and it starts over once."""
    dest.parent.mkdir()
    dest.with_name("data.bin.part").write_bytes(content)
    dest.with_name("data.bin.part.json").write_text(json.dumps({"url": server.url, "validator": server.tag}))
    download(server.url, dest, sha256=SHA256, backoff=0.0)
    assert dest.read_bytes() == DATA
    assert len(server.requests) == (1 if content == DATA else 2)


def test_wrong_checksum(server: Server, dest: Path) -> None:
    with pytest.raises(DownloadError, match=f"sha256 is {SHA256}, expected {'0' * 64}.*try again"):
        download(server.url, dest, sha256="0" * 64)
    assert not dest.exists()
    assert not left_over(dest)


def test_passing_trouble_is_waited_out(server: Server, dest: Path) -> None:
    server.statuses = [503, 429, 500]
    download(server.url, dest, retries=3, backoff=0.0)
    assert dest.read_bytes() == DATA
    assert len(server.requests) == 4


def test_lasting_trouble_gives_up(server: Server, dest: Path) -> None:
    server.statuses = [503] * 9
    with pytest.raises(DownloadError, match=r"given up after 3 attempts.*HTTP status 503.*check the connection"):
        download(server.url, dest, retries=2, backoff=0.0)
    assert len(server.requests) == 3


def test_missing_file_is_not_tried_again(server: Server, dest: Path) -> None:
    server.statuses = [404] * 9
    with pytest.raises(DownloadError, match=r"HTTP status 404.*check the address"):
        download(server.url, dest, backoff=0.0)
    assert len(server.requests) == 1


def test_no_server(server: Server, dest: Path) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(DownloadError, match="given up after 2 attempts"):
        download(url, dest, retries=1, backoff=0.0)


def test_length_unknown(server: Server, dest: Path) -> None:
    server.send_length = False
    download(server.url, dest, sha256=SHA256)
    assert dest.read_bytes() == DATA


def test_pauses_double(server: Server, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.statuses = [503] * 4
    download(server.url, dest, retries=4, backoff=0.5)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "data.bin"])
def test_other_schemes_are_refused(url: str, dest: Path) -> None:
    with pytest.raises(ValueError, match="only http and https"):
        download(url, dest)


def test_full_disk(server: Server, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="700000 bytes do not fit"):
        download(server.url, dest)


# ---- archives ----

FILES = {"corpus/a.txt": b"alpha", "corpus/sub/b.bin": DATA[:5000], "corpus/empty": b""}


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz", extra: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if extra is not None:
            extra(archive)
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "w", "zip"])
def test_extract(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(zip_bytes(FILES) if kind == "zip" else tar_bytes(FILES, kind))
    assert extract_archive(archive, tmp_path / "out") == tmp_path / "out"
    assert contents(tmp_path / "out") == FILES


def test_extract_once(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(tar_bytes(FILES))
    out = extract_archive(archive, tmp_path / "out")
    (out / "corpus/a.txt").write_bytes(b"changed")
    extract_archive(archive, out)
    assert (out / "corpus/a.txt").read_bytes() == b"changed", "not unpacked again"
    archive.write_bytes(tar_bytes({**FILES, "corpus/c": b"new"}))
    extract_archive(archive, out)
    assert contents(out) == {**FILES, "corpus/c": b"new"}


def add_link(kind: bytes, target: str) -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("corpus/link")
        info.type, info.linkname = kind, target
        archive.addfile(info)

    return add


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "corpus/../../evil", "..\\evil", "C:\\evil"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_outside_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(zip_bytes({name: b"x"}) if kind == "zip" else tar_bytes({name: b"x"}))
    with pytest.raises(ArchiveError, match="outside"):
        extract_archive(archive, tmp_path / "out" / "deep")
    assert contents(tmp_path).keys() == {"archive"}


@pytest.mark.parametrize(
    ("kind", "target"),
    [(tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, "a.txt"), (tarfile.LNKTYPE, "corpus/a.txt"), (tarfile.FIFOTYPE, "")],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(tar_bytes(FILES, extra=add_link(kind, target)))
    with pytest.raises(ArchiveError, match="corpus/link"):
        extract_archive(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "corpus" / "link").exists()


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        zipped.writestr(info, "/etc")
    with pytest.raises(ArchiveError, match="link"):
        extract_archive(archive, tmp_path / "out")


def test_links_in_the_directory_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "corpus").symlink_to(tmp_path / "elsewhere")
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(tar_bytes(FILES))
    with pytest.raises(ArchiveError, match="through a link"):
        extract_archive(archive, tmp_path / "out")
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("content", [b"", b"no archive at all", tar_bytes(FILES)[:3000], zip_bytes(FILES)[:-40]],
                         ids=["empty", "text", "tar", "zip"])  # fmt: skip
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="download it again"):
        extract_archive(archive, tmp_path / "out")


def test_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        extract_archive(tmp_path / "none.zip", tmp_path)


@pytest.mark.parametrize("keep", [True, False])
def test_fetch_archive_works_once(server: Server, tmp_path: Path, keep: bool) -> None:
    server.data = tar_bytes(FILES)
    for _ in range(2):
        assert fetch_archive(server.url, tmp_path / "out", keep=keep) == tmp_path / "out"
    assert len(server.requests) == 1
    assert contents(tmp_path / "out").keys() == FILES.keys() | ({"data.bin"} if keep else set())

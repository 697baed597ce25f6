"""Hostile files through `validate_manifest`: each is told of, nothing crashes, hangs or eats the memory."""

from __future__ import annotations

import io
import json
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data import parallel, validate
from speechkit.data.parallel import IsolatedWorkers, WorkerDied, ordered_map, progress_bar
from speechkit.data.validate import validate_manifest

RATE = 16000


def encoded(wave: np.ndarray, kind: str = "WAV", rate: int = RATE, subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=kind, subtype=subtype)
    return out.getvalue()


def wav_header(data_bytes: int, *, rate: int = RATE, channels: int = 1, bits: int = 16) -> bytes:
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 1, channels, rate & 0xFFFFFFFF, (rate * block) & 0xFFFFFFFF, block & 0xFFFF, bits)
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + data_bytes, 2**32 - 1))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + fmt
        + (b"data" + struct.pack("<I", data_bytes))
    )


def hostile_files(folder: Path) -> dict[str, set[str]]:
    """Writes the files; gives the kinds of problem that each may be told as (empty: sound)."""
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(RATE)).astype(np.float32)
    good, flac, ogg = encoded(wave), encoded(wave, "FLAC"), encoded(wave, "OGG")
    mp3 = encoded(wave, "MP3")
    ten_hours = 10 * 3600 * RATE * 2
    loud = np.tile(np.where(np.arange(16) < 8, 1.0, -1.0), RATE // 16)
    nan = wave.copy()
    nan[:] = np.nan
    flac_lie = bytearray(flac)  # STREAMINFO's 36 bits of total samples
    flac_lie[21] |= 0x0F
    flac_lie[22:26] = b"\xff\xff\xff\xff"
    unusable = {"unreadable", "truncated", "empty", "wrong_duration", "missing", "not_finite", "crash"}
    files: dict[str, tuple[bytes, set[str]]] = {
        "empty.wav": (b"", {"empty"}),
        "one_byte.wav": (b"R", {"unreadable"}),
        "header_only.wav": (good[:44], {"empty", "truncated"}),
        "half_header.wav": (good[:20], {"unreadable"}),
        "truncated.wav": (good[: len(good) // 2], {"truncated"}),
        "truncated.flac": (flac[: len(flac) // 2], {"truncated"}),
        "truncated.ogg": (ogg[: len(ogg) // 2], unusable),
        "truncated.mp3": (mp3[: len(mp3) // 2], unusable),
        "text.wav": (b"this is not audio\n" * 500, {"unreadable"}),
        "html.mp3": (b"<!DOCTYPE html><html>404</html>" * 20, {"unreadable"}),
        "zeros.wav": (bytes(100_000), {"unreadable"}),
        "random.flac": (rng.bytes(50_000), unusable),
        "random_behind_header.flac": (flac[:100] + rng.bytes(50_000), unusable),
        "random_behind_header.ogg": (ogg[:100] + rng.bytes(50_000), unusable),
        "random_behind_header.mp3": (b"ID3\x03" + rng.bytes(50_000), unusable | {"clipped"}),
        "ten_hour_lie.wav": (wav_header(ten_hours) + good[44:], {"truncated"}),
        "ten_hour_lie.flac": (bytes(flac_lie), {"truncated"}),
        "zero_rate.wav": (wav_header(32000, rate=0) + good[44:], {"unreadable"}),
        "huge_rate.wav": (wav_header(32000, rate=2**31 - 1) + good[44:], unusable),
        "zero_channels.wav": (wav_header(32000, channels=0) + good[44:], {"unreadable"}),
        "many_channels.wav": (wav_header(32000, channels=65535) + good[44:], unusable),
        "nan.wav": (encoded(nan, subtype="FLOAT"), {"not_finite"}),
        "huge_samples.wav": (encoded(wave * np.float32(1e38), subtype="FLOAT"), {"clipped", "not_finite"}),
        "silent.flac": (encoded(np.zeros(RATE), "FLAC"), {"silent"}),
        "square.wav": (encoded(loud), {"clipped"}),
        "playlist.m3u8": (b"#EXTM3U\n/etc/passwd\n", {"unreadable"}),
        "fake.mp4": (b"\0\0\0\x18ftypisom" + rng.bytes(5000), unusable),
        "fake.webm": (b"\x1a\x45\xdf\xa3" + rng.bytes(5000), unusable),
        "eight_channels.wav": (encoded(np.tile(wave[:, None], (1, 8))), set()),
        "rate_96k.flac": (encoded(np.repeat(wave, 6), "FLAC", 96000), set()),
        "wrong_extension.mp3": (good, set()),
        "ünïcode 名前 \u202e.wav": (good, set()),
        "streamed.wav": (wav_header(0xFFFFFFFF) + good[44:], set()),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    expected = {name: kinds for name, (_, kinds) in files.items()}
    (folder / "directory.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "dangling.wav").symlink_to(folder / "nowhere")
    (folder / "device.wav").symlink_to("/dev/zero")
    expected.update({name: {"unreadable"} for name in ("directory.wav", "pipe.wav", "device.wav")})
    expected.update({name: {"missing", "unreadable"} for name in ("loop.wav", "dangling.wav", "gone.wav", "x" * 5000)})
    return expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_folder_of_hostile_files(tmp_path: Path, num_workers: int) -> None:
    expected = hostile_files(tmp_path)
    rows = [{"id": name, "audio_filepath": name, "duration": 1.0, "text": "some words"} for name in expected]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    begun = time.monotonic()
    report = validate_manifest(tmp_path / "m.jsonl", fix=tmp_path / "good.jsonl", num_workers=num_workers, timeout=30)
    assert time.monotonic() - begun < 200
    told: dict[str, set[str]] = {name: set() for name in expected}
    for problem in report.problems:
        told[problem.id].add(problem.kind)
        assert "\n" not in problem.detail
        assert problem.detail
    for name, kinds in expected.items():
        assert told[name] <= kinds, name
        assert bool(told[name]) == bool(kinds), name
    assert report.num_sound == sum(not kinds for kinds in expected.values())


def test_memory_stays_small_for_lies_and_long_files(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    wave = (0.1 * np.random.default_rng(0).standard_normal(600 * RATE)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", wave, RATE)  # 38 MB as float32
    good = encoded(wave[:RATE])
    (tmp_path / "lie.wav").write_bytes(wav_header(10 * 3600 * RATE * 2) + good[44:])
    rows = [{"audio_filepath": "long.wav", "duration": 600.0}, {"audio_filepath": "lie.wav", "duration": 36000.0}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({**row, "text": "x" * 6000}) for row in rows))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = validate_manifest(tmp_path / "m.jsonl", num_workers=0, ignore=["rate"])
    assert [(entry.line, entry.kind) for entry in report.problems] == [(2, "truncated")]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 30e6


def test_hostile_lines(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    good = b'{"audio_filepath": "a.wav", "duration": 1.0, "text": "words"}'
    lines = [
        good,
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"audio_filepath": "a.wav", "duration": 1e400, "text": "x"}',
        b'{"audio_filepath": "a\\u0000.wav", "duration": 1.0, "text": "x"}',
        b'{"audio_filepath": "a.wav", "duration": 1.0, "text": "x", "x": ' + b"9" * 10_000 + b"}",
        b'{"id": "\\ud800", "audio_filepath": "\\udcff.wav", "duration": 1.0, "text": "some \\udfff"}',
        b"\0" * 1000,
        b'{"audio_filepath": "../../../../../../etc/passwd", "duration": 1.0, "text": "words"}',
    ]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines))
    report = validate_manifest(tmp_path / "m.jsonl", fix=tmp_path / "good.jsonl", num_workers=1)
    assert {entry.line: entry.kind for entry in report.problems} == {
        2: "bad_row",
        3: "bad_row",
        4: "bad_row",
        5: "bad_row",
        6: "bad_row",
        7: "missing",
        8: "bad_row",
        9: "unreadable",
    }
    assert len((tmp_path / "good.rejects.jsonl").read_bytes().splitlines()) == 8


# ---- the helper processes ----


def test_crash_and_hang_cost_one_row_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    rows = [{"id": name, "audio_filepath": f"{name}.wav", "duration": 1.0, "text": "words"} for name in "abcdef"]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = IsolatedWorkers.call

    def sabotaged(self: IsolatedWorkers, function, utterance, *rest):  # type: ignore[no-untyped-def]
        if utterance.id == "b":
            return plain(self, os.abort)
        if utterance.id == "d":
            return plain(self, time.sleep, 60)
        return plain(self, function, utterance, *rest)

    monkeypatch.setattr(validate.IsolatedWorkers, "call", sabotaged)
    begun = time.monotonic()
    report = validate_manifest(tmp_path / "m.jsonl", num_workers=2, timeout=5.0)
    assert time.monotonic() - begun < 50
    assert [(entry.id, entry.kind) for entry in report.problems] == [("b", "crash"), ("d", "timeout")]
    assert "took more than 5 s" in report.problems[1].detail


def test_workers_raise_what_the_function_raises_and_live_on() -> None:
    with IsolatedWorkers(1) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.call(divmod, 1, 0)
        first = pool.call(os.getpid)
        assert pool.call(divmod, 7, 2) == (3, 1)
        assert pool.call(os.getpid) == first != os.getpid()
        with pytest.raises(WorkerDied, match="exit status"):
            pool.call(os._exit, 3)
        assert pool.call(os.getpid) != first
        pool.call(print, "what a library prints does not disturb the answers")
        assert pool.call(len, "abc") == 3
        last = pool.call(os.getpid)
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)  # gone with the pool
    with pytest.raises(ValueError, match="num_workers=-1"):
        IsolatedWorkers(-1)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_ordered_map_keeps_order_and_draws_ahead_only_a_little(num_threads: int) -> None:
    drawn = []

    def items() -> Iterable[int]:
        for i in range(1000):
            drawn.append(i)
            yield i

    results = ordered_map(lambda i: i * i, items(), num_threads)
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 4)]
    assert len(drawn) <= 3 + 4 * num_threads + 1
    assert [result for _, result in results] == [i * i for i in range(3, 1000)]
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda i: 1 // i, [1, 0], num_threads))


def test_progress_is_quiet_unless_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    items = [1, 2]
    assert progress_bar(items, description="x") is items
    monkeypatch.setattr(parallel.sys.stderr, "isatty", lambda: True)
    assert list(progress_bar(items, description="counting")) == items
    assert "counting" in capsys.readouterr().err

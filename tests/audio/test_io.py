"""Reading audio: formats, slices, streams, hostile files."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkit.audio import io as audio_io
from speechkit.audio.io import AudioError, audio_info, iter_audio, load_audio, resample, save_audio

RATE = 16000
CODED = [
    ("a.wav", "PCM_16", 1e-4),
    ("a.wav", "FLOAT", 0.0),
    ("a.wav", "ULAW", 0.05),
    ("a.flac", "PCM_16", 1e-4),
    ("a.aiff", "PCM_24", 1e-5),
    ("a.ogg", "VORBIS", 0.1),
    ("a.opus", None, 0.4),
    ("a.mp3", None, 0.2),
]


def tone(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """A chirp under a moving envelope."""
    time = np.arange(round(seconds * rate)) / rate
    chirp = np.sin(2 * np.pi * (200 + 150 * time) * time)
    return (0.4 * chirp * (0.6 + 0.4 * np.sin(7 * time))).astype(np.float32)


def encode(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str | None = None) -> bytes:
    save_audio(path, wave, rate, subtype=subtype)
    return path.read_bytes()


def container(codec: str, fmt: str, wave: np.ndarray, rate: int) -> bytes:
    """A file of a format that only FFmpeg writes."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=fmt) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate = rate
        for packet in stream.encode(frame):
            out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(("name", "subtype", "tolerance"), CODED)
def test_formats_and_sources(tmp_path: Path, name: str, subtype: str | None, tolerance: float) -> None:
    wave = tone()
    data = encode(tmp_path / name, wave, subtype=subtype)
    wrong = tmp_path / "wrong.raw"  # libsndfile and soundfile would trust this extension
    wrong.write_bytes(data)
    first, rate = load_audio(tmp_path / name)
    assert rate == RATE
    assert first.dtype == np.float32
    assert first.shape == wave.shape
    assert np.abs(first - wave).max() <= tolerance
    for source in (str(tmp_path / name), data, bytearray(data), io.BytesIO(data), wrong):
        np.testing.assert_array_equal(load_audio(source)[0], first)
    with open(wrong, "rb") as file:
        file.seek(10)
        np.testing.assert_array_equal(load_audio(file)[0], first)
    info = audio_info(wrong)
    assert (info.num_samples, info.sample_rate, info.num_channels) == (len(wave), RATE, 1)
    assert info.duration == pytest.approx(2.0)


@pytest.mark.parametrize(("codec", "fmt", "rate"), [("aac", "mp4", 16000), ("aac", "adts", 44100), ("libopus", "webm", 48000)])
def test_containers_of_ffmpeg(tmp_path: Path, codec: str, fmt: str, rate: int) -> None:
    wave = tone(rate=rate)
    path = tmp_path / "speech.wav"
    path.write_bytes(container(codec, fmt, wave, rate))
    loaded, loaded_rate = load_audio(path)
    assert loaded_rate == rate
    assert abs(len(loaded) - len(wave)) <= 4096
    size = min(len(loaded), len(wave))
    lags = np.correlate(loaded[:size], wave[:size][3000:-3000], mode="valid")
    assert lags.max() > 0.9 * float(wave[3000:-3000] @ wave[3000:-3000])
    info = audio_info(path)
    assert info.num_samples == len(loaded)
    part, _ = load_audio(path, start=0.5, duration=0.25)
    np.testing.assert_array_equal(part, loaded[rate // 2 : rate // 2 + rate // 4])


def test_missing_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\x00\x00\x00\x18ftypM4A " + bytes(40))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r'pip install "speechkit\[av\]"'):
        load_audio(path)


@pytest.mark.parametrize(("name", "subtype", "tolerance"), CODED)
def test_random_access_equals_a_slice_of_the_whole(tmp_path: Path, name: str, subtype: str | None, tolerance: float) -> None:
    wave = np.tile(tone(3.0), 8) + 0.02 * np.random.default_rng(0).standard_normal(24 * RATE).astype(np.float32)
    encode(tmp_path / name, wave, subtype=subtype)
    whole, _ = load_audio(tmp_path / name)
    for start in (0.0, 0.01, 1.2345, 11.7, 17.003, 23.9):
        part, _ = load_audio(tmp_path / name, start=start, duration=0.75)
        first = round(start * RATE)
        expected = whole[first : first + round(0.75 * RATE)]
        np.testing.assert_allclose(part, expected, atol=1e-6)
    tail, _ = load_audio(tmp_path / name, start=23.0)
    np.testing.assert_allclose(tail, whole[23 * RATE :], atol=1e-6)


@pytest.mark.parametrize(("name", "subtype", "tolerance"), CODED)
def test_decoding_in_blocks_leaves_no_seams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, subtype: str | None, tolerance: float
) -> None:
    encode(tmp_path / name, tone(6.0), subtype=subtype)
    whole, _ = load_audio(tmp_path / name)
    monkeypatch.setattr("speechkit.audio.decoders.BLOCK_VALUES", 5000)
    np.testing.assert_array_equal(load_audio(tmp_path / name)[0], whole)


@pytest.mark.parametrize("rate", [None, 8000, 22050])
@pytest.mark.parametrize("block_seconds", [0.1, 0.7, 100.0])
def test_stream_equals_whole(tmp_path: Path, rate: int | None, block_seconds: float) -> None:
    encode(tmp_path / "a.wav", np.stack([tone(5.0), -0.5 * tone(5.0)], axis=1))
    whole, loaded_rate = load_audio(tmp_path / "a.wav", sample_rate=rate)
    blocks = list(iter_audio(tmp_path / "a.wav", block_seconds=block_seconds, sample_rate=rate))
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    size = round(block_seconds * loaded_rate)
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size


def test_resampling_is_that_of_one_call(tmp_path: Path) -> None:
    wave = tone(2.0, 44100)
    encode(tmp_path / "a.wav", wave, 44100, subtype="FLOAT")
    loaded, rate = load_audio(tmp_path / "a.wav", sample_rate=RATE)
    assert rate == RATE
    np.testing.assert_allclose(loaded, resample(wave, 44100, RATE), atol=1e-6)
    np.testing.assert_allclose(loaded[200:-200], tone(2.0)[200:-200], atol=2e-3)
    assert resample(wave, 44100, 44100) is wave
    with pytest.raises(ValueError, match="orig=0"):
        resample(wave, 0, 16000)


def test_channels(tmp_path: Path) -> None:
    wave = np.stack([tone() * (i + 1) / 8 for i in range(8)], axis=1)
    encode(tmp_path / "a.wav", wave, 96000, subtype="FLOAT")
    mean, rate = load_audio(tmp_path / "a.wav")
    assert rate == 96000
    np.testing.assert_allclose(mean, wave.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", channel=5)[0], wave[:, 5])
    with pytest.raises(AudioError, match=r"channel=8 does not exist, it has 8 channel"):
        load_audio(tmp_path / "a.wav", channel=8)


def wav_with_header(promised_bytes: int, wave: np.ndarray) -> bytes:
    data = (wave * 32767).astype("<i2").tobytes()
    head = b"RIFF" + struct.pack("<I", promised_bytes + 36) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + b"data" + struct.pack("<I", promised_bytes)
    return head + data


def test_header_that_promises_ten_hours(tmp_path: Path) -> None:
    path = tmp_path / "lie.wav"
    path.write_bytes(wav_with_header(10 * 3600 * RATE * 2, tone()))
    tracemalloc.start()
    wave, _ = load_audio(path, sample_rate=RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(wave) == 2 * RATE
    assert peak < 16e6


def test_flac_header_that_promises_more(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "a.flac", tone()))
    # STREAMINFO: 36 bits of total samples, from the low half of byte 13 of its body, which begins at byte 8.
    data[22:26] = struct.pack(">I", 10 * 3600 * RATE)
    with pytest.warns(RuntimeWarning, match="truncated"):
        wave, _ = load_audio(bytes(data))
    np.testing.assert_allclose(wave, tone(), atol=1e-4)


def test_truncated_files_are_told_or_refused(tmp_path: Path) -> None:
    for name, subtype, _ in CODED:
        data = encode(tmp_path / name, tone(4.0), subtype=subtype)
        half = data[: len(data) // 2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wave = None
            with contextlib.suppress(AudioError):
                wave, _ = load_audio(half)
        if wave is not None:
            assert 0 < len(wave) < 4 * RATE
            assert np.isfinite(wave).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"this is no sound\n" * 50, "not an audio file"),
        (os.urandom(4096), "not an audio file|damaged"),
        (b"RIFF\x00\x00\x00\x00WAVE", "not an audio file"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "damaged matroska"),
        (b"\x00\x00\x00\x18ftypM4A " + bytes(100), "damaged mp4"),
        (wav_with_header(0, np.zeros(0)), "holds no samples"),
    ],
)
def test_hostile_content_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "Größe 音声 \U0001f600.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(path, sample_rate=RATE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(AudioError):
        next(iter_audio(path))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match=r"^[^ ]*: is a directory; give an audio file$"):
        load_audio(tmp_path)
    with pytest.raises(AudioError, match="not a regular file"):
        load_audio("/dev/zero")
    with pytest.raises(AudioError, match="cannot be opened"):
        load_audio("nul\0.wav")
    with pytest.raises(ValueError, match="source is int"):
        load_audio(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    wave = tone()
    wave[12345] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        save_audio(tmp_path / "a.wav", wave, RATE)
    soundfile.write(tmp_path / "bad.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"bad\.wav: holds NaN or infinite samples"):
        load_audio(tmp_path / "bad.wav")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1.0}, "start=-1.0"),
        ({"duration": 0.0}, "duration=0.0"),
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"channel": -1}, "channel=-1"),
        ({"channel": "left"}, "channel='left'"),
        ({"start": 9.0}, r"ends before start=9.0 s"),
    ],
)
def test_requests_that_make_no_sense(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    encode(tmp_path / "a.wav", tone())
    with pytest.raises(ValueError, match=message):
        load_audio(tmp_path / "a.wav", **arguments)


def test_pipes_and_unseekable_files_are_read_whole(tmp_path: Path) -> None:
    data = encode(tmp_path / "a.wav", tone(0.1))
    end_in, end_out = os.pipe()
    os.write(end_out, data)
    os.close(end_out)
    with open(end_in, "rb") as file:
        np.testing.assert_array_equal(load_audio(file)[0], load_audio(data)[0])


def test_a_long_file_streams_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 32000, 2, "PCM_16") as file:
        for _ in range(10):
            file.write(np.zeros((32000 * 30, 2), np.float32))
    tracemalloc.start()
    total = sum(len(block) for block in iter_audio(path, block_seconds=10.0, sample_rate=RATE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 300 * RATE
    assert peak < 12e6  # five minutes take 19 MB, and 77 MB as they are in the file


def test_save_writes_long_ogg_and_names_unknown_formats(tmp_path: Path) -> None:
    wave = np.tile(tone(10.0), 4)
    encode(tmp_path / "long.opus", wave)
    assert audio_info(tmp_path / "long.opus").duration == pytest.approx(40.0, abs=0.05)
    with pytest.raises(ValueError, match=r"no audio format has the extension '\.xyz'"):
        save_audio(tmp_path / "a.xyz", wave, RATE)
    with pytest.raises(ValueError, match="cannot write"):
        save_audio(tmp_path / "a.opus", wave, 12345)
    with pytest.raises(ValueError, match="shape"):
        save_audio(tmp_path / "a.wav", wave[None, None], RATE)
    loud = np.array([2.0, -2.0, 0.5], np.float32)
    encode(tmp_path / "loud.wav", loud)
    np.testing.assert_allclose(load_audio(tmp_path / "loud.wav")[0], [1.0, -1.0, 0.5], atol=1e-4)


def test_descriptors_are_closed(tmp_path: Path) -> None:
    encode(tmp_path / "a.wav", tone(0.1))
    (tmp_path / "b.wav").write_bytes(b"nothing" * 20)
    fds = Path("/proc/self/fd")
    if not fds.exists():
        pytest.skip("needs /proc/self/fd")
    before = len(list(fds.iterdir()))
    for _ in range(20):
        load_audio(tmp_path / "a.wav")
        next(iter_audio(tmp_path / "a.wav", block_seconds=0.01))
        with pytest.raises(AudioError):
            load_audio(tmp_path / "b.wav")
    assert len(list(fds.iterdir())) <= before
    assert audio_io.AudioError is AudioError

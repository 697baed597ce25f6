"""Sound that is written piece by piece: what is read of it again, and what is left of a failure."""

from __future__ import annotations

import io
import os
import threading
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.audio.io import load_audio
from speechkit.audio.speech_file import part_of, speech_file, wav_stream

RATE = 16000
PIECES = [np.random.default_rng(size).uniform(-0.5, 0.5, size).astype(np.float32) for size in (7, 100_000, 1)]


@pytest.mark.parametrize("name", ["a.wav", "b.FLAC", "c.ogg"])
def test_a_file_holds_all_pieces(name: str, tmp_path: Path) -> None:
    with speech_file(tmp_path / name, RATE) as write:
        for piece in PIECES:
            write(piece)
        assert not (tmp_path / name).exists()
    found, rate = soundfile.read(tmp_path / name, dtype="float32")
    assert (rate, len(found)) == (RATE, sum(map(len, PIECES)))
    if not name.endswith("ogg"):
        np.testing.assert_allclose(found, np.concatenate(PIECES), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")

    def fail() -> None:
        with speech_file(path, RATE) as write:
            write(PIECES[0])
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.wav"]
    with pytest.raises(ValueError, match="suffix must be one of"), speech_file(tmp_path / "a.mp3", RATE):
        pass
    with pytest.raises(OSError, match=r"none/a\.wav: cannot be written"), speech_file(tmp_path / "none" / "a.wav", RATE):
        pass


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.ogg"])
def test_an_interruption_leaves_what_was_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")

    def stop(*pieces: np.ndarray) -> None:
        with speech_file(path, RATE) as write:
            for piece in pieces:
                write(piece)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert [each.name for each in tmp_path.iterdir()] == [name]
    with pytest.raises(KeyboardInterrupt):
        stop(PIECES[1])
    assert path.read_bytes() == b"old"
    found, rate = soundfile.read(part_of(path))
    assert (rate, len(found)) == (RATE, len(PIECES[1]))
    assert {each.name for each in tmp_path.iterdir()} == {name, part_of(path).name}


def test_a_pipe_is_read_while_it_is_written() -> None:
    reading, writing = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    heard: list[bytes] = []
    with reading, writing:
        with wav_stream(writing, RATE) as write:
            write(PIECES[0])
            heard.append(reading.read(44 + 2 * len(PIECES[0])))  # there already
            rest = threading.Thread(target=lambda: heard.append(reading.read(2 * sum(map(len, PIECES[1:])))))
            rest.start()
            for piece in PIECES[1:]:
                write(piece)
        rest.join()
    coded = b"".join(heard)
    expected = np.concatenate(PIECES)
    found, rate = soundfile.read(io.BytesIO(coded), dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(load_audio(coded)[0], expected, atol=1e-4)


def test_a_stream_into_a_file_knows_its_length(tmp_path: Path) -> None:
    with (tmp_path / "a.wav").open("wb") as file, wav_stream(file, RATE) as write:
        for piece in PIECES:
            write(piece)
    with wave.open(str(tmp_path / "a.wav")) as read:
        assert (read.getnframes(), read.getframerate(), read.getsampwidth()) == (sum(map(len, PIECES)), RATE, 2)
    assert soundfile.info(tmp_path / "a.wav").frames == sum(map(len, PIECES))
    with (tmp_path / "b.wav").open("wb") as file, wav_stream(file, RATE) as write:
        write(PIECES[0][:0])
    assert not (tmp_path / "b.wav").stat().st_size

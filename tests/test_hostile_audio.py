"""Thirty hostile recordings through `transcribe` and `validate`: a clear line or a right result, and never a crash."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.audio.io import AudioError
from speechkit.data.validate import validate_manifest
from speechkit.pretrained import load
from speechkit.recognizer import Recognizer

RATE = 16000


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return load("fsdd-ctc", device="cpu")


def _speechlike(seconds: float, rate: int = RATE) -> np.ndarray:
    """Bursts of a buzzing vowel with pauses: enough for a voice-activity gate to find something."""
    time = np.arange(int(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20))
    return (0.1 * buzz * (np.sin(2 * np.pi * 1.5 * time) > 0)).astype(np.float32)


def _wav_bytes(wave: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", **options)
    return file.getvalue()


def _lying_header(seconds: int) -> bytes:
    """A WAV file whose header promises hours and which holds a quarter of a second."""
    samples = (_speechlike(0.25) * 32767).astype("<i2").tobytes()
    promised = seconds * RATE * 2
    return (
        b"RIFF"
        + struct.pack("<I", 36 + promised)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        + b"data"
        + struct.pack("<I", promised)
        + samples
    )


def make_hostile_folder(folder: Path) -> dict[str, bool]:
    """Writes the files; returns name -> whether it can be read at all."""
    wave = _speechlike(1.0)
    good = _wav_bytes(wave)
    flac, ogg = io.BytesIO(), io.BytesIO()
    soundfile.write(flac, wave, RATE, format="FLAC")
    soundfile.write(ogg, _speechlike(4.0), RATE, format="OGG", subtype="VORBIS")
    nan = wave.copy()
    nan[100] = np.nan
    infinite = wave.copy()
    infinite[5] = np.inf
    files: dict[str, tuple[bytes, bool]] = {
        "good.wav": (good, True),
        "empty.wav": (b"", False),
        "empty.mp3": (b"", False),
        "text.wav": (b"this is not audio at all\n" * 50, False),
        "json.flac": (b'{"a": 1}', False),
        "zeros.wav": (bytes(4096), False),
        "random.opus": (np.random.default_rng(0).bytes(5000), False),
        "random.m4a": (np.random.default_rng(1).bytes(5000), False),
        "header_only.wav": (good[:44], False),
        "half_header.wav": (good[:20], False),
        "truncated.wav": (good[: len(good) // 2], True),
        "truncated.ogg": (ogg.getvalue()[: len(ogg.getvalue()) * 9 // 10], True),
        "cut_magic.flac": (flac.getvalue()[4:], False),
        "no_samples.wav": (_wav_bytes(np.zeros(0, np.float32)), False),
        "one_sample.wav": (_wav_bytes(np.ones(1, np.float32) / 2), True),
        "ten_samples.wav": (_wav_bytes(np.ones(10, np.float32) / 2), True),
        "silence.wav": (_wav_bytes(np.zeros(RATE, np.float32)), True),
        "full_scale.wav": (_wav_bytes(np.sign(wave + 1e-6)), True),
        "eight_channels.wav": (_wav_bytes(np.repeat(wave[:, None], 8, axis=1)), True),
        "stereo_44k1.wav": (_wav_bytes(np.repeat(_speechlike(1.0, 44100)[:, None], 2, axis=1), 44100), True),
        "rate_96k.wav": (_wav_bytes(_speechlike(1.0, 96000), 96000), True),
        "rate_4k.wav": (_wav_bytes(_speechlike(1.0, 4000), 4000), True),
        "float64.wav": (_wav_bytes(wave, subtype="DOUBLE"), True),
        "eight_bit.wav": (_wav_bytes(wave, subtype="PCM_U8"), True),
        "nan.wav": (_wav_bytes(nan, subtype="FLOAT"), False),
        "infinite.wav": (_wav_bytes(infinite, subtype="FLOAT"), False),
        "ten_hours_lie.wav": (_lying_header(36000), True),
        "flac_named.wav": (flac.getvalue(), True),
        "wav_named.mp3": (good, True),
        "größe 音声 \U0001f600.wav": (good, True),
        "no_suffix": (good, True),
    }
    folder.mkdir()
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "directory.wav").mkdir()
    (folder / "dangling.wav").symlink_to(folder / "nowhere.wav")
    readable = {name: good for name, (_, good) in files.items()}
    return readable | {"directory.wav": False, "dangling.wav": False, "missing.wav": False}


def test_transcribe_survives_them_all(tmp_path: Path, recognizer: Recognizer) -> None:
    readable = make_hostile_folder(tmp_path / "hostile")
    assert len(readable) >= 30
    names = list(readable)
    hypotheses = recognizer.transcribe([tmp_path / "hostile" / name for name in names], on_error="return", batch_size=4)
    for name, hypothesis in zip(names, hypotheses):
        assert bool(hypothesis.error) != readable[name], f"{name}: error {hypothesis.error!r}"
        if hypothesis.error:
            assert "\n" not in hypothesis.error
            assert name in hypothesis.error
            assert hypothesis.text == ""
    by_name = dict(zip(names, hypotheses))
    assert by_name["silence.wav"].text == by_name["one_sample.wav"].text == ""
    alone = recognizer.transcribe(tmp_path / "hostile" / "good.wav")[0]
    for twin in ("good.wav", "eight_channels.wav", "flac_named.wav", "wav_named.mp3", "float64.wav", "no_suffix"):
        assert by_name[twin].text == alone.text, twin
    assert by_name["ten_hours_lie.wav"].audio_s == pytest.approx(0.25, abs=0.01)


def test_transcribe_raises_one_clear_line_by_default(tmp_path: Path, recognizer: Recognizer) -> None:
    make_hostile_folder(tmp_path / "hostile")
    for name in ("text.wav", "missing.wav", "directory.wav", "nan.wav"):
        with pytest.raises(AudioError, match=name) as caught:
            recognizer.transcribe(tmp_path / "hostile" / name)
        assert "\n" not in str(caught.value)


def test_validate_reports_them_all(tmp_path: Path) -> None:
    readable = make_hostile_folder(tmp_path / "hostile")
    manifest = tmp_path / "hostile.jsonl"
    rows = [{"id": name, "audio_filepath": f"hostile/{name}", "duration": 1.0, "text": "one two"} for name in readable]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = validate_manifest(manifest, fix=tmp_path / "sound.jsonl")
    reported = {problem.id for problem in report.problems}
    assert not report.ok
    assert {name for name, good in readable.items() if not good} <= reported
    assert {"silence.wav", "full_scale.wav", "truncated.wav", "one_sample.wav", "ten_hours_lie.wav"} <= reported
    kept = [json.loads(line)["id"] for line in (tmp_path / "sound.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "good.wav" in kept
    assert set(kept) == set(readable) - reported


def test_command_line_keeps_going(tmp_path: Path) -> None:
    make_hostile_folder(tmp_path / "hostile")
    command = [
        sys.executable,
        "-m",
        "speechkit",
        "transcribe",
        str(tmp_path / "hostile"),
        "-m",
        "fsdd-ctc",
        "-o",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert any("text.wav" in line for line in errors)
    assert (tmp_path / "out" / "good.txt").is_file()
    assert not (tmp_path / "out" / "text.txt").exists()

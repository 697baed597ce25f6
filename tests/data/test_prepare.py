"""Preparation: manifest, rejects, and transcoding that is taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.audio.io import audio_info, load_audio
from speechkit.data.manifest import ManifestError, read_manifest
from speechkit.data.readers import prepare, prepare_manifest
from speechkit.data.rejects import Rejects
from speechkit.types import Utterance

RATE = 8000


def save(path: Path, seconds: float = 1.0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * RATE), channels) if channels > 1 else round(seconds * RATE)
    soundfile.write(path, 0.1 * np.random.default_rng(len(path.name)).standard_normal(shape), RATE)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_prepare_writes_manifest_and_rejects(tmp_path: Path) -> None:
    save(tmp_path / "f" / "1.wav", 1.0)
    save(tmp_path / "f" / "1.flac", 1.0)
    write(tmp_path / "f" / "1.txt", "Hi")
    write(tmp_path / "f" / "2.wav", "junk")
    write(tmp_path / "f" / "2.txt", "junk")
    report = prepare("audio_folder", tmp_path / "f", tmp_path / "out", lang="en")
    assert [row.lang for row in read_manifest(tmp_path / "out")] == ["en"]
    assert (report.path, report.num_utterances, report.seconds) == (tmp_path / "out" / "manifest.jsonl", 1, 1.0)
    assert not report.ok
    assert report.rejects_path == tmp_path / "out" / "manifest.rejects.jsonl"
    told = [json.loads(line) for line in report.rejects_path.read_text().splitlines()]
    assert sorted(entry["id"] for entry in told) == ["1", "2"]
    assert "id '1' was there before" in str(report)
    (tmp_path / "f" / "1.flac").unlink()
    (tmp_path / "f" / "2.wav").unlink()
    (tmp_path / "f" / "2.txt").unlink()
    assert prepare("audio_folder", tmp_path / "f", tmp_path / "out").ok
    assert not report.rejects_path.exists()
    with pytest.raises(ManifestError, match="has no transcript"):
        prepare("audio_folder", save(tmp_path / "g" / "x.wav").parent, tmp_path / "o.jsonl", on_error="raise")


def test_transcoding_cuts_resamples_and_resumes(tmp_path: Path) -> None:
    save(tmp_path / "stereo.wav", 2.0, channels=2)
    soundfile.write(tmp_path / "fits.flac", np.zeros(16000), 16000)
    rows = [
        Utterance("a/b", tmp_path / "stereo.wav", 0.5, start=1.0, text="x", extra={"k": 1}),
        Utterance("fits", tmp_path / "fits.flac", 1.0),
        Utterance("bad", tmp_path / "gone.wav", 1.0),
    ]
    out = tmp_path / "out" / "train.jsonl"
    rejects = Rejects()
    report = prepare_manifest(rows, out, sample_rate=16000, num_workers=1, rejects=rejects)
    assert (report.num_utterances, report.num_transcoded, report.num_reused) == (2, 1, 0)
    assert [entry.id for entry in rejects.entries] == ["bad"]
    first, second = read_manifest(out)
    assert second.audio_path == tmp_path / "fits.flac"
    assert (first.start, first.duration, first.extra, first.audio_path.suffix) == (0.0, 0.5, {"k": 1}, ".flac")
    assert first.audio_path.parent == tmp_path / "out" / "train_audio"
    expected, _ = load_audio(tmp_path / "stereo.wav", start=1.0, duration=0.5, sample_rate=16000)
    np.testing.assert_allclose(load_audio(first.audio_path)[0], expected, atol=2**-15)
    assert audio_info(first.audio_path).sample_rate == 16000

    made = first.audio_path.stat().st_mtime_ns
    report = prepare_manifest(rows[:2], out, sample_rate=16000, num_workers=0)
    assert (report.num_transcoded, report.num_reused) == (0, 1)
    assert first.audio_path.stat().st_mtime_ns == made
    save(tmp_path / "stereo.wav", 2.5, channels=2)  # another source now
    assert prepare_manifest(rows[:1], out, sample_rate=16000, num_workers=0).num_transcoded == 1
    wav = prepare_manifest(rows[:2], out, audio_format="wav", num_workers=0)
    assert wav.num_transcoded == 1  # the other is WAV already
    assert next(iter(read_manifest(out))).audio_path.name == "stereo.wav"
    assert audio_info(read_manifest(out)[1].audio_path).format == "WAV/PCM_16"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.jsonl", "train_audio"]


def test_prepare_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="audio_format='aac'"):
        prepare_manifest([], tmp_path / "o.jsonl", audio_format="aac")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample_rate=0"):
        prepare_manifest([], tmp_path / "o.jsonl", sample_rate=0)
    with pytest.raises(ManifestError, match="no such file"):
        prepare_manifest([Utterance("a", tmp_path / "gone.wav", 1.0)], tmp_path / "o.jsonl", audio_format="wav", num_workers=0)
    assert not (tmp_path / "o.jsonl").exists()

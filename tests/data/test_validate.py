"""Validation: each kind of problem, told by line and id, and nothing told of sound rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data.manifest import ManifestError, read_manifest, write_manifest
from speechkit.data.validate import KINDS, AudioLimits, validate_manifest
from speechkit.types import Utterance

RATE = 16000


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).clip(-0.9, 0.9).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good audio of two seconds under several names and formats."""
    for name in ("a.wav", "b.flac", "c.ogg", "d.mp3"):
        soundfile.write(tmp_path / name, noise(2.0), RATE)
    soundfile.write(tmp_path / "e.opus", noise(2.0), RATE, format="OGG", subtype="OPUS")
    return tmp_path


def save_rows(folder: Path, *rows: dict[str, object] | str) -> Path:
    lines = []
    for i, row in enumerate(rows):
        if isinstance(row, dict):
            row = json.dumps({"id": f"u{i}", "audio_filepath": "a.wav", "duration": 2.0, "text": "some words", **row})
        lines.append(row)
    path = folder / "m.jsonl"
    path.write_text("\n".join(lines))
    return path


def found(path: Path, **options: object) -> list[tuple[int, str, str]]:
    options = {"num_workers": 0, **options}
    return [(entry.line, entry.id, entry.kind) for entry in validate_manifest(path, **options).problems]  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sound_manifest_is_ok(folder: Path, num_workers: int) -> None:
    names = ("a.wav", "b.flac", "c.ogg", "d.mp3", "e.opus")
    report = validate_manifest(save_rows(folder, *[{"audio_filepath": name} for name in names]), num_workers=num_workers)
    assert report.problems == []
    assert report.ok
    assert (report.num_rows, report.num_sound, report.seconds_sound) == (5, 5, 10.0)
    assert "5 rows, 5 sound" in str(report)


def test_rows_without_audio_checks(folder: Path) -> None:
    path = save_rows(folder, {"id": "x"}, "{", {"id": "y", "text": " "}, {"id": "x"}, "", {"id": "x", "duration": -1})
    expected = [(2, "", "bad_row"), (3, "y", "no_text"), (4, "x", "duplicate_id"), (6, "", "bad_row")]
    assert found(path, check_audio=False) == expected
    assert found(path, check_audio=False, ignore=["no_text", "duplicate_id"]) == [expected[0], expected[3]]
    with pytest.raises(ValueError, match="no such kind of problem"):
        validate_manifest(path, ignore=["typo"])
    report = validate_manifest(path, check_audio=False)
    assert report.counts == {"bad_row": 2, "no_text": 1, "duplicate_id": 1}
    assert "line 1 has this id already" in report.summary()


def test_each_problem_of_the_audio(folder: Path) -> None:
    soundfile.write(folder / "silent.wav", np.zeros(2 * RATE), RATE)
    soundfile.write(folder / "quiet.wav", noise(2.0, level=1e-4), RATE, subtype="FLOAT")
    soundfile.write(folder / "clipped.wav", (20 * noise(2.0)).clip(-1, 1), RATE)
    bad = noise(2.0)
    bad[7000:7003] = [np.nan, np.inf, -np.inf]
    soundfile.write(folder / "nan.wav", bad, RATE, subtype="FLOAT")
    (folder / "junk.wav").write_bytes(b"junk" * 1000)
    (folder / "zero.wav").write_bytes(b"")
    soundfile.write(folder / "none.wav", np.zeros(0), RATE)
    (folder / "dir.wav").mkdir()
    for name in ("a.wav", "b.flac"):
        data = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(data[: len(data) // 2])
    kinds = {
        "silent.wav": "silent",
        "quiet.wav": "silent",
        "clipped.wav": "clipped",
        "nan.wav": "not_finite",
        "junk.wav": "unreadable",
        "zero.wav": "empty",
        "none.wav": "empty",
        "dir.wav": "unreadable",
        "cut-a.wav": "truncated",
        "cut-b.flac": "truncated",
        "missing.wav": "missing",
    }
    path = save_rows(folder, *[{"audio_filepath": name} for name in kinds])
    assert found(path) == [(i + 1, f"u{i}", kind) for i, kind in enumerate(kinds.values())]
    for problem in validate_manifest(path, num_workers=0).problems:
        assert "\n" not in problem.detail
        assert problem.kind in KINDS


def test_duration_against_the_file(folder: Path) -> None:
    path = save_rows(
        folder,
        {"duration": 1.95},  # the only row of its file
        {"audio_filepath": "b.flac", "duration": 1.5},
        {"audio_filepath": "c.ogg", "duration": 2.5},
        {"audio_filepath": "d.mp3", "duration": 0},
    )
    assert found(path) == [(2, "u1", "wrong_duration"), (3, "u2", "wrong_duration"), (4, "u3", "empty")]
    assert found(path, limits=AudioLimits(duration_tolerance=0.6))[0][2] == "empty"


def test_stretches_of_one_file(folder: Path) -> None:
    path = save_rows(
        folder,
        {"offset": 0.0, "duration": 0.7},
        {"offset": 0.7, "duration": 1.3},
        {"offset": 1.0, "duration": 1.5},
        {"offset": 3.0, "duration": 0.5},
        {"audio_filepath": "b.flac", "offset": 1.0, "duration": 0.5},
    )
    assert found(path) == [(3, "u2", "beyond_end"), (4, "u3", "beyond_end")]


def test_problems_are_looked_for_in_the_stretch_alone(folder: Path) -> None:
    wave = noise(2.0)
    wave[:RATE] = 0
    soundfile.write(folder / "half.wav", wave, RATE)
    path = save_rows(
        folder,
        {"audio_filepath": "half.wav", "offset": 0.0, "duration": 0.9},
        {"audio_filepath": "half.wav", "offset": 1.0, "duration": 1.0},
    )
    assert found(path) == [(1, "u0", "silent")]


def test_clipping_needs_runs(folder: Path) -> None:
    peaks = noise(2.0)
    peaks[::100] = 1.0  # 1 % of the samples at full scale, one by one
    soundfile.write(folder / "peaks.wav", peaks, RATE)
    runs = noise(2.0)
    for i in range(0, len(runs) - 8, 4000):
        runs[i : i + 8] = 1.0  # 0.2 % in runs of eight
    soundfile.write(folder / "runs.wav", runs, RATE)
    path = save_rows(folder, {"audio_filepath": "peaks.wav"}, {"audio_filepath": "runs.wav"})
    (problem,) = validate_manifest(path, num_workers=0).problems
    assert (problem.line, problem.kind) == (2, "clipped")
    assert problem.detail.startswith("0.20% of the samples")
    assert found(path, limits=AudioLimits(max_clipped=0.01)) == []


def test_speaking_rate_outliers_are_robust_and_by_language(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for i in range(200):
        rate = np.exp(rng.normal(np.log(14 if i % 2 else 4), 0.25))
        lang = "en" if i % 2 else "zh"
        rows.append({"text": "x" * max(1, round(rate * 5)), "duration": 5.0, "lang": lang, "id": f"r{i}"})
    rows.append({"text": "x" * 70, "duration": 5.0, "lang": "zh", "id": "fast zh"})  # 14 per second: usual in en only
    rows.append({"text": "x" * 150, "duration": 5.0, "lang": "en", "id": "ok en"})
    rows.append({"text": "x" * 5, "duration": 5.0, "lang": "en", "id": "slow en"})
    rows.append({"text": "x" * 250, "duration": 5.0, "lang": "fr", "id": "absolute"})
    rows.append({"text": "x y z", "duration": 100.0, "lang": "fr", "id": "absolute too"})
    path = save_rows(folder, *rows)
    assert [id for _, id, kind in found(path, check_audio=False) if kind == "rate"] == [
        "fast zh",
        "slow en",
        "absolute",
        "absolute too",
    ]
    # In words per second all is within the absolute limits and nothing is unusual.
    assert found(path, check_audio=False, encode=str.split, min_tokens_per_second=0.0) == [(205, "absolute too", "rate")] * 0


def test_fix_writes_sound_rows_and_rejects(folder: Path) -> None:
    path = save_rows(
        folder, {"id": "good", "kept": [1]}, "{broken", {"audio_filepath": "no.wav", "id": "gone"}, {"id": "good", "x": 1}
    )
    fixed = folder / "clean" / "good.jsonl"
    report = validate_manifest(path, fix=fixed, num_workers=1)
    assert not report.ok
    assert report.fix_path == fixed
    assert report.rejects_path == folder / "clean" / "good.rejects.jsonl"
    (row,) = read_manifest(fixed)
    assert row == Utterance("good", folder / "a.wav", 2.0, text="some words", extra={"kept": [1]})
    assert json.loads(fixed.read_text())["audio_filepath"] == "../a.wav"
    rejects = [json.loads(line) for line in report.rejects_path.read_text().splitlines()]
    assert [(entry["reject_line"], entry["reject_reasons"][0]["kind"]) for entry in rejects] == [
        (2, "bad_row"),
        (3, "missing"),
        (4, "duplicate_id"),
    ]
    assert rejects[0]["reject_raw"] == "{broken"
    assert rejects[1]["id"] == "gone"
    assert validate_manifest(fixed, num_workers=0).ok
    with pytest.raises(ValueError, match="is the manifest itself"):
        validate_manifest(path, fix=path)


def test_empty_manifest_is_not_ok(folder: Path) -> None:
    report = validate_manifest(save_rows(folder), num_workers=0)
    assert not report.ok
    assert "holds no rows" in report.summary()
    with pytest.raises(ManifestError, match="no such manifest"):
        validate_manifest(folder / "none.jsonl")


def test_summary_shows_five_and_counts_the_rest(folder: Path) -> None:
    report = validate_manifest(save_rows(folder, *[{"audio_filepath": "no.wav"}] * 30), num_workers=0)
    assert "missing: 30" in report.summary()
    assert "... and 25 more" in report.summary()
    assert len(report.problems) == 30


def test_real_corpus_is_sound(data_root: Path, tmp_path: Path) -> None:
    rows = read_manifest(data_root / "native_en" / "test") + read_manifest(data_root / "fsdd" / "test")[:30]
    write_manifest(tmp_path / "m.jsonl", rows)
    assert validate_manifest(tmp_path / "m.jsonl", num_workers=2).problems == []

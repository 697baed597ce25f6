"""scripts/score_longform.py: one call against clip by clip, on digits joined to a recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from speechkit.data.manifest import read_manifest
from speechkit.types import Word


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("score_longform")


def test_both_ways_are_scored(script: ModuleType, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = read_manifest(data_root / "fsdd" / "test" / "manifest.jsonl")[::25]
    segments = [{"audio_filepath": str(digit.audio_path), "text": digit.text} for digit in digits]
    rows = [{"id": name, "segments": segments} for name in ("one", "other")]
    longform = tmp_path / "longform.jsonl"
    longform.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert script.main(["fsdd-ctc", str(longform), "--id", "other", "--json", str(tmp_path / "out.json")]) == 0
    [result] = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (result["id"], result["num_clips"]) == ("other", 10)
    assert result["audio_s"] == pytest.approx(sum(digit.duration for digit in digits), abs=0.06)
    assert result["wer_clips"] <= 20
    assert result["peak_mb"] >= result["before_mb"] > 0
    assert "WER in one call" in capsys.readouterr().out


def test_differences_count_away_from_edges(script: ModuleType) -> None:
    def words(text: str) -> list[Word]:
        return [Word(word, float(i), i + 0.5, 1.0) for i, word in enumerate(text.split())]

    ours, theirs = words("a b c d e f g h"), words("x b c y e f g z")
    assert script._differences(ours, theirs, [0.0, 7.5], 0.2) == (1, 6)
    assert script._differences(ours, theirs, [0.0, 3.2, 7.5], 0.2) == (0, 5)
    assert script._differences(ours, theirs, [], 0.2) == (3, 8)


def test_a_recording_that_is_not_there(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longform = tmp_path / "longform.jsonl"
    longform.write_text(json.dumps({"id": "one", "segments": []}) + "\n", encoding="utf-8")
    assert script.main(["fsdd-ctc", str(longform), "--id", "two"]) == 2
    assert "has one" in capsys.readouterr().err
    assert script.main(["fsdd-ctc", str(tmp_path / "no.jsonl")]) == 2

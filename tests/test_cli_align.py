"""`speechkit align`: the manifest with times, TextGrids and JSON beside it, and a line for each row that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from speechkit.aligner import CtcAligner
from speechkit.cli import main
from speechkit.data.manifest import read_manifest, write_manifest
from speechkit.text import espeak
from speechkit.types import Utterance

RATE = 16000


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A row that is right, and one of each kind that is not."""
    time = np.arange(2 * RATE) / RATE
    sound = (0.2 * np.sin(2 * np.pi * 150 * time) * (np.sin(2 * np.pi * 2 * time) > -0.5)).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", np.pad(sound, RATE), RATE)  # of which the row takes the middle
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, so it says")

    def row(name: str, file: str, text: str, **fields: float) -> Utterance:
        return Utterance(**{"id": name, "audio_path": tmp_path / file, "duration": 1.0, "text": text, "lang": "en", **fields})  # type: ignore[arg-type]

    rows = [
        row("a/1", "sound.wav", "The old man!", start=1.0, duration=2.0),
        row("empty", "sound.wav", ""),
        row("silent", "silent.wav", "the man"),
        row("broken", "broken.wav", "the man"),
        row("long", "sound.wav", "the man " * 30, start=1.2),
    ]
    write_manifest(tmp_path / "all.jsonl", rows)
    return tmp_path / "all.jsonl"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["align", *map(str, arguments)])


def test_rows_that_fail_cost_a_line_and_the_others_are_written(tmp_path: Path, manifest: Path) -> None:
    files = ["-o", tmp_path / "out.jsonl", "--textgrid", tmp_path / "grids", "--json", tmp_path / "json"]
    result = run("demo-ctc", manifest, *files, "--batch-size", 2, "--device", "cpu")
    assert result.exit_code == 1
    errors = {line.split("'")[1]: line for line in result.output.splitlines() if line.startswith("error: utterance")}
    assert sorted(errors) == ["broken", "empty", "long", "silent"]
    assert "no path" in errors["long"]
    assert "times of words only" in result.output
    assert "1 of 5 utterances" in result.output
    [found] = read_manifest(tmp_path / "out.jsonl")
    assert (found.id, found.start, found.text, found.audio_path) == ("a/1", 1.0, "The old man!", tmp_path / "sound.wav")
    assert [word for word, _, _ in found.extra["words"]] == ["the", "old", "man"]
    assert "phonemes" not in found.extra
    times = [time for _, start, end in found.extra["words"] for time in (start, end)]
    assert times == sorted(times)
    assert 0.0 <= times[0] < times[-1] <= 2.0
    assert [path.name for path in (tmp_path / "grids").iterdir()] == ["a_1.TextGrid"]
    assert 'text = "old"' in (tmp_path / "grids" / "a_1.TextGrid").read_text()
    fields = json.loads((tmp_path / "json" / "a_1.json").read_text())
    assert (fields["id"], fields["duration"], fields["phones"]) == ("a/1", 2.0, [])
    assert [list(word) for word in fields["words"]] == [["word", "start", "end", "score"]] * 3


@pytest.mark.skipif(not espeak.available(), reason="espeakng-loader is not installed")
def test_evenly_spread_phones(tmp_path: Path, manifest: Path) -> None:
    first = read_manifest(manifest)[:1]
    write_manifest(tmp_path / "one.jsonl", first)
    result = run("demo-ctc", tmp_path / "one.jsonl", "-o", tmp_path / "o.jsonl", "--phones", "even", "--frontend", "stress=false")
    assert result.exit_code == 0, result.output
    [found] = read_manifest(tmp_path / "o.jsonl")
    assert " ".join(symbol for symbol, _, _ in found.extra["phonemes"]) == "| ð ɪ | oʊ l d | m æ n !"
    assert found.extra["phonemes"][-1][2] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model", "MANIFEST"], "no-such-model"),
        (["demo-ctc", "nothing.jsonl"], "nothing.jsonl"),
        (["demo-ctc", "MANIFEST", "--phones", "even", "--frontend", "voice=x"], "voice=x"),
        (["demo-ctc", "MANIFEST", "--text-field", "gender"], "'gender'"),
    ],
)
def test_mistakes_cost_one_line(tmp_path: Path, manifest: Path, arguments: list[str], message: str) -> None:
    audio = read_manifest(manifest)[0].audio_path
    write_manifest(manifest, [Utterance(id="x", audio_path=audio, duration=1.0, extra={"gender": 3})])
    result = run(*(str(manifest) if each == "MANIFEST" else each for each in arguments), "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert message in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("Error")]) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_manifest_itself_is_not_written_over(manifest: Path) -> None:
    before = manifest.read_text()
    result = run("demo-ctc", manifest, "-o", manifest)
    assert result.exit_code == 1
    assert "is the manifest itself" in result.output
    assert manifest.read_text() == before


def test_an_interruption_leaves_what_was_found(tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    align, calls = CtcAligner.align, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return align(*args, **options)

    monkeypatch.setattr(CtcAligner, "align", interrupted)
    result = run("demo-ctc", manifest, "-o", tmp_path / "out.jsonl", "--batch-size", 1)
    assert result.exit_code == 130
    assert not (tmp_path / "out.jsonl").exists()
    assert [row.id for row in read_manifest(tmp_path / "out.jsonl.part")] == ["a/1"]


def test_ids_of_one_file_name_are_refused(tmp_path: Path, manifest: Path) -> None:
    row = read_manifest(manifest)[0]
    write_manifest(manifest, [row, Utterance(id="a_1", audio_path=row.audio_path, duration=1.0, text="the")])
    result = run("demo-ctc", manifest, "-o", tmp_path / "out.jsonl", "--json", tmp_path / "json")
    assert result.exit_code == 1
    assert "'a_1'" in result.output

"""scripts/score_tts.py: figures, files written, exit statuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from speechkit.audio.io import save_audio
from speechkit.pretrained import instantiate, save_pretrained


@pytest.fixture(scope="module")
def score_tts(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("score_tts")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The same twice, a semitone up at another rate, and half as long again."""

    def save(name: str, hz: float, seconds: float, rate: int = 22050) -> None:
        time_N = np.arange(int(seconds * rate)) / rate
        save_audio(tmp_path / name, sum(0.1 / k * np.sin(2 * np.pi * hz * k * time_N) for k in range(1, 6)) + 0 * time_N, rate)

    save("ref.wav", 200, 0.6)
    save("up.wav", 200 * 2 ** (1 / 12), 0.6, 24000)
    save("long.wav", 200, 0.9)
    path = tmp_path / "pairs.jsonl"
    names = {"same": "ref.wav", "up": "up.wav", "long": "long.wav"}
    rows = [{"id": name, "ref_audio": "ref.wav", "audio": audio} for name, audio in names.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_figures(score_tts: ModuleType, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--rows", str(tmp_path / "rows.jsonl"), "--json", str(tmp_path / "tts.json")]
    assert score_tts.main([str(pairs), "--worst", "2", *files]) == 0
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}
    assert list(rows) == ["same", "up", "long"]
    assert (rows["same"]["mcd"], rows["same"]["f0_rmse_cents"], rows["same"]["duration_error_s"]) == (0, 0, 0)
    assert rows["up"]["f0_rmse_cents"] == pytest.approx(100, abs=5)
    assert rows["up"]["mcd"] > 0.1
    assert rows["long"]["relative_duration"] == pytest.approx(0.5, abs=0.02)
    report = json.loads((tmp_path / "tts.json").read_text())
    assert (report["num_utterances"], report["mel"]["sample_rate"]) == (3, 22050)
    steps = report["sums"]["cepstra"]["steps"]
    assert report["mcd"] == pytest.approx(10 / np.log(10) * np.sqrt(2) * report["sums"]["cepstra"]["distance"] / steps)
    printed = capsys.readouterr().out
    assert "3 utterances at 22050 Hz, mel-cepstra 1 to 24" in printed
    assert [line.split()[0] for line in printed.splitlines()[2:]] == ["all", "up", "long"]


def test_likeness_of_voices(score_tts: ModuleType, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "kind": "speaker_encoder",
        "features": {"_target_": "speechkit.audio.features.LogMel", "num_mels": 20},
        "model": {"_target_": "speechkit.models.speaker.model.SpeakerModel", "num_mels": 20, "hidden_dim": 16},
    }
    torch.manual_seed(0)
    modules = torch.nn.ModuleDict({name: instantiate(config[name], where=name) for name in ("features", "model")})
    folder = save_pretrained(tmp_path / "model", config=config, state_dict=modules.state_dict(), tokenizer=None, card="")
    files = ["--rows", str(tmp_path / "rows.jsonl"), "--json", str(tmp_path / "tts.json")]
    assert score_tts.main([str(pairs), "--speaker-model", str(folder), *files]) == 0
    values = [json.loads(line)["speaker_similarity"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert values[0] == pytest.approx(1.0)
    assert values[1] < values[0]
    assert json.loads((tmp_path / "tts.json").read_text())["speaker_similarity"] == pytest.approx(sum(values) / 3)
    assert capsys.readouterr().out.splitlines()[1].endswith("SECS")
    assert score_tts.main([str(pairs), "--speaker-model", "fsdd-ctc"]) == 2
    assert "is a folder with a recognizer" in capsys.readouterr().err


def test_copies_scores_and_pictures(
    score_tts: ModuleType, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pystoi", "matplotlib"):
        pytest.importorskip(name)
    module = ModuleType("mine")
    module.rate = lambda paths: [3.0 if path.name == "ref.wav" else 2.0 for path in paths]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    files = ["--rows", str(tmp_path / "rows.jsonl"), "--json", str(tmp_path / "tts.json"), "--plot", str(tmp_path / "a.png")]
    assert score_tts.main([str(pairs), "--copy", "--mos", "mine:rate", *files]) == 0
    same, up = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert same["stoi"] == pytest.approx(1.0, abs=1e-3)
    assert up["stoi"] < same["stoi"]
    assert ("pesq" in same) == (importlib.util.find_spec("pesq") is not None)
    assert ((same["mos"], same["ref_mos"]), (up["mos"], up["ref_mos"])) == ((3.0, 3.0), (2.0, 3.0))
    report = json.loads((tmp_path / "tts.json").read_text())
    assert (report["mos"], report["ref_mos"], report["mos_predictor"]) == (2.5, 3.0, "mine:rate")
    assert report["stoi"] == pytest.approx((same["stoi"] + up["stoi"]) / 2)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert "STOI" in capsys.readouterr().out
    pairs.write_text(json.dumps(rows[2]) + "\n")
    assert score_tts.main([str(pairs), "--copy"]) == 2
    assert "long: the recording lasts 0.60 s and the synthesis 0.90 s: --copy is for" in capsys.readouterr().err


def test_unusable_input_is_named(score_tts: ModuleType, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        ([str(pairs), "--sample-rate", "8000"], "sample_rate=8000"),
        ([str(pairs), "--order", "80"], "same: order=80: must be"),
        ([str(pairs), "--worst", "-1"], "--worst -1"),
        ([str(pairs), "--mos", "best"], "mos=best: choose dnsmos"),
        ([str(pairs), "--mos", "utmos"], "give the file with its weights"),
        ([str(pairs), "--mos-weights", "a.pt"], "say by --mos what they are for"),
        ([str(pairs.with_name("nothing.jsonl"))], "no such file"),
        ([str(pairs), "--json", str(pairs.with_name("nowhere") / "a.json")], "a.json cannot be written"),
        ([str(pairs), "--rows", str(pairs.parent)], "cannot be written"),
    ]
    for arguments, message in cases:
        assert score_tts.main(arguments) == 2
        assert message in capsys.readouterr().err
    pairs.write_text('{"id": "a", "ref_audio": "ref.wav", "audio": "missing.wav"}\n')
    assert score_tts.main([str(pairs)]) == 2
    assert "score_tts: a: " in capsys.readouterr().err
    pairs.write_text('{"id": "a", "ref_audio": "ref.wav"}\n')
    assert score_tts.main([str(pairs)]) == 2
    assert "audio" in capsys.readouterr().err


def test_results_are_printed_before_files_fail(
    score_tts: ModuleType, pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(score_tts, "plot_distributions", fail)
    files = ["--rows", str(pairs.with_name("rows")), "--plot", str(pairs.with_name("a.png"))]
    assert score_tts.main([str(pairs), *files]) == 2
    shown = capsys.readouterr()
    assert "3 utterances at 22050 Hz" in shown.out
    assert "disk full" in shown.err
    assert len(pairs.with_name("rows").read_text().splitlines()) == 3


def test_rows_without_samples_count_in_durations_alone(
    score_tts: ModuleType, pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("mine")
    module.rate = lambda paths: [float("nothing" not in path.name) for path in paths]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    options = ["--worst", "1", "--mos", "mine:rate", "--json", str(pairs.with_name("tts.json"))]
    assert score_tts.main([str(pairs), *options]) == 0
    before = json.loads(pairs.with_name("tts.json").read_text())
    save_audio(pairs.with_name("nothing.wav"), np.zeros(0, np.float32), 22050)
    with pairs.open("a") as file:
        file.write('{"id": "silent", "ref_audio": "ref.wav", "audio": "nothing.wav"}\n')
    capsys.readouterr()
    assert score_tts.main([str(pairs), *options]) == 0
    after = json.loads(pairs.with_name("tts.json").read_text())
    assert (after["num_utterances"], after["num_unaligned"], before["num_unaligned"]) == (4, 1, 0)
    assert all(after[name] == before[name] for name in ("mcd", "log_f0_rmse", "voicing_error_rate", "mos", "ref_mos"))
    assert after["relative_duration"] < before["relative_duration"]
    lines = capsys.readouterr().out.splitlines()
    assert "1 of them without samples" in lines[1]
    assert lines[-1].split()[:2] == ["silent", "-"]

"""The command line: help, errors in one line, outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from speechkit.cli import main
from speechkit.search.lm import load_lm

COMMANDS = sorted(main.commands)


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(16000) / 5), 16000)
    return path


def test_help_is_quick_and_loads_neither_torch_nor_numpy() -> None:
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    seconds = []
    for _ in range(3):
        begin = time.process_time(), os.times().children_user + os.times().children_system
        result = subprocess.run(
            [sys.executable, "-m", "speechkit", "--help"], capture_output=True, text=True, env=environment, check=True
        )
        seconds.append(os.times().children_user + os.times().children_system - begin[1])
        assert not [line for line in result.stderr.splitlines() if line.endswith((" torch", " numpy"))]
    assert min(seconds) < 0.3 * 2  # CPU time, doubled for the import profile


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    if command in ("score", "rtfx"):  # the scripts' own
        result = subprocess.run(
            [sys.executable, "-m", "speechkit", command, "--help"], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0
        assert "usage:" in result.stdout
        return
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "nothing-here.wav", "-m", "fsdd-ctc"], "nothing-here.wav"),
        (["transcribe", "x.wav", "-m", "no-such-model"], "no-such-model"),
        (["transcribe", "x.wav", "-f", "srt", "-f", "vtt"], "-o DIR"),
        (["prepare", "no-such-kind", "a", "b"], "no-such-kind"),
        (["prepare", "kaldi", "only-one"], "SRC OUT"),
        (["prepare", "csv", "a", "b", "--set", "oops"], "KEY=VALUE"),
        (["validate", "nothing.jsonl"], "nothing.jsonl"),
        (["index", "nothing.jsonl", "out"], "nothing.jsonl"),
        (["shard", "nothing.jsonl", "out"], "nothing.jsonl"),
        (["bins", "nothing.jsonl"], "nothing.jsonl"),
        (["lm", "nothing.txt", "-o", "lm.arpa"], "nothing.txt"),
        (["lm", "nothing.txt", "-o", "lm.bin"], ".arpa"),
        (["download", "no-such-corpus", "out"], "no-such-corpus"),
    ],
)
def test_mistakes_cost_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    with CliRunner().isolated_filesystem(tmp_path):
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    errors = [line for line in result.output.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1
    assert message in errors[0]


def test_models_lists_what_ships() -> None:
    listed = json.loads(CliRunner().invoke(main, ["models", "--json"]).output)
    assert {"demo-ctc", "fsdd-ctc"} <= {info["name"] for info in listed}


def test_models_lists_the_families_and_what_they_support() -> None:
    listed = json.loads(CliRunner().invoke(main, ["models", "--json"]).output)
    families = {info["name"]: info for info in listed if info["kind"] == "family"}
    assert {"aed", "cassnat", "ctc", "owsm_ctc", "paraformer"} <= set(families)
    assert [name for name, info in families.items() if not info["non_autoregressive"]] == ["aed"]
    assert all(info["timestamps"] == ["token", "word"] and not info["streaming"] for info in families.values())
    assert {name for name, info in families.items() if info["long_form"] == "frames"} == {"ctc", "owsm_ctc"}
    languages = {"aed": "told", "cassnat": "one", "ctc": "one", "owsm_ctc": "identified", "paraformer": "one"}
    assert {name: families[name]["languages"] for name in languages} == languages
    assert {"aed_greedy", "aed_beam", "aed_joint", "aed_rescore"} <= set(families["aed"]["decode"])
    assert {"cassnat_best_path", "cassnat_esa"} <= set(families["cassnat"]["decode"])
    assert all(info["decode"] and info["description"] for info in families.values())
    text = CliRunner().invoke(main, ["models"]).output
    assert "fsdd-ctc" in text
    assert "decode=ctc_beam | ctc_beam_lm | ctc_greedy" in text


def test_models_lists_the_families_of_synthesis_and_their_controls() -> None:
    listed = json.loads(CliRunner().invoke(main, ["models", "--json"]).output)
    families = {info["name"]: info for info in listed if info["kind"] == "synthesis_family"}
    trains = {"codec": "codec", "vocoder": "vocoder"} | dict.fromkeys(("fastspeech", "flow", "maskgct"), "synthesizer")
    assert {name: info["trains"] for name, info in families.items()} == trains
    assert {"matcha_tiny", "f5_tiny", "simplespeech_tiny"} <= set(families["flow"]["models"])
    assert {"demo_matcha", "demo_f5", "demo_simplespeech"} <= set(families["flow"]["experiments"])
    assert {"vocos_tiny", "hifigan_v1"} <= set(families["vocoder"]["models"])
    assert families["fastspeech"]["decode"] == {"fastspeech": ["speed", "pitch", "energy"]}
    assert set(families["flow"]["decode"]) == {"flow_matcha", "flow_f5"}
    assert {"num_steps", "solver", "guidance", "sway", "length", "speed"} <= set(families["flow"]["decode"]["flow_f5"])
    assert all(info["description"].endswith(".") for info in families.values())
    text = CliRunner().invoke(main, ["models"]).output
    assert "decode=fastspeech, with speed, pitch, energy" in text
    assert "codec: experiment=demo_codec | " in text


def test_doctor_is_healthy_here() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    assert "torch" in result.output


def test_transcripts_are_written_beside_each_other(tmp_path: Path, tone: Path) -> None:
    twin = tone.with_suffix(".flac")
    soundfile.write(twin, np.zeros(8000), 16000)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tone.wav").write_bytes(tone.read_bytes())
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["transcribe", str(tmp_path), "-m", "fsdd-ctc", "-o", str(out), "-f", "all", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    stems = ("tone.wav", "tone.flac", "sub/tone")
    assert written == {f"{stem}.{suffix}" for stem in stems for suffix in ("txt", "json", "srt", "vtt", "tsv")}


def test_audio_from_a_pipe(tone: Path) -> None:
    result = CliRunner().invoke(
        main, ["transcribe", "-", "-m", "fsdd-ctc", "-f", "json", "--device", "cpu"], input=tone.read_bytes()
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["audio_s"] == pytest.approx(1.0)


def test_a_language_model_from_texts_and_manifests(tmp_path: Path, tone: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat sat.\n\nthe dog sat\n", encoding="utf-8")
    row = {"id": "a", "audio_filepath": str(tone), "duration": 1.0, "text": "The CAT ran"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    out = tmp_path / "new" / "lm.arpa"
    result = CliRunner().invoke(main, ["lm", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), "-o", str(out), "--order", "2"])
    assert result.exit_code == 0, result.output
    assert "3 sentences, 9 words" in result.output
    model = load_lm(out)
    after_the = {word: model.score(model.score(model.initial_state(), "the")[1], word)[0] for word in ("cat", "dog", "sat")}
    assert after_the["cat"] > after_the["dog"] > after_the["sat"]

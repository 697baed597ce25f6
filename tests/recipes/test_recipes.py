"""The recipes as a user runs them: prepare, train, export, decode, score on tones; sweeps; errors; kill -9 and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra._internal.core_plugins import basic_launcher
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "training"
Run = Callable[[str, Sequence[str]], None]

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def tones(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of tones with a training and a validation manifest."""
    root = tmp_path_factory.mktemp("tones")
    tiny.write_tones(root / "train", num=60, seed=0)
    tiny.write_tones(root / "valid", num=10, seed=1)
    return root


def _overrides(tones: Path, run_dir: Path, **values: Any) -> list[str]:
    """A run of a few seconds: a narrow model on tones."""
    settings = {
        "name": "tones",
        "run_dir": run_dir,
        "data": "fsdd",
        "callbacks": "ema",
        "data.train": tones / "train/manifest.jsonl",
        "data.valid": tones / "valid/manifest.jsonl",
        "data.num_workers": 0,
        "data.sampler.max_batch_seconds": 6.0,
        "model.encoder.dim": 32,
        "model.encoder.num_layers": 1,
        "model.encoder.ff_dim": 32,
        "model.encoder.kernel_size": 5,
        "model.encoder.dropout": 0.0,
        "model.encoder.conv_norm": "layer",
        "model.encoder.subsampling": "dw4",
        "callbacks.ema.decay": 0.5,
        "callbacks.checkpointer.keep": 5,
        "augment": "none",
        "optim.lr": 0.01,
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 1,
        "threads": 1,
    }
    return [f"{key}={value}" for key, value in {**settings, **values}.items()]


def test_train_decode_score(
    tones: Path, tmp_path: Path, run_recipe: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir, hyps = tmp_path / "run", tmp_path / "hyps.jsonl"
    run_recipe("train.py", _overrides(tones, run_dir, **{"trainer.max_epochs": 10, "trainer.check_val_every_n_epoch": 2}))
    printed = capsys.readouterr().out
    assert "padding report" in printed
    assert printed.count("| valid loss") == 5
    assert {path.name for path in (run_dir / "pretrained").iterdir()} == {
        "config.yaml", "model.safetensors", "tokenizer.json", "README.md"
    }  # fmt: skip
    assert len(list((run_dir / "checkpoints").glob("weights-*.safetensors"))) == 5
    result = json.loads((run_dir / "result.json").read_text())

    manifest = tones / "valid/manifest.jsonl"
    run_recipe("decode.py", [f"checkpoint={run_dir / 'pretrained'}", f"manifest={manifest}", f"output={hyps}"])
    rows = [json.loads(line) for line in hyps.read_text().splitlines()]
    wanted = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in wanted]
    assert [row["ref"] for row in rows] == [row["text"] for row in wanted]
    assert all(row["decode_s"] > 0 for row in rows)
    assert [row["audio_s"] for row in rows] == pytest.approx([row["duration"] for row in wanted], abs=1e-3)
    meta = json.loads((tmp_path / "hyps.jsonl.meta.json").read_text())
    assert meta["threads"] >= 1
    assert meta["warmup_batches"] >= 1

    score = subprocess.run(
        [sys.executable, ROOT / "scripts/score_wer.py", hyps, "--json", tmp_path / "score.json"], capture_output=True, check=False
    )
    assert score.returncode == 0, score.stderr.decode()
    assert result["valid/cer"] < 0.5, "a tone recogniser should learn something in ten epochs"
    [scored] = json.loads((tmp_path / "score.json").read_text())["files"]
    assert scored["wer"] == pytest.approx(result["valid/wer"]), "decoding and validation give the same error rate"


def test_a_sweep_gets_the_metric(tones: Path, tmp_path: Path, run_recipe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = _overrides(tones, tmp_path / "run", **{"trainer.max_epochs": 1, "optim.lr": "0.001,0.01"})
    seen: list[Any] = []
    run_job = basic_launcher.run_job
    with monkeypatch.context() as patch:
        patch.setattr(basic_launcher, "run_job", lambda *a, **kw: seen.append(run_job(*a, **kw)) or seen[-1])
        run_recipe("train.py", ["-m", *arguments])
    results = [json.loads((tmp_path / f"run-sweep/{number}/result.json").read_text()) for number in (0, 1)]
    assert [job.return_value for job in seen] == pytest.approx([result["valid/wer"] for result in results])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data.train": "nowhere.jsonl"}, "nowhere.jsonl: no such manifest"),
        ({"data.sampler.max_batch_seconds": 0.1}, "max_batch_seconds"),
        ({"trainer.max_epochs": -1}, "set trainer.max_epochs or trainer.max_steps"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"data.valid": "???"}, "Missing mandatory value: data.valid (config data.valid)"),
        ({"+model.encoder.width": 3}, "unexpected keyword argument 'width' (config model.encoder"),
    ],
)
def test_errors_are_one_line(
    values: dict[str, Any],
    said: str,
    tones: Path,
    tmp_path: Path,
    run_recipe: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_recipe("train.py", _overrides(tones, tmp_path / "run", **values))
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert said in lines[-1]
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in "".join(lines)


def test_a_run_directory_is_not_overwritten(tones: Path, tmp_path: Path, run_recipe: Run) -> None:
    arguments = _overrides(tones, tmp_path / "run", **{"trainer.max_epochs": 1})
    run_recipe("train.py", arguments)
    with pytest.raises(SystemExit):
        run_recipe("train.py", arguments)
    run_recipe("train.py", [*arguments, "resume=true"])


def test_prepare_demo(tmp_path: Path, run_recipe: Run) -> None:
    pytest.importorskip("espeakng_loader")
    sizes = ["corpus.num_train=4", "corpus.num_dev=2", "corpus.num_test=2"]
    run_recipe("prepare.py", ["corpus=demo", f"corpus.out={tmp_path}", *sizes])
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 4


def test_kill_9_and_resume(tones: Path, tmp_path: Path, run_recipe: Run) -> None:
    """A run killed in mid-epoch, with workers, goes on to the same batches, losses and exported weights."""

    def arguments(name: str) -> list[str]:
        values = {
            "data.num_workers": 2,
            "augment": "speed_specaugment",
            "model.encoder.dropout": 0.1,
            "trainer.max_epochs": 4,
            "+callbacks.trace._target_": "tiny.Trace",
            "+callbacks.trace.path": tmp_path / f"{name}.jsonl",
            "callbacks.checkpointer.every_steps": 2,
        }
        return _overrides(tones, tmp_path / name, **values)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TINY), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "recipes/train.py"), *arguments("killed")]
    trace = tmp_path / "killed.jsonl"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
        deadline = time.monotonic() + 280
        while not trace.exists() or len(trace.read_text().splitlines()) < 7:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, "the run never came to its seventh step"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = trace.read_text().splitlines()
    trace.unlink()

    run_recipe("train.py", arguments("whole"))
    whole = (tmp_path / "whole.jsonl").read_text().splitlines()
    run_recipe("train.py", [*arguments("killed"), "resume=true"])
    after = trace.read_text().splitlines()
    assert before == whole[: len(before)]
    assert len(after) < len(whole), "the run had been started afresh"
    assert after == whole[len(whole) - len(after) :]
    assert len(before) + len(after) >= len(whole)
    weights, expected = (load_file(tmp_path / name / "pretrained/model.safetensors") for name in ("killed", "whole"))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)

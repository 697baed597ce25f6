"""What is kept, and that a crash while writing loses nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speechkit.text.tokenizers import CharTokenizer
from speechkit.training.resume import Checkpointer, random_states, set_random_states
from speechkit.training.run import claim_run_dir, obtain_tokenizer


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _load("tiny")


class Scores(pl.Callback):
    """Logs a given score at each validation."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = iter(scores)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("valid/score", next(self.scores), batch_size=1)


@pytest.mark.parametrize(
    ("keep_by", "expected"),
    [("best", [(0.2, 3), (0.5, 5)]), ("last", [(0.5, 5), (0.7, 4)])],
)
def test_the_best_or_last_weights_are_kept(keep_by: Any, expected: list[tuple[float, int]], tmp_path: Path) -> None:
    checkpointer = Checkpointer(directory=tmp_path / "kept", monitor="valid/score", keep=2, keep_by=keep_by)
    scores = Scores([0.9, 0.5, 0.2, 0.7, 0.5])  # of equal scores the later one is better
    trainer = tiny.make_trainer(tmp_path, scores, checkpointer, max_epochs=5, limit_train_batches=1)
    trainer.fit(tiny.make_module(), datamodule=tiny.make_datamodule(tmp_path))
    assert [(pytest.approx(score), step) for score, step, _ in checkpointer.kept] == expected
    files = sorted(path.name for path in (tmp_path / "kept").glob("weights-*"))
    assert files == sorted(name for _, _, name in checkpointer.kept)
    first, second = (load_file(tmp_path / "kept" / name) for name in files)
    for name, tensor in checkpointer.averaged_weights().items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


def test_a_crash_while_writing_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = Checkpointer(directory=tmp_path / "kept", every_minutes=None, every_steps=1)
    trainer = tiny.make_trainer(tmp_path, checkpointer, max_epochs=1)
    save = trainer.save_checkpoint
    saved: list[bytes] = []

    def save_or_die(path: Path, weights_only: bool) -> None:
        if len(saved) == 2:
            Path(path).write_bytes(b"half a checkp")
            raise KeyboardInterrupt
        save(path, weights_only)
        saved.append(Path(path).read_bytes())

    monkeypatch.setattr(trainer, "save_checkpoint", save_or_die)
    with pytest.raises(SystemExit):
        trainer.fit(tiny.make_module(), datamodule=tiny.make_datamodule(tmp_path))
    assert checkpointer.last_path.read_bytes() == saved[-1]
    torch.load(checkpointer.last_path, weights_only=True)


def test_processor_time_adds_up_over_resumed_runs(tmp_path: Path) -> None:
    first, second = (Checkpointer(directory=tmp_path) for _ in range(2))
    second.load_state_dict(first.state_dict() | {"cpu_seconds": 7200.0})
    assert 7200 < second.cpu_seconds() < 7200 + 2 * first.cpu_seconds()
    assert second.state_dict()["cpu_seconds"] > 7200


def test_random_states_come_back() -> None:
    states = random_states()

    def draws() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), __import__("random").random()]

    first = draws()
    set_random_states(states)
    assert draws() == first


def test_an_unknown_monitor_names_those_there_are(tmp_path: Path) -> None:
    checkpointer = Checkpointer(directory=tmp_path, monitor="valid/were")
    trainer = tiny.make_trainer(tmp_path, checkpointer, max_epochs=1, limit_train_batches=1)
    with pytest.raises(ValueError, match=r"monitor='valid/were'.*valid/cer.*valid/wer"):
        trainer.fit(tiny.make_module(), datamodule=tiny.make_datamodule(tmp_path))


def test_a_run_directory_is_claimed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claim_run_dir(tmp_path / "run", resume=True) is None
    assert "nothing to resume" in capsys.readouterr().out
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.touch()
    assert claim_run_dir(tmp_path / "run", resume=True) == last
    with pytest.raises(ValueError, match="resume=true"):
        claim_run_dir(tmp_path / "run", resume=False)


def test_the_tokenizer_is_trained_once(tmp_path: Path) -> None:
    asked = []

    def texts() -> list[str]:
        asked.append(1)
        return ["ab", "ca"]

    directory, settings = tmp_path / "tokenizer", {"kind": "char", "train": ["a.jsonl"]}
    first = obtain_tokenizer(directory, CharTokenizer.train, texts, settings=settings)
    second = obtain_tokenizer(directory, CharTokenizer.train, texts, settings=settings)
    assert asked == [1]
    assert first.encode("abc") == second.encode("abc")
    assert first.fingerprint() == second.fingerprint()
    with pytest.raises(ValueError, match=r"trained with other settings .*run_dir"):
        obtain_tokenizer(directory, CharTokenizer.train, texts, settings={**settings, "kind": "byte"})

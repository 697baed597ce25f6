"""Exact resume: a run that dies at any step and goes on equals the run that never died, bit for bit."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest

from speechkit.training.ema import Ema
from speechkit.training.resume import RandomStates


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _load("tiny")


def _fit(root: Path, name: str, *, start: Path | None = None, **options: Any) -> list[str]:
    """Runs training afresh or from a checkpoint; returns its trace."""
    trace = root / f"{name}.jsonl"
    every_steps, num_workers = options.pop("every_steps", 1), options.pop("num_workers", 0)
    callbacks: list[pl.Callback] = [
        *options.pop("more", ()),
        tiny.Trace(path=trace),
        RandomStates(seed=1),
        Ema(decay=0.9),
        tiny.KeepingCheckpointer(directory=root / name, every_minutes=None, every_steps=every_steps, keep=2),
    ]
    trainer = tiny.make_trainer(root, *callbacks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer.fit(
            tiny.make_module(),
            datamodule=tiny.make_datamodule(root, num_workers=num_workers),
            ckpt_path=start,
            weights_only=True,
        )
    return trace.read_text().splitlines() if trace.exists() else []


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "validation in mid-epoch": {"val_check_interval": 2},
    "validation by batches over epochs": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "validation in mid-epoch and accumulation": {"val_check_interval": 3, "accumulate_grad_batches": 2},
    "validation every other epoch": {"check_val_every_n_epoch": 2},
    "no validation": {"limit_val_batches": 0},
    "rare checkpoints": {"every_steps": 4},
    "steps instead of epochs": {"max_steps": 13, "max_epochs": -1},
}


@pytest.mark.parametrize("case", CASES)
def test_going_on_from_any_checkpoint_changes_nothing(case: str, tmp_path: Path) -> None:
    whole = _fit(tmp_path, "whole", **dict(CASES[case]))
    assert sum('"train"' in line for line in whole) >= 12
    saved = sorted(int(path.stem.removeprefix("after-")) for path in (tmp_path / "whole").glob("after-*.ckpt"))
    assert len(saved) >= 3
    for lines in {saved[round(place)] for place in np.linspace(0, len(saved) - 1, 4)}:
        rest = _fit(tmp_path, f"from{lines}", start=tmp_path / "whole" / f"after-{lines}.ckpt", **dict(CASES[case]))
        assert rest == whole[lines:], f"going on after line {lines} of {len(whole)}"


class Stop(pl.Callback):
    """Stops training after some steps, as a time limit does."""

    def __init__(self, *, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.after


@pytest.mark.parametrize("after", [2, 3])
def test_a_run_that_was_stopped_in_mid_epoch_goes_on_there(after: int, tmp_path: Path) -> None:
    options = {"check_val_every_n_epoch": 2, "every_steps": 100}
    whole = _fit(tmp_path, "whole", **options)
    stopped = _fit(tmp_path, "stopped", more=[Stop(after=after)], **options)
    assert stopped == whole[:after]
    assert _fit(tmp_path, "rest", start=tmp_path / "stopped/last.ckpt", **options) == whole[after:]

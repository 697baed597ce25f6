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
import torch

from speechkit.training.ema import Ema
from speechkit.training.resume import Checkpointer, RandomStates, random_states, set_random_states


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _load("tiny")


def _fit(root: Path, name: str, *, crash_after: int | None = None, resume: str | None = None, **options: Any) -> list[str]:
    """Runs (or goes on with the run of) `name`; returns its trace."""
    trace = root / f"{name}.jsonl"
    every_steps, num_workers = options.pop("every_steps", 1), options.pop("num_workers", 0)
    callbacks: list[pl.Callback] = [
        tiny.Trace(path=trace, crash_after=crash_after),
        RandomStates(seed=1),
        Ema(decay=0.9),
        Checkpointer(directory=root / f"{name}-checkpoints", every_minutes=None, every_steps=every_steps, keep=2),
    ]
    trainer = tiny.make_trainer(root, *callbacks, **options)
    path = root / f"{resume}-checkpoints" / "last.ckpt" if resume else None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        try:
            trainer.fit(
                tiny.make_module(),
                datamodule=tiny.make_datamodule(root, num_workers=num_workers),
                ckpt_path=path,
                weights_only=True,
            )
        except tiny.CrashError:
            assert crash_after is not None
    return trace.read_text().splitlines()


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
def test_a_crash_at_any_step_changes_nothing(case: str, tmp_path: Path) -> None:
    whole = _fit(tmp_path, "whole", **dict(CASES[case]))
    num_steps = sum('"train"' in line for line in whole)
    assert num_steps >= 12
    for crash_after in range(2, num_steps, 1 if case == "plain" else 2):
        name = f"crash{crash_after}"
        before = _fit(tmp_path, name, crash_after=crash_after, **dict(CASES[case]))
        assert before == whole[: len(before)]
        if not (tmp_path / f"{name}-checkpoints" / "last.ckpt").exists():
            continue
        (tmp_path / f"{name}.jsonl").unlink()
        after = _fit(tmp_path, name, resume=name, **dict(CASES[case]))
        assert after == whole[len(whole) - len(after) :], f"after a crash in step {crash_after}"
        assert len(before) + len(after) >= len(whole), f"after a crash in step {crash_after} steps are missing"

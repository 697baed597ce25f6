"""Models train through the fused kernels, here in Triton's interpreter: under Lightning, on two ranks, and compiled."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from speechkit.kernels import backend
from speechkit.losses import ctc

HERE = Path(__file__).parent
FUSED = {"attention", "ctc_loss", "glu_conv"}  # what a training step of a Conformer-CTC calls

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter takes the place of a GPU that is there")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Operations whose kernels are started inside."""
    from triton.runtime.interpreter import GridExecutor

    seen: set[str] = set()
    start = GridExecutor.__call__

    def record(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.add(self.fn.__module__.split(".")[2])
        return start(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", record)
        yield seen


def test_lightning_with_a_large_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, step = load(HERE.parent / "training" / "tiny.py"), load(HERE / "ddp_step.py")
    monkeypatch.setattr(ctc, "LARGE_VOCAB", step.VOCAB)  # from there on scores are not kept
    sampler = partial(tiny.BucketBatchSampler, max_batch_seconds=0.9, seed=0)
    datamodule = tiny.make_datamodule(tmp_path, sampler=sampler)
    losses: dict[str, list[float]] = {}
    for name in ("auto", "triton"):
        with backend(name), launches(monkeypatch) as seen:
            module = tiny.make_module(model=step.Loss("rope").model, features=features(tiny))
            torch.manual_seed(0)  # of the augmentation
            trace = tiny.Trace(path=tmp_path / f"{name}.jsonl")
            trainer = tiny.make_trainer(tmp_path, trace, max_epochs=1, limit_train_batches=2, limit_val_batches=0)
            trainer.fit(module, datamodule=datamodule)
        assert seen == (FUSED | {"linear_ctc_loss"} if name == "triton" else set())
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        losses[name] = [float.fromhex(line[5]) for line in lines if line[0] == "train"]
    assert len(losses["auto"]) == 2
    assert losses["triton"] == pytest.approx(losses["auto"], abs=1e-4)


def features(tiny: ModuleType) -> torch.nn.Module:
    """Eight mel bins, as the model wants them."""
    return tiny.LogMel(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, num_mels=8)


def test_two_ranks(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "WORLD_SIZE", "RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(HERE / "ddp_step.py"), str(tmp_path)]
    ranks = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]  # fmt: skip
    for rank in ranks:
        errors = rank.communicate(timeout=200)[1]
        assert rank.returncode == 0, errors[-3000:]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for name in ("auto", "triton"):
        assert found[0][name]["weights"] == found[1][name]["weights"], "the ranks do not hold the same weights"
        assert found[0][name]["losses"] != found[1][name]["losses"], "the ranks see the same data"
    for rank in found:
        assert rank["triton"]["losses"] == pytest.approx(rank["auto"]["losses"], abs=1e-4)
        assert rank["triton"]["weights"] == pytest.approx(rank["auto"]["weights"], abs=1e-4)


def test_compiled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    step = load(HERE / "ddp_step.py")
    losses = {}
    for name, compiled in (("auto", False), ("triton", False), ("triton", True)):
        torch.compiler.reset()
        with backend(name), launches(monkeypatch) as seen:
            module = step.Loss()
            run = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
            losses[name, compiled] = step.train(run, 0)
        assert seen == (FUSED if name == "triton" else set())
    torch.compiler.reset()
    for found in losses.values():
        assert found == pytest.approx(losses["auto", False], abs=1e-4)

"""Two processes train on tones over gloo, then go on from a checkpoint in mid-epoch; or, with "skip", on recordings some of
which cannot be read. Run as a script by test_ddp.py."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from speechkit.training.resume import RandomStates


def run(root: Path, phase: str, start: Path | None) -> None:
    """Trains for two epochs; leaves a trace per rank."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    callbacks = [
        tiny.Trace(path=root / f"{phase}-rank{rank}.jsonl"),
        RandomStates(seed=3),
        tiny.KeepingCheckpointer(directory=root / phase, every_minutes=None, every_steps=2),
    ]
    trainer = tiny.make_trainer(root, *callbacks, devices=2, strategy="ddp", max_epochs=2)
    datamodule = tiny.make_datamodule(root, num_workers=1)
    trainer.fit(tiny.make_module(), datamodule=datamodule, ckpt_path=start, weights_only=True)


def run_on_damaged_data(root: Path) -> None:
    """Trains for two epochs a model that sums over ranks; leaves a trace per rank."""
    trace = tiny.Trace(path=root / f"rank{os.environ.get('LOCAL_RANK', '0')}.jsonl")
    trainer = tiny.make_trainer(root, trace, devices=2, strategy="ddp", max_epochs=2)
    trainer.fit(tiny.make_module(conv_norm="batch"), datamodule=tiny.make_datamodule(root, on_error="skip"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*not resumable.*")
    directory = Path(sys.argv[1])
    if "skip" in sys.argv:
        run_on_damaged_data(directory)
        sys.exit()
    run(directory, "whole", None)
    run(directory, "resumed", directory / "whole/after-2.ckpt")

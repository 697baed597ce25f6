"""Two processes train on tones over gloo, then go on from a checkpoint in mid-epoch. Run as a script by test_ddp.py."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from speechkit.training.resume import Checkpointer, RandomStates


class KeepingCheckpointer(Checkpointer):
    """Keeps a copy of the checkpoint of the second step."""

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        if trainer.is_global_zero and trainer.global_step == 2:
            shutil.copy(self.last_path, self.directory / "middle.ckpt")


def run(root: Path, phase: str, start: Path | None) -> None:
    """Trains for two epochs; leaves a trace per rank."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    callbacks = [
        tiny.Trace(path=root / f"{phase}-rank{rank}.jsonl"),
        RandomStates(seed=3),
        KeepingCheckpointer(directory=root / phase, every_minutes=None, every_steps=2),
    ]
    trainer = tiny.make_trainer(root, *callbacks, devices=2, strategy="ddp", max_epochs=2)
    datamodule = tiny.make_datamodule(root, num_workers=1)
    trainer.fit(tiny.make_module(), datamodule=datamodule, ckpt_path=start, weights_only=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*not resumable.*")
    directory = Path(sys.argv[1])
    run(directory, "whole", None)
    run(directory, "resumed", directory / "whole/middle.ckpt")

"""Exact resume: a run that was killed goes on as if nothing had happened, bit for bit on a CPU.

What a run's future depends on, and who keeps it in the checkpoint:

- weights, optimizer, schedule, loop counters: Lightning;
- batches still to come: `ResumableLoader`, which counts the batches the trainer took, not the ones that workers
  prefetched; every augmentation is drawn from (seed, epoch, utterance id), so the epoch restores those;
- random states of torch (CPU and CUDA), numpy and Python on every rank: `RandomStates`;
- averages and the list of kept weights: their callbacks; settings of the features, which must stay: `Checkpointer`.

Lightning restores its loops exactly only from certain points of the loop, so `Checkpointer` saves at those alone: after
a batch that ended with an optimizer step and is followed by no validation, after a validation, and after an epoch. A
checkpoint in the middle of gradient accumulation would lose the gradients; one between a batch and the validation that
is due would skip the validation.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechkit.audio.settings import differing_settings
from speechkit.training.average import average_states
from speechkit.training.ema import evaluation_weights

LAST = "last.ckpt"


class RandomStates(pl.Callback):
    """Keeps the random states of every rank in the checkpoint; a fresh run gives each rank its own stream.

    Args:
        seed: seed of the run; rank r starts from `seed + r`.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._restored: list[dict[str, Any]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the states right before the first batch: whatever set-up drew does not matter."""
        if self._restored is None:
            pl.seed_everything(self.seed + trainer.global_rank, verbose=False)
            return
        if len(self._restored) != trainer.world_size:
            raise ValueError(
                f"the checkpoint was written by {len(self._restored)} processes and this run has {trainer.world_size}; "
                "resume with as many, or start afresh from the exported weights"
            )
        set_random_states(self._restored[trainer.global_rank])

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks."""
        states: list[Any] = [random_states()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, random_states())
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; it is set when training starts."""
        self._restored = state_dict["ranks"]


def random_states() -> dict[str, Any]:
    """States of all global generators of this process, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, torch.tensor(internal), gauss],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restores what `random_states` gave."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))


class Checkpointer(Checkpoint):
    """Writes `last.ckpt` for resuming, and keeps the weights of the best (or last) validations for averaging.

    `last.ckpt` is written beside its place, synced and renamed: a kill while writing leaves the previous one.

    Args:
        directory: where all files go.
        monitor: validation metric that ranks weights, e.g. "valid/wer"; lower is better.
        keep: number of weights kept.
        keep_by: "best" by the metric (the later one of equals), or "last".
        every_minutes: time between checkpoints within an epoch; null for none.
        every_steps: optimizer steps between checkpoints within an epoch; null for none.
    """

    def __init__(
        self,
        *,
        directory: str | Path,
        monitor: str = "valid/wer",
        keep: int = 5,
        keep_by: Literal["best", "last"] = "best",
        every_minutes: float | None = 15.0,
        every_steps: int | None = None,
    ) -> None:
        if keep < 1 or keep_by not in ("best", "last"):
            raise ValueError(f"keep={keep}, keep_by={keep_by!r}: keep at least 1, by 'best' or 'last'")
        self.directory, self.monitor, self.keep, self.keep_by = Path(directory), monitor, keep, keep_by
        self.every_minutes, self.every_steps = every_minutes, every_steps
        self.kept: list[tuple[float, int, str]] = []  # score, step, file name; the best first
        self._saved_step, self._saved_time = 0, time.monotonic()
        self._validated_step, self._is_final = -1, False
        self._earlier_cpu_seconds = 0.0

    @property
    def last_path(self) -> Path:
        """The checkpoint that a resumed run starts from."""
        return self.directory / LAST

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time and steps count from here."""
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Saves when it is time or training stops, unless the epoch ends or a validation follows, which save themselves."""
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        stepped = trainer.global_step > self._saved_step and not loop._should_accumulate()
        ends = loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher)
        if stepped and not ends and (self._is_due(trainer) or trainer.should_stop):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the validated weights if they are good enough, and saves."""
        if trainer.sanity_checking or (trainer.state.fn != "fit" and not self._is_final):
            return
        self._keep_weights(trainer, pl_module)
        self._validated_step = trainer.global_step
        if not self._is_final and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, unless a validation at the epoch's end did already, or the epoch was broken off."""
        if trainer.global_step > self._saved_step and trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer)

    def keep_final(self, trainer: pl.Trainer, pl_module: pl.LightningModule, datamodule: pl.LightningDataModule) -> None:
        """Validates and ranks the last weights too, where training ended (by time or steps) between two validations."""
        if self._validated_step == trainer.global_step:
            return
        self._is_final = True
        pl_module.load_state_dict(evaluation_weights(trainer, pl_module), strict=False)
        trainer.validate(pl_module, datamodule=datamodule, verbose=False)
        self._is_final = False

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Says what features the run has."""
        if (features := getattr(pl_module, "features", None)) is not None:
            checkpoint["features_settings"] = features.settings()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with other features.

        Raises:
            ValueError: it names the fields that differ.
        """
        if "features_settings" in checkpoint:
            features: Any = pl_module.features
            differing = differing_settings(features.settings(), checkpoint["features_settings"])
            if differing:
                raise ValueError(f"features differ from those of the run to resume: {differing}; give those, or a new run_dir")

    def averaged_weights(self) -> dict[str, Tensor]:
        """Mean of the kept weights.

        Raises:
            ValueError: no validation has run yet.
        """
        if not self.kept:
            raise ValueError("no weights were kept, since no validation ran; lower trainer.val_check_interval")
        return average_states((name, load_file(self.directory / name)) for _, _, name in self.kept)

    def cpu_seconds(self) -> float:
        """Processor time of the run, all threads together: of this process, its ended loaders, and those it was resumed from."""
        return self._earlier_cpu_seconds + sum(os.times()[:4])

    def state_dict(self) -> dict[str, Any]:
        """Which weights are kept, and what it took until here."""
        kept = [list(entry) for entry in self.kept]
        return {"kept": kept, "validated_step": self._validated_step, "cpu_seconds": self.cpu_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.kept = [(score, step, name) for score, step, name in state_dict["kept"]]
        self._validated_step = state_dict["validated_step"]
        self._earlier_cpu_seconds = state_dict.get("cpu_seconds", 0.0)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        steps = trainer.global_step - self._saved_step
        minutes = (time.monotonic() - self._saved_time) / 60
        due = (self.every_steps is not None and steps >= self.every_steps) or (
            self.every_minutes is not None and minutes >= self.every_minutes
        )
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        partial = self.last_path.with_suffix(".partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            replace_durably(partial, self.last_path)
            kept = {name for _, _, name in self.kept}
            for path in self.directory.glob("weights-*"):  # only now: the previous checkpoint named them
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    def _keep_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"callbacks.checkpointer.monitor={self.monitor!r} was not logged; choose one of: {known}")
        score = float(trainer.callback_metrics[self.monitor])
        name = f"weights-{trainer.global_step:08d}.safetensors"
        ranked = [*(entry for entry in self.kept if entry[2] != name), (score, trainer.global_step, name)]
        ranked.sort(key=lambda entry: (entry[0] if self.keep_by == "best" else 0.0, -entry[1]))
        self.kept = ranked[: self.keep]
        if trainer.is_global_zero and any(entry[2] == name for entry in self.kept):
            self.directory.mkdir(parents=True, exist_ok=True)
            partial = self.directory / f"{name}.partial"
            weights = evaluation_weights(trainer, pl_module)
            copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
            save_file(copies, partial)
            replace_durably(partial, self.directory / name)
        trainer.strategy.barrier("weights are kept")  # other ranks may go on to read them


def replace_durably(source: Path, target: Path) -> None:
    """Renames a finished file over another one after its bytes have reached the disk."""
    for path in (source, source.parent):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    source.replace(target)


__all__ = [
    "LAST",
    "Checkpointer",
    "RandomStates",
    "random_states",
    "replace_durably",
    "set_random_states",
]

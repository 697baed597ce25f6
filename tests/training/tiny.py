"""A corpus of tones and a tiny model: a training run that takes a second. Imported by path in the tests beside it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from speechkit.audio.features import LogMel
from speechkit.data.datamodule import BucketDataModule
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.speech_data import SpeechData
from speechkit.models.ctc.infer import infer
from speechkit.models.ctc.model import CtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.text.tokenizers import CharTokenizer
from speechkit.training import optim
from speechkit.training.lit_module import LitModule
from speechkit.training.resume import Checkpointer
from speechkit.types import AsrBatch

TONES = {"a": 300.0, "b": 600.0, "c": 1200.0, "d": 2400.0}


def write_tones(directory: Path, *, num: int, seed: int, letters_from: int = 1, letters_to: int = 5) -> Path:
    """A manifest of `num` utterances: each letter of the text is a tone of 0.1 to 0.2 s."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(num):
        letters = [str(letter) for letter in rng.choice(list(TONES), size=rng.integers(letters_from, letters_to + 1))]
        lengths = rng.uniform(0.1, 0.2, size=len(letters))
        pieces = [0.3 * np.sin(2 * np.pi * TONES[x] * np.arange(int(s * 8000)) / 8000) for x, s in zip(letters, lengths)]
        wave_N = np.concatenate(pieces) + rng.normal(0, 0.01, sum(map(len, pieces)))
        soundfile.write(directory / f"{index}.wav", wave_N, 8000)
        rows.append(
            {"id": f"u{index}", "audio_filepath": f"{index}.wav", "duration": len(wave_N) / 8000, "text": "".join(letters)}
        )
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def make_datamodule(directory: Path, *, num_workers: int = 0, **options: Any) -> BucketDataModule:
    """Training and validation on tones; written at the first call."""
    for name, num, seed in (("train", 24, 0), ("valid", 6, 1)):
        if not (directory / name).exists():
            write_tones(directory / name, num=num, seed=seed)
    values: dict[str, Any] = {
        "train": directory / "train",
        "valid": directory / "valid",
        "tokenizer": CharTokenizer(symbols=list(TONES)),
        "sampler": partial(BucketBatchSampler, max_batch_seconds=3.0, seed=0),
        "sample_rate": 8000,
        "num_workers": num_workers,
    }
    return BucketDataModule(SpeechData(**{**values, **options}))


class RandomShift(nn.Module):
    """Adds a random number to each row: the least augmentation that draws from torch's generator."""

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
        return feats_BTF + 0.1 * torch.randn(len(feats_BTF), 1, 1)


def make_module(*, conv_norm: str = "layer", **options: Any) -> LitModule:
    """A model of a few thousand parameters with dropout and augmentation, so that random states matter."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer(symbols=list(TONES))
    encoder = ConformerEncoder(
        input_dim=20, dim=16, num_layers=1, num_heads=2, ff_dim=16, kernel_size=5, subsampling="dw4", dropout=0.1,
        conv_norm=conv_norm,
    )  # fmt: skip
    values: dict[str, Any] = {
        "features": LogMel(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, num_mels=20),
        "augment": RandomShift(),
        "model": CtcModel(encoder=encoder, vocab_size=tokenizer.vocab_size),
        "tokenizer": tokenizer,
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "scheduler": partial(optim.cosine, warmup_steps=4),
        "infer": infer,
    }
    return LitModule(**{**values, **options})


def make_trainer(directory: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A quiet trainer on one CPU, as conf/trainer/default.yaml sets it up."""
    values: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": False,
        "callbacks": list(callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": 1,
        "default_root_dir": directory,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**{**values, **options})


class KeepingCheckpointer(Checkpointer):
    """Keeps a copy of every checkpoint, named after the lines of the trace at that time: what a crash would leave."""

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        if trainer.is_global_zero:
            (trace,) = (callback.path for callback in trainer.callbacks if isinstance(callback, Trace))
            lines = len(trace.read_text().splitlines()) if trace.exists() else 0
            shutil.copy(self.last_path, self.directory / f"after-{lines}.ckpt")


class Trace(pl.Callback):
    """Writes a line per step (epoch, ids, loss) and per validation (metrics), flushed at once."""

    def __init__(self, *, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: AsrBatch, batch_idx: int
    ) -> None:
        """One line; then perhaps the end."""
        loss = outputs["loss"].item().hex()
        weight = sum(parameter.double().sum().item() for parameter in pl_module.parameters()).hex()
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self._write(["train", trainer.current_epoch, batch_idx, trainer.global_step, lr, loss, weight, list(batch.ids)])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line."""
        if trainer.state.fn == "fit":
            metrics = {name: float(value).hex() for name, value in trainer.callback_metrics.items() if "valid" in name}
            self._write(["valid", trainer.current_epoch, trainer.global_step, metrics])

    def _write(self, values: list[Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")

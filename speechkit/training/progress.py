"""What a training run shows: speed and padding, a bar on a terminal, one line per validation everywhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from speechkit.types import AsrBatch, TextBatch

SPEED, TOKEN_SPEED, PADDING = "train/audio_s_per_s", "train/tokens_per_s", "train/padding_percent"
SPEEDS = ((SPEED, "audio-s/s"), (TOKEN_SPEED, "tokens/s"))
RATES, PERPLEXITIES = ("wer", "cer", "eer"), ("ppl", "word_ppl")  # of validations


class SpeedMonitor(pl.Callback):
    """Logs audio seconds, or tokens of text, trained per second of wall clock (validation and saving excluded) and the
    share of padding.

    Both are taken over the steps between two logs, summed over ranks' own data; nothing waits for the device in between.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # samples or tokens, the same with padding
        self._seconds = 0.0
        self._last_end: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts when the first batch is asked for."""
        self._last_end = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time spent on validation does not count."""
        self._last_end = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: AsrBatch | TextBatch, batch_idx: int
    ) -> None:
        """Adds the batch; logs every `log_every_n_steps` batches."""
        if isinstance(batch, TextBatch):
            lens_B, padded, name = batch.token_lens_B, batch.tokens_BU, TOKEN_SPEED
        else:
            lens_B, padded, name = batch.wave_lens_B, batch.wave_BN, SPEED
        valid = lens_B.sum().double()
        sums = torch.stack([valid, torch.full_like(valid, padded.numel())])
        self._sums = sums if self._sums is None else self._sums + sums
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it outside __init__
        if (batch_idx + 1) % every == 0 or trainer.is_last_batch:
            num_valid, num_padded = self._sums.tolist()
            self._sums = None
            now = time.perf_counter()
            self._seconds += now - self._last_end if self._last_end is not None else 0.0
            if self._seconds > 0:
                amount = num_valid if name == TOKEN_SPEED else num_valid / pl_module.sample_rate
                pl_module.log(name, amount / self._seconds * trainer.world_size, batch_size=1)
            pl_module.log(PADDING, 100 * (1 - num_valid / max(num_padded, 1)), batch_size=1)
            self._seconds, self._last_end = 0.0, now
        elif self._last_end is None:
            self._last_end = time.perf_counter()


class SpeechProgressBar(TQDMProgressBar):
    """A bar with loss, speed and padding on a terminal; one line after each validation on a terminal or not.

    Args:
        stream_is_terminal: None looks at standard error.
    """

    def __init__(self, *, stream_is_terminal: bool | None = None) -> None:
        super().__init__(leave=False)
        self._is_terminal = sys.stderr.isatty() if stream_is_terminal is None else stream_is_terminal
        self._started = time.perf_counter()

    @property
    def is_disabled(self) -> bool:
        """No bar where nobody watches."""
        return not self._is_terminal or super().is_disabled

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands at the right of the bar."""
        metrics = trainer.callback_metrics
        shown = [("loss", "train/loss", ".3f"), *((unit, name, ".0f") for name, unit in SPEEDS), ("padding %", PADDING, ".1f")]
        return {label: format(float(metrics[key]), form) for label, key, form in shown if key in metrics}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the size of the model and the padding report before the first step."""
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()
        if trainer.is_global_zero:
            size = sum(parameter.numel() for parameter in pl_module.parameters())
            print(f"model: {size:,} parameters; {trainer.datamodule.summary()}", flush=True)  # type: ignore[attr-defined]
            print(trainer.datamodule.padding_report(), flush=True)  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line of this validation."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and trainer.is_global_zero and not trainer.sanity_checking:
            write = print if self.is_disabled else self.print  # a live bar has to move out of the way
            write(metrics_line(trainer, time.perf_counter() - self._started))
            sys.stdout.flush()


def metrics_line(trainer: pl.Trainer, elapsed: float) -> str:
    """One line: where training is and how well, e.g. `epoch 3 step 240 | loss 1.20 | valid loss 0.91 wer 12.3% ...`."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    columns = [f"epoch {trainer.current_epoch + 1} step {trainer.global_step}"]
    columns += [f"loss {metrics['train/loss']:.3f}"] if "train/loss" in metrics else []
    if "valid/loss" in metrics:
        found = [f"valid loss {metrics['valid/loss']:.3f}"]
        found += [f"{name} {metrics[f'valid/{name}']:.1%}" for name in RATES if f"valid/{name}" in metrics]
        found += [f"{name} {metrics[f'valid/{name}']:.2f}" for name in PERPLEXITIES if f"valid/{name}" in metrics]
        columns.append(" ".join(found))
    columns += [f"{metrics[name]:.0f} {unit}" for name, unit in SPEEDS if name in metrics]
    columns += [f"padding {metrics[PADDING]:.1f}%"] if PADDING in metrics else []
    columns += [f"lr {metrics['train/lr']:.2e}"] if "train/lr" in metrics else []
    minutes, seconds = divmod(int(elapsed), 60)
    return " | ".join([*columns, f"{minutes:02d}:{seconds:02d}"])

"""Exponential moving average of the weights, used for validation and export."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

EXPORTED = ("features.", "model.")  # what of a LitModule's state goes into a pretrained folder


class Ema(pl.Callback):
    """Keeps an average of all floating-point weights and buffers; validation sees the average.

    After n optimizer steps the average follows with `min(decay, (1 + n) / (10 + n))`, so that it does not remember the
    initial weights.

    Args:
        decay: share of the old average that stays at each step, in [0, 1).

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, *, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must be in [0, 1)")
        self.decay = decay
        self.num_updates = 0
        self._last_step = 0
        self._average: dict[str, Tensor] = {}
        self._backup: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts from the initial weights, or moves a restored average to the device."""
        current = _floating(pl_module)
        if not self._average:
            self._average = {name: tensor.clone() for name, tensor in current.items()}
        self._average = {name: self._average[name].to(tensor.device) for name, tensor in current.items()}
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Follows the weights once per optimizer step."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self.num_updates += 1
        rate = 1.0 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = _floating(pl_module)
        torch._foreach_lerp_(list(self._average.values()), [current[name] for name in self._average], rate)

    def weights(self) -> dict[str, Tensor]:
        """The average, by the names of the LitModule's state."""
        return self._average

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the average in place of the weights; not outside of training, nor before it."""
        if trainer.state.fn == "fit" and self._average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the weights back, bit for bit."""
        if self._backup:
            _copy_into(pl_module, self._backup)
            self._backup = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Puts the weights back when validation breaks off."""
        self.on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average and how many steps it followed."""
        return {"average": self._average, "num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._average, self.num_updates = state_dict["average"], state_dict["num_updates"]

    def _swap(self, pl_module: pl.LightningModule) -> None:
        self._backup = {name: tensor.clone() for name, tensor in _floating(pl_module).items()}
        _copy_into(pl_module, self._average)


def evaluation_weights(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """Weights to keep and export: the state of features and model, averaged where an `Ema` callback runs."""
    state = {name: tensor for name, tensor in pl_module.state_dict().items() if name.startswith(EXPORTED)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Ema):
            state.update({name: tensor for name, tensor in callback.weights().items() if name in state})
    return state


def _floating(pl_module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in pl_module.state_dict().items() if tensor.is_floating_point()}


@torch.no_grad()
def _copy_into(pl_module: pl.LightningModule, weights: dict[str, Tensor]) -> None:
    state = pl_module.state_dict()
    for name, tensor in weights.items():
        state[name].copy_(tensor)

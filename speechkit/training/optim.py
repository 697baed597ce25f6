"""Parameter groups and learning-rate schedules.

Every schedule is a function `schedule(optimizer, total_steps, *, ...) -> LambdaLR` that sets the learning rate of each
optimizer step as a factor of the optimizer's `lr`; configs give it as a partial and `LitModule` calls it. All warm up
linearly. Warm-up is counted in optimizer steps, or as a fraction of the whole training when it lies below 1.

Sources: Noam, Vaswani et al. 2017 (section 5.3); inverse square root, Ott et al. 2018 (fairseq); cosine, Loshchilov and
Hutter 2017 (without restarts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

NO_DECAY_NAMES = ("bias", "pos_bias", "scale")


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Splits the trainable parameters in two: matrices, which decay, and norms, biases and scales, which do not.

    Args:
        module: holds the parameters.

    Returns:
        Two groups for a `torch.optim` constructor; the first takes the optimizer's own `weight_decay`.

    Raises:
        ValueError: nothing is trainable.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.rpartition(".")[2].endswith(NO_DECAY_NAMES)
            (no_decay if plain else decay).append(parameter)
    if not decay and not no_decay:
        raise ValueError(f"{type(module).__name__} has no trainable parameter; unfreeze some, or do not train it")
    return [group for group in ({"params": decay}, {"params": no_decay, "weight_decay": 0.0}) if group["params"]]


def count_steps(trainer: Any) -> int:
    """Steps of the whole training, judged by the first epoch; the same after a resume.

    Lightning's own estimate would read the epoch that a resumed run is in, and set up its loader too early.

    Args:
        trainer: of Lightning, with our datamodule.

    Raises:
        ValueError: training has no end.
    """
    batches, limit = trainer.datamodule.batches_per_epoch, trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        ends.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    if not ends:
        raise ValueError("the learning-rate schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    return min(ends)


def noam(optimizer: Optimizer, total_steps: int, *, model_dim: int, warmup_steps: float) -> LambdaLR:
    """`lr * model_dim**-0.5 * min(step**-0.5, step * warmup**-1.5)`; `lr` is the usual "Noam factor" (e.g. 2.0).

    Args:
        optimizer: its `lr` is scaled.
        total_steps: optimizer steps of the whole training.
        model_dim: D of the encoder.
        warmup_steps: steps of linear warm-up, or a fraction of all steps when below 1.
    """
    warmup = _warmup(warmup_steps, total_steps)
    return _schedule(optimizer, lambda step: model_dim**-0.5 * min(step**-0.5, step * warmup**-1.5))


def inverse_sqrt(optimizer: Optimizer, total_steps: int, *, warmup_steps: float) -> LambdaLR:
    """Linear warm-up to `lr`, then `lr * (warmup / step) ** 0.5`. Arguments as for `noam`."""
    warmup = _warmup(warmup_steps, total_steps)
    return _schedule(optimizer, lambda step: min(step / warmup, (warmup / step) ** 0.5))


def cosine(optimizer: Optimizer, total_steps: int, *, warmup_steps: float, final_factor: float = 0.0) -> LambdaLR:
    """Linear warm-up to `lr`, then half a cosine down to `lr * final_factor` at the last step."""
    warmup = _warmup(warmup_steps, total_steps)

    def factor(step: int) -> float:
        done = _progress(step, warmup, total_steps)
        return min(step / warmup, final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * done)))

    return _schedule(optimizer, factor)


def exponential(optimizer: Optimizer, total_steps: int, *, warmup_steps: float, final_factor: float = 0.01) -> LambdaLR:
    """Linear warm-up to `lr`, then a constant ratio per step down to `lr * final_factor` at the last step."""
    warmup = _warmup(warmup_steps, total_steps)
    return _schedule(optimizer, lambda step: min(step / warmup, final_factor ** _progress(step, warmup, total_steps)))


def linear(optimizer: Optimizer, total_steps: int, *, warmup_steps: float, final_factor: float = 0.0) -> LambdaLR:
    """Linear warm-up to `lr`, then a straight line down to `lr * final_factor` at the last step."""
    warmup = _warmup(warmup_steps, total_steps)
    slope = 1.0 - final_factor
    return _schedule(optimizer, lambda step: min(step / warmup, 1.0 - slope * _progress(step, warmup, total_steps)))


def constant(optimizer: Optimizer, total_steps: int, *, warmup_steps: float = 0) -> LambdaLR:
    """Linear warm-up to `lr`, which stays."""
    warmup = _warmup(warmup_steps, total_steps)
    return _schedule(optimizer, lambda step: min(step / warmup, 1.0))


def _warmup(warmup_steps: float, total_steps: int) -> int:
    """Steps of warm-up, at least one."""
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} must not be negative; give steps, or a fraction below 1")
    return max(1, round(warmup_steps * total_steps if warmup_steps < 1 else warmup_steps))


def _progress(step: int, warmup: int, total_steps: int) -> float:
    """How much of the decay after the warm-up is done, in [0, 1]."""
    return min(1.0, max(0, step - warmup) / max(1, total_steps - warmup))


def _schedule(optimizer: Optimizer, factor: Callable[[int], float]) -> LambdaLR:
    """Torch counts finished steps from 0; the formulas count the step to come, from 1."""
    return LambdaLR(optimizer, lambda finished: factor(finished + 1))

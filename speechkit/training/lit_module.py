"""The whole training path: one LightningModule for every family that one optimizer trains.

    batch (waveforms) -> features -> augmentation (num_views copies) -> model.loss -> backward -> clip -> step
    batch (waveforms) -> features -> model.loss, infer -> summed losses and error counts, divided once per validation
    batch (speech and phones) -> mels -> model.loss -> ... -> summed losses and their parts
    batch (speech and speakers) -> features -> model.loss -> ... -> summed losses, equal error rate of all pairs
    batch (text)      -> model.loss -> ...             -> summed losses, perplexities

What to train is handed in ready-made; a family differs in its `model` and `infer` alone. Data come from a datamodule,
checkpoints, averages, progress and logs from callbacks beside this file.

Shape legend: B batch, N samples, T frames, F mel bins, U tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speechkit.text.tokenizers import Tokenizer
from speechkit.training.evaluation import ErrorRates, Evaluation, LossParts, Perplexities
from speechkit.training.guards import TrainingError, explain_oom, is_lost_somewhere, nonfinite_message
from speechkit.training.optim import count_steps, parameter_groups
from speechkit.training.statistics import fit_statistics
from speechkit.types import AsrBatch, Hypothesis, TextBatch, TtsBatch


class LitModule(pl.LightningModule):
    """Features, augmentation, model and how to optimise them.

    Args:
        model: has `loss(feats_BTF, feat_lens_B, batch) -> LossOutput` and `num_views`; a model of text, trained without
            features, has `loss(batch)`.
        tokenizer: the one that made the targets; recognisers and models of text need it.
        optimizer: parameter groups to optimizer, e.g. a partial of `torch.optim.AdamW`.
        scheduler: (optimizer, total steps) to schedule, e.g. a partial of `speechkit.training.optim.noam`.
        features: waveforms to features; has `sample_rate` (Hz) and `frame_shift` (seconds). None for models of text.
        augment: features to augmented features, in training only; draws anew for every row. Only with features, as the next.
        infer: a recogniser's `infer`, with its options bound; None for models of speech that make no transcripts.
        evaluation: what validations measure beside the loss; None for error rates where there is `infer`, perplexities of
            models of text, and the parts of the loss of all others.
        on_nonfinite: what a NaN or infinite gradient does: "stop" training, or "skip" the step; both name the
            utterances.

    Raises:
        ValueError: `on_nonfinite` is unknown, or parts are missing that others need.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer, int], Any],
        tokenizer: Tokenizer | None = None,
        features: nn.Module | None = None,
        augment: nn.Module | None = None,
        infer: Callable[..., list[Hypothesis]] | None = None,
        evaluation: Evaluation | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite={on_nonfinite!r} is unknown; choose stop or skip")
        if features is None and (augment is not None or infer is not None):
            raise ValueError("augment and infer need features: give all three for a recogniser, none for text")
        if tokenizer is None and (infer is not None or features is None):
            raise ValueError("tokenizer=None: recognisers and models of text need the one that made their targets")
        self.features: Any
        self.augment: Any
        self.features, self.augment = features, augment
        self.model: Any = model
        self.tokenizer, self.infer = tokenizer, infer
        self.optimizer, self.scheduler = optimizer, scheduler
        self.on_nonfinite = on_nonfinite
        self.num_skipped_steps = 0
        self._since_step: list[tuple[Tensor, tuple[str, ...]]] = []  # loss and ids of each accumulated batch
        self._evaluation: Evaluation = LossParts() if evaluation is None else evaluation
        if infer is not None and tokenizer is not None:
            shift = float(self.features.frame_shift)
            self._evaluation = ErrorRates(infer=infer, tokenizer=tokenizer, frame_shift=shift)
        elif features is None and tokenizer is not None:
            self._evaluation = Perplexities(tokenizer=tokenizer)
        self._valid_loss = (0.0, 0.0)  # summed loss, summed targets

    def on_fit_start(self) -> None:
        """Measures the corpus for normalisation by global statistics, unless a checkpoint brought them.

        Every rank reads the same utterances, evenly over the training data, as they are augmented in the first epoch.
        """
        if self.features is not None:
            dataset = self.trainer.datamodule.train_dataset  # type: ignore[attr-defined]
            fit_statistics(self.model, self.features, dataset, self.device)

    def training_step(self, batch: AsrBatch | TtsBatch | TextBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        self._batch = batch
        if is_lost_somewhere(batch, self.trainer):
            return sum(parameter.sum() for parameter in self.model.parameters()) * 0.0
        with explain_oom(batch, self.sample_rate):
            output = self.model.loss(*self._inputs(batch), batch)
        self._since_step.append((output.loss.detach(), batch.ids))
        logged = {"train/loss": output.loss.detach()} | {f"train/{name}": part for name, part in output.parts.items()}
        self.log_dict({name: value.float() for name, value in logged.items()}, batch_size=len(batch.ids))
        return output.loss

    def _inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """What the model's loss takes beside the batch: features and their lengths, nothing for text."""
        if self.features is None:
            return ()
        return self.compute_features(batch, views=self.model.num_views if self.training else 1)

    def compute_features(self, batch: AsrBatch | TtsBatch, *, views: int = 1) -> tuple[Tensor, Tensor]:
        """Features of a batch in fp32; in training, `views` copies of them, one after the other, augmented each for itself.

        Returns:
            feats_BTF, shape (views * B, T, F), and feat_lens_B, shape (views * B,).
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            feats_BTF, feat_lens_B = self.features(batch.wave_BN, batch.wave_lens_B)
            feats_BTF, feat_lens_B = feats_BTF.repeat(views, 1, 1), feat_lens_B.repeat(views)
            augment = self.training and self.augment is not None
            return (self.augment(feats_BTF, feat_lens_B) if augment else feats_BTF), feat_lens_B

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Back-propagates; memory runs out here as often as in the step."""
        with explain_oom(self._batch, self.sample_rate):
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the global norm, logs it, and stops or skips a step that is not finite."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        steps, self._since_step = self._since_step, []
        self.log("train/grad_norm", norm, batch_size=1)
        self.log("train/lr", optimizer.param_groups[0]["lr"], batch_size=1)
        if torch.isfinite(norm):
            return
        losses, ids = zip(*steps)
        if self.trainer.precision == "16-mixed" and all(torch.isfinite(loss) for loss in losses):
            return  # fp16 overflow is part of loss scaling: the scaler skips the step and lowers its scale
        message = nonfinite_message(losses, ids)
        if self.on_nonfinite == "stop":
            raise TrainingError(f"{message}. Look at these, lower optim.lr, or pass on_nonfinite=skip to go on without them")
        optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone by the step that follows
        self.num_skipped_steps += 1
        print(f"step {self.trainer.global_step} skipped: {message}")

    def validation_step(self, batch: AsrBatch | TtsBatch | TextBatch, batch_idx: int) -> Any:
        """Adds a batch to the validation sums; returns its hypotheses, if there are any, for callbacks to show."""
        with explain_oom(batch, self.sample_rate):
            inputs = self._inputs(batch)
            output = self.model.loss(*inputs, batch)
            hypotheses = self._evaluation.update(self.model, inputs, batch, output)
        loss, targets = self._valid_loss
        num_targets = float(output.num_targets)
        self._valid_loss = (loss + float(output.loss) * num_targets, targets + num_targets)
        return hypotheses

    def on_validation_epoch_end(self) -> None:
        """Sums over ranks, divides once, logs."""
        sums = torch.tensor([*self._valid_loss, *self._evaluation.take_sums()], dtype=torch.float64, device=self.device)
        loss, targets, *others = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        metrics = {"valid/loss": loss / max(targets, 1.0), **self._evaluation.metrics(others)}
        self.log_dict(metrics, batch_size=1, sync_dist=True)  # equal on all ranks; Lightning wants to hear it
        self._valid_loss = (0.0, 0.0)

    def configure_optimizers(self) -> Any:
        """The optimizer over two parameter groups and its per-step schedule."""
        optimizer = self.optimizer(parameter_groups(self.model))
        scheduler = self.scheduler(optimizer, count_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def sample_rate(self) -> int | None:
        """Sample rate of the features, in Hz; None for models of text."""
        return None if self.features is None else int(self.features.sample_rate)

"""Adversarial training: a generator and a discriminator, two optimizers, one step of each per batch.

    batch -> mels -> model.adversarial_pair -> recordings, waveforms made in their place, reconstruction loss
      from step `warmup_steps` on: discriminator(recordings), discriminator(made, detached) -> its loss -> its step
      discriminator(made) -> adversarial loss, feature matching; + reconstruction -> the generator's step

Sources: HiFi-GAN, Kong et al. 2020, section 2.4; Vocos, Siuzdak 2023, section 3.

Optimisation is manual (Lightning's word), and a step of training is a step of the generator: `trainer.global_step`, `max_steps`,
checkpoints and logs count those alone. Lightning cannot clip by itself here, nor accumulate: trainer.gradient_clip_val must
be null and trainer.accumulate_grad_batches 1. On several devices it wants trainer.strategy=ddp_find_unused_parameters_true.

Shape legend: B batch, N samples, T frames, F mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speechkit.losses.adversarial import (
    AdversarialLoss,
    AdversarialPair,
    Judgement,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from speechkit.training.evaluation import LossParts
from speechkit.training.guards import TrainingError, explain_oom, is_lost_somewhere, nonfinite_message
from speechkit.training.optim import count_steps, parameter_groups
from speechkit.training.statistics import fit_statistics
from speechkit.types import TtsBatch

GENERATOR, DISCRIMINATOR = 0, 1  # places of their optimizers and schedules


class GanModule(pl.LightningModule):
    """Features, generator, discriminator and how to optimise them.

    A model is trained by it that has `adversarial_pair(mel_BTF, mel_lens_B, batch) -> AdversarialPair`: recordings (or
    stretches of them, drawn by torch's global generator) and what it makes of them, with gradients, on the same samples and
    zero past the same lengths; and its own losses, weighted among each other, whose parts hold "mel". In eval mode it does so for
    whole utterances. `speechkit.models.vocoder.model.Vocoder` is one. Before `warmup_steps` it is trained by its own losses
    alone, and the discriminator not at all.

    Validations report the means of all parts, and the mel's again as valid/loss.

    Args:
        model: the generator, see above; a pretrained folder keeps it alone.
        discriminator: (wave_BN, wave_lens_B) to judgements, e.g. `speechkit.models.vocoder.discriminators.Discriminators`.
        features: waveforms to mels; has `sample_rate` (Hz).
        optimizer: parameter groups to optimizer, for each of the two; betas (0.8, 0.99) in HiFi-GAN, (0.8, 0.9) in Vocos.
        scheduler: (optimizer, total steps) to schedule, for each of the two: the discriminator's begins when it does.
        adversarial: "hinge" (Vocos) or "least_squares" (HiFi-GAN).
        reconstruction_weight: of the model's own loss; 45 in both papers, for a mel of weight 1.
        adversarial_weight: of the adversarial loss.
        feature_weight: of feature matching; 2 in HiFi-GAN, 1 in Vocos.
        warmup_steps: steps before the adversarial terms start.
        gradient_clip: largest norm of the gradients of each of the two; None for none.
        on_nonfinite: what a NaN or infinite gradient does: "stop" training, or "skip" the step of that one of the two; both
            name the utterances.

    Raises:
        ValueError: a name is unknown, or a value out of range.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        discriminator: nn.Module,
        features: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer, int], Any],
        adversarial: AdversarialLoss = "hinge",
        reconstruction_weight: float = 45.0,
        adversarial_weight: float = 1.0,
        feature_weight: float = 1.0,
        warmup_steps: int = 0,
        gradient_clip: float | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite={on_nonfinite!r} is unknown; choose stop or skip")
        if adversarial not in ("hinge", "least_squares"):
            raise ValueError(f"adversarial={adversarial!r} is unknown; choose hinge or least_squares")
        weights = {"reconstruction_weight": reconstruction_weight, "adversarial_weight": adversarial_weight}
        for name, value in {**weights, "feature_weight": feature_weight, "warmup_steps": warmup_steps}.items():
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative")
        if gradient_clip is not None and gradient_clip <= 0.0:
            raise ValueError(f"gradient_clip={gradient_clip} must be above 0; null clips nothing")
        self.automatic_optimization = False
        self.model: Any = model
        self.features: Any = features
        self.discriminator = discriminator
        self.optimizer, self.scheduler = optimizer, scheduler
        self.adversarial: AdversarialLoss = adversarial
        self.reconstruction_weight, self.adversarial_weight = reconstruction_weight, adversarial_weight
        self.feature_weight, self.warmup_steps = feature_weight, warmup_steps
        self.gradient_clip, self.on_nonfinite = gradient_clip, on_nonfinite
        self.num_skipped_steps = 0
        self._evaluation = LossParts()

    def on_fit_start(self) -> None:
        """Measures the corpus where the model wants its statistics, unless a checkpoint brought them.

        Raises:
            ValueError: the precision needs a loss scaler, which two optimizers would share.
        """
        if self.trainer.precision == "16-mixed":
            raise ValueError("trainer.precision=16-mixed: adversarial training is in 32-true or bf16-mixed")
        dataset = self.trainer.datamodule.train_dataset  # type: ignore[attr-defined]
        fit_statistics(self.model, self.features, dataset, self.device)

    def training_step(self, batch: TtsBatch, batch_idx: int) -> Tensor:
        """Steps of discriminator and generator; returns the generator's loss."""
        is_adversarial = self.trainer.global_step >= self.warmup_steps
        finite = []
        with explain_oom(batch, self.sample_rate):
            pair = None
            if not is_lost_somewhere(batch, self.trainer):
                pair = self.model.adversarial_pair(*self.compute_features(batch), batch)
                self._log({"reconstruction": pair.reconstruction.loss, **pair.reconstruction.parts}, batch)
            if is_adversarial:
                loss = _nothing(self.discriminator) if pair is None else self._discriminate(pair)
                self._log({"discriminator": loss}, batch)
                finite.append(self._descend(DISCRIMINATOR, self.discriminator, loss, batch))
            with frozen(self.discriminator):
                loss = _nothing(self.model) if pair is None else self._generate(pair, batch, is_adversarial=is_adversarial)
                self._log({"loss": loss}, batch)
                finite.append(self._descend(GENERATOR, self.model, loss, batch))
        self.num_skipped_steps += not all(finite)
        return loss.detach()

    def compute_features(self, batch: TtsBatch) -> tuple[Tensor, Tensor]:
        """Mels of a batch in fp32, shape (B, T, F), and their lengths, shape (B,)."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.features(batch.wave_BN, batch.wave_lens_B)

    def _discriminate(self, pair: AdversarialPair) -> Tensor:
        """Loss of the discriminator."""
        real = self.discriminator(pair.real_BN, pair.wave_lens_B)
        fake = self.discriminator(pair.fake_BN.detach(), pair.wave_lens_B)
        return discriminator_loss(real, fake, kind=self.adversarial)

    def _generate(self, pair: AdversarialPair, batch: TtsBatch, *, is_adversarial: bool) -> Tensor:
        """Loss of the generator."""
        loss = self.reconstruction_weight * pair.reconstruction.loss
        if not is_adversarial:
            return loss
        with torch.no_grad():
            real: Sequence[Judgement] = self.discriminator(pair.real_BN, pair.wave_lens_B)
        fake: Sequence[Judgement] = self.discriminator(pair.fake_BN, pair.wave_lens_B)
        adversarial, matching = generator_loss(fake, kind=self.adversarial), feature_matching_loss(real, fake)
        self._log({"adversarial": adversarial, "feature_matching": matching}, batch)
        return loss + self.adversarial_weight * adversarial + self.feature_weight * matching

    def _descend(self, place: int, module: nn.Module, loss: Tensor, batch: TtsBatch) -> bool:
        """Gradients, their norm, a step of optimizer and schedule; whether the gradients were finite.

        A step of Lightning's optimizer counts as one of training, and one of the strategy does not.
        """
        optimizer: Any = self.optimizers()[place]  # type: ignore[index]
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        norm = nn.utils.clip_grad_norm_(module.parameters(), self.gradient_clip or math.inf)
        suffix = "" if place == GENERATOR else "_discriminator"
        self._log({f"grad_norm{suffix}": norm, f"lr{suffix}": optimizer.param_groups[0]["lr"]}, batch)
        is_finite = bool(torch.isfinite(norm))
        if not is_finite:
            self._report([loss.detach()], [batch.ids], whose="generator" if place == GENERATOR else "discriminator")
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone by the step that follows
        if place == GENERATOR:
            optimizer.step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        self.lr_schedulers()[place].step()  # type: ignore[index, union-attr]
        return is_finite

    def _report(self, losses: list[Tensor], ids: list[tuple[str, ...]], *, whose: str) -> None:
        """Stops or says what is skipped."""
        message = f"{whose}: {nonfinite_message(losses, ids)}"
        if self.on_nonfinite == "stop":
            raise TrainingError(f"{message}. Look at these, lower optim.lr, or pass on_nonfinite=skip to go on without them")
        print(f"step {self.trainer.global_step} skipped: {message}")

    def _log(self, values: dict[str, Any], batch: TtsBatch) -> None:
        """Logs numbers of training."""
        logged = {f"train/{name}": torch.as_tensor(value).detach().float() for name, value in values.items()}
        self.log_dict(logged, batch_size=max(1, len(batch.ids)))

    def validation_step(self, batch: TtsBatch, batch_idx: int) -> None:
        """Adds a batch to the validation sums."""
        with explain_oom(batch, self.sample_rate):
            inputs = self.compute_features(batch)
            output = self.model.adversarial_pair(*inputs, batch).reconstruction
            if "mel" not in output.parts:
                raise ValueError(f"reconstruction.parts={sorted(output.parts)}: the model must report mel, the L1 of log-mels")
            self._evaluation.update(self.model, inputs, batch, output)

    def on_validation_epoch_end(self) -> None:
        """Sums over ranks, divides once, logs."""
        sums = torch.tensor(self._evaluation.take_sums(), dtype=torch.float64, device=self.device)
        metrics = self._evaluation.metrics(self.trainer.strategy.reduce(sums, reduce_op="sum").tolist())
        self.log_dict({"valid/loss": metrics["valid/mel"], **metrics}, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Both optimizers over two parameter groups each, and their per-step schedules."""
        total = count_steps(self.trainer)
        optimizers = [self.optimizer(parameter_groups(module)) for module in (self.model, self.discriminator)]
        steps = [total, max(1, total - self.warmup_steps)]
        schedulers = [self.scheduler(optimizer, count) for optimizer, count in zip(optimizers, steps)]
        return optimizers, [{"scheduler": scheduler, "interval": "step"} for scheduler in schedulers]

    @property
    def sample_rate(self) -> int:
        """Sample rate of the features, in Hz."""
        return int(self.features.sample_rate)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters get no gradients: those of the discriminator in the generator's step would cost time and serve nothing."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _nothing(module: nn.Module) -> Tensor:
    """A loss of 0 that reaches all parameters."""
    return sum((parameter.sum() for parameter in module.parameters()), start=torch.zeros(())) * 0.0

"""Adversarial training: exact resume of both networks, steps that count once, steps against a plain loop, guards."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.adversarial import AdversarialPair, discriminator_loss, feature_matching_loss, generator_loss
from speechkit.models.vocoder.discriminators import (
    Discriminators,
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    MultiScaleDiscriminator,
)
from speechkit.models.vocoder.model import Vocoder
from speechkit.models.vocoder.vocos import VocosGenerator
from speechkit.training import optim
from speechkit.training.ema import Ema
from speechkit.training.gan_module import GanModule
from speechkit.training.guards import TrainingError
from speechkit.training.progress import PADDING, SPEED, SpeedMonitor
from speechkit.training.resume import LAST, RandomStates


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _load("tiny")


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory that the datamodule writes its tones to."""
    return tmp_path_factory.mktemp("tones")


def make_module(*, num_scales: int = 0, **options: Any) -> GanModule:
    """Networks of some thousand parameters; the spectral norm of scales has a state of its own."""
    torch.manual_seed(0)
    mel = MelSpectrogram(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, num_mels=20, f_max=4000.0)
    generator = partial(VocosGenerator, dim=16, intermediate_dim=24, num_layers=2)
    parts = [
        MultiPeriodDiscriminator(periods=(2, 3), dim=1),
        MultiScaleDiscriminator(num_scales=num_scales, dim=16),
        MultiResolutionDiscriminator(resolutions=((128, 32, 128),), dim=4),
    ]
    values: dict[str, Any] = {
        "model": Vocoder(mel=mel, generator=generator, segment_frames=6, stft_weight=0.0),
        "discriminator": Discriminators(parts=parts),
        "features": mel,
        "optimizer": partial(torch.optim.AdamW, lr=2e-3, betas=(0.8, 0.9)),
        "scheduler": partial(optim.cosine, warmup_steps=4),
        "gradient_clip": 100.0,
    }
    return GanModule(**{**values, **options})


def make_trainer(root: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return tiny.make_trainer(root, *callbacks, **{"gradient_clip_val": None, **options})


def fit(
    root: Path, tones: Path, name: str, *, start: Path | None = None, module: dict[str, Any] | None = None, **options: Any
) -> list[str]:
    """Trains afresh or from a checkpoint; returns the trace."""
    trace = root / f"{name}.jsonl"
    keeper = tiny.KeepingCheckpointer(directory=root / name, monitor="valid/loss", every_minutes=None, every_steps=1, keep=2)
    callbacks = [*options.pop("more", ()), tiny.Trace(path=trace), RandomStates(seed=1), Ema(decay=0.9), keeper]
    trainer = make_trainer(root, *callbacks, **options)
    datamodule = tiny.make_datamodule(tones)
    trainer.fit(make_module(**(module or {})), datamodule=datamodule, ckpt_path=start, weights_only=True)
    return trace.read_text().splitlines() if trace.exists() else []


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Equal to the bit, all the way down."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected)):
            assert_same(one, other, f"{where}/{place}")
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


CASES: dict[str, dict[str, Any]] = {
    "plain": {"module": {"num_scales": 1}},
    "adversarial terms start later": {"module": {"warmup_steps": 4}},
    "validation in mid-epoch": {"val_check_interval": 2, "module": {"adversarial": "least_squares"}},
    "steps instead of epochs": {"max_steps": 8, "max_epochs": -1},
}


@pytest.mark.parametrize("case", CASES)
def test_going_on_from_any_checkpoint_changes_nothing(case: str, tones: Path, tmp_path: Path) -> None:
    options = {"max_epochs": 2, **CASES[case]}
    whole = fit(tmp_path, tones, "whole", **options)
    assert sum('"train"' in line for line in whole) >= 6
    expected = torch.load(tmp_path / "whole" / LAST, weights_only=True)
    assert len(expected["optimizer_states"]) == len(expected["lr_schedulers"]) == 2
    assert all(state["state"] for state in expected["optimizer_states"])
    saved = sorted(int(path.stem.removeprefix("after-")) for path in (tmp_path / "whole").glob("after-*.ckpt"))
    for lines in (saved[1], saved[len(saved) // 2]):
        rest = fit(tmp_path, tones, f"from{lines}", start=tmp_path / "whole" / f"after-{lines}.ckpt", **options)
        assert rest == whole[lines:], f"going on after line {lines} of {len(whole)}"
        found = torch.load(tmp_path / f"from{lines}" / LAST, weights_only=True)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert_same(found[part], expected[part], part)


class Stop(pl.Callback):
    """Stops training after some steps, as a time limit does."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= 2


def test_a_run_that_was_stopped_in_mid_epoch_goes_on_there(tones: Path, tmp_path: Path) -> None:
    options = {"max_epochs": 2, "check_val_every_n_epoch": 2}
    whole = fit(tmp_path, tones, "whole", **options)
    assert fit(tmp_path, tones, "stopped", more=[Stop()], **options) == whole[:2]
    assert fit(tmp_path, tones, "rest", start=tmp_path / "stopped" / LAST, **options) == whole[2:]
    expected, found = (torch.load(tmp_path / name / LAST, weights_only=True) for name in ("whole", "rest"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(found[part], expected[part], part)


class Record(pl.Callback):
    """Keeps batches, and the metrics after each."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        assert trainer.global_step == len(self.batches) + 1
        self.batches.append(batch)
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_steps_are_those_of_a_plain_loop(tones: Path, tmp_path: Path) -> None:
    settings = {"reconstruction_weight": 3.0, "adversarial_weight": 0.5, "feature_weight": 2.0, "warmup_steps": 1}
    module, record = make_module(**settings), Record()
    make_trainer(tmp_path, RandomStates(seed=1), record, max_steps=4, max_epochs=-1).fit(
        module, datamodule=tiny.make_datamodule(tones)
    )
    assert len(record.batches) == 4
    plain = make_module()
    generator, discriminator = plain.model.train(), plain.discriminator.train()
    optimizers = [plain.optimizer(optim.parameter_groups(part)) for part in (generator, discriminator)]
    schedules = [plain.scheduler(optimizer, steps) for optimizer, steps in zip(optimizers, (4, 3))]
    pl.seed_everything(1, verbose=False)

    def descend(place: int, part: nn.Module, loss: Tensor) -> None:
        optimizers[place].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), 100.0)
        optimizers[place].step()
        schedules[place].step()

    for step, batch in enumerate(record.batches):
        pair: AdversarialPair = generator.adversarial_pair(*plain.features(batch.wave_BN, batch.wave_lens_B), batch)
        lens_B, loss = pair.wave_lens_B, 3.0 * pair.reconstruction.loss
        if step >= 1:
            verdicts = discriminator(pair.real_BN, lens_B), discriminator(pair.fake_BN.detach(), lens_B)
            descend(1, discriminator, discriminator_loss(*verdicts))
            real, fake = discriminator(pair.real_BN, lens_B), discriminator(pair.fake_BN, lens_B)
            loss = loss + 0.5 * generator_loss(fake) + 2.0 * feature_matching_loss(real, fake)
        descend(0, generator, loss)
        assert record.metrics[step]["train/loss"] == pytest.approx(loss.item())
    assert_same(dict(module.model.state_dict()), dict(generator.state_dict()))
    for name, tensor in discriminator.state_dict().items():
        torch.testing.assert_close(module.discriminator.state_dict()[name], tensor, msg=name)


def test_before_the_adversarial_terms_the_discriminator_rests(tones: Path, tmp_path: Path) -> None:
    module, record = make_module(warmup_steps=3), Record()
    before = {name: tensor.clone() for name, tensor in module.discriminator.state_dict().items()}

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            state = module.discriminator.state_dict()
            rests = all(torch.equal(state[name], before[name]) for name in before)
            assert rests == (trainer.global_step <= 3)
            assert all(parameter.requires_grad for parameter in module.discriminator.parameters())

    make_trainer(tmp_path, Watch(), record, SpeedMonitor(), max_steps=6, max_epochs=-1).fit(
        module, datamodule=tiny.make_datamodule(tones)
    )
    assert "train/discriminator" not in record.metrics[2]
    names = ("adversarial", "feature_matching", "discriminator", "grad_norm", "grad_norm_discriminator", "lr_discriminator")
    assert {f"train/{name}" for name in names} <= set(record.metrics[-1])
    assert record.metrics[3]["train/lr_discriminator"] == record.metrics[0]["train/lr"] > 0
    assert {SPEED, PADDING} <= set(module.trainer.callback_metrics)


def test_validation_is_the_mel_of_whole_utterances(tones: Path, tmp_path: Path) -> None:
    module, datamodule = make_module(), tiny.make_datamodule(tones)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=datamodule)
    [metrics] = trainer.validate(module, datamodule=datamodule, verbose=False)
    assert metrics["valid/loss"] == metrics["valid/mel"]
    total, frames = 0.0, 0
    module.eval()
    for batch in datamodule.val_dataloader():
        for row in range(len(batch.ids)):
            own = batch._replace(wave_BN=batch.wave_BN[row : row + 1], wave_lens_B=batch.wave_lens_B[row : row + 1])
            output = module.model.adversarial_pair(*module.compute_features(own), own).reconstruction
            total, frames = total + output.parts["mel"].item() * int(output.num_targets), frames + int(output.num_targets)
    assert metrics["valid/loss"] == pytest.approx(total / frames, rel=1e-5)


class Exploding(nn.Module):
    """A vocoder whose second batch is not finite."""

    def __init__(self, model: Vocoder) -> None:
        super().__init__()
        self.inner, self.calls = model, 0

    def adversarial_pair(self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: Any) -> AdversarialPair:
        pair = self.inner.adversarial_pair(mel_BTF, mel_lens_B, batch)
        self.calls += 1
        return pair._replace(fake_BN=pair.fake_BN * torch.nan) if self.calls == 2 else pair


def test_a_step_that_is_not_finite_stops_or_is_skipped(tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = make_module()
    module.model = Exploding(module.model)
    with pytest.raises(TrainingError, match=r"discriminator: NaN or infinite loss in a step over \d+ utterances: u"):
        make_trainer(tmp_path, max_steps=3).fit(module, datamodule=tiny.make_datamodule(tones))
    module = make_module(on_nonfinite="skip")
    module.model = Exploding(module.model)
    make_trainer(tmp_path, max_steps=3).fit(module, datamodule=tiny.make_datamodule(tones))
    printed = capsys.readouterr().out
    assert "step 1 skipped: discriminator: NaN" in printed
    assert "step 1 skipped: generator: NaN" in printed
    assert module.num_skipped_steps == 1
    assert module.trainer.global_step == 3
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_batch_of_which_nothing_could_be_read_changes_little(tones: Path, tmp_path: Path) -> None:
    module = make_module(optimizer=partial(torch.optim.Adam, lr=1e-3))
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch._replace(ids=()), batch_idx)  # type: ignore[method-assign]
    make_trainer(tmp_path, max_steps=2).fit(module, datamodule=tiny.make_datamodule(tones))
    assert module.trainer.global_step == 2
    assert_same(dict(module.model.state_dict()), before)


def test_bf16(tones: Path, tmp_path: Path) -> None:
    module = make_module()
    make_trainer(tmp_path, max_steps=2, precision="bf16-mixed").fit(module, datamodule=tiny.make_datamodule(tones))
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_wrong_settings_are_refused(tones: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"on_nonfinite": "go"}, "on_nonfinite='go'"),
        ({"adversarial": "wgan"}, "adversarial='wgan'"),
        ({"feature_weight": -1.0}, r"feature_weight=-1\.0"),
        ({"gradient_clip": 0.0}, r"gradient_clip=0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_module(**options)
    trainer = make_trainer(tmp_path, max_steps=1, accumulate_grad_batches=2)
    with pytest.raises(Exception, match="accumulate_grad_batches"):
        trainer.fit(make_module(), datamodule=tiny.make_datamodule(tones))

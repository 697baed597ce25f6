"""The training step: views, guards, metrics, precision, averages; on tones."""

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
from torch import Tensor

from speechkit.audio.cmvn import GlobalCmvn
from speechkit.audio.features import LogMel
from speechkit.metrics.wer import WerAccumulator
from speechkit.training import optim
from speechkit.training.ema import Ema
from speechkit.training.guards import TrainingError
from speechkit.training.lit_module import LitModule
from speechkit.training.progress import PADDING, SPEED, SpeechProgressBar, SpeedMonitor
from speechkit.training.resume import Checkpointer
from speechkit.types import AsrBatch, LossOutput


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


def _batch(tones: Path) -> AsrBatch:
    datamodule = tiny.make_datamodule(tones)
    datamodule.setup("fit")
    return next(iter(datamodule.val_dataloader()))


def test_views_are_stacked_view_major_and_augmented_apart(tones: Path) -> None:
    module, batch = tiny.make_module().train(), _batch(tones)
    feats_BTF, lens_B = module.compute_features(batch, views=2)
    module.eval()
    clean_BTF, clean_lens_B = module.compute_features(batch)
    rows = len(batch.ids)
    assert feats_BTF.shape == (2 * rows, *clean_BTF.shape[1:])
    assert lens_B.tolist() == clean_lens_B.tolist() * 2
    shifts_B = (feats_BTF - clean_BTF.repeat(2, 1, 1)).mean(dim=(1, 2))
    assert len({round(float(shift), 5) for shift in shifts_B}) == 2 * rows


class _Breaking(torch.nn.Module):
    """A model whose loss is NaN whenever utterance `u3` is in the batch, or that runs out of memory."""

    num_views = 1

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2))
        self.error = error

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: AsrBatch) -> LossOutput:
        if self.error is not None:
            raise self.error
        bad = float("nan") if "u3" in batch.ids else 1.0
        return LossOutput((self.weight * bad).sum(), {}, torch.tensor(1))


def _fit_breaking(tones: Path, tmp_path: Path, model: _Breaking, **options: Any) -> tuple[pl.Trainer, Any, list[str]]:
    module = tiny.make_module(model=model, scheduler=partial(optim.constant, warmup_steps=0), **options)
    trace = tiny.Trace(path=tmp_path / "trace")
    trainer = tiny.make_trainer(tmp_path, trace, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, datamodule=tiny.make_datamodule(tones))
    return trainer, module, trace.path.read_text().splitlines()


def test_nan_stops_and_names_the_batch(tones: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"NaN or infinite loss in a step over .*\bu3\b.*on_nonfinite=skip"):
        _fit_breaking(tones, tmp_path, _Breaking())


def test_nan_is_skipped_on_demand_and_leaves_no_trace(tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, module, lines = _fit_breaking(tones, tmp_path, _Breaking(), on_nonfinite="skip")
    assert module.num_skipped_steps == 1
    assert "u3" in capsys.readouterr().out
    assert torch.isfinite(module.model.weight).all()
    weights = [line.split('"')[5] for line in lines]
    [place] = [index for index, line in enumerate(lines) if '"u3"' in line]
    assert place == 0 or weights[place] == weights[place - 1], "the step moved the weights"
    assert len(set(weights)) >= len(weights) - 1, "other steps did not"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_names_the_bucket(error: BaseException, tones: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"utterances, the longest \d.*tokens.*data\.sampler\.max_batch_seconds"):
        _fit_breaking(tones, tmp_path, _Breaking(error))


def test_validation_divides_sums_once(tones: Path, tmp_path: Path) -> None:
    module, datamodule = tiny.make_module(), tiny.make_datamodule(tones, valid_batch_seconds=1.0)
    trainer = tiny.make_trainer(tmp_path)
    [metrics] = trainer.validate(module, datamodule=datamodule, verbose=False)
    wer, loss, targets = WerAccumulator(), 0.0, 0
    module.eval()
    loader = datamodule.val_dataloader()
    assert len(loader) > 1
    with torch.no_grad():
        for batch in loader:
            feats_BTF, lens_B = module.compute_features(batch)
            output = module.model.loss(feats_BTF, lens_B, batch)
            loss, targets = loss + float(output.loss) * int(output.num_targets), targets + int(output.num_targets)
            hypotheses = module.infer(module.model, feats_BTF, lens_B, tokenizer=module.tokenizer)
            wer.update(batch.texts, [hypothesis.text for hypothesis in hypotheses])
    assert metrics["valid/loss"] == pytest.approx(loss / targets, rel=1e-5)
    assert metrics["valid/wer"] == pytest.approx(wer.wer)
    assert metrics["valid/cer"] == pytest.approx(wer.cer)


def test_global_statistics_are_measured_when_training_begins(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> LitModule:
        front = LogMel(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, num_mels=20, cmvn=GlobalCmvn(dim=20))
        return tiny.make_module(features=front)

    module, datamodule = make(), tiny.make_datamodule(tones)
    trainer = tiny.make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=datamodule)
    waves = [example.wave_N for example in datamodule.train_dataset]
    frames = [module.features(torch.from_numpy(wave_N)[None], torch.tensor([len(wave_N)]))[0][0] for wave_N in waves]
    joined_TF = torch.cat(frames)
    torch.testing.assert_close(joined_TF.mean(0), torch.zeros(20), atol=1e-3, rtol=0)
    torch.testing.assert_close(joined_TF.std(0), torch.ones(20), atol=1e-2, rtol=0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(GlobalCmvn, "fit", fail)
    resumed = make()
    trainer = tiny.make_trainer(tmp_path, max_epochs=2)
    trainer.fit(resumed, datamodule=tiny.make_datamodule(tones), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    torch.testing.assert_close(resumed.features.cmvn.mean, module.features.cmvn.mean, atol=0, rtol=0)


def test_bf16_trains_with_features_in_fp32(tones: Path, tmp_path: Path) -> None:
    module = tiny.make_module()
    seen = []
    module.features.register_forward_hook(lambda *args: seen.append(args[2][0].dtype))
    trainer = tiny.make_trainer(tmp_path, precision="bf16-mixed", max_epochs=1)
    trainer.fit(module, datamodule=tiny.make_datamodule(tones))
    assert set(seen) == {torch.float32}
    assert torch.isfinite(trainer.callback_metrics["valid/loss"])


def test_speed_padding_and_lines(tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny.make_trainer(
        tmp_path, SpeedMonitor(), SpeechProgressBar(stream_is_terminal=False), enable_progress_bar=True, max_epochs=2
    )
    trainer.fit(tiny.make_module(), datamodule=tiny.make_datamodule(tones))
    assert trainer.callback_metrics[SPEED] > 0
    assert 0 <= trainer.callback_metrics[PADDING] < 100
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split(" step")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert all("audio-s/s" in line and "padding" in line and "wer" in line for line in lines)
    assert out.index("padding report") < out.index("epoch 1 step")
    assert "\r" not in err, "a bar was drawn although nobody watches"


def test_ema_is_the_recursion_and_validation_sees_it(tones: Path, tmp_path: Path) -> None:
    module = tiny.make_module()
    ema = Ema(decay=0.8)
    expected = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    seen: dict[str, Tensor] = {}

    class Watch(pl.Callback):
        """Follows the recursion by hand."""

        steps = 0

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            self.steps += 1
            decay = min(0.8, (1 + self.steps) / (10 + self.steps))
            for name, parameter in pl_module.named_parameters():
                expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()

        def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            seen.update({name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()})

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.raw = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}

    watch = Watch()
    checkpointer = Checkpointer(directory=tmp_path / "kept", keep=1)
    trainer = tiny.make_trainer(tmp_path, watch, ema, checkpointer, max_epochs=1)
    trainer.fit(module, datamodule=tiny.make_datamodule(tones))
    exported = checkpointer.averaged_weights()
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, rtol=1e-5, atol=1e-6)
        assert exported[name].equal(seen[name])
        assert not name.endswith("weight") or not dict(module.named_parameters())[name].equal(seen[name])

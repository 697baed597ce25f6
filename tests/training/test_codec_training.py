"""Codecs in training, alone and with discriminators: an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.model import CodecModel
from speechkit.models.vocoder.discriminators import Discriminators, MultiPeriodDiscriminator
from speechkit.nn.istft_head import IstftHead
from speechkit.nn.quantizers import ResidualVectorQuantizer
from speechkit.training import optim
from speechkit.training.gan_module import GanModule
from speechkit.training.lit_module import LitModule
from speechkit.training.resume import LAST, RandomStates


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _load("tiny")


def make_module(*, adversarial: bool) -> LitModule | GanModule:
    torch.manual_seed(0)
    mel = MelSpectrogram(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, num_mels=20, f_max=4000.0)
    quantizer = ResidualVectorQuantizer(dim=8, num_codebooks=2, num_codes=16, code_dim=4, quantizer_dropout=0.5)
    model = CodecModel(
        num_mels=20,
        quantizer=quantizer,
        wave_head=IstftHead(dim=16, mel=mel),
        dim=16,
        intermediate_dim=24,
        num_encoder_layers=1,
        num_decoder_layers=1,
        segment_frames=12,
        revive_every=3,
    )
    optimizer, scheduler = partial(torch.optim.AdamW, lr=2e-3), partial(optim.cosine, warmup_steps=4)
    if not adversarial:
        return LitModule(model=model, features=mel, optimizer=optimizer, scheduler=scheduler)
    discriminator = Discriminators(parts=[MultiPeriodDiscriminator(periods=(2, 3), dim=2)])
    return GanModule(model=model, discriminator=discriminator, features=mel, optimizer=optimizer, scheduler=scheduler)


def fit(root: Path, name: str, *, adversarial: bool, start: Path | None = None) -> list[str]:
    """Trains afresh or from a checkpoint; returns the trace."""
    trace = root / f"{name}.jsonl"
    keeper = tiny.KeepingCheckpointer(directory=root / name, monitor="valid/loss", every_minutes=None, every_steps=1, keep=1)
    options: dict[str, Any] = {"gradient_clip_val": None} if adversarial else {}
    trainer = tiny.make_trainer(root, tiny.Trace(path=trace), RandomStates(seed=1), keeper, max_epochs=2, **options)
    datamodule = tiny.make_datamodule(root / "tones")
    trainer.fit(make_module(adversarial=adversarial), datamodule=datamodule, ckpt_path=start, weights_only=True)
    return trace.read_text().splitlines()


@pytest.mark.parametrize("adversarial", [False, True])
def test_going_on_changes_nothing(adversarial: bool, tmp_path: Path) -> None:
    whole = fit(tmp_path, "whole", adversarial=adversarial)
    expected = torch.load(tmp_path / "whole" / LAST, weights_only=True)
    num_steps = int(expected["state_dict"]["model.care.num_steps"])
    assert num_steps == expected["global_step"] > 6, "each step counts codes once"
    saved = sorted(int(path.stem.removeprefix("after-")) for path in (tmp_path / "whole").glob("after-*.ckpt"))
    lines = saved[len(saved) // 3]
    start = tmp_path / "whole" / f"after-{lines}.ckpt"
    assert int(torch.load(start, weights_only=True)["state_dict"]["model.care.num_steps"]) % 3 != 0, "between two revivals"
    assert fit(tmp_path, "rest", adversarial=adversarial, start=start) == whole[lines:]
    found = torch.load(tmp_path / "rest" / LAST, weights_only=True)
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(value, expected["state_dict"][name]) for name, value in found["state_dict"].items())

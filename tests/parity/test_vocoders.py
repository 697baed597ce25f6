"""Vocos against the public package and HiFi-GAN against transformers', with the same random weights, where they are installed."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import nn

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.vocoder.convert import hifigan_weights, vocos_weights
from speechkit.models.vocoder.hifigan import HifiGanGenerator
from speechkit.models.vocoder.vocos import VocosGenerator


def randomise(module: nn.Module) -> None:
    """Weights with which every layer is heard."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("padding", ["center", "same"])
def test_vocos(padding: Literal["center", "same"]) -> None:
    reason = "vocos, or a package that it imports, is not installed"
    vocos: Any = pytest.importorskip("vocos", reason=reason, exc_type=ImportError)
    extractors, models, heads = (
        pytest.importorskip(f"vocos.{name}", exc_type=ImportError) for name in ("feature_extractors", "models", "heads")
    )
    features = extractors.MelSpectrogramFeatures(sample_rate=24000, n_fft=1024, hop_length=256, n_mels=100, padding=padding)
    backbone = models.VocosBackbone(input_channels=100, dim=32, intermediate_dim=48, num_layers=3)
    theirs = vocos.Vocos(features, backbone, heads.ISTFTHead(dim=32, n_fft=1024, hop_length=256, padding=padding)).eval()
    randomise(theirs)
    settings = {name: value for name, value in MelSpectrogram.preset(24000).settings().items() if name != "type"}
    mel = MelSpectrogram(**{**settings, "padding": padding})
    ours = VocosGenerator(mel=mel, dim=32, intermediate_dim=48, num_layers=3)
    ours.load_state_dict(vocos_weights(theirs.state_dict()))
    wave_BN = 0.1 * torch.randn(2, 256 * 40)
    with torch.inference_mode():
        mel_BTF, mel_lens_B = mel(wave_BN, torch.tensor([256 * 40] * 2))
        torch.testing.assert_close(mel_BTF, theirs.feature_extractor(wave_BN).transpose(1, 2), atol=2e-3, rtol=1e-4)
        expected = theirs.decode(mel_BTF.transpose(1, 2))
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(mel_BTF, mel_lens_B), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_hifigan() -> None:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=80, upsample_initial_channel=32, upsample_rates=[8, 8, 2, 2], upsample_kernel_sizes=[16, 16, 4, 4]
        )
    ).eval()
    randomise(theirs)
    weights = {name.replace("upsampler.", "ups."): value for name, value in theirs.state_dict().items()}
    ours = HifiGanGenerator(mel=MelSpectrogram.preset(22050), dim=32)
    ours.load_state_dict(hifigan_weights({name: value for name, value in weights.items() if name not in ("mean", "scale")}))
    mel_BTF = torch.randn(2, 11, 80)
    with torch.inference_mode():
        expected = theirs(mel_BTF)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(mel_BTF, torch.tensor([11, 11])), expected, atol=2e-5, rtol=1e-4)

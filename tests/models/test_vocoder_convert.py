"""Public weights of HiFi-GAN: its layout is built here of plain torch layers, since the public code is no package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.vocoder.convert import hifigan_weights, vocos_weights
from speechkit.models.vocoder.hifigan import HifiGanGenerator

RATES, KERNELS, BLOCKS, DILATIONS = (4, 2), (8, 4), (3, 5), ((1, 3), (2, 5))


class Block(nn.Module):
    """A residual block; V1 has two lists of convolutions, V3 one."""

    def __init__(self, dim: int, kernel: int, dilations: tuple[int, ...], version: int) -> None:
        super().__init__()
        for name in ("convs1", "convs2") if version == 1 else ("convs",):
            steps = [1] * len(dilations) if name == "convs2" else dilations
            convs = [nn.Conv1d(dim, dim, kernel, dilation=step, padding=step * (kernel - 1) // 2) for step in steps]
            setattr(self, name, nn.ModuleList(convs))

    def forward(self, x: Tensor) -> Tensor:
        lists = [self.convs1, self.convs2] if hasattr(self, "convs1") else [self.convs]
        for convs in zip(*lists):
            h = x
            for conv in convs:
                h = conv(functional.leaky_relu(h, 0.1))
            x = x + h
        return x


class PublicLayout(nn.Module):
    """The generator with the public names."""

    def __init__(self, version: int) -> None:
        super().__init__()
        dims = (16, 8, 4)
        self.conv_pre = nn.Conv1d(8, dims[0], 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(dim, half, kernel, rate, padding=(kernel - rate) // 2)
            for dim, half, kernel, rate in zip(dims, dims[1:], KERNELS, RATES)
        )
        self.resblocks = nn.ModuleList(
            Block(dim, kernel, dilations, version) for dim in dims[1:] for kernel, dilations in zip(BLOCKS, DILATIONS)
        )
        self.conv_post = nn.Conv1d(dims[-1], 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for place, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, 0.1))
            x = (self.resblocks[2 * place](x) + self.resblocks[2 * place + 1](x)) / 2
        return torch.tanh(self.conv_post(functional.leaky_relu(x))).squeeze(1)


@pytest.mark.parametrize("norm", ["plain", "hooks", "parametrizations"])
@pytest.mark.parametrize("version", [1, 3])
def test_hifigan_has_the_weights_of_the_public_layout(version: int, norm: str) -> None:
    torch.manual_seed(0)
    public = PublicLayout(version)
    for module in list(public.modules()):
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and norm != "plain":
            (weight_norm if norm == "hooks" else parametrizations.weight_norm)(module)
            nn.init.uniform_(module.weight_g if norm == "hooks" else module.parametrizations.weight.original0, 1.0, 2.0)
    mel = MelSpectrogram(sample_rate=8000, n_fft=32, win_length=32, hop_length=8, num_mels=8, f_max=4000.0)
    ours = HifiGanGenerator(
        mel=mel,
        dim=16,
        upsample_rates=RATES,
        upsample_kernels=KERNELS,
        block_kernels=BLOCKS,
        block_dilations=DILATIONS,
        num_convs=2 if version == 1 else 1,
    )
    ours.load_state_dict(hifigan_weights(public.state_dict()))
    mel_BTF = torch.randn(2, 13, 8)
    found, expected = ours(mel_BTF, torch.tensor([13, 13])), public(mel_BTF.transpose(1, 2))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'mean.*' is not a weight of a HiFi-GAN generator"):
        hifigan_weights({"mean.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"feature_extractor\.encodec\.x.*Vocos for mels"):
        vocos_weights({"feature_extractor.encodec.x": torch.zeros(3)})

"""Discriminators of waveforms: by periods, by scales, by spectra.

Each is called with waveforms and lengths and returns a `speechkit.losses.adversarial.Judgement` per part. What lies past a row's
length is hidden from every layer, so that a row's maps are its own whatever its padding and its mates, to rounding.

Sources: periods and scales, Kong et al. 2020, "HiFi-GAN", section 2.3 and appendix A; spectra, Jang et al. 2021, "UnivNet",
section 2.3, with the layers of Vocos (Siuzdak 2023), which weights its periods by 1 and its spectra by 0.1.

Shape legend: B batch, N samples, C channels, T places in time, E other places (periods, frequency bins).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from speechkit.audio import frames
from speechkit.losses.adversarial import Judgement
from speechkit.losses.spectral import Resolution, stft_magnitudes

_SLOPE = 0.1


class _Layer(NamedTuple):
    """A convolution: output channels, kernel and stride over time and over the other places, groups."""

    dim: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    groups: int = 1


class Discriminators(nn.Module):
    """Several discriminators as one.

    Args:
        parts: modules from (wave_BN, wave_lens_B) to lists of judgements, such as those below.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, *, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts=[]: give at least one discriminator")
        self.parts = nn.ModuleList(parts)

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> list[Judgement]:
        """Judges waveforms, floating point, shape (B, N), of valid lengths, int64, shape (B,)."""
        if wave_BN.shape[1] == 0:
            wave_BN = functional.pad(wave_BN, (0, 1))  # convolutions refuse what is empty
        return [judgement for part in self.parts for judgement in part(wave_BN, wave_lens_B)]


class MultiPeriodDiscriminator(nn.Module):
    """HiFi-GAN's: for each period, waveforms as tables with a period per row, by convolutions down their columns.

    Args:
        periods: samples per row of each part.
        dim: channels of the first layer; 4, 16, 32 and 32 times as many follow. 32 in the paper.
        weight: of each part.
    """

    def __init__(self, *, periods: Sequence[int] = (2, 3, 5, 7, 11), dim: int = 32, weight: float = 1.0) -> None:
        super().__init__()
        self.periods, self.weight = tuple(periods), weight
        layers = [*(_Layer(dim * factor, (5, 1), (3, 1)) for factor in (1, 4, 16, 32)), _Layer(32 * dim, (5, 1))]
        self.stacks = nn.ModuleList(_Stack([*layers, _Layer(1, (3, 1))]) for _ in self.periods)

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> list[Judgement]:
        """Judges waveforms of at least one sample, shape (B, N), of valid lengths, shape (B,)."""
        judgements = []
        for period, stack in zip(self.periods, self.stacks):
            num_rows = -(-wave_BN.shape[1] // period)
            x_BS = frames.reflected(wave_BN, wave_lens_B, 0, num_rows * period)
            x_B1TE = x_BS.view(-1, 1, num_rows, period)
            judgements.append(stack(x_B1TE, -(-wave_lens_B // period), self.weight))
        return judgements


class MultiScaleDiscriminator(nn.Module):
    """HiFi-GAN's, after MelGAN's: by grouped convolutions over waveforms, averaged by 2 and again by 2.

    Args:
        num_scales: parts; the first has spectral norm, the others weight norm.
        dim: channels of the first two layers; 2, 4, 8, 8 and 8 times as many follow. 128 in the paper; a multiple of 16.
        weight: of each part.
    """

    def __init__(self, *, num_scales: int = 3, dim: int = 128, weight: float = 1.0) -> None:
        super().__init__()
        frames.require(dim % 16 == 0, "dim", dim, "a multiple of 16, for 16 groups")
        self.weight = weight
        layers = [_Layer(dim, (15, 1)), _Layer(dim, (41, 1), (2, 1), 4), _Layer(2 * dim, (41, 1), (2, 1), 16)]
        layers += [_Layer(4 * dim, (41, 1), (4, 1), 16), _Layer(8 * dim, (41, 1), (4, 1), 16)]
        layers += [_Layer(8 * dim, (41, 1), (1, 1), 16), _Layer(8 * dim, (5, 1)), _Layer(1, (3, 1))]
        self.stacks = nn.ModuleList(_Stack(layers, spectral_norm=scale == 0) for scale in range(num_scales))

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> list[Judgement]:
        """Judges waveforms of at least one sample, shape (B, N), of valid lengths, shape (B,)."""
        x_B1NE = wave_BN.masked_fill(_past(wave_lens_B, wave_BN.shape[1]), 0.0)[:, None, :, None]
        judgements = []
        for scale, stack in enumerate(self.stacks):
            if scale:
                x_B1NE = functional.avg_pool2d(x_B1NE, (4, 1), (2, 1), padding=(2, 0))
                wave_lens_B = torch.where(wave_lens_B > 0, wave_lens_B // 2 + 1, 0)
                x_B1NE = x_B1NE.masked_fill(_past(wave_lens_B, x_B1NE.shape[2])[:, None, :, None], 0.0)
            judgements.append(stack(x_B1NE, wave_lens_B, self.weight))
        return judgements


class MultiResolutionDiscriminator(nn.Module):
    """Magnitudes at several resolutions, by convolutions over time and frequency.

    Args:
        resolutions: (samples of the FFT, of a hop, of the window) of each part.
        dim: channels. 64 in Vocos.
        weight: of each part.
    """

    def __init__(
        self,
        *,
        resolutions: Sequence[Sequence[int]] = ((1024, 256, 1024), (2048, 512, 2048), (512, 128, 512)),
        dim: int = 64,
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.resolutions, self.weight = [Resolution(*resolution) for resolution in resolutions], weight
        shapes = (((5, 7), (2, 2)), ((3, 5), (1, 2)), ((3, 5), (2, 2)), ((3, 3), (1, 2)), ((3, 3), (2, 2)))
        layers = [*(_Layer(dim, kernel, stride) for kernel, stride in shapes), _Layer(1, (3, 3))]
        self.stacks = nn.ModuleList(_Stack(layers) for _ in self.resolutions)

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> list[Judgement]:
        """Judges waveforms of at least one sample, shape (B, N), of valid lengths, shape (B,)."""
        judgements = []
        for resolution, stack in zip(self.resolutions, self.stacks):
            magnitudes_BTE, lens_B = stft_magnitudes(wave_BN, wave_lens_B, resolution)
            judgements.append(stack(magnitudes_BTE[:, None], lens_B, self.weight))
        return judgements


class _Stack(nn.Module):
    """Convolutions with leaky rectifiers between them, weights normalised, each centred."""

    def __init__(self, layers: Sequence[_Layer], *, spectral_norm: bool = False) -> None:
        super().__init__()
        normalise = parametrizations.spectral_norm if spectral_norm else parametrizations.weight_norm
        dims = [1, *(layer.dim for layer in layers)]
        self.convs = nn.ModuleList(
            normalise(
                nn.Conv2d(
                    dim,
                    layer.dim,
                    layer.kernel,
                    layer.stride,
                    padding=(layer.kernel[0] // 2, layer.kernel[1] // 2),
                    groups=layer.groups,
                )
            )
            for dim, layer in zip(dims, layers)
        )

    def forward(self, x_BCTE: Tensor, lens_B: Tensor, weight: float) -> Judgement:
        """The maps of all layers, and of valid places in time their numbers, which shrink as the maps do."""
        is_padded = bool((lens_B < x_BCTE.shape[2]).any())
        maps, lens = [], []
        if is_padded:
            x_BCTE = x_BCTE.masked_fill(_past(lens_B, x_BCTE.shape[2])[:, None, :, None], 0.0)
        for place, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            x_BCTE = conv(x_BCTE)
            lens_B = -(-lens_B // conv.stride[0])  # kernels are odd and centred
            if place < len(self.convs) - 1:
                x_BCTE = functional.leaky_relu(x_BCTE, _SLOPE)
            if is_padded:
                x_BCTE = x_BCTE.masked_fill(_past(lens_B, x_BCTE.shape[2])[:, None, :, None], 0.0)
            maps.append(x_BCTE)
            lens.append(lens_B)
        return Judgement(tuple(maps), tuple(lens), weight)


def _past(lens_B: Tensor, num_places: int) -> Tensor:
    """What lies past each length, bool, shape (B, T)."""
    return torch.arange(num_places, device=lens_B.device) >= lens_B[:, None]

"""HiFi-GAN: a waveform from a mel spectrogram by transposed convolutions and residual blocks of many receptive fields.

    mel (B, T, F) --conv--> --[leaky ReLU, transposed conv, mean of residual blocks] per rate--> --conv, tanh--> wave (B, N)

Source: Kong et al. 2020, "HiFi-GAN", section 2.2 and appendix A.

Shape legend: B batch, T frames, F mel bins, C channels, N samples, S samples at one of the rates in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.nn.masks import padding_mask, valid_mask

_SLOPE = 0.1


class HifiGanGenerator(nn.Module):
    """The generator; V1 by default, as all numbers.

    Convolutions have weight norm; `Vocoder.fold_weight_norm` takes it away for inference. Under autocast or in halves samples
    are rounded to halves on the way.

    Args:
        mel: what the mel spectrograms are; padding "same".
        dim: channels before the first upsampling; each halves them. 512 in V1, 128 in V2, 256 in V3.
        upsample_rates: samples per sample of each upsampling; their product is the mel's hop.
        upsample_kernels: of the transposed convolutions; each as odd or as even as its rate, and no smaller.
        block_kernels: kernels of the residual blocks after each upsampling, odd.
        block_dilations: dilations of each of these blocks.
        num_convs: convolutions per dilation: 2 (V1 and V2; the second is not dilated) or 1 (V3).

    Raises:
        ValueError: sizes do not fit each other or the mel.
    """

    def __init__(
        self,
        *,
        mel: MelSpectrogram,
        dim: int = 512,
        upsample_rates: Sequence[int] = (8, 8, 2, 2),
        upsample_kernels: Sequence[int] = (16, 16, 4, 4),
        block_kernels: Sequence[int] = (3, 7, 11),
        block_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        num_convs: int = 2,
    ) -> None:
        super().__init__()
        _check_sizes(mel, dim, upsample_rates, upsample_kernels, block_kernels, block_dilations, num_convs)
        self.mel, self.num_blocks = mel, len(block_kernels)
        self.conv_pre = parametrizations.weight_norm(nn.Conv1d(mel.output_dim, dim, 7, padding=3))
        self.upsamplers, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(upsample_rates, upsample_kernels):
            upsampler = nn.ConvTranspose1d(dim, dim // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.upsamplers.append(parametrizations.weight_norm(upsampler))
            dim //= 2
            for size, dilations in zip(block_kernels, block_dilations):
                self.blocks.append(_ResidualBlock(dim=dim, kernel_size=size, dilations=dilations, num_convs=num_convs))
        self.conv_post = parametrizations.weight_norm(nn.Conv1d(dim, 1, 7, padding=3))

    def forward(self, mel_BTF: Tensor, mel_lens_B: Tensor) -> Tensor:
        """Makes waveforms.

        Args:
            mel_BTF: log-mels, anything past each length, shape (B, T, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            float32 in [-1, 1], exactly zero past `mel.num_samples(mel_lens_B)`, shape (B, mel.num_samples(T)). A row is its own
            whatever its padding and its mates, to rounding.
        """
        num_samples = mel_BTF.shape[1] * self.mel.hop_length
        if num_samples == 0:
            mel_BTF = functional.pad(mel_BTF, (0, 0, 0, 1))  # convolutions refuse what is empty
        valid_BT = padding_mask(mel_lens_B, mel_BTF.shape[1])
        x_BC1S = mel_BTF.transpose(1, 2).unsqueeze(2)  # an image of one row whose channels come last in memory: see _convolve
        x_BC1S = _convolve(self.conv_pre, _hide(x_BC1S, valid_BT))
        lens_B = mel_lens_B
        for place, upsampler in enumerate(self.upsamplers):
            assert isinstance(upsampler, nn.ConvTranspose1d)
            x_BC1S = functional.leaky_relu(_hide(x_BC1S, valid_BT), _SLOPE)
            x_BC1S, lens_B = _convolve(upsampler, x_BC1S), lens_B * upsampler.stride[0]
            valid_BT = None if valid_BT is None else valid_mask(lens_B, x_BC1S.shape[3])
            x_BC1S = _hide(x_BC1S, valid_BT)
            first = place * self.num_blocks
            total_BC1S = self.blocks[first](x_BC1S, valid_BT)
            for block in self.blocks[first + 1 : first + self.num_blocks]:
                total_BC1S = total_BC1S + block(x_BC1S, valid_BT)
            x_BC1S = total_BC1S / self.num_blocks
        x_BC1S = _convolve(self.conv_post, functional.leaky_relu(x_BC1S))  # the slope of the public code here is 0.01
        return _hide(x_BC1S.tanh(), valid_BT).flatten(1)[:, :num_samples].float()


class _ResidualBlock(nn.Module):
    """For each dilation: leaky ReLU, dilated convolution, and where there are two, both again undilated; residual."""

    def __init__(self, *, dim: int, kernel_size: int, dilations: Sequence[int], num_convs: int) -> None:
        super().__init__()
        self.num_convs = num_convs
        self.convs = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(dim, dim, kernel_size, dilation=step, padding=step * (kernel_size // 2)))
            for dilation in dilations
            for step in (dilation, 1)[:num_convs]
        )

    def forward(self, x_BC1S: Tensor, valid_BS: Tensor | None) -> Tensor:
        """Maps (B, C, 1, S) to (B, C, 1, S), zero outside of `valid_BS` if that is what it is given."""
        for first in range(0, len(self.convs), self.num_convs):
            h_BC1S = x_BC1S
            for conv in self.convs[first : first + self.num_convs]:
                h_BC1S = _hide(_convolve(conv, functional.leaky_relu(h_BC1S, _SLOPE)), valid_BS)
            x_BC1S = x_BC1S + h_BC1S
        return x_BC1S


def _convolve(conv: nn.Module, x_BC1S: Tensor) -> Tensor:
    """A convolution over samples as one over an image of one row, channels last in memory: twice as fast on a CPU."""
    assert isinstance(conv, nn.Conv1d | nn.ConvTranspose1d)
    x_BC1S = x_BC1S.contiguous(memory_format=torch.channels_last)
    weight, padding = conv.weight.unsqueeze(2), (0, int(conv.padding[0]))
    if isinstance(conv, nn.ConvTranspose1d):
        return functional.conv_transpose2d(x_BC1S, weight, conv.bias, (1, conv.stride[0]), padding)
    return functional.conv2d(x_BC1S, weight, conv.bias, padding=padding, dilation=(1, conv.dilation[0]))


def _hide(x_BC1S: Tensor, valid_BS: Tensor | None) -> Tensor:
    """Zeros past each row's length."""
    return x_BC1S if valid_BS is None else x_BC1S.masked_fill(~valid_BS[:, None, None], 0.0)


def _check_sizes(
    mel: MelSpectrogram,
    dim: int,
    rates: Sequence[int],
    kernels: Sequence[int],
    block_kernels: Sequence[int],
    block_dilations: Sequence[Sequence[int]],
    num_convs: int,
) -> None:
    """Raises a ValueError where sizes do not fit."""
    if mel.padding != "same":
        raise ValueError(f'mel.padding={mel.padding!r}: HiFi-GAN makes hop_length samples of every frame; take a mel of "same"')
    if math.prod(rates) != mel.hop_length:
        raise ValueError(
            f"upsample_rates={list(rates)} make {math.prod(rates)} samples of a frame: mel.hop_length={mel.hop_length}"
        )
    if len(kernels) != len(rates) or any(size < rate or (size - rate) % 2 for rate, size in zip(rates, kernels)):
        raise ValueError(
            f"upsample_kernels={list(kernels)}: give one for each of upsample_rates={list(rates)}, as odd or even and no smaller"
        )
    if dim % 2 ** len(rates):
        raise ValueError(f"dim={dim} must be divisible by {2 ** len(rates)}: each of {len(rates)} upsamplings halves it")
    if len(block_kernels) != len(block_dilations) or any(size % 2 == 0 for size in block_kernels):
        raise ValueError(
            f"block_kernels={list(block_kernels)}: must be odd, one for each of the {len(block_dilations)} of block_dilations"
        )
    if num_convs not in (1, 2):
        raise ValueError(f"num_convs={num_convs}: must be 2 (V1, V2) or 1 (V3)")

"""Where a flow runs: over log-mels, or over the latent of a codec.

Speech enters a space, and what a flow made there leaves it as speech again. Texts, prompts and lengths are planned in mel frames
whatever the space: it says how many frames of its own they come to.

Sources: Mehta et al. 2024, "Matcha-TTS", section 4.1 (normalised mels); Yang et al. 2024, "SimpleSpeech 2", section III (the
latent of a codec with scalar quantisation: a flow makes what lies before the rounding, and that takes away its small errors).

Shape legend: B batch, M mel frames, T frames of the space, F mel bins, C channels of the space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.nn.masks import valid_mask
from speechkit.nn.mel_norm import MelNorm
from speechkit.types import TtsOutput


class LatentCodec(Protocol):
    """Log-mels to a continuous latent, and this to log-mels or also to waveforms; an `nn.Module`.

    Attributes:
        num_mels: F.
        stride: mel frames of a latent frame; M of them have ceil(M / stride).
    """

    num_mels: int
    stride: int

    @property
    def latent_dim(self) -> int:
        """C; a ValueError of codecs that have no continuous latent."""

    @property
    def mel(self) -> MelSpectrogram | None:
        """The one mel that it can be used with; None where any with as many bands will do."""

    def code_lengths(self, mel_lens_B: Tensor) -> Tensor:
        """Latent frames of so many mel frames, int64, shape (B,)."""

    def latents(self, mel_BTF: Tensor, mel_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """The latent before it is rounded, 0 past each length, fp32, shape (B, T, C), and the lengths (B,)."""

    def decode_latents(self, latent_BSD: Tensor, code_lens_B: Tensor, *, mel_lens_B: Tensor | None = None) -> TtsOutput:
        """Rounds a latent to the grid and makes log-mels of it, and waveforms if the codec does, of `mel_lens_B` frames."""


class Space(Protocol):
    """What a flow needs to know of the space that it runs in."""

    @property
    def num_channels(self) -> int:
        """C."""

    def lengths(self, mel_lens_B: Tensor) -> Tensor:
        """Frames of the space that stand for so many mel frames, int64, shape (B,)."""

    def enter(self, mel_BMF: Tensor, mel_lens_B: Tensor) -> Tensor:
        """Points of log-mels, fp32, anything past each length, shape (B, T, C)."""

    def leave(self, x_BTC: Tensor, mel_lens_B: Tensor) -> TtsOutput:
        """Speech of points, of as many frames as `lengths` says: log-mels, fp32, zero past each length, shape (B, M, F)."""


@dataclass(frozen=True, slots=True)
class MelSpace:
    """Log-mels, normalised by mean and deviation of the corpus.

    Attributes:
        norm: their mean and deviation.
        num_channels: F.
    """

    norm: MelNorm
    num_channels: int

    def lengths(self, mel_lens_B: Tensor) -> Tensor:
        """As `Space.lengths`: the same."""
        return mel_lens_B

    def enter(self, mel_BMF: Tensor, mel_lens_B: Tensor) -> Tensor:
        """As `Space.enter`."""
        return self.norm.normalize(mel_BMF.float())

    def leave(self, x_BTC: Tensor, mel_lens_B: Tensor) -> TtsOutput:
        """As `Space.leave`."""
        mel_BMF = self.norm.denormalize(x_BTC)
        return TtsOutput(mel_BMF.masked_fill(~valid_mask(mel_lens_B, mel_BMF.shape[1])[..., None], 0.0), mel_lens_B)


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """The latent of a trained codec: entered before it is rounded, left by rounding. In full precision also under autocast.

    Attributes:
        codec: a `speechkit.models.codec.model.CodecModel` with a scalar quantiser, in evaluation mode.
    """

    codec: LatentCodec

    @property
    def num_channels(self) -> int:
        """C."""
        return self.codec.latent_dim

    def lengths(self, mel_lens_B: Tensor) -> Tensor:
        """As `Space.lengths`."""
        return self.codec.code_lengths(mel_lens_B)

    def enter(self, mel_BMF: Tensor, mel_lens_B: Tensor) -> Tensor:
        """As `Space.enter`, without a gradient, in [-1, 1]."""
        with torch.no_grad(), torch.autocast(mel_BMF.device.type, enabled=False):
            return self.codec.latents(mel_BMF.float(), mel_lens_B)[0]

    def leave(self, x_BTC: Tensor, mel_lens_B: Tensor) -> TtsOutput:
        """As `Space.leave`, with waveforms of codecs that make them."""
        with torch.autocast(x_BTC.device.type, enabled=False):
            return self.codec.decode_latents(x_BTC.float(), self.lengths(mel_lens_B), mel_lens_B=mel_lens_B)

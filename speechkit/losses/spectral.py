"""How far two waveforms are apart in spectra: magnitudes at several resolutions, and mels.

Both losses compare an utterance with what a vocoder or codec made of it, in float32 also under autocast. Frames are weighted
equally whatever the row; a row adds the same whatever its padding.

Sources: Yamamoto et al. 2020, "Parallel WaveGAN", section 2.2 (magnitudes); Kong et al. 2020, "HiFi-GAN", section 2.4 (mels).

Shape legend: B batch, N samples, T frames, K FFT bins (n_fft // 2 + 1), F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from speechkit.audio import frames
from speechkit.audio.spectrogram import MelSpectrogram

_LEAST_POWER = 1e-10  # below what 16 bits hold; the gradient of a root ends here
_LEAST_MAGNITUDE = 1e-4  # differences below are not heard; the logarithm ends here
_LEAST_RMS = 1e-2  # of a row's magnitudes in the quotient: -66 dB of full scale or so, so that silence divides nothing by 0


class Resolution(NamedTuple):
    """One short-time Fourier transform with a Hann window: samples of the FFT, of a hop and of the window."""

    n_fft: int
    hop_length: int
    win_length: int


RESOLUTIONS = (Resolution(1024, 120, 600), Resolution(2048, 240, 1200), Resolution(512, 50, 240))  # Parallel WaveGAN's


class StftLoss(NamedTuple):
    """How far magnitudes are apart, averaged over resolutions, scalars.

    Attributes:
        convergence: Frobenius norm of the difference by that of the real magnitudes, per row, averaged over frames.
        log_magnitude: mean absolute difference of natural logarithms.
    """

    convergence: Tensor
    log_magnitude: Tensor


def stft_magnitudes(wave_BN: Tensor, wave_lens_B: Tensor, resolution: Resolution) -> tuple[Tensor, Tensor]:
    """Magnitudes of frames that are centred on every hop; outside of an utterance the waveform is reflected.

    Args:
        wave_BN: waveforms, floating point, shape (B, N); what lies past a length is ignored.
        wave_lens_B: valid samples of each row, int64, shape (B,).
        resolution: of the transform.

    Returns:
        float32, at least 1e-5, shape (B, T, K), and frames of each row, 1 + n // hop_length of n > 0 samples, int64, shape
        (B,). Frames past a row's number hold nothing of use.

    Raises:
        ValueError: shapes do not fit, or a length exceeds N.
    """
    frames.check_batch(wave_BN, wave_lens_B)
    n_fft, hop, win_length = resolution
    frame_lens_B = torch.where(wave_lens_B > 0, wave_lens_B // hop + 1, 0)
    num_frames = wave_BN.shape[1] // hop + 1
    if wave_BN.shape[1] == 0:
        wave_BN = functional.pad(wave_BN, (0, 1))
    with torch.autocast(wave_BN.device.type, enabled=False):
        begin = -(n_fft // 2)
        x_BS = frames.reflected(wave_BN, wave_lens_B, begin, begin + (num_frames - 1) * hop + n_fft)
        framed = x_BS.unfold(1, n_fft, hop) * _window(win_length, n_fft, wave_BN.device)
        squares = torch.view_as_real(torch.fft.rfft(framed)).square().sum(-1)
        return squares.clamp(min=_LEAST_POWER).sqrt(), frame_lens_B


def multi_resolution_stft_loss(
    fake_BN: Tensor, real_BN: Tensor, wave_lens_B: Tensor, *, resolutions: Sequence[Resolution] = RESOLUTIONS
) -> StftLoss:
    """Spectral convergence and log-magnitudes at several resolutions.

    Args:
        fake_BN: what was made, floating point, shape (B, N).
        real_BN: what should have been, floating point, shape (B, N).
        wave_lens_B: valid samples of each row, int64, shape (B,); rows of none add nothing.
        resolutions: of the transforms.

    Raises:
        ValueError: shapes do not fit, a length exceeds N, or there is no resolution.
    """
    _check_pair(fake_BN, real_BN)
    frames.require(len(resolutions) > 0, "resolutions", list(resolutions), "at least one")
    losses = [_stft_loss(fake_BN, real_BN, wave_lens_B, resolution) for resolution in resolutions]
    convergence, log_magnitude = (torch.stack(values).mean() for values in zip(*losses))
    return StftLoss(convergence, log_magnitude)


def mel_l1_loss(fake_BN: Tensor, real_BN: Tensor, wave_lens_B: Tensor, *, mel: MelSpectrogram) -> Tensor:
    """Mean absolute difference of log-mels, scalar.

    Args:
        fake_BN: what was made, floating point, shape (B, N).
        real_BN: what should have been, floating point, shape (B, N).
        wave_lens_B: valid samples of each row, int64, shape (B,); rows of none add nothing.
        mel: what mels to compare.

    Raises:
        ValueError: shapes do not fit, or a length exceeds N.
    """
    _check_pair(fake_BN, real_BN)
    fake_BTF, lens_B = mel(fake_BN, wave_lens_B)
    with torch.no_grad():
        real_BTF, _ = mel(real_BN, wave_lens_B)
    return (fake_BTF - real_BTF).abs().sum() / (lens_B.sum() * mel.output_dim).clamp(min=1)  # both are 0 past each length


def _stft_loss(fake_BN: Tensor, real_BN: Tensor, wave_lens_B: Tensor, resolution: Resolution) -> tuple[Tensor, Tensor]:
    """Both numbers at one resolution."""
    fake_BTK, lens_B = stft_magnitudes(fake_BN, wave_lens_B, resolution)
    with torch.no_grad():
        real_BTK, _ = stft_magnitudes(real_BN, wave_lens_B, resolution)
    padding_BT1 = torch.arange(fake_BTK.shape[1], device=lens_B.device)[:, None] >= lens_B[:, None, None]
    fake_BTK, real_BTK = fake_BTK.masked_fill(padding_BT1, 1.0), real_BTK.masked_fill(padding_BT1, 1.0)
    count_B = lens_B.clamp(min=1) * fake_BTK.shape[2]
    difference_B = ((fake_BTK - real_BTK).square().sum((1, 2)) / count_B).clamp(min=_LEAST_POWER).sqrt()
    real_B = (real_BTK.masked_fill(padding_BT1, 0.0).square().sum((1, 2)) / count_B).sqrt()
    total = lens_B.sum().clamp(min=1)
    convergence = (difference_B / real_B.clamp(min=_LEAST_RMS) * lens_B).sum() / total
    fake_log_BTK, real_log_BTK = (each.clamp(min=_LEAST_MAGNITUDE).log() for each in (fake_BTK, real_BTK))
    log_magnitude = (fake_log_BTK - real_log_BTK).abs().sum() / (total * fake_BTK.shape[2])
    return convergence, log_magnitude


@lru_cache(maxsize=32)
def _window(win_length: int, n_fft: int, device: torch.device) -> Tensor:
    """The Hann window, kept between calls: made outside of inference mode, or training could not use what validation made."""
    with torch.inference_mode(False):
        return frames.float32(frames.hann_window(win_length, n_fft)).to(device)


def _check_pair(fake_BN: Tensor, real_BN: Tensor) -> None:
    if fake_BN.shape != real_BN.shape:
        shapes = f"fake_BN has shape {tuple(fake_BN.shape)}, real_BN {tuple(real_BN.shape)}"
        raise ValueError(f"{shapes}: cut both to the same samples")

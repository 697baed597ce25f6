"""Mel filterbanks and windows, in float64 numpy.

Sources: Young et al., "The HTK book" (htk scale); Slaney, "Auditory toolbox" (slaney scale and norm); Povey et al.,
"The Kaldi speech recognition toolkit", ASRU 2011 (kaldi_*).

Shape legend: K FFT bins (n_fft // 2 + 1), F mel bins, N samples.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np

MelScale = Literal["htk", "slaney"]

_LINEAR_HZ_PER_MEL = 200.0 / 3  # slaney: linear below 1 kHz ...
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0  # ... and logarithmic above


def hz_to_mel(hz: np.ndarray, scale: MelScale) -> np.ndarray:
    """Frequencies in Hz to mels, any shape."""
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    if scale != "slaney":
        raise ValueError(f'mel_scale={scale!r}: must be "htk" or "slaney"')
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _LINEAR_HZ_PER_MEL, above)


def mel_to_hz(mels: np.ndarray, scale: MelScale) -> np.ndarray:
    """Mels to frequencies in Hz, any shape."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mels, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mels < _BREAK_MEL, mels * _LINEAR_HZ_PER_MEL, above)


def filterbank(
    sample_rate: int,
    n_fft: int,
    num_mels: int,
    f_min: float,
    f_max: float,
    *,
    scale: MelScale = "htk",
    norm: Literal["slaney"] | None = None,
) -> np.ndarray:
    """Triangular filters, linear in Hz between mel-spaced edges (librosa.filters.mel).

    Args:
        sample_rate: Hz.
        n_fft: samples of the FFT.
        num_mels: number of filters F.
        f_min: lower edge of the first, Hz.
        f_max: upper edge of the last, Hz.
        scale: mel scale of the edges.
        norm: "slaney" divides each filter by half its width in Hz; None leaves its peak at 1.

    Returns:
        Weights, float64, shape (n_fft // 2 + 1, F).

    Raises:
        ValueError: a value is out of range.
    """
    _check_band(sample_rate, num_mels, f_min, f_max)
    if norm not in (None, "slaney"):
        raise ValueError(f'mel_norm={norm!r}: must be "slaney" or null')
    low, high = hz_to_mel(np.array([f_min, f_max], dtype=np.float64), scale)
    edges = mel_to_hz(np.linspace(low, high, num_mels + 2), scale)
    bins_K1 = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)[:, None]
    rising = (bins_K1 - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins_K1) / np.diff(edges)[1:]
    weights_KF = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        weights_KF *= 2.0 / (edges[2:] - edges[:-2])
    _warn_if_empty(weights_KF, num_mels, n_fft)
    return weights_KF


def kaldi_filterbank(sample_rate: int, n_fft: int, num_mels: int, f_min: float, f_max: float) -> np.ndarray:
    """Kaldi's filters: triangles in the mel domain, without the last FFT bin.

    Args:
        sample_rate: Hz.
        n_fft: samples of the FFT.
        num_mels: number of filters F.
        f_min: lower edge of the first, Hz.
        f_max: upper edge of the last, Hz.

    Returns:
        Weights, float64, shape (n_fft // 2 + 1, F).

    Raises:
        ValueError: a value is out of range.
    """
    _check_band(sample_rate, num_mels, f_min, f_max)

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hz / 700.0)

    low, high = to_mel(np.array([f_min, f_max], dtype=np.float64))
    edges = np.linspace(low, high, num_mels + 2)
    bins_K1 = to_mel(np.arange(n_fft // 2) * (sample_rate / n_fft))[:, None]
    rising = (bins_K1 - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins_K1) / np.diff(edges)[1:]
    weights_KF = np.maximum(0.0, np.minimum(rising, falling))
    _warn_if_empty(weights_KF, num_mels, n_fft)
    return np.concatenate([weights_KF, np.zeros((1, num_mels))])


def kaldi_window(name: str, length: int) -> np.ndarray:
    """Kaldi's analysis windows (symmetric), float64, shape (length,)."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    windows = {
        "povey": hann**0.85,
        "hanning": hann,
        "hamming": 0.08 + 0.92 * hann,
        "rectangular": np.ones(length),
    }
    if name not in windows:
        raise ValueError(f"window={name!r}: must be one of {', '.join(windows)}")
    return windows[name]


def _check_band(sample_rate: int, num_mels: int, f_min: float, f_max: float) -> None:
    if num_mels < 1:
        raise ValueError(f"num_mels={num_mels}: must be at least 1")
    if sample_rate < 1:
        raise ValueError(f"sample_rate={sample_rate}: must be above 0 Hz")
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(f"f_min={f_min}, f_max={f_max}: need 0 <= f_min < f_max <= {sample_rate / 2} (half the rate)")


def _warn_if_empty(weights_KF: np.ndarray, num_mels: int, n_fft: int) -> None:
    empty = np.flatnonzero(weights_KF.max(axis=0) == 0.0)
    if len(empty):
        warnings.warn(
            f"{len(empty)} of num_mels={num_mels} filters hold no FFT bin (the first is {empty[0]}) and will be "
            f"constant; use fewer or a larger n_fft than {n_fft}",
            UserWarning,
            stacklevel=4,
        )

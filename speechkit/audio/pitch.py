"""Pitch and energy of speech, frame by frame, on the frames of `MelSpectrogram` with the same hop and padding:

- "same": ceil(N / hop_length) frames, frame t centred on the middle of samples t * hop_length .. (t + 1) * hop_length;
- "center": 1 + N // hop_length frames (none for N = 0), frame t centred on sample t * hop_length, as those of `LogMel`.

F0 is found as Praat does by default: the autocorrelation of a Hann window of three longest periods, divided by that of the
window; its highest maxima are the candidates of a frame, "unvoiced" is one more, and the cheapest path through them is taken.
It needs no further package, finds what Praat finds (within a few cents) and takes about a tenth of the time of librosa.pyin.

Source: Boersma, "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of a sampled
sound", IFA Proceedings 17 (1993); energy as in Ren et al., "FastSpeech 2", ICLR 2021, section 2.3.

Shape legend: N samples, T frames, L lags, C candidates of a frame (the first is "unvoiced"), S samples of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from speechkit.audio.frames import require

Padding = Literal["same", "center"]

_PERIODS = 3  # of f_min, under the window
_OVERSAMPLING = 2  # of the autocorrelation, so that a parabola is enough for its maxima
_NUM_CANDIDATES = 15
_SILENCE_THRESHOLD = 0.03  # of the recording's peak; Praat's defaults, as all that follow
_VOICING_THRESHOLD = 0.45
_OCTAVE_COST = 0.01  # per octave: prefers the higher of two equal maxima
_JUMP_COST = 0.35  # per octave between neighbouring frames 10 ms apart
_VOICING_COST = 0.14  # of a change between voiced and unvoiced within 10 ms
_COST_SECONDS = 0.01
_ROUNDING = 1e-6  # what removing a constant may leave of it
_CHUNK_FRAMES = 512


class PitchTrack(NamedTuple):
    """Pitch of one recording.

    Attributes:
        f0_T: fundamental frequency in Hz, 0 where unvoiced, float32, shape (T,).
        voiced_T: whether there is one, bool, shape (T,).
    """

    f0_T: np.ndarray
    voiced_T: np.ndarray


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and squared deviations of values; those of two sets add up with `+`.

    Attributes:
        count: how many values.
        mean: their mean; 0 of none.
        deviations: sum of squared differences from the mean.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.count / count
        return Moments(count, mean, self.deviations + other.deviations + gap * gap * self.count * other.count / count)

    @property
    def variance(self) -> float:
        """Mean squared deviation; 0 of no values."""
        return self.deviations / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Standard deviation; 0 of no values."""
        return math.sqrt(self.variance)


def f0(
    wave_N: np.ndarray,
    sample_rate: int,
    *,
    hop_length: int,
    f_min: float = 65.0,
    f_max: float = 600.0,
    padding: Padding = "same",
) -> PitchTrack:
    """Tracks the pitch of one voice.

    The loudness of the recording does not matter; what lies outside of it counts as silence. The voicing of a frame
    depends on the loudest sample of the recording and, through the path, on its neighbours.

    Args:
        wave_N: samples of one channel, shape (N,).
        sample_rate: their rate, Hz; at least 4 * f_max.
        hop_length: samples from frame to frame.
        f_min: lowest pitch, Hz; the window lasts three of its periods.
        f_max: highest pitch, Hz.
        padding: where frames lie, see the head of this file.

    Returns:
        Pitch and voicing of each frame.

    Raises:
        ValueError: the waveform is not of one channel or not finite, or an argument is out of range.
    """
    wave_N = _one_channel(wave_N)
    require(hop_length >= 1, "hop_length", hop_length, "at least 1")
    require(0 < f_min < f_max, "f_min", f_min, f"above 0 and below f_max={f_max}")
    require(sample_rate >= 4 * f_max, "sample_rate", sample_rate, f"at least 4 * f_max = {4 * f_max:g} Hz, or f_max lower")
    num_frames = _num_frames(len(wave_N), hop_length, padding)
    if not num_frames:
        return PitchTrack(np.zeros(0, np.float32), np.zeros(0, bool))
    centred_N = wave_N - wave_N.mean()
    peak = float(np.abs(centred_N).max())
    if peak <= _ROUNDING * float(np.abs(wave_N).max()):
        return PitchTrack(np.zeros(num_frames, np.float32), np.zeros(num_frames, bool))
    size = 2 * round(_PERIODS * sample_rate / f_min / 2) + 1
    padded_N = np.pad(centred_N / peak, (size, size + hop_length))
    first_sample = size - size // 2 + (hop_length // 2 if padding == "same" else 0)
    frames_TS = np.lib.stride_tricks.sliding_window_view(padded_N[first_sample:], size)[::hop_length][:num_frames]
    chunks = [
        _candidates(frames_TS[first : first + _CHUNK_FRAMES], sample_rate, f_min, f_max)
        for first in range(0, num_frames, _CHUNK_FRAMES)
    ]
    hz_TC, strength_TC = (np.concatenate(parts) for parts in zip(*chunks))
    best_T = _best_path(hz_TC, strength_TC, scale=_COST_SECONDS * sample_rate / hop_length)
    f0_T = hz_TC[np.arange(num_frames), best_T].astype(np.float32)
    return PitchTrack(f0_T, f0_T > 0)


def energy(
    wave_N: np.ndarray, *, n_fft: int = 1024, win_length: int = 1024, hop_length: int = 256, padding: Padding = "same"
) -> np.ndarray:
    """L2 norm of the magnitude spectrum of each frame: FastSpeech 2's energy.

    Outside of the recording the waveform is reflected, as that of `MelSpectrogram`, so this is the norm of the spectra that
    its mel bands are taken from; it is computed from the windowed samples, by Parseval's theorem.

    Args:
        wave_N: samples of one channel, shape (N,).
        n_fft: samples of an FFT, even.
        win_length: samples under the periodic Hann window, centred in the FFT.
        hop_length: samples from frame to frame; even, if padding is "same".
        padding: where frames lie, see the head of this file.

    Returns:
        Energies, float32, shape (T,).

    Raises:
        ValueError: the waveform is not of one channel or not finite, or an argument is out of range.
    """
    wave_N = _one_channel(wave_N)
    require(win_length >= 1, "win_length", win_length, "at least 1")
    require(n_fft >= win_length and n_fft % 2 == 0, "n_fft", n_fft, f"even and at least win_length={win_length}")
    require(hop_length >= 1, "hop_length", hop_length, "at least 1")
    require(padding == "center" or hop_length % 2 == 0, "hop_length", hop_length, 'even where padding="same"')
    num_frames = _num_frames(len(wave_N), hop_length, padding)
    if not num_frames:
        return np.zeros(0, np.float32)
    left = (n_fft - win_length) // 2
    window_S = np.zeros(n_fft)
    window_S[left : left + win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    reach = (n_fft - hop_length) // 2 if padding == "same" else n_fft // 2
    end = (num_frames - 1) * hop_length + n_fft - reach
    padded_N = np.pad(wave_N, (max(0, reach), max(0, end - len(wave_N))), mode="reflect")
    frames_TS = np.lib.stride_tricks.sliding_window_view(padded_N[max(0, -reach) :], n_fft)[::hop_length][:num_frames]
    squares_T = np.zeros(num_frames)
    for first in range(0, num_frames, _CHUNK_FRAMES):
        chunk = frames_TS[first : first + _CHUNK_FRAMES] * window_S
        constant_T = chunk.sum(axis=1)  # the first bin and ...
        nyquist_T = chunk[:, ::2].sum(axis=1) - chunk[:, 1::2].sum(axis=1)  # ... the last have no mirror image
        squares_T[first : first + _CHUNK_FRAMES] = (n_fft * (chunk**2).sum(axis=1) + constant_T**2 + nyquist_T**2) / 2
    return np.sqrt(squares_T).astype(np.float32)


def interpolate_log_f0(f0_T: np.ndarray, *, fill_hz: float | None = None) -> np.ndarray:
    """Natural logarithm of F0, continued through unvoiced frames for models that need a value everywhere.

    Gaps are crossed by straight lines in the log domain; beginning and end hold the nearest voiced value.

    Args:
        f0_T: Hz, 0 where unvoiced, shape (T,).
        fill_hz: pitch given to a recording without any voiced frame, such as the speaker's mean; None refuses those.

    Returns:
        log(Hz), float32, shape (T,).

    Raises:
        ValueError: a value is negative or not finite; nothing is voiced and `fill_hz` is None or not above 0.
    """
    f0_T = np.asarray(f0_T, np.float64)
    if f0_T.ndim != 1 or not np.isfinite(f0_T).all() or (f0_T < 0).any():
        raise ValueError(f"f0_T of shape {f0_T.shape}: give finite frequencies in Hz, 0 where unvoiced, shape (T,)")
    voiced = np.flatnonzero(f0_T)
    if not len(f0_T):
        return np.zeros(0, np.float32)
    if not len(voiced):
        if fill_hz is None or not 0 < fill_hz < math.inf:
            raise ValueError(f"fill_hz={fill_hz}: none of {len(f0_T)} frames is voiced; give a pitch above 0 Hz to use then")
        return np.full(len(f0_T), math.log(fill_hz), np.float32)
    return np.interp(np.arange(len(f0_T)), voiced, np.log(f0_T[voiced])).astype(np.float32)


def moments(values: np.ndarray) -> Moments:
    """Moments of all values of an array of any shape, such as the log F0 of voiced frames.

    Raises:
        ValueError: a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape} are not all finite: leave those frames out")
    if not values.size:
        return Moments()
    mean = float(values.mean())
    return Moments(values.size, mean, float(np.square(values - mean).sum()))


def moments_by_speaker(values: Iterable[tuple[str, np.ndarray]]) -> dict[str, Moments]:
    """Moments of each speaker over all of its recordings; `sum(result.values(), Moments())` is that of all speakers.

    Args:
        values: speaker and values of each recording, such as log F0 of voiced frames.

    Raises:
        ValueError: a value is not finite.
    """
    result: dict[str, Moments] = {}
    for speaker, part in values:
        result[speaker] = result.get(speaker, Moments()) + moments(part)
    return result


def _candidates(frames_TS: np.ndarray, sample_rate: int, f_min: float, f_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Pitch (0 for "unvoiced" and for none) and strength (-inf for none) of each frame's candidates, shapes (T, C)."""
    num_frames, size = frames_TS.shape
    window_S = np.hanning(size + 2)[1:-1]
    middle = size // 2
    reach = round(sample_rate / f_min / 2)
    frames_TS = frames_TS - frames_TS.mean(axis=1, keepdims=True)
    loudness_T = np.abs(frames_TS[:, middle - reach : middle + reach + 1]).max(axis=1)
    rate = _OVERSAMPLING * sample_rate
    low, high = math.floor(rate / f_max), math.ceil(rate / f_min)
    shape = _autocorrelation(window_S[None])[:, low - 1 : high + 2]
    correlation_TL = _autocorrelation(frames_TS * window_S)[:, low - 1 : high + 2] / shape
    before, here, after = correlation_TL[:, :-2], correlation_TL[:, 1:-1], correlation_TL[:, 2:]
    is_peak_TL = (here > before) & (here >= after) & (here > 0.5 * _VOICING_THRESHOLD)
    heights_TL = np.where(is_peak_TL, here, -np.inf)
    count = min(_NUM_CANDIDATES - 1, heights_TL.shape[1])
    best_TC = np.argsort(-heights_TL, axis=1, kind="stable")[:, :count]
    a, b, c = (np.take_along_axis(x, best_TC, axis=1) for x in (before, here, after))
    found_TC = np.take_along_axis(is_peak_TL, best_TC, axis=1)
    curve = np.where(found_TC, 2 * b - a - c, 1.0)
    shift_TC = np.where(found_TC, 0.5 * (c - a) / curve, 0.0)
    height_TC = b + 0.25 * (c - a) * shift_TC
    height_TC = np.where(height_TC > 1, 1 / np.maximum(height_TC, 1), height_TC)
    hz_TC = rate / (best_TC + low + shift_TC)
    found_TC &= (hz_TC >= f_min) & (hz_TC <= f_max)
    strength_TC = np.where(found_TC, height_TC + _OCTAVE_COST * np.log2(hz_TC / f_min), -np.inf)
    quiet_T = 2 - loudness_T * (1 + _VOICING_THRESHOLD) / _SILENCE_THRESHOLD
    unvoiced_T1 = (_VOICING_THRESHOLD + np.maximum(0, quiet_T))[:, None]
    zeros_T1 = np.zeros((num_frames, 1))
    return np.hstack([zeros_T1, np.where(found_TC, hz_TC, 0)]), np.hstack([unvoiced_T1, strength_TC])


def _autocorrelation(frames_TS: np.ndarray) -> np.ndarray:
    """Autocorrelation over lags of 1 / _OVERSAMPLING samples, 1 at lag 0; 0 where a frame is silent."""
    n_fft = 1 << (2 * frames_TS.shape[1] - 1).bit_length()
    spectrum = np.fft.rfft(frames_TS, n_fft)
    power = spectrum.real**2 + spectrum.imag**2
    correlation_TL = np.fft.irfft(power, _OVERSAMPLING * n_fft)[:, : _OVERSAMPLING * frames_TS.shape[1]]
    return correlation_TL / np.maximum(correlation_TL[:, :1], 1e-30)


def _best_path(hz_TC: np.ndarray, strength_TC: np.ndarray, scale: float) -> np.ndarray:
    """Candidate of each frame on the path of the greatest strength less the costs of its changes, int64, shape (T,)."""
    num_frames, num_candidates = hz_TC.shape
    voiced_TC = hz_TC > 0
    octaves_TC = np.log2(np.where(voiced_TC, hz_TC, 1.0))
    came_from_TC = np.zeros((num_frames, num_candidates), np.int64)
    total_C = strength_TC[0]
    index_C = np.arange(num_candidates)
    for t in range(1, num_frames):
        jumps_CC = _JUMP_COST * np.abs(octaves_TC[t][:, None] - octaves_TC[t - 1])
        both_CC = voiced_TC[t][:, None] & voiced_TC[t - 1]
        changes_CC = _VOICING_COST * (voiced_TC[t][:, None] ^ voiced_TC[t - 1])
        scores_CC = total_C - scale * np.where(both_CC, jumps_CC, changes_CC)
        came_from_TC[t] = scores_CC.argmax(axis=1)
        total_C = strength_TC[t] + scores_CC[index_C, came_from_TC[t]]
    best_T = np.zeros(num_frames, np.int64)
    best_T[-1] = total_C.argmax()
    for t in range(num_frames - 1, 0, -1):
        best_T[t - 1] = came_from_TC[t, best_T[t]]
    return best_T


def _num_frames(num_samples: int, hop_length: int, padding: Padding) -> int:
    require(padding in ("same", "center"), "padding", repr(padding), '"same" or "center"')
    if padding == "same":
        return -(-num_samples // hop_length)
    return 1 + num_samples // hop_length if num_samples else 0


def _one_channel(wave_N: np.ndarray) -> np.ndarray:
    wave_N = np.asarray(wave_N, np.float64)
    if wave_N.ndim != 1:
        raise ValueError(f"wave_N has shape {wave_N.shape}: give one channel, shape (N,)")
    if not np.isfinite(wave_N).all():
        raise ValueError("wave_N holds values that are not finite: decode the recording anew or leave it out")
    return wave_N


__all__ = ["Moments", "PitchTrack", "energy", "f0", "interpolate_log_f0", "moments", "moments_by_speaker"]

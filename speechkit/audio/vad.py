"""Voice activity by energy over an adaptive noise floor: where in a recording there may be speech.

The energy in the speech band (150 Hz to 5 kHz), frame by frame, is compared with a floor that follows the recording
(the quietest tenth of the half minute around). Speech must rise well above the floor and must vary: silence, hum and
stationary noise of any colour do neither.

Shape legend: N samples, T frames.
"""

from __future__ import annotations

import numpy as np

from speechkit.types import Seconds

_FRAME: Seconds = 0.032
_SHIFT: Seconds = 0.010
_BAND_HZ = (150.0, 5000.0)
_CHUNK_FRAMES = 4096
_BLOCK = 100  # frames of which one value of the floor is made
_FLOOR_REACH = 15  # blocks on each side that the floor looks at
_MIN_VARYING_FRAMES = 60  # a region at least this long must vary in level to be speech


def energy_vad(
    wave_N: np.ndarray,
    sample_rate: int,
    *,
    margin_db: float = 9.0,
    keep_db: float = 5.0,
    min_level_db: float = -62.0,
    min_speech: Seconds = 0.08,
    min_silence: Seconds = 0.3,
    hangover: Seconds = 0.2,
    min_spread_db: float = 6.0,
) -> list[tuple[float, float]]:
    """Finds regions of speech.

    Args:
        wave_N: samples in [-1, 1], shape (N,).
        sample_rate: their rate, Hz.
        margin_db: a region must somewhere rise this far above the noise floor.
        keep_db: it extends as far as the level stays this far above the floor.
        min_level_db: what lies below this level (mean square of the band, dB of full scale) is never speech.
        min_speech: shorter regions are clicks and left out, seconds.
        min_silence: shorter pauses do not end a region, seconds.
        hangover: added before and after each region, for soft beginnings and endings, seconds.
        min_spread_db: regions of more than half a second whose level varies less than this are noise, not speech.

    Returns:
        Beginnings and ends in seconds, in order, not overlapping, within the recording.

    Raises:
        ValueError: the waveform is not of one channel, or the rate is not above 0.
    """
    wave_N = np.asarray(wave_N)
    if wave_N.ndim != 1:
        raise ValueError(f"wave_N has shape {wave_N.shape}: give one channel, shape (N,)")
    if sample_rate < 1:
        raise ValueError(f"sample_rate={sample_rate}: must be above 0 Hz")
    level_T = _band_level(wave_N, sample_rate)
    if not len(level_T):
        return []
    floor_T = np.maximum(_noise_floor(level_T), min_level_db - margin_db)
    begins, ends = _runs(level_T > floor_T + keep_db)
    begins, ends = _join(begins, ends, round(min_silence / _SHIFT))
    total = len(wave_N) / sample_rate
    regions: list[tuple[float, float]] = []
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        above_R = level_T[begin:end] - floor_T[begin:end]
        loud = int(np.count_nonzero(above_R > margin_db))
        if loud * _SHIFT < min_speech:
            continue
        if end - begin >= _MIN_VARYING_FRAMES and _spread(level_T[begin:end]) < min_spread_db:
            continue
        first = max(0.0, begin * _SHIFT - hangover)
        last = min(total, (end - 1) * _SHIFT + _FRAME + hangover)
        if regions and first <= regions[-1][1]:
            regions[-1] = (regions[-1][0], last)
        else:
            regions.append((first, last))
    return regions


def _band_level(wave_N: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean square of the speech band in each frame, dB of full scale, float32, shape (T,)."""
    size = max(2, round(_FRAME * sample_rate))
    shift = max(1, round(_SHIFT * sample_rate))
    if len(wave_N) == 0:
        return np.zeros(0, np.float32)
    num_frames = max(1, 1 + (len(wave_N) - size) // shift)
    n_fft = 1 << (size - 1).bit_length()
    window = np.hanning(size + 2)[1:-1].astype(np.float32)
    frequency = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    band = slice(int(np.searchsorted(frequency, _BAND_HZ[0])), int(np.searchsorted(frequency, _BAND_HZ[1])))
    scale = 2.0 / (n_fft * float(np.sum(np.square(window, dtype=np.float64))))
    level_T = np.empty(num_frames, np.float32)
    for first in range(0, num_frames, _CHUNK_FRAMES):
        last = min(num_frames, first + _CHUNK_FRAMES)
        piece = wave_N[first * shift : (last - 1) * shift + size].astype(np.float32)
        if len(piece) < size:
            piece = np.pad(piece, (0, size - len(piece)))
        frames = np.lib.stride_tricks.sliding_window_view(piece, size)[::shift] * window
        spectrum = np.ascontiguousarray(np.fft.rfft(frames, n_fft)[:, band])
        parts = spectrum.view(spectrum.real.dtype)
        power = np.einsum("ij,ij->i", parts, parts) * scale
        level_T[first:last] = 10.0 * np.log10(np.maximum(power, 1e-12))
    return level_T


def _noise_floor(level_T: np.ndarray) -> np.ndarray:
    """The quietest tenth of the frames around each frame, dB, shape (T,)."""
    num_blocks = -(-len(level_T) // _BLOCK)
    padded = np.pad(level_T, (0, num_blocks * _BLOCK - len(level_T)), mode="edge")
    blocks = padded.reshape(num_blocks, _BLOCK)
    reach = min(_FLOOR_REACH, num_blocks - 1)
    quiet = np.sort(blocks, axis=1)[:, : max(1, _BLOCK // 2) : 5]  # ten quantiles below the median stand for a block
    width = 2 * reach + 1
    around = np.pad(quiet, ((reach, reach), (0, 0)), mode="reflect" if reach else "edge")
    views = np.lib.stride_tricks.sliding_window_view(around, width, axis=0).reshape(num_blocks, -1)
    floor = np.quantile(views, 0.2, axis=1)  # a fifth of the lower halves: a tenth of all
    return np.repeat(floor, _BLOCK)[: len(level_T)].astype(np.float32)


def _spread(level_R: np.ndarray) -> float:
    low, high = np.quantile(level_R, (0.1, 0.9))
    return float(high - low)


def _runs(active_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First frames and ends (exclusive) of the runs of True."""
    edges = np.diff(np.concatenate([[False], active_T, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _join(begins: np.ndarray, ends: np.ndarray, min_gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Joins runs with fewer than `min_gap` frames between them."""
    if not len(begins):
        return begins, ends
    apart = begins[1:] - ends[:-1] >= min_gap
    return begins[np.concatenate([[True], apart])], ends[np.concatenate([apart, [True]])]

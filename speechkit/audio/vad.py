"""Voice activity by energy over an adaptive noise floor: where in a recording there may be speech.

Seven bands are compared each with its own noise floor, the quietest tenth of the half minute around, and the excess in
dB is averaged over bands and five frames. For stationary noise, whatever its colour and level, this average stays below
4.2 dB, while isolated digits of 0.2 s without any silence around them reach 6 dB and sentences 19 dB and more.
What rises above the floor must also vary from moment to moment, which noise and hum that set in later do not.

Shape legend: N samples, T frames, R frames of a region, K bands.
"""

from __future__ import annotations

import numpy as np

from speechkit.types import Seconds

_FRAME: Seconds = 0.032
_SHIFT: Seconds = 0.010
_BAND_EDGES_HZ = (150.0, 300.0, 500.0, 800.0, 1200.0, 1800.0, 2700.0, 4000.0)
_CHUNK_FRAMES = 2048
_BLOCK = 100  # frames that one value of the floor stands for
_FLOOR_REACH = 15  # blocks on each side that the floor looks at
_SMOOTHING = 5  # frames
_TREND = 101  # frames: slower changes of level are not speech
_EDGE = 8  # frames within which a step is felt
_MIN_VARYING = 60  # frames of a region from which on its variation is judged
_MIN_LOUD = 3  # frames above the margin that a region needs


def energy_vad(
    wave_N: np.ndarray,
    sample_rate: int,
    *,
    margin_db: float = 5.0,
    keep_db: float = 3.5,
    min_level_db: float = -65.0,
    min_speech: Seconds = 0.09,
    min_silence: Seconds = 0.3,
    hangover: Seconds = 0.2,
) -> list[tuple[float, float]]:
    """Finds regions of speech.

    Args:
        wave_N: samples in [-1, 1], shape (N,).
        sample_rate: their rate, Hz.
        margin_db: a region must somewhere rise this far above the noise floor, averaged over bands.
        keep_db: it extends as far as the level stays this far above the floor.
        min_level_db: a region must somewhere exceed this level (150 Hz to 4 kHz, dB of full scale).
        min_speech: shorter regions are clicks and left out, seconds.
        min_silence: shorter pauses do not end a region, seconds.
        hangover: added before and after each region, for soft beginnings and endings, seconds.

    Returns:
        Beginnings and ends in seconds, in order, not overlapping, within the recording.

    Raises:
        ValueError: the waveform is not of one channel, or the rate is below 1 kHz.
    """
    wave_N = np.asarray(wave_N)
    if wave_N.ndim != 1:
        raise ValueError(f"wave_N has shape {wave_N.shape}: give one channel, shape (N,)")
    if sample_rate < 1000:
        raise ValueError(f"sample_rate={sample_rate}: must be at least 1000 Hz")
    if not len(wave_N):
        return []
    power_TK = _band_power(wave_N, sample_rate)
    level_T = _decibel(power_TK.sum(axis=1))
    level_TK = _decibel(power_TK)
    floor_TK = np.maximum(_noise_floor(level_TK), np.float32(min_level_db - 15.0))
    excess_T = _excess(level_TK, floor_TK)
    begins, ends = _runs(excess_T > keep_db)
    begins, ends = _join(begins, ends, round(min_silence / _SHIFT))
    total = len(wave_N) / sample_rate
    regions: list[tuple[float, float]] = []
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        loud_R = (excess_T[begin:end] > margin_db) & (level_T[begin:end] > min_level_db)
        if np.count_nonzero(loud_R) < _MIN_LOUD or (end - begin - 1) * _SHIFT + _FRAME < min_speech:
            continue
        if not _varies(level_TK[begin:end], margin_db):
            continue
        first = max(0.0, begin * _SHIFT - hangover)
        last = min(total, (end - 1) * _SHIFT + _FRAME + hangover)
        if regions and first <= regions[-1][1]:
            regions[-1] = (regions[-1][0], last)
        else:
            regions.append((first, last))
    return regions


def _band_power(wave_N: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean square of each band in each frame, float32, shape (T, K)."""
    size = round(_FRAME * sample_rate)
    shift = round(_SHIFT * sample_rate)
    num_frames = max(1, 1 + (len(wave_N) - size) // shift)
    n_fft = 1 << (size - 1).bit_length()
    window = np.hanning(size + 2)[1:-1].astype(np.float32)
    edges = [edge for edge in _BAND_EDGES_HZ if edge <= sample_rate / 2]
    bins = np.searchsorted(np.fft.rfftfreq(n_fft, 1.0 / sample_rate), edges)
    scale = np.float32(2.0 / (n_fft * float(np.sum(np.square(window, dtype=np.float64)))))
    power_TK = np.empty((num_frames, len(edges) - 1), np.float32)
    for first in range(0, num_frames, _CHUNK_FRAMES):
        last = min(num_frames, first + _CHUNK_FRAMES)
        piece = wave_N[first * shift : (last - 1) * shift + size].astype(np.float32)
        if len(piece) < size:
            piece = np.pad(piece, (0, size - len(piece)))
        frames = np.lib.stride_tricks.sliding_window_view(piece, size)[::shift] * window
        spectrum = np.fft.rfft(frames, n_fft)[:, bins[0] : bins[-1]]
        power = spectrum.real**2 + spectrum.imag**2
        power_TK[first:last] = np.add.reduceat(power, bins[:-1] - bins[0], axis=1) * scale
    return power_TK


def _decibel(power: np.ndarray) -> np.ndarray:
    return 10.0 * np.log10(np.maximum(power, np.float32(1e-12)))


def _noise_floor(level_TK: np.ndarray) -> np.ndarray:
    """The level that a tenth of the frames around each frame stay below, dB, shape (T, K)."""
    num_frames, num_bands = level_TK.shape
    num_blocks = -(-num_frames // _BLOCK)
    if num_blocks == 1:
        return np.quantile(level_TK, 0.1, axis=0, keepdims=True).astype(np.float32)
    padded = np.pad(level_TK, ((0, num_blocks * _BLOCK - num_frames), (0, 0)), mode="reflect")
    blocks = np.sort(padded.reshape(num_blocks, _BLOCK, num_bands), axis=1)
    quiet = blocks[:, : _BLOCK // 2 : 5]  # ten quantiles of the lower half stand for a block
    reach = min(_FLOOR_REACH, num_blocks - 1)
    around = np.pad(quiet, ((reach, reach), (0, 0), (0, 0)), mode="reflect")
    views = np.lib.stride_tricks.sliding_window_view(around, 2 * reach + 1, axis=0)
    floor = np.quantile(views, 0.2, axis=(1, 3))  # a fifth of the lower halves: a tenth of all
    return np.repeat(floor, _BLOCK, axis=0)[:num_frames].astype(np.float32)


def _excess(level_TK: np.ndarray, floor_TK: np.ndarray) -> np.ndarray:
    """Decibels above the floor, averaged over bands and neighbouring frames, shape (T,)."""
    excess_T = np.maximum(level_TK - floor_TK, np.float32(0.0)).mean(axis=1)
    return _moving_average(excess_T[:, None], _SMOOTHING)[:, 0]


def _varies(level_RK: np.ndarray, margin_db: float) -> bool:
    """Whether a region varies as speech does, once slow changes of level are taken away."""
    if len(level_RK) < _MIN_VARYING:
        return True  # too short to tell
    level_RK = level_RK[_EDGE:-_EDGE]  # a sudden beginning or end is no variation
    fast_RK = level_RK - _moving_average(level_RK, _TREND)
    excess_R = _excess(fast_RK, np.quantile(fast_RK, 0.1, axis=0, keepdims=True).astype(np.float32))
    return bool(np.count_nonzero(excess_R > margin_db) >= _MIN_LOUD)


def _moving_average(values_TK: np.ndarray, width: int) -> np.ndarray:
    """Average of the frames within width // 2 of each frame; fewer at the ends."""
    num_frames = len(values_TK)
    total = np.zeros((num_frames + 1, values_TK.shape[1]))
    np.cumsum(values_TK, axis=0, dtype=np.float64, out=total[1:])
    index_T = np.arange(num_frames)
    low_T, high_T = np.maximum(index_T - width // 2, 0), np.minimum(index_T + width // 2 + 1, num_frames)
    return ((total[high_T] - total[low_T]) / (high_T - low_T)[:, None]).astype(np.float32)


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

"""Where a recording of clear speech is silent, to the hundredth of a second; what tells pauses from sounds when it is aligned.

`speechkit.audio.vad` finds where there may be speech at all, in any noise; here it is known that there is, and the question is
where exactly it pauses.

Shape legend: N samples, T steps or frames.
"""

from __future__ import annotations

import numpy as np

from speechkit.types import Seconds

_SHIFT: Seconds = 0.01
_BELOW_PEAK_DB, _ABOVE_FLOOR_DB, _LEAST_RANGE_DB = 35.0, 6.0, 20.0


class Silence:
    """Silent stretches of a recording, in steps of 10 ms.

    A step is silent that lies 35 dB below the loudest ones, or no more than 6 dB above the quietest ones where noise fills the
    pauses; at least 20 dB below the loudest in any case. Loudest and quietest are the 99th and 5th percentile of the steps.

    Args:
        wave_N: samples in [-1, 1], shape (N,), at least one.
        sample_rate: their rate, Hz.

    Attributes:
        duration: of the recording, seconds.
    """

    def __init__(self, wave_N: np.ndarray, sample_rate: int) -> None:
        self.duration = len(wave_N) / sample_rate
        size = max(1, round(_SHIFT * sample_rate))
        self._step = size / sample_rate
        num_steps = -(-len(wave_N) // size)
        squares = np.pad(np.square(wave_N, dtype=np.float64), (0, num_steps * size - len(wave_N))).reshape(num_steps, size)
        level_T = 10.0 * np.log10(np.maximum(squares.mean(axis=1), 1e-12))
        floor, peak = np.percentile(level_T, (5, 99))
        self._silent_T = level_T < min(max(peak - _BELOW_PEAK_DB, floor + _ABOVE_FLOOR_DB), peak - _LEAST_RANGE_DB)

    def frames(self, num_frames: int, shift: Seconds, *, least: Seconds) -> np.ndarray:
        """Frames that lie wholly in long silence.

        Args:
            num_frames: T; frame t is centred on second t * shift, and as long as the shift.
            shift: seconds from frame to frame.
            least: seconds of silence that are long.

        Returns:
            bool, shape (T,).
        """
        sure_T = np.zeros_like(self._silent_T)
        for begin, end in zip(*_runs(self._silent_T)):
            if (end - begin) * self._step > least - 1e-9:
                sure_T[begin:end] = True
        edges = ((np.arange(num_frames + 1) - 0.5) * shift / self._step).round().astype(np.int64).clip(0, len(sure_T))
        sums = np.concatenate(([0], np.cumsum(sure_T)))
        return (edges[1:] > edges[:-1]) & (sums[edges[1:]] - sums[edges[:-1]] == edges[1:] - edges[:-1])

    def longest(self, start: Seconds, end: Seconds, *, least: Seconds) -> tuple[Seconds, Seconds] | None:
        """The longest silence between two times, seconds; None where there is none of `least` seconds."""
        first, last = round(start / self._step), min(round(end / self._step), len(self._silent_T))
        begins, ends = _runs(self._silent_T[first:last])
        if not len(begins):
            return None
        best = int(np.argmax(ends - begins))
        found = (max(start, (first + begins[best]) * self._step), min(end, (first + ends[best]) * self._step))
        return (float(found[0]), float(found[1])) if found[1] - found[0] > least - 1e-9 else None


def _runs(active_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First frame of each run, and the frame after its last."""
    changes = np.diff(np.concatenate(([0], active_T.astype(np.int8), [0])))
    return np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)

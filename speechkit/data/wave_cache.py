"""Decoded audio in memory that forked workers share, as 16-bit samples.

Shape legend: N samples.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

_FULL_SCALE = 32767.0


class WaveCache:
    """A slot for every utterance, filled by whichever process reads it first.

    The memory is an anonymous shared mapping: it is taken page by page as slots fill, and is not limited by /dev/shm.
    A spawned (rather than forked) process starts with a cache of its own.
    """

    def __init__(self, durations: np.ndarray, sample_rate: int) -> None:
        """Reserves room.

        Args:
            durations: the longest that each utterance can be, in seconds.
            sample_rate: of the waveforms, Hz.
        """
        sizes = np.ceil(durations.astype(np.float64) * sample_rate).astype(np.int64) + 2
        self._begins = np.concatenate([[0], np.cumsum(sizes)])
        self._map()

    def _map(self) -> None:
        count = len(self._begins) - 1
        self._lengths = np.frombuffer(mmap.mmap(-1, max(8, 8 * count)), np.int64)
        self._samples = np.frombuffer(mmap.mmap(-1, max(2, 2 * int(self._begins[-1]))), np.int16)

    def __getstate__(self) -> dict[str, Any]:
        return {"_begins": self._begins}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def get(self, i: int) -> np.ndarray | None:
        """The waveform of slot `i`, float32, shape (N,), or None where none was put."""
        length = int(self._lengths[i])
        if not length:
            return None
        begin = self._begins[i]
        return self._samples[begin : begin + length].astype(np.float32) / np.float32(_FULL_SCALE)

    def put(self, i: int, wave_N: np.ndarray) -> np.ndarray:
        """Fills slot `i`; gives the waveform as later reads will.

        Samples outside [-1, 1] are clipped. One that does not fit its slot is rounded all the same, but not kept.
        """
        rounded_N = np.rint(np.clip(wave_N, -1.0, 1.0) * np.float32(_FULL_SCALE)).astype(np.int16)
        begin = self._begins[i]
        if len(rounded_N) <= self._begins[i + 1] - begin:
            self._samples[begin : begin + len(rounded_N)] = rounded_N
            self._lengths[i] = len(rounded_N)  # last: a slot with a length is complete
        return rounded_N.astype(np.float32) / np.float32(_FULL_SCALE)

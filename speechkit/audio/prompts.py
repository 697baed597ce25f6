"""Speech of a voice to imitate, as models take it: one channel, without silence at its ends, loud enough.

Source: F5-TTS (Chen et al., 2024), whose inference code does the same.

Shape legend: N samples.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from speechkit.audio.inputs import iter_input
from speechkit.audio.vad import energy_vad
from speechkit.types import Seconds

MAX_SECONDS: Seconds = 30.0
LEAST_RMS = 0.1
_MARGIN: Seconds = 0.1  # around speech, for soft beginnings and endings


def read_prompt(audio: Any, *, sample_rate: int, given_rate: int | None = None) -> np.ndarray:
    """Reads a prompt.

    Args:
        audio: a path, open file, bytes, array or tensor, as `speechkit.audio.inputs.iter_input` takes them.
        sample_rate: rate of the result, Hz.
        given_rate: rate of arrays and tensors, Hz; None means `sample_rate`.

    Returns:
        From the first to the last speech in it, with a root mean square of at least 0.1, float32, shape (N,).

    Raises:
        AudioError: it cannot be read.
        ValueError: there is no speech in it, it is too long, or of a type or shape that is not understood.
    """
    name = f"prompt={os.fspath(audio)}" if isinstance(audio, (str, os.PathLike)) else f"prompt of type {type(audio).__name__}"
    blocks: list[np.ndarray] = []
    num_samples = 0
    for block_N in iter_input(audio, sample_rate=sample_rate, given_rate=given_rate):
        blocks.append(block_N)
        num_samples += len(block_N)
        if num_samples > MAX_SECONDS * sample_rate:
            raise ValueError(f"{name} is longer than {MAX_SECONDS:.0f} s; give that much at most, and the text of these")
    wave_N = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    regions = energy_vad(wave_N, sample_rate, hangover=_MARGIN)
    if not regions:
        seconds = len(wave_N) / sample_rate
        raise ValueError(f"{name}: there is no speech in its {seconds:.1f} s; give speech of the voice to imitate")
    wave_N = wave_N[round(regions[0][0] * sample_rate) : round(regions[-1][1] * sample_rate)]
    rms = float(np.sqrt(np.square(wave_N, dtype=np.float64).mean()))
    return wave_N * np.float32(max(1.0, LEAST_RMS / rms))

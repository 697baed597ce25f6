"""Audio as callers have it: a path, an open file, bytes, an array or a tensor, as one channel at the wanted rate.

Shape legend: N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from speechkit.audio.io import AudioError, iter_audio, resample
from speechkit.types import Seconds


def iter_input(
    audio: Any, *, sample_rate: int, given_rate: int | None = None, block_seconds: Seconds = 30.0
) -> Iterator[np.ndarray]:
    """Reads audio block by block; arrays and tensors are one block.

    Args:
        audio: a path, open binary file, bytes, 1-D array or tensor of samples (2-D: one axis is channels, the shorter).
        sample_rate: rate of the result, Hz.
        given_rate: rate of arrays and tensors, Hz; None means `sample_rate`. Files know theirs.
        block_seconds: length of the blocks of files.

    Yields:
        float32 blocks of one channel.

    Raises:
        AudioError: it cannot be read, or holds NaN or infinite samples.
        ValueError: it is of another type or shape.
    """
    if isinstance(audio, (np.ndarray, Tensor)):
        wave_N = as_mono(audio)
        yield resample(wave_N, given_rate, sample_rate) if given_rate else wave_N
    elif isinstance(audio, (str, Path, bytes)) or hasattr(audio, "read"):
        yield from iter_audio(audio, block_seconds=block_seconds, sample_rate=sample_rate)
    else:
        raise ValueError(
            f"audio of type {type(audio).__name__} is not understood: give a path, an open file, bytes, an array or a tensor"
        )


def as_mono(samples: np.ndarray | Tensor) -> np.ndarray:
    """Float samples of one channel from an array or tensor; integers are scaled by their range.

    Raises:
        ValueError: more than two axes, or a type that holds no samples.
        AudioError: NaN or infinite samples.
    """
    array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples
    if np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float32) / float(np.iinfo(array.dtype).max + 1)
    elif not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"audio array of type {array.dtype}: give floating-point or integer samples")
    if array.ndim == 2 and array.size:
        array = array.mean(axis=int(np.argmin(array.shape)))
    elif array.ndim != 1:
        raise ValueError(f"audio array of shape {array.shape}: give one axis of samples, or two of which the shorter is channels")
    wave_N = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(wave_N).all():
        raise AudioError("audio array holds NaN or infinite samples: clean it first (numpy.nan_to_num)")
    return wave_N

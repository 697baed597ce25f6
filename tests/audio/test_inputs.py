"""Audio as callers have it: every kind gives the same samples; what holds none is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechkit.audio.inputs import as_mono, iter_input
from speechkit.audio.io import AudioError

RATE = 8000


def read(audio: Any, **options: Any) -> np.ndarray:
    return np.concatenate([*iter_input(audio, **{"sample_rate": RATE, **options})])


def test_every_kind_gives_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    wave_N = (0.1 * rng.normal(size=3000)).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave_N, RATE, subtype="FLOAT")
    stereo_CN = np.stack([wave_N + 0.1, wave_N - 0.1])
    for audio in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), wave_N, torch.from_numpy(wave_N)):
        np.testing.assert_array_equal(read(audio), wave_N)
    for audio in (stereo_CN, stereo_CN.T, torch.from_numpy(stereo_CN)):
        np.testing.assert_allclose(read(audio), wave_N, atol=1e-6)
    np.testing.assert_allclose(read((wave_N * 32768).astype(np.int16)), wave_N, atol=1e-4)
    assert [len(block) for block in iter_input(path, sample_rate=RATE, block_seconds=0.1)] == [800, 800, 800, 600]


def test_rates(rng: np.random.Generator) -> None:
    wave_N = rng.normal(size=4000).astype(np.float32)
    assert len(read(wave_N, given_rate=2 * RATE)) == 2000
    np.testing.assert_array_equal(read(wave_N, given_rate=RATE), wave_N)


@pytest.mark.parametrize("audio", [3, None, {"a": 1}, np.zeros((2, 3, 4), np.float32), np.array(["a"]), np.array([True])])
def test_what_holds_no_samples_is_refused(audio: Any) -> None:
    with pytest.raises(ValueError, match="audio"):
        read(audio)


def test_samples_must_be_finite() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(AudioError, match="NaN or infinite"):
            as_mono(np.array([0.0, value]))

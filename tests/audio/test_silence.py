"""Silence within speech: where it is, in clean recordings and in noisy ones."""

from __future__ import annotations

import numpy as np
import pytest

from speechkit.audio.silence import Silence

RATE = 16000


def bursts(noise: float) -> np.ndarray:
    """0.3 s of silence, 0.5 s of sound, 0.2 s of silence, 0.5 s of sound."""
    loud = np.repeat([0.0, 1.0, 0.0, 1.0], [4800, 8000, 3200, 8000])
    rng = np.random.default_rng(0)
    return (0.3 * loud * np.sin(np.arange(24000) / 5) + noise * rng.standard_normal(24000)).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_pauses_are_found(noise: float) -> None:
    silence = Silence(bursts(noise), RATE)
    assert silence.duration == 1.5
    assert silence.longest(0.0, 1.5, least=0.05) == pytest.approx((0.0, 0.3), abs=0.011)
    assert silence.longest(0.5, 1.5, least=0.05) == pytest.approx((0.8, 1.0), abs=0.011)
    assert silence.longest(0.35, 0.75, least=0.05) is None
    assert silence.longest(0.5, 1.5, least=0.3) is None
    assert silence.longest(0.9, 0.9, least=0.05) is None
    assert np.flatnonzero(silence.frames(38, 0.04, least=0.1)).tolist() == [*range(8), *range(21, 25)]


def test_even_sound_has_no_silence() -> None:
    wave = (0.2 * np.sin(np.arange(8000) / 5)).astype(np.float32)
    assert Silence(wave, RATE).longest(0.0, 0.5, least=0.05) is None
    assert not Silence(wave[:1], RATE).frames(3, 0.04, least=0.1).any()

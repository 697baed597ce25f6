"""Prompts: what is read of them, cut off and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechkit.audio.io import AudioError
from speechkit.audio.prompts import read_prompt

RATE = 16000


def speech(seconds: float = 1.0) -> np.ndarray:
    """Syllables of a buzz."""
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30))
    return (0.1 * buzz * np.sin(2 * np.pi * 2.5 * time) ** 2).astype(np.float32)


def test_silent_ends_go_and_quiet_speech_is_louder() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-4, 3 * RATE).astype(np.float32)
    wave_N = noise.copy()
    wave_N[RATE : 2 * RATE] += 0.1 * speech()
    prompt_N = read_prompt(wave_N, sample_rate=RATE)
    assert 1.0 <= len(prompt_N) / RATE <= 1.35
    assert prompt_N.dtype == np.float32
    assert np.sqrt(np.square(prompt_N).mean()) == pytest.approx(0.1, rel=1e-3)
    loud = 5 * speech()
    np.testing.assert_array_equal(read_prompt(loud, sample_rate=RATE)[:100], loud[:100])


def test_samples_of_any_kind_are_the_same_prompt(tmp_path: Path) -> None:
    whole = np.round(speech() * 32767).astype(np.int16)
    expected = read_prompt(whole / np.float32(32768), sample_rate=RATE)
    soundfile.write(tmp_path / "a.wav", whole, RATE)
    stereo = np.stack([whole, whole])
    arrays = [whole, stereo, stereo.T, torch.from_numpy(whole), torch.from_numpy(stereo)]
    for audio in [*arrays, tmp_path / "a.wav", str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes()]:
        np.testing.assert_allclose(read_prompt(audio, sample_rate=RATE), expected, atol=1e-4)
    half = read_prompt(whole, sample_rate=RATE, given_rate=RATE // 2)
    assert len(half) == pytest.approx(2 * len(expected), rel=0.1)


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_prompt_without_speech_is_refused_by_name(seconds: float, tmp_path: Path) -> None:
    silence = np.zeros(round(seconds * RATE), np.float32)
    with pytest.raises(ValueError, match=rf"prompt of type ndarray: there is no speech in its {seconds:.1f} s"):
        read_prompt(silence, sample_rate=RATE)
    if seconds:
        hiss = np.random.default_rng(0).normal(0, 0.1, len(silence)).astype(np.float32)
        soundfile.write(tmp_path / "hiss.wav", hiss, RATE)
        with pytest.raises(ValueError, match=r"prompt=.*hiss\.wav: there is no speech in its 2\.0 s"):
            read_prompt(tmp_path / "hiss.wav", sample_rate=RATE)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is longer than 30 s"):
        read_prompt(np.tile(speech(), 31), sample_rate=RATE)
    with pytest.raises(AudioError, match="NaN"):
        read_prompt(np.full(RATE, np.nan, np.float32), sample_rate=RATE)
    with pytest.raises(AudioError):
        read_prompt(tmp_path / "none.wav", sample_rate=RATE)
    with pytest.raises(ValueError, match="audio of type int is not understood"):
        read_prompt(3, sample_rate=RATE)

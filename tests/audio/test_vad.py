"""Voice activity: nothing in noise, everything in speech."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio.augment import coloured_noise
from speechkit.audio.io import load_audio
from speechkit.audio.vad import energy_vad

RATE = 16000


def noise(seconds: float, colour: float = 0.0, seed: int = 0) -> np.ndarray:
    return coloured_noise(round(seconds * RATE), RATE, colour, np.random.default_rng(seed))


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Syllables of a buzzing voice with moving formants, four a second."""
    rng = np.random.default_rng(seed)
    clock = np.arange(round(seconds * RATE)) / RATE
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * clock)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formant = 700 + 400 * np.sin(2 * np.pi * 2 * clock + rng.uniform(0, 6))
    voice = sum(np.sin(k * phase) / (1 + ((k * pitch - formant) / 300) ** 2) for k in range(1, 30))
    syllables = np.maximum(0.0, np.sin(2 * np.pi * 4 * clock)) ** 0.5
    return (0.05 * voice * syllables).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0, 30.0])
@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("level", [1e-4, 0.01, 0.5])
def test_stationary_noise_holds_no_speech(seconds: float, colour: float, level: float) -> None:
    for seed in range(5 if seconds < 10 else 1):
        assert energy_vad(noise(seconds, colour, seed) * np.float32(level), RATE) == []


def test_other_sounds_without_speech() -> None:
    clock = np.arange(10 * RATE) / RATE
    silence = np.zeros(3 * RATE, np.float32)
    hum = (0.3 * np.sin(2 * np.pi * 50 * clock) + 0.1 * np.sin(2 * np.pi * 150 * clock)).astype(np.float32)
    assert energy_vad(silence, RATE) == []
    assert energy_vad(np.zeros(0, np.float32), RATE) == []
    assert energy_vad(np.zeros(5, np.float32), RATE) == []
    assert energy_vad(hum, RATE) == []
    assert energy_vad(hum + 0.01 * noise(10.0), RATE) == []
    assert energy_vad(np.full(10 * RATE, 0.3, np.float32), RATE) == []
    assert energy_vad(np.concatenate([silence, 0.1 * noise(10.0), silence]), RATE) == []
    assert energy_vad(0.1 * noise(10.0) * np.linspace(0, 1, 10 * RATE, dtype=np.float32), RATE) == []
    assert energy_vad(np.concatenate([0.01 * noise(5.0), 0.1 * noise(5.0, seed=1)]), RATE) == []
    click = silence.copy()
    click[RATE] = 0.9
    assert energy_vad(click, RATE) == []


@pytest.mark.parametrize("background", [0.0, 1e-4, 2e-3])
def test_pauses_split_regions(background: float) -> None:
    pause = np.zeros(2 * RATE, np.float32)
    wave = np.concatenate([pause, speech(3.0), pause, speech(1.5, seed=1), pause])
    regions = energy_vad(wave + np.float32(background) * noise(len(wave) / RATE, 1.0), RATE)
    assert len(regions) == 2
    for (begin, end), (true_begin, true_end) in zip(regions, [(2.0, 5.0), (7.0, 8.5)], strict=True):
        assert true_begin - 0.4 <= begin <= true_begin + 0.05
        assert true_end - 0.25 <= end <= true_end + 0.4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), num_samples=st.integers(0, 40000), rate=st.sampled_from([1000, 8000, 16000, 44100]))
def test_regions_are_ordered_and_inside(seed: int, num_samples: int, rate: int) -> None:
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.uniform(0, 1, num_samples // 1000 + 1) ** 4, 1000)[:num_samples]
    wave = rng.standard_normal(num_samples) * envelope
    regions = energy_vad(wave, rate)
    assert regions == energy_vad(wave, rate)
    edges = [edge for region in regions for edge in region]
    assert edges == sorted(edges)
    assert all(0.0 <= edge <= num_samples / rate + 1e-9 for edge in edges)


def test_an_hour_takes_seconds() -> None:
    wave = np.tile(np.concatenate([speech(4.0), np.zeros(RATE, np.float32)]), 180)  # a quarter of an hour
    begin = time.perf_counter()
    regions = energy_vad(wave, RATE)
    assert len(regions) == 180
    assert time.perf_counter() - begin < 10.0


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"wave_N has shape \(2, 5\)"):
        energy_vad(np.zeros((2, 5)), RATE)
    with pytest.raises(ValueError, match="sample_rate=10"):
        energy_vad(np.zeros(5), 10)


def covered_energy(wave: np.ndarray, regions: list[tuple[float, float]]) -> float:
    inside = np.zeros(len(wave), bool)
    for begin, end in regions:
        inside[round(begin * RATE) : round(end * RATE)] = True
    power = np.square(wave - wave.mean(), dtype=np.float64)
    return float(power[inside].sum() / power.sum())


@pytest.mark.parametrize(("corpus", "count"), [("speechocean762", 60), ("ljspeech", 10), ("fsdd", 100), ("native_en", 14)])
@pytest.mark.parametrize("snr_db", [None, 15.0])
def test_real_speech_is_kept(data_root: Path, corpus: str, count: int, snr_db: float | None) -> None:
    from speechkit.data.manifest import read_manifest

    rows = read_manifest(data_root / corpus / "test" / "manifest.jsonl")
    kept = []
    for i, row in enumerate(rows[:: max(1, len(rows) // count)]):
        wave, _ = load_audio(row.audio_path, sample_rate=RATE)
        heard = wave
        if snr_db is not None:
            background = noise(len(wave) / RATE + 1.0, 1.0, seed=i)[: len(wave)]
            heard = wave + background * np.float32(np.sqrt(np.mean(wave**2) / 10 ** (snr_db / 10)))
        kept.append(covered_energy(wave, energy_vad(heard, RATE)))
    assert min(kept) > 0.9
    assert np.mean(kept) > 0.995

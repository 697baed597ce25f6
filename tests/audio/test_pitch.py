"""F0 finds tones, sweeps and what other trackers find in speech; energy is the norm of the spectrum; statistics add up."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio import frames
from speechkit.audio.pitch import Moments, energy, f0, interpolate_log_f0, moments, moments_by_speaker
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.text import espeak

RATE, HOP = 22050, 256


def _voice(hz_N: np.ndarray, rate: int = RATE) -> np.ndarray:
    """A tone with falling harmonics whose pitch is `hz_N` at each sample."""
    phase_N = 2 * np.pi * np.cumsum(hz_N) / rate
    return (0.1 * sum(np.sin(k * phase_N) / k for k in range(1, 9))).astype(np.float32)


def _cents(found: np.ndarray, true: np.ndarray | float) -> np.ndarray:
    return 1200 * np.abs(np.log2(found / true))


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    if not espeak.available():
        pytest.skip("espeak-ng is not installed: pip install speechkit[demo]")
    spoken = espeak.speak("The quick brown fox jumps over the lazy dog, and sees six shells.")
    assert spoken.sample_rate == RATE
    return spoken.wave


@pytest.mark.parametrize("rate", [16000, 22050, 24000])
@pytest.mark.parametrize("hz", [70.0, 110.0, 220.5, 441.0, 590.0])
def test_tones_are_found_within_a_cent(rate: int, hz: float) -> None:
    track = f0(_voice(np.full(rate, hz), rate), rate, hop_length=HOP)
    inside = slice(5, -5)
    assert track.voiced_T[inside].all()
    assert _cents(track.f0_T[inside], hz).max() < 1.0
    np.testing.assert_array_equal(track.voiced_T, track.f0_T > 0)


def test_a_missing_fundamental_is_found() -> None:
    time_N = np.arange(RATE) / RATE
    wave_N = sum(np.sin(2 * np.pi * 150 * k * time_N) for k in (2, 3, 4, 5))
    found_T = f0(wave_N, RATE, hop_length=HOP).f0_T[5:-5]
    assert _cents(found_T, 150.0).max() < 1.0


def test_frames_are_centred_where_they_say() -> None:
    hz_N = 100.0 * 2.0 ** np.linspace(0, 3, 2 * RATE)
    hop = 1024
    for padding, offset in (("center", 0), ("same", hop // 2)):
        f0_T = f0(_voice(hz_N), RATE, hop_length=hop, padding=padding).f0_T
        middle = np.arange(len(f0_T))[3:-8]
        assert _cents(f0_T[middle], hz_N[middle * hop + offset]).max() < 3.0  # half a hop is 42 cents


def test_a_semitone_is_a_hundred_cents() -> None:
    low, high = (np.median(f0(_voice(np.full(RATE, hz)), RATE, hop_length=HOP).f0_T) for hz in (200.0, 200 * 2 ** (1 / 12)))
    assert _cents(high, low) == pytest.approx(100, abs=0.2)


def test_noise_silence_and_constants_are_unvoiced(rng: np.random.Generator) -> None:
    for wave_N in (np.zeros(RATE), np.full(RATE, 0.3, np.float32), np.full(RATE, 1e-3) + np.float64(0.1)):
        assert not f0(wave_N, RATE, hop_length=HOP).voiced_T.any()
    assert f0(rng.standard_normal(RATE), RATE, hop_length=HOP).voiced_T.mean() < 0.05


def test_pauses_are_unvoiced_and_noise_does_little() -> None:
    tone_N, pause_N = _voice(np.full(RATE, 130.0)), np.zeros(RATE // 2, np.float32)
    wave_N = np.concatenate([tone_N, pause_N, tone_N])
    wave_N += 1e-4 * np.random.default_rng(1).standard_normal(len(wave_N)).astype(np.float32)
    track = f0(wave_N, RATE, hop_length=HOP)
    seconds_T = np.arange(len(track.f0_T)) * HOP / RATE
    assert not track.voiced_T[(seconds_T > 1.04) & (seconds_T < 1.46)].any()
    assert track.voiced_T[(seconds_T < 0.96) & (seconds_T > 0.04)].all()


def test_loudness_and_offset_change_nothing(speech: np.ndarray) -> None:
    track, other = f0(speech, RATE, hop_length=HOP), f0(0.01 * speech + 0.5, RATE, hop_length=HOP)
    np.testing.assert_array_equal(track.voiced_T, other.voiced_T)
    np.testing.assert_allclose(track.f0_T, other.f0_T, rtol=1e-3)


def test_chunks_change_nothing(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = f0(speech, RATE, hop_length=HOP)
    monkeypatch.setattr("speechkit.audio.pitch._CHUNK_FRAMES", 7)
    np.testing.assert_array_equal(f0(speech, RATE, hop_length=HOP).f0_T, whole.f0_T)


def test_speech_as_librosa_hears_it(speech: np.ndarray) -> None:
    librosa = pytest.importorskip("librosa")
    track = f0(speech, RATE, hop_length=HOP, padding="center")
    theirs_T, voiced_T, _ = librosa.pyin(speech, fmin=65, fmax=600, sr=RATE, frame_length=2048, hop_length=HOP)
    both_T = track.voiced_T & voiced_T
    assert both_T.sum() > 0.9 * track.voiced_T.sum()
    assert np.median(_cents(track.f0_T[both_T], theirs_T[both_T])) < 25  # pyin smooths over a longer window
    assert (_cents(track.f0_T[both_T], theirs_T[both_T]) > 600).mean() < 0.02


def test_speech_as_praat_hears_it(speech: np.ndarray) -> None:
    parselmouth = pytest.importorskip("parselmouth")
    track = f0(speech, RATE, hop_length=HOP, padding="center")
    pitch = parselmouth.Sound(speech.astype(np.float64), RATE).to_pitch_ac(HOP / RATE, 65, pitch_ceiling=600)
    theirs_T = np.nan_to_num([pitch.get_value_at_time(t * HOP / RATE) for t in range(len(track.f0_T))])
    both_T = track.voiced_T & (theirs_T > 0)
    assert (track.voiced_T == (theirs_T > 0)).mean() > 0.95
    assert np.median(_cents(track.f0_T[both_T], theirs_T[both_T])) < 3


@settings(max_examples=30, deadline=None)
@given(num_samples=st.integers(0, 3 * HOP), hop=st.sampled_from([2, 100, HOP]), seed=st.integers(0, 99))
def test_any_length(num_samples: int, hop: int, seed: int) -> None:
    wave_N = np.random.default_rng(seed).standard_normal(num_samples)
    for padding, num_frames in (("center", 1 + num_samples // hop if num_samples else 0), ("same", math.ceil(num_samples / hop))):
        track = f0(wave_N, RATE, hop_length=hop, padding=padding)
        assert track.f0_T.shape == track.voiced_T.shape == (num_frames,)
        assert np.all((track.f0_T == 0) | ((track.f0_T >= 65) & (track.f0_T <= 600.01)))
        assert energy(wave_N, n_fft=512, win_length=400, hop_length=hop, padding=padding).shape == (num_frames,)


@pytest.mark.parametrize(("n_fft", "win_length", "num_samples"), [(1024, 1024, 5000), (512, 400, 4999), (512, 401, 600)])
def test_energy_is_the_norm_of_librosas_spectrum(n_fft: int, win_length: int, num_samples: int, rng: np.random.Generator) -> None:
    librosa = pytest.importorskip("librosa")
    wave_N = rng.standard_normal(num_samples)
    spectrum = librosa.stft(wave_N, n_fft=n_fft, win_length=win_length, hop_length=HOP, pad_mode="reflect")
    found_T = energy(wave_N, n_fft=n_fft, win_length=win_length, hop_length=HOP, padding="center")
    np.testing.assert_allclose(found_T, np.linalg.norm(np.abs(spectrum), axis=0), rtol=1e-5)


@pytest.mark.parametrize("padding", ["same", "center"])
@pytest.mark.parametrize("hop", [HOP, 1024])
def test_energy_is_the_norm_of_the_spectra_under_the_mel(padding: Literal["same", "center"], hop: int) -> None:
    """With one band for each FFT bin the mel is the spectrum."""
    for num_samples in (1, 255, 256, 1000, 5121):
        wave_BN = torch.randn(1, num_samples, generator=torch.Generator().manual_seed(0))
        mel = MelSpectrogram(padding=padding, hop_length=hop)
        mel._constants = frames.Constants(mel.window(), np.eye(513), power=1)
        mel_BTF, _ = mel(wave_BN, torch.tensor([num_samples]))
        found_T = energy(wave_BN[0].numpy(), hop_length=hop, padding=padding)
        np.testing.assert_allclose(found_T, np.linalg.norm(mel.undo_log(mel_BTF)[0].numpy(), axis=1), rtol=1e-3)
        assert len(f0(wave_BN[0].numpy(), RATE, hop_length=hop, padding=padding).f0_T) == mel_BTF.shape[1]


def test_gaps_are_crossed_in_the_log_domain() -> None:
    f0_T = np.array([0, 100, 0, 0, 0, 400, 0])
    np.testing.assert_allclose(np.exp(interpolate_log_f0(f0_T))[1:6:2], [100, 200, 400], rtol=1e-6)
    np.testing.assert_allclose(np.exp(interpolate_log_f0(f0_T))[[0, 6]], [100, 400], rtol=1e-6)
    assert interpolate_log_f0(np.zeros(0)).shape == (0,)
    np.testing.assert_allclose(interpolate_log_f0(np.zeros(3), fill_hz=120.0), math.log(120), rtol=1e-6)
    for fill_hz in (None, 0.0, math.inf):
        with pytest.raises(ValueError, match="none of 3 frames is voiced"):
            interpolate_log_f0(np.zeros(3), fill_hz=fill_hz)
    for bad in ([-1.0], [math.nan], [[100.0]]):
        with pytest.raises(ValueError, match="give finite frequencies"):
            interpolate_log_f0(np.array(bad))


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.lists(st.floats(-1e3, 1e3), max_size=8), max_size=5))
def test_moments_add_up(parts: list[list[float]]) -> None:
    total = sum((moments(np.array(part)) for part in parts), Moments())
    values = np.array([x for part in parts for x in part])
    assert total.count == len(values)
    assert total.mean == pytest.approx(values.mean() if len(values) else 0, abs=1e-9)
    assert total.variance == pytest.approx(values.var() if len(values) else 0, abs=1e-6)
    assert total.std == math.sqrt(total.variance)


def test_moments_of_each_speaker() -> None:
    found = moments_by_speaker([("a", np.array([1.0, 3.0])), ("b", np.array([10.0])), ("a", np.array([5.0])), ("c", np.zeros(0))])
    assert {name: (m.count, m.mean) for name, m in found.items()} == {"a": (3, 3.0), "b": (1, 10.0), "c": (0, 0.0)}
    assert found["a"].variance == pytest.approx(8 / 3)
    assert found["c"].std == 0
    with pytest.raises(ValueError, match="not all finite"):
        moments_by_speaker([("a", np.array([math.nan]))])


def test_errors_name_the_field() -> None:
    wave_N = np.zeros(10)
    for arguments, message in [
        ({"hop_length": 0}, "hop_length=0: must be at least 1"),
        ({"hop_length": 1, "f_min": 0}, "f_min=0: must be above 0 and below f_max=600"),
        ({"hop_length": 1, "f_min": 700}, "f_min=700"),
        ({"hop_length": 1, "f_max": 9000}, "sample_rate=22050: must be at least 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            f0(wave_N, RATE, **arguments)
    with pytest.raises(ValueError, match="give one channel"):
        f0(np.zeros((2, 10)), RATE, hop_length=1)
    with pytest.raises(ValueError, match="not finite"):
        energy(np.array([math.inf]), n_fft=512, win_length=400, hop_length=1)
    with pytest.raises(ValueError, match="hop_length=3: must be even where padding"):
        energy(wave_N, hop_length=3)
    with pytest.raises(ValueError, match="padding='valid': must be"):
        energy(wave_N, padding="valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_fft=511: must be even"):
        energy(wave_N, n_fft=511, win_length=400, hop_length=1)

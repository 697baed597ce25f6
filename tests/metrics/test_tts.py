"""Measures of synthesis: known differences give known figures, alignments are librosa's, sums over utterances add up."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio.pitch import f0
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.metrics.tts import (
    DurationSums,
    PitchSums,
    SynthesisSums,
    Warping,
    measure_cepstra,
    measure_durations,
    measure_pitch,
    measure_synthesis,
    mel_cepstra,
    speaker_similarity,
    stoi,
    sum_measures,
    warp,
)
from speechkit.text import espeak

HOP = 256


def _frames(wave_N: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel power and pitch of a waveform."""
    feats_BTF, _ = MelSpectrogram(sample_rate=rate, hop_length=HOP, power=2, log_floor=1e-9)(
        torch.from_numpy(wave_N)[None].float(), torch.tensor([len(wave_N)])
    )
    return feats_BTF[0].numpy(), f0(wave_N, rate, hop_length=HOP).f0_T


def _random(rng: np.random.Generator, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((num_frames, 20)), rng.uniform(80, 300, num_frames) * (rng.random(num_frames) > 0.3)


@pytest.fixture(scope="module")
def say() -> Callable[..., tuple[np.ndarray, int]]:
    if not espeak.available():
        pytest.skip("espeak-ng is not installed: pip install speechkit[demo]")

    def speak(text: str = "Seven wizards sing in the rain.", **options: int) -> tuple[np.ndarray, int]:
        spoken = espeak.speak(text, **options)
        return spoken.wave, spoken.sample_rate

    return speak


def test_cepstra_rebuild_the_spectrum(rng: np.random.Generator) -> None:
    log_power_TF = rng.standard_normal((5, 12))
    cepstra_TM = mel_cepstra(log_power_TF, order=11)
    waves_MF = np.cos(np.pi * np.arange(1, 12)[:, None] * (np.arange(12) + 0.5) / 12)
    rebuilt_TF = log_power_TF.mean(axis=1, keepdims=True) + 2 * cepstra_TM @ waves_MF
    np.testing.assert_allclose(rebuilt_TF, log_power_TF, atol=1e-12)
    np.testing.assert_array_equal(mel_cepstra(log_power_TF, order=4), cepstra_TM[:, :4])


def test_cepstra_are_scipys(rng: np.random.Generator) -> None:
    fft = pytest.importorskip("scipy.fft")
    log_power_TF = rng.standard_normal((5, 80))
    np.testing.assert_allclose(mel_cepstra(log_power_TF), fft.dct(log_power_TF)[:, 1:25] / 160, atol=1e-12)


def test_mcd_is_the_difference_of_the_spectra_in_decibels(rng: np.random.Generator) -> None:
    ref_TF, syn_TF = rng.standard_normal((2, 1, 12))
    gap_F = 10 / math.log(10) * (ref_TF - syn_TF)[0]
    silent = np.zeros(1)
    assert measure_synthesis(ref_TF, silent, syn_TF, silent, order=11).cepstra.mcd == pytest.approx(gap_F.std())


def test_level_does_not_count(rng: np.random.Generator) -> None:
    log_power, pitch = _random(rng, 30)
    assert measure_synthesis(log_power, pitch, log_power + 3.0, pitch, order=13).cepstra.mcd == pytest.approx(0, abs=1e-9)


def test_identical_utterances_differ_in_nothing(rng: np.random.Generator) -> None:
    for num_frames in (1, 2, 50):
        log_power, pitch = _random(rng, num_frames)
        found = measure_synthesis(log_power, pitch, log_power, pitch, order=13)
        assert (found.cepstra.mcd, found.pitch.squares, found.pitch.voicing_error_rate) == (0, 0, 0)
        assert (found.duration.mean_absolute, found.duration.relative_total, found.unaligned) == (0, 0, 0)
        assert found.cepstra.steps == found.pitch.steps == num_frames


def test_a_stretched_utterance_is_aligned(rng: np.random.Generator) -> None:
    log_power, pitch = _random(rng, 20)
    found = measure_synthesis(log_power, pitch, np.repeat(log_power, 3, axis=0), np.repeat(pitch, 3), order=13)
    assert (found.cepstra.distance, found.pitch.squares, found.pitch.voicing_error_rate) == (0, 0, 0)
    assert found.cepstra.steps == 60
    assert found.duration == DurationSums(1, 40, 20, 60)
    assert found.duration.relative_total == 2.0


@settings(max_examples=40, deadline=None)
@given(num_ref=st.integers(1, 12), num_syn=st.integers(1, 12), seed=st.integers(0, 999), ties=st.booleans())
def test_warping_is_the_best_path(num_ref: int, num_syn: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    ref_TM, syn_SM = (rng.integers(0, 2, (n, 2)).astype(float) if ties else rng.random((n, 3)) for n in (num_ref, num_syn))
    found = warp(ref_TM, syn_SM)
    costs = np.linalg.norm(ref_TM[:, None] - syn_SM, axis=2)
    best = np.full((num_ref + 1, num_syn + 1), np.inf)
    best[0, 0] = 0
    for i in range(num_ref):
        for j in range(num_syn):
            best[i + 1, j + 1] = costs[i, j] + min(best[i, j], best[i, j + 1], best[i + 1, j])
    assert found.distance == pytest.approx(best[-1, -1])
    assert costs[found.ref_K, found.syn_K].sum() == pytest.approx(found.distance)
    assert (found.ref_K[0], found.syn_K[0], found.ref_K[-1], found.syn_K[-1]) == (0, 0, num_ref - 1, num_syn - 1)
    moves = set(zip(np.diff(found.ref_K).tolist(), np.diff(found.syn_K).tolist()))
    assert moves <= {(1, 1), (0, 1), (1, 0)}
    assert measure_cepstra(ref_TM, syn_SM, found).distance == pytest.approx(found.distance)


@pytest.mark.slow
def test_warping_is_librosas(rng: np.random.Generator) -> None:
    sequence = pytest.importorskip("librosa.sequence")
    ref_TM, syn_SM = rng.standard_normal((40, 5)), rng.standard_normal((61, 5))
    total, path = sequence.dtw(ref_TM.T, syn_SM.T)
    found = warp(ref_TM, syn_SM)
    assert found.distance == pytest.approx(total[-1, -1])
    np.testing.assert_array_equal(np.stack([found.ref_K, found.syn_K], axis=1), path[::-1])


def test_a_semitone_is_a_hundred_cents() -> None:
    ref_T = np.array([100.0, 0.0, 200.0, 300.0])
    steps = Warping(np.arange(4), np.arange(4), 0.0)
    found = measure_pitch(ref_T, ref_T * 2 ** (1 / 12), steps)
    assert found.f0_rmse_cents == pytest.approx(100)
    assert found.log_f0_rmse == pytest.approx(math.log(2) / 12)
    assert found.voicing_error_rate == 0


def test_voicing_errors_are_counted_by_kind() -> None:
    ref_T, syn_T = np.array([1.0, 1, 0, 0, 0, 2]), np.array([1.0, 0, 1, 1, 0, 2])
    found = measure_pitch(ref_T, syn_T, Warping(np.arange(6), np.arange(6), 0.0))
    assert found == PitchSums(voiced=2, unvoiced=1, lost=1, added=2, squares=0.0)
    assert found.voicing_error_rate == 0.5


def test_nothing_in_common_has_no_figure() -> None:
    found = measure_pitch(np.array([0.0, 100.0]), np.array([100.0, 0.0]), Warping(np.arange(2), np.arange(2), 0.0))
    assert math.isnan(found.f0_rmse_cents)
    assert found.voicing_error_rate == 1.0
    for value in (SynthesisSums().cepstra.mcd, PitchSums().voicing_error_rate, DurationSums().mean_absolute):
        assert math.isnan(value)
    assert math.isnan(DurationSums().relative_total)


@pytest.mark.parametrize(("num_ref", "num_syn"), [(0, 7), (7, 0), (0, 0)])
def test_an_empty_side_is_reported(num_ref: int, num_syn: int, rng: np.random.Generator) -> None:
    found = measure_synthesis(*_random(rng, num_ref), *_random(rng, num_syn), order=13)
    assert (found.utterances, found.unaligned, found.cepstra.steps, found.pitch.steps) == (1, 1, 0, 0)
    assert found.duration == DurationSums(1, abs(num_ref - num_syn), num_ref, num_syn)


def test_sums_are_divided_once(rng: np.random.Generator) -> None:
    parts = [measure_synthesis(*_random(rng, 5 * k), *_random(rng, 4 * k + 2), order=13) for k in range(4)]
    total = sum_measures(parts)
    assert (total.utterances, total.unaligned) == (4, 1)
    assert total.cepstra.steps == sum(part.cepstra.steps for part in parts)
    weighted = sum(part.cepstra.mcd * part.cepstra.steps for part in parts[1:]) / total.cepstra.steps
    assert total.cepstra.mcd == pytest.approx(weighted)
    squares = sum(part.pitch.log_f0_rmse**2 * part.pitch.voiced for part in parts[1:]) / total.pitch.voiced
    assert total.pitch.log_f0_rmse == pytest.approx(math.sqrt(squares))
    assert (total.duration.ref, total.duration.syn) == (30, 32)
    assert total.duration.absolute == sum(abs(5 * k - (4 * k + 2)) for k in range(4))
    assert sum_measures([]) == SynthesisSums()


def test_durations_of_phones() -> None:
    found = measure_durations(np.array([3, 5, 2]), np.array([4, 3, 2]))
    assert (found.mean_absolute, found.relative_total) == (1.0, pytest.approx(-0.1))


def test_speaker_similarity(rng: np.random.Generator) -> None:
    one_D, other_D = rng.standard_normal((2, 64))
    assert speaker_similarity(one_D, 3 * one_D) == pytest.approx(1)
    assert speaker_similarity(one_D, -one_D) == pytest.approx(-1)
    assert speaker_similarity(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert speaker_similarity(one_D, other_D) == speaker_similarity(other_D, one_D)
    with pytest.raises(ValueError, match="must be finite and not zero"):
        speaker_similarity(one_D, np.zeros(64))
    with pytest.raises(ValueError, match="embeddings of one model"):
        speaker_similarity(one_D, np.ones(3))


def test_more_noise_is_further_away(say: Callable[..., tuple[np.ndarray, int]], rng: np.random.Generator) -> None:
    wave_N, rate = say()
    noise_N = rng.standard_normal(len(wave_N)).astype(np.float32)
    ref = _frames(wave_N, rate)
    mcd = [measure_synthesis(*ref, *_frames(wave_N + g * noise_N, rate)).cepstra.mcd for g in (0.0, 1e-4, 1e-3, 1e-2, 0.1)]
    assert mcd[0] == 0
    assert all(b > a + 0.1 for a, b in pairwise(mcd))


def test_speech_of_another_pitch_and_speed(say: Callable[..., tuple[np.ndarray, int]]) -> None:
    wave_N, rate = say()
    ref = _frames(wave_N, rate)
    slower = measure_synthesis(*ref, *_frames(say(speed=140)[0], rate))
    higher = measure_synthesis(*ref, *_frames(say(pitch=70)[0], rate))
    other = measure_synthesis(*ref, *_frames(say("Completely different words are spoken here.")[0], rate))
    assert slower.duration.relative_total > 0.1
    assert slower.pitch.f0_rmse_cents < higher.pitch.f0_rmse_cents
    assert higher.pitch.f0_rmse_cents > 200
    assert slower.cepstra.mcd < other.cepstra.mcd


def test_silence_against_speech(say: Callable[..., tuple[np.ndarray, int]]) -> None:
    wave_N, rate = say()
    found = measure_synthesis(*_frames(wave_N, rate), *_frames(np.zeros(rate, np.float32), rate))
    assert found.cepstra.mcd > 3
    assert found.pitch.voiced == found.pitch.added == 0
    assert math.isnan(found.pitch.log_f0_rmse)
    assert found.pitch.voicing_error_rate > 0.4


def test_stoi(say: Callable[..., tuple[np.ndarray, int]], rng: np.random.Generator) -> None:
    pytest.importorskip("pystoi")
    wave_N, rate = say()
    noise_N = rng.standard_normal(len(wave_N))
    assert stoi(wave_N, wave_N, rate) == pytest.approx(1)
    found = [stoi(wave_N, wave_N + gain * noise_N, rate) for gain in (0.001, 0.03, 0.3)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.95
    assert found[-1] < 0.7
    for short_N in (np.zeros(rate), np.zeros(0), wave_N[: int(0.2 * rate)], np.eye(1, rate)[0]):
        with pytest.raises(ValueError, match=r"less than 0\.4 s of speech"):
            stoi(short_N, short_N, rate)
    with pytest.raises(ValueError, match="cut them to the same samples"):
        stoi(wave_N, wave_N[1:], rate)
    with pytest.raises(ValueError, match="must be finite"):
        stoi(wave_N, wave_N * math.nan, rate)


def test_errors_name_the_field(rng: np.random.Generator) -> None:
    log_power, pitch = _random(rng, 5)
    for order in (0, 20):
        with pytest.raises(ValueError, match=f"order={order}: must be at least 1 and below the 20 mel bins"):
            mel_cepstra(log_power, order=order)
    with pytest.raises(ValueError, match="give finite values"):
        mel_cepstra(np.full((2, 20), math.nan))
    with pytest.raises(ValueError, match="as many values each"):
        warp(log_power, log_power[:, :3])
    with pytest.raises(ValueError, match="must be finite"):
        warp(log_power, np.full((2, 20), math.inf))
    with pytest.raises(ValueError, match="syn_f0 has 4 frames and syn_log_power 5"):
        measure_synthesis(log_power, pitch, log_power, pitch[:4], order=13)
    with pytest.raises(ValueError, match="warping aligns 5 and 5 frames, the sequences have 5 and 4"):
        measure_pitch(pitch, pitch[:4], warp(log_power, log_power))
    with pytest.raises(ValueError, match="syn_f0_S: a pitch is negative"):
        measure_pitch(pitch, -pitch - 1, warp(log_power, log_power))
    with pytest.raises(ValueError, match="give the same items"):
        measure_durations(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="ref_P: a duration is negative"):
        measure_durations(-np.ones(2), np.ones(2))

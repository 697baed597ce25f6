"""Griffin-Lim: round trips of speech and tones, librosa, independence of batch mates and padding, edges, errors."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.vocoder.griffin_lim import GriffinLim

RATES = [16000, 22050, 24000]
SMALL = MelSpectrogram(sample_rate=8000, n_fft=128, win_length=128, hop_length=32, num_mels=12, f_max=4000.0)


def convergence(actual: Tensor, expected: Tensor) -> float:
    """Spectral convergence: norm of the error over the norm of the target."""
    return float((actual - expected).norm() / expected.norm())


def round_trip(mel: MelSpectrogram, wave_N: Tensor, **options: float) -> tuple[Tensor, float]:
    """The waveform that Griffin-Lim makes of a waveform's mel, and the spectral convergence of its bands."""
    mel_BTF, mel_lens_B = mel(wave_N[None], torch.tensor([len(wave_N)]))
    made_BN, made_lens_B = GriffinLim(mel=mel, **options).vocode(mel_BTF, mel_lens_B)
    assert made_BN.shape == (1, int(made_lens_B[0]))
    again_BTF, _ = mel(made_BN, made_lens_B)
    num_frames = min(again_BTF.shape[1], mel_BTF.shape[1])
    return made_BN[0], convergence(mel.undo_log(again_BTF[0, :num_frames]), mel.undo_log(mel_BTF[0, :num_frames]))


@pytest.fixture(scope="module")
def speech() -> Tensor:
    """1.5 s of espeak-ng at 22.05 kHz."""
    pytest.importorskip("espeakng_loader")
    from speechkit.text import espeak

    spoken = espeak.speak("The quick brown fox jumps over it.")
    assert spoken.sample_rate == 22050
    return torch.from_numpy(spoken.wave[:33000])


def harmonics(sample_rate: int, num_samples: int) -> Tensor:
    """A vowel-like sound at 200 Hz, fading in and out."""
    time = torch.arange(num_samples) / sample_rate
    sound = sum(torch.sin(2 * math.pi * 200 * k * time) / k for k in range(1, 11))
    return 0.2 * sound * torch.sin(math.pi * torch.arange(num_samples) / num_samples)


@pytest.mark.parametrize("rate", RATES)
def test_speech_comes_back(rate: int, speech: Tensor) -> None:
    soxr = pytest.importorskip("soxr")
    wave_N = torch.from_numpy(soxr.resample(speech.numpy(), 22050, rate))
    _, error = round_trip(MelSpectrogram.preset(rate), wave_N)
    assert error < 0.1


def test_momentum_and_iterations_pay(speech: Tensor) -> None:
    mel = MelSpectrogram()
    errors = [
        round_trip(mel, speech, **options)[1]
        for options in ({}, {"num_iterations": 32}, {"num_iterations": 32, "momentum": 0.0}, {"num_iterations": 0})
    ]
    assert errors == sorted(errors)
    assert errors[2] > 1.1 * errors[1]
    assert errors[3] > 0.3


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("log_base", ["e", "10"])
def test_harmonics_come_back_at_their_level(power: int, log_base: str) -> None:
    mel = MelSpectrogram(power=power, log_base=log_base)
    wave_N = harmonics(22050, 256 * 60)
    made_N, error = round_trip(mel, wave_N)
    assert len(made_N) == len(wave_N)
    assert error < 0.15
    assert float(made_N.norm()) == pytest.approx(float(wave_N.norm()), rel=0.1)
    peak = int(torch.fft.rfft(made_N).abs().argmax()) * 22050 / len(made_N)
    assert peak == pytest.approx(200, abs=15)


def test_phases_are_as_good_as_librosas(speech: Tensor) -> None:
    librosa = pytest.importorskip("librosa")
    mel = MelSpectrogram(padding="center")
    target = librosa.stft(speech.numpy(), n_fft=1024, hop_length=256)
    vocoder = GriffinLim(mel=mel, num_iterations=32)
    theirs = librosa.griffinlim(np.abs(target), n_iter=32, n_fft=1024, hop_length=256, random_state=0)
    ours = vocoder._find_phases(torch.from_numpy(np.abs(target).T), 0)[mel.reach :][: len(theirs)].numpy()
    inner = slice(2, -2)
    errors = [
        convergence(*(torch.from_numpy(np.abs(x)[:, inner]) for x in (librosa.stft(made, n_fft=1024, hop_length=256), target)))
        for made in (ours, theirs)
    ]
    assert errors[0] < 1.1 * errors[1] + 0.005
    assert errors[0] < 0.1


@pytest.mark.parametrize("rate", RATES)
def test_magnitudes_have_the_bands_of_the_mel(rate: int) -> None:
    mel = MelSpectrogram.preset(rate)
    wave_N = harmonics(rate, rate // 2) + 0.01 * torch.randn(rate // 2, generator=torch.Generator().manual_seed(0))
    mel_BTF, _ = mel(wave_N[None], torch.tensor([len(wave_N)]))
    magnitudes_TK = GriffinLim(mel=mel).magnitudes(mel_BTF[0])
    assert (magnitudes_TK >= 0).all()
    assert convergence(magnitudes_TK @ torch.from_numpy(mel.filters()).float(), mel.undo_log(mel_BTF[0])) < 0.01


def test_magnitudes_are_closer_to_the_truth_than_the_pseudo_inverse(speech: Tensor) -> None:
    mel = MelSpectrogram()
    wave_N = speech[: len(speech) // 256 * 256]
    mel_BTF, _ = mel(wave_N[None], torch.tensor([len(wave_N)]))
    padded_N = torch.nn.functional.pad(wave_N, (mel.reach, mel.reach))
    truth_TK = torch.fft.rfft(padded_N.unfold(0, 1024, 256) * torch.from_numpy(mel.window()).float()).abs()
    inverse_FK = torch.linalg.pinv(torch.from_numpy(mel.filters())).float()
    clipped_TK = (mel.undo_log(mel_BTF[0]) @ inverse_FK).clamp(min=0)
    steps_TK = GriffinLim(mel=mel).magnitudes(mel_BTF[0])
    banded = slice(2, 372)  # up to f_max

    def in_decibels(spectrum_TK: Tensor) -> Tensor:
        return 20 * spectrum_TK[:, banded].clamp(min=1e-4).log10()

    assert convergence(steps_TK, truth_TK) < 0.95 * convergence(clipped_TK, truth_TK)
    errors = [float((in_decibels(made_TK) - in_decibels(truth_TK)).square().mean()) for made_TK in (steps_TK, clipped_TK)]
    assert errors[0] < 0.7 * errors[1]


@settings(max_examples=25, deadline=None)
@given(
    lens=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    padding=st.integers(0, 20),
    filler=st.sampled_from([0.0, 7.0, math.nan]),
    center=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_padding_and_batch_mates_change_nothing(lens: list[int], padding: int, filler: float, center: bool, seed: int) -> None:
    options = {key: value for key, value in SMALL.settings().items() if key != "type"}
    mel = MelSpectrogram(**{**options, "padding": "center" if center else "same"})
    vocoder = GriffinLim(mel=mel, num_iterations=4)
    generator = torch.Generator().manual_seed(seed)
    mels = [torch.randn(n, 12, generator=generator) - 3 for n in lens]
    mel_BTF = torch.full((len(lens), max(lens) + padding, 12), filler)
    for row_TF, mel_TF in zip(mel_BTF, mels, strict=True):
        row_TF[: len(mel_TF)] = mel_TF
    seeds = [seed + i for i in range(len(lens))]
    wave_BN, wave_lens_B = vocoder.vocode(mel_BTF, torch.tensor(lens), seeds=seeds)
    assert wave_lens_B.tolist() == [max(0, n - center) * 32 for n in lens]
    assert wave_BN.shape == (len(lens), max(wave_lens_B))
    for i, mel_TF in enumerate(mels):
        alone_BN, alone_lens_B = vocoder.vocode(mel_TF[None], torch.tensor([len(mel_TF)]), seeds=seeds[i : i + 1])
        assert torch.equal(wave_BN[i, : wave_lens_B[i]], alone_BN[0])
        assert alone_lens_B[0] == wave_lens_B[i]
        assert wave_BN[i].isfinite().all()
        assert not wave_BN[i, wave_lens_B[i] :].any()


def test_seeds_belong_to_utterances() -> None:
    vocoder = GriffinLim(mel=SMALL, num_iterations=4)
    mel_BTF = (torch.randn(1, 20, 12, generator=torch.Generator().manual_seed(0)) - 3).expand(3, -1, -1)
    lens_B = torch.tensor([20, 20, 20])
    torch.manual_seed(5)
    same_BN, _ = vocoder.vocode(mel_BTF, lens_B)
    assert torch.equal(same_BN[0], same_BN[2])
    own_BN, _ = vocoder.vocode(mel_BTF, lens_B, seeds=[0, 1, 0])
    assert torch.equal(own_BN[0], same_BN[0])
    assert torch.equal(own_BN[2], same_BN[0])
    assert not torch.equal(own_BN[1], same_BN[0])


def test_half_precision_is_computed_in_float32() -> None:
    vocoder = GriffinLim(mel=SMALL, num_iterations=4)
    mel_BTF, lens_B = (torch.randn(1, 20, 12) - 3).half(), torch.tensor([20])
    expected, _ = vocoder.vocode(mel_BTF.float(), lens_B)
    halved = copy.deepcopy(vocoder).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = halved.vocode(mel_BTF, lens_B)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("rate", RATES)
def test_silence_stays_silent(rate: int) -> None:
    mel = MelSpectrogram.preset(rate)
    made_N, _ = round_trip(mel, torch.zeros(rate // 4))
    assert float(made_N.abs().max()) < 1e-3
    empty_BN, empty_lens_B = GriffinLim(mel=mel).vocode(torch.zeros(0, 5, mel.output_dim), torch.zeros(0, dtype=torch.long))
    assert empty_BN.shape == (0, 0)
    assert empty_lens_B.shape == (0,)


@pytest.mark.filterwarnings("ignore:.*hold no FFT bin")
def test_bands_without_a_bin_are_left_out() -> None:
    mel = MelSpectrogram(sample_rate=8000, n_fft=128, win_length=128, hop_length=32, num_mels=64, f_max=4000.0)
    made_N, _ = round_trip(mel, harmonics(8000, 2000), num_iterations=8)
    assert made_N.isfinite().all()
    assert 0.5 < float(made_N.norm() / harmonics(8000, 2000).norm()) < 2


def call(mel_BTF: Tensor, lens: list[int], **options: list[int]) -> None:
    GriffinLim(mel=SMALL).vocode(mel_BTF, torch.tensor(lens), **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GriffinLim(mel=SMALL, num_iterations=-1), "num_iterations=-1"),
        (lambda: GriffinLim(mel=SMALL, momentum=1.0), "momentum=1.0"),
        (lambda: call(torch.zeros(1, 5, 80), [5]), r"mel_BTF has shape \(1, 5, 80\)"),
        (lambda: call(torch.zeros(1, 5, 12), [6]), r"mel_lens_B=\[6\]"),
        (lambda: call(torch.zeros(1, 5, 12), [-1]), r"mel_lens_B=\[-1\]"),
        (lambda: call(torch.zeros(2, 5, 12), [5, 5], seeds=[0]), "seeds holds 1"),
        (lambda: call(torch.full((1, 5, 12), math.nan), [5]), r"not finite in rows \[0\]"),
    ],
)
def test_errors_name_field_and_value(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

"""The mel of speech synthesis: parity with librosa and HiFi-GAN's formula, independence of padding, frames, differences."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram

RATES = [16000, 22050, 24000]


def wave(num_samples: int, seed: int = 0, sample_rate: int = 22050) -> Tensor:
    """Noise under a moving envelope, with a tone."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_samples) / sample_rate
    envelope = 0.05 + 0.3 * np.sin(2 * np.pi * 1.7 * time) ** 2
    noise = rng.standard_normal(num_samples) * 0.2
    return torch.from_numpy(((noise + 0.5 * np.sin(2 * np.pi * 440 * time)) * envelope).astype(np.float32))


def single(mel: MelSpectrogram, wave_N: Tensor) -> Tensor:
    mel_BTF, mel_lens_B = mel(wave_N[None], torch.tensor([len(wave_N)]))
    return mel_BTF[0, : mel_lens_B[0]]


@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("num_samples", [1, 2, 255, 256, 600, 4001, 24000])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("power", "log_base"), [(None, "e"), (2, "10")])
def test_equals_librosa(rate: int, num_samples: int, power: int | None, log_base: str) -> None:
    librosa = pytest.importorskip("librosa")
    mel = MelSpectrogram.preset(rate)
    if power is not None:
        options = {key: value for key, value in mel.settings().items() if key != "type"}
        mel = MelSpectrogram(**{**options, "power": power, "log_base": log_base})
    w = wave(num_samples, sample_rate=rate)
    actual = single(mel, w).numpy()
    padded = np.pad(w.numpy(), (mel.reach, mel.n_fft), mode="reflect")
    bands = librosa.feature.melspectrogram(
        y=padded[: (len(actual) - 1) * mel.hop_length + mel.n_fft],
        sr=rate,
        n_fft=mel.n_fft,
        hop_length=mel.hop_length,
        win_length=mel.win_length,
        center=False,
        power=mel.power,
        n_mels=mel.output_dim,
        fmin=mel.f_min,
        fmax=mel.f_max,
        htk=mel.mel_scale == "htk",
        norm=mel.mel_norm,
    )
    log = np.log if log_base == "e" else np.log10
    expected = log(np.maximum(bands.T, mel.log_floor))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=5e-4)


def test_the_24_khz_preset_has_the_frames_of_librosa_and_torch() -> None:
    librosa = pytest.importorskip("librosa")
    mel, w = MelSpectrogram.preset(24000), wave(10000)
    bands = librosa.feature.melspectrogram(
        y=w.numpy(), sr=24000, n_fft=1024, hop_length=256, n_mels=100, power=1, pad_mode="reflect", htk=True, norm=None
    )
    np.testing.assert_allclose(single(mel, w).numpy(), np.log(np.maximum(bands.T, 1e-7)), atol=5e-4)


def test_the_22_khz_preset_is_what_hifi_gan_trains_on() -> None:
    librosa = pytest.importorskip("librosa")
    w = wave(10000)
    padded_BN = torch.nn.functional.pad(w[None, None], (384, 384), mode="reflect")[0]
    spectrum = torch.stft(padded_BN, 1024, 256, window=torch.hann_window(1024), center=False, return_complex=True)
    magnitude_TK = (torch.view_as_real(spectrum).square().sum(-1) + 1e-9).sqrt()[0].T
    filters_FK = torch.from_numpy(librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000))
    expected = (magnitude_TK @ filters_FK.T).clamp(min=1e-5).log()
    actual = single(MelSpectrogram.preset(22050), w)
    assert len(expected) == 10000 // 256
    assert len(actual) == len(expected) + 1
    torch.testing.assert_close(actual[: len(expected)], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=15, deadline=None)
@given(
    lens=st.lists(st.integers(0, 6000), min_size=1, max_size=5),
    padding=st.integers(0, 5000),
    filler=st.sampled_from([0.0, 7.0, math.nan]),
)
def test_padding_and_batch_mates_change_nothing(rate: int, lens: list[int], padding: int, filler: float) -> None:
    mel = MelSpectrogram.preset(rate)
    waves = [wave(n, seed=i) for i, n in enumerate(lens)]
    wave_BN = torch.full((len(lens), max(lens) + padding), filler)
    for row_N, w in zip(wave_BN, waves, strict=True):
        row_N[: len(w)] = w
    mel_BTF, mel_lens_B = mel(wave_BN, torch.tensor(lens))
    assert mel_BTF.dtype == torch.float32
    for i, w in enumerate(waves):
        alone = single(mel, w)
        assert mel_lens_B[i] == len(alone)
        assert torch.equal(mel_BTF[i, : len(alone)], alone)
        assert not mel_BTF[i, len(alone) :].any()


@pytest.mark.parametrize("rate", RATES)
def test_chunks_do_not_show(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mel = MelSpectrogram.preset(rate)
    wave_BN, lens_B = torch.stack([wave(40000), wave(40000, seed=1)]), torch.tensor([40000, 23456])
    whole, _ = mel(wave_BN, lens_B)
    monkeypatch.setattr("speechkit.audio.frames._CPU_ROWS", 74)
    assert torch.equal(mel(wave_BN, lens_B)[0], whole)


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=30, deadline=None)
@given(num_samples=st.integers(0, 3000))
def test_frame_count_is_the_documented_one(rate: int, num_samples: int) -> None:
    mel = MelSpectrogram.preset(rate)
    mel_BTF, mel_lens_B = mel(torch.zeros(1, num_samples), torch.tensor([num_samples]))
    same = math.ceil(num_samples / mel.hop_length)
    expected = same if mel.padding == "same" else (1 + num_samples // mel.hop_length) * (num_samples > 0)
    assert mel_lens_B.dtype == torch.int64
    assert mel_BTF.shape == (1, expected, mel.output_dim)
    made = int(mel.num_samples(mel_lens_B)[0])
    assert 0 <= (made - num_samples if mel.padding == "same" else num_samples - made) < mel.hop_length


def test_half_precision_is_computed_in_float32() -> None:
    mel = MelSpectrogram()
    wave_BN, lens_B = wave(8000)[None], torch.tensor([8000])
    expected, _ = mel(wave_BN, lens_B)
    halved = copy.deepcopy(mel).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = halved(wave_BN, lens_B)
    assert torch.equal(actual, expected)
    rounded, _ = halved(wave_BN.half(), lens_B)
    assert torch.equal(rounded, mel(wave_BN.half().float(), lens_B)[0])


@pytest.mark.parametrize("rate", RATES)
def test_silence_is_the_floor_and_gradients_are_finite(rate: int) -> None:
    mel = MelSpectrogram.preset(rate)
    wave_BN = torch.stack([torch.zeros(4000), wave(4000)]).requires_grad_()
    mel_BTF, _ = mel(wave_BN, torch.tensor([4000, 3000]))
    torch.testing.assert_close(mel_BTF[0], torch.full_like(mel_BTF[0], math.log(mel.log_floor)))
    torch.testing.assert_close(mel.undo_log(mel_BTF[0]), torch.full_like(mel_BTF[0], mel.log_floor), rtol=1e-5, atol=0)
    mel_BTF.square().sum().backward()
    assert wave_BN.grad is not None
    assert wave_BN.grad.isfinite().all()
    assert wave_BN.grad[1, :3000].abs().sum() > 0
    assert not wave_BN.grad[1, 3000:].any()


def test_gradients_are_those_of_the_differences() -> None:
    mel = MelSpectrogram(n_fft=64, win_length=64, hop_length=16, num_mels=5)
    wave_BN, lens_B = wave(200)[None], torch.tensor([200])
    direction_BN = wave(200, seed=1)[None]
    x_BN = wave_BN.clone().requires_grad_()
    mel(x_BN, lens_B)[0].sum().backward()
    assert x_BN.grad is not None
    step = 1e-2
    ahead, behind = (mel(wave_BN + sign * step * direction_BN, lens_B)[0].sum() for sign in (1, -1))
    torch.testing.assert_close((x_BN.grad * direction_BN).sum(), (ahead - behind) / (2 * step), rtol=2e-2, atol=0)


def test_fingerprints_tell_mels_apart() -> None:
    mels = [MelSpectrogram.preset(rate) for rate in RATES] + [
        MelSpectrogram(power=2),
        MelSpectrogram(log_base="10"),
        MelSpectrogram(log_floor=1e-6),
        MelSpectrogram(padding="center"),
        MelSpectrogram(f_max=7600.0),
    ]
    prints = [mel.fingerprint() for mel in mels]
    assert len(set(prints)) == len(prints)
    assert MelSpectrogram().fingerprint() == MelSpectrogram.preset(22050).fingerprint()
    assert MelSpectrogram(f_max=8000).fingerprint() == MelSpectrogram().fingerprint()


def test_differences_are_named_with_both_values() -> None:
    mel = MelSpectrogram()
    mel.check_same(MelSpectrogram())
    mel.check_same(json.loads(json.dumps(mel.settings())))
    with pytest.raises(ValueError, match=r"acoustic model and the vocoder differ: f_max=8000\.0 against 7600\.0; log_base"):
        mel.check_same(MelSpectrogram(f_max=7600.0, log_base="10"), name="the acoustic model", other_name="the vocoder")
    saved = mel.settings()
    del saved["padding"]
    with pytest.raises(ValueError, match="padding='same' against 'nothing'"):
        mel.check_same(saved)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MelSpectrogram.preset(44100), "sample_rate=44100: presets are for 16000, 22050, 24000"),
        (lambda: MelSpectrogram(f_max=12000.0), "f_max=12000.0"),
        (lambda: MelSpectrogram(hop_length=0), "hop_length=0"),
        (lambda: MelSpectrogram(hop_length=255), "hop_length=255"),
        (lambda: MelSpectrogram(win_length=200), "win_length=200"),
        (lambda: MelSpectrogram(n_fft=512), "n_fft=512"),
        (lambda: MelSpectrogram(n_fft=1025), "n_fft=1025"),
        (lambda: MelSpectrogram(power=3), "power=3"),
        (lambda: MelSpectrogram(log_base="2"), "log_base='2'"),
        (lambda: MelSpectrogram(log_floor=0.0), "log_floor=0.0"),
        (lambda: MelSpectrogram(padding="valid"), "padding='valid'"),
        (lambda: MelSpectrogram()(torch.zeros(1, 100), torch.tensor([101])), "wave_lens_B holds 101"),
    ],
)
def test_errors_name_field_and_value(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

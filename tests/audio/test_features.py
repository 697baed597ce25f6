"""Features: parity with librosa and torchaudio, independence of padding, precision, memory, settings."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.audio import mel
from speechkit.audio.cmvn import GlobalCmvn, UtteranceCmvn
from speechkit.audio.features import KaldiFbank, LogMel

FEATURES = [
    pytest.param(lambda **kw: LogMel(**kw), id="logmel"),
    pytest.param(lambda **kw: LogMel(preemphasis=None, n_fft=400, num_mels=40, mel_scale="slaney", **kw), id="logmel-400"),
    pytest.param(lambda **kw: KaldiFbank(**kw), id="kaldi"),
    pytest.param(lambda **kw: KaldiFbank(snip_edges=False, **kw), id="kaldi-mirrored"),
]


def wave(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise under a moving envelope, with a tone."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_samples) / 16000
    envelope = 0.05 + 0.3 * np.sin(2 * np.pi * 1.7 * time) ** 2
    noise = rng.standard_normal(num_samples) * 0.2
    return ((noise + 0.5 * np.sin(2 * np.pi * 440 * time)) * envelope).astype(np.float32)


def batch(waves: list[np.ndarray], padding: int = 0, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    lens = [len(w) for w in waves]
    wave_BN = torch.full((len(waves), max(lens) + padding), filler)
    for row, w in zip(wave_BN, waves, strict=True):
        row[: len(w)] = torch.from_numpy(w)
    return wave_BN, torch.tensor(lens)


def single(features: torch.nn.Module, w: np.ndarray) -> Tensor:
    feats_BTF, feat_lens_B = features(*batch([w]))
    return feats_BTF[0, : feat_lens_B[0]]


@pytest.mark.parametrize("num_samples", [1, 159, 160, 4000, 16000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mel_scale": "slaney", "mel_norm": "slaney", "num_mels": 64},
        {"n_fft": 400, "num_mels": 40, "f_min": 60.0, "f_max": 7600.0},
        {"n_fft": 1024, "win_length": 1024, "hop_length": 256, "sample_rate": 22050},
    ],
)
def test_log_mel_equals_librosa(num_samples: int, options: dict) -> None:
    librosa = pytest.importorskip("librosa")
    w = wave(num_samples)
    features = LogMel(preemphasis=None, log_floor=1e-10, **options)
    expected = librosa.feature.melspectrogram(
        y=w,
        sr=features.sample_rate,
        n_fft=features.n_fft,
        hop_length=features.hop_length,
        win_length=features.win_length,
        center=True,
        pad_mode="constant",
        n_mels=features.output_dim,
        fmin=features.f_min,
        fmax=features.f_max,
        htk=features.mel_scale == "htk",
        norm=features.mel_norm,
    )
    actual = single(features, w).numpy()
    assert actual.shape == expected.T.shape
    np.testing.assert_allclose(actual, np.log(np.maximum(expected.T, 1e-10)), atol=2e-4)


def test_preemphasis_covers_the_whole_utterance() -> None:
    w = wave(5000)
    emphasised = w.copy()
    emphasised[1:] -= 0.97 * w[:-1]
    expected = single(LogMel(preemphasis=None), emphasised)
    assert torch.allclose(single(LogMel(preemphasis=0.97), w), expected, atol=1e-4)


@pytest.mark.parametrize("num_samples", [400, 401, 1039, 16000])
@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_mels": 23, "window": "hamming", "f_max": -400.0, "remove_dc_offset": False}])
def test_kaldi_equals_torchaudio(num_samples: int, snip_edges: bool, options: dict) -> None:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    w = wave(num_samples)
    expected = kaldi.fbank(
        torch.from_numpy(w)[None] * 32768.0,
        num_mel_bins=options.get("num_mels", 80),
        window_type=options.get("window", "povey"),
        high_freq=options.get("f_max", 0.0),
        remove_dc_offset=options.get("remove_dc_offset", True),
        dither=0.0,
        snip_edges=snip_edges,
    )
    actual = single(KaldiFbank(snip_edges=snip_edges, **options), w)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("make", FEATURES)
@settings(max_examples=15, deadline=None)
@given(
    lens=st.lists(st.integers(1, 6000), min_size=1, max_size=5),
    padding=st.integers(0, 5000),
    filler=st.sampled_from([0.0, 7.0]),
)
def test_padding_and_batch_mates_change_nothing(make, lens: list[int], padding: int, filler: float) -> None:
    features = make()
    waves = [wave(n, seed=i) for i, n in enumerate(lens)]
    feats_BTF, feat_lens_B = features(*batch(waves, padding, filler))
    assert feats_BTF.dtype == torch.float32
    for i, w in enumerate(waves):
        alone = single(features, w)
        assert feat_lens_B[i] == len(alone)
        assert torch.equal(feats_BTF[i, : len(alone)], alone)
        assert not feats_BTF[i, len(alone) :].any()


@pytest.mark.parametrize("make", FEATURES)
def test_chunks_do_not_show(make, monkeypatch: pytest.MonkeyPatch) -> None:
    waves_lens = batch([wave(40000), wave(23456, seed=1)])
    whole, _ = make()(*waves_lens)
    monkeypatch.setattr("speechkit.audio.frames._CPU_ROWS", 74)
    pieces, _ = make()(*waves_lens)
    assert torch.equal(whole, pieces)


@pytest.mark.parametrize("make", FEATURES)
@given(num_samples=st.integers(0, 3000))
@settings(max_examples=30, deadline=None)
def test_frame_count_is_the_documented_one(make, num_samples: int) -> None:
    features = make()
    feats_BTF, feat_lens_B = features(torch.zeros(1, num_samples), torch.tensor([num_samples]))
    assert feat_lens_B.dtype == torch.int64
    assert feats_BTF.shape == (1, int(feat_lens_B[0]), features.output_dim)
    if isinstance(features, LogMel):
        assert int(feat_lens_B[0]) == (1 + num_samples // 160 if num_samples else 0)


@pytest.mark.parametrize("make", FEATURES)
def test_half_precision_is_computed_in_float32(make) -> None:
    features = make()
    wave_BN, lens_B = batch([wave(8000)])
    expected, _ = features(wave_BN, lens_B)
    halved = copy.deepcopy(features).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = halved(wave_BN, lens_B)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    rounded, _ = halved(wave_BN.half(), lens_B)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, features(wave_BN.half().float(), lens_B)[0])


@pytest.mark.parametrize("make", FEATURES)
def test_digital_silence_is_finite_and_gradients_flow(make) -> None:
    features = make()
    feats_BTF, _ = features(torch.zeros(1, 4000), torch.tensor([4000]))
    assert feats_BTF.isfinite().all()
    wave_BN, lens_B = batch([wave(4000)])
    wave_BN.requires_grad_()
    features(wave_BN, lens_B)[0].sum().backward()
    assert wave_BN.grad is not None
    assert wave_BN.grad.isfinite().all()
    assert wave_BN.grad.abs().sum() > 0


def test_settings_and_fingerprint_tell_features_apart() -> None:
    makers = [
        lambda: LogMel(),
        lambda: LogMel(num_mels=64),
        lambda: LogMel(preemphasis=None),
        lambda: LogMel(cmvn=UtteranceCmvn()),
        lambda: LogMel(cmvn=UtteranceCmvn(normalize_variance=False)),
        lambda: LogMel(cmvn=GlobalCmvn(dim=80)),
        lambda: KaldiFbank(),
        lambda: KaldiFbank(snip_edges=False),
    ]
    prints = [make().fingerprint() for make in makers]
    assert len(set(prints)) == len(prints)
    assert prints == [make().fingerprint() for make in makers]
    assert LogMel(f_max=8000.0).fingerprint() == LogMel().fingerprint()
    assert LogMel().frame_shift == 0.01
    assert KaldiFbank().output_dim == 80


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LogMel(n_fft=256), "n_fft=256"),
        (lambda: LogMel(f_max=9000.0), "f_max=9000.0"),
        (lambda: LogMel(num_mels=0), "num_mels=0"),
        (lambda: LogMel(mel_scale="bark"), "mel_scale='bark'"),
        (lambda: LogMel(log_floor=0.0), "log_floor=0.0"),
        (lambda: KaldiFbank(window="kaiser"), "window='kaiser'"),
        (lambda: LogMel()(torch.zeros(100), torch.tensor([100])), "wave_BN has shape"),
        (lambda: LogMel()(torch.zeros(1, 100), torch.tensor([101])), "wave_lens_B holds 101"),
        (lambda: LogMel()(torch.zeros(1, 100, dtype=torch.int16), torch.tensor([100])), "int16"),
    ],
)
def test_errors_name_field_and_value(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_filters_without_a_bin_are_reported() -> None:
    with pytest.warns(UserWarning, match="hold no FFT bin"):
        LogMel(n_fft=400, num_mels=200)


def test_mel_scales_invert() -> None:
    hz = np.linspace(0, 8000, 97)
    for scale in ("htk", "slaney"):
        np.testing.assert_allclose(mel.mel_to_hz(mel.hz_to_mel(hz, scale), scale), hz, atol=1e-8)


@pytest.mark.parametrize("make", FEATURES)
def test_temporaries_do_not_grow_with_the_audio(make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    rfft = torch.fft.rfft

    def spy(frames: Tensor, n: int) -> Tensor:
        sizes.append(frames.numel())
        return rfft(frames, n=n)

    monkeypatch.setattr("torch.fft.rfft", spy)
    num_samples = 16000 * 180
    feats_BTF, _ = make()(torch.zeros(1, num_samples), torch.tensor([num_samples]))
    assert feats_BTF.shape[1] >= 17998
    assert len(sizes) >= 4
    assert max(sizes) <= 4096 * 512

"""Augmentation of waveforms: what each augmenter promises, and reproducibility."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio.augment import (
    AddNoise,
    CodecSim,
    Compose,
    Gain,
    PadSilence,
    RandomShift,
    Reverb,
    SpeedPerturb,
    WaveTransform,
    coloured_noise,
)
from speechkit.audio.io import save_audio

RATE = 16000
ALL: list[Callable[[], WaveTransform]] = [
    lambda: SpeedPerturb(),
    lambda: Gain(),
    lambda: PadSilence(probability=1.0),
    lambda: RandomShift(),
    lambda: AddNoise(probability=1.0),
    lambda: Reverb(probability=1.0),
    lambda: CodecSim(codecs=["mulaw"], probability=1.0),
    lambda: CodecSim(codecs=["narrowband"], probability=1.0),
    lambda: CodecSim(codecs=["mp3"], probability=1.0),
    lambda: CodecSim(codecs=["opus"], probability=1.0),
    lambda: CodecSim(codecs=["vorbis"], probability=1.0),
    lambda: Compose(transforms=[SpeedPerturb(), Gain(), PadSilence(), AddNoise(), Reverb(), CodecSim()]),
]


def wave(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    clock = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 500 * clock) * (np.sin(2 * np.pi * 3 * clock) > 0)).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def power(x: np.ndarray) -> float:
    return float(np.mean(np.square(x, dtype=np.float64)))


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """By how many samples `b` comes later than `a`."""
    size = 1 << (len(a) + len(b)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size)
    best = int(np.argmax(correlation))
    return best if best < size // 2 else best - size


@pytest.mark.parametrize("make", ALL)
@settings(max_examples=12, deadline=None)
@given(num_samples=st.integers(1, 5000), seed=st.integers(0, 50), rate=st.sampled_from([8000, 16000, 22050, 44100]))
def test_contract_of_every_augmenter(make: Callable[[], WaveTransform], num_samples: int, seed: int, rate: int) -> None:
    transform = make()
    original = rng(99).normal(0, 0.1, num_samples).astype(np.float32)
    x = original.copy()
    y = transform(x, rate, rng(seed))
    assert y.dtype == np.float32
    assert y.ndim == 1
    assert len(y) > 0
    assert len(y) <= num_samples * transform.max_stretch + transform.max_added * rate + 1
    if (transform.max_stretch, transform.max_added) == (1.0, 0.0) and not isinstance(transform, RandomShift):
        assert len(y) == num_samples
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(x, original)
    np.testing.assert_array_equal(y, make()(x, rate, rng(seed)))


@pytest.mark.parametrize("make", ALL)
def test_digital_silence_stays_finite(make: Callable[[], WaveTransform]) -> None:
    for seed in range(5):
        y = make()(np.zeros(4000, np.float32), RATE, rng(seed))
        assert np.abs(y).max() < 1e-3


def test_probability_zero_changes_nothing() -> None:
    chain = Compose(
        transforms=[
            SpeedPerturb(probability=0.0),
            Gain(probability=0.0),
            PadSilence(probability=0.0),
            AddNoise(probability=0.0),
            Reverb(probability=0.0),
            CodecSim(probability=0.0),
        ]
    )
    assert (chain.max_stretch, chain.max_added) == (1.0, 0.0)
    np.testing.assert_array_equal(chain(wave(), RATE, rng()), wave())


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_changes_tempo_and_pitch(factor: float) -> None:
    transform = SpeedPerturb(factors=[factor])
    y = transform(wave(2.0), RATE, rng())
    assert abs(len(y) - 2 * RATE / factor) <= 1
    assert transform.max_stretch == pytest.approx(max(1.0, 1 / factor))
    peak_hz = np.argmax(np.abs(np.fft.rfft(y))) * RATE / len(y)
    assert peak_hz == pytest.approx(500 * factor, abs=4)


def test_speed_draws_all_factors() -> None:
    transform = SpeedPerturb()
    lengths = [len(transform(wave(0.1), RATE, rng(seed))) for seed in range(60)]
    assert len(set(lengths)) == 3
    assert min(lengths.count(n) for n in set(lengths)) > 8


def test_gain_is_within_its_range() -> None:
    gains = [20 * np.log10(Gain(min_db=-5, max_db=3)(wave(0.1), RATE, rng(s)).max() / wave(0.1).max()) for s in range(40)]
    assert -5 <= min(gains) < -4
    assert 2 < max(gains) <= 3


def test_pauses_surround_the_utterance() -> None:
    transform, seen = PadSilence(max_seconds=0.4, probability=1.0), []
    for seed in range(40):
        y = transform(wave(0.3), RATE, rng(seed))
        speech = wave(0.3)
        start = next(i for i in range(len(y)) if np.array_equal(y[i : i + len(speech)], speech))
        before, after = y[:start], y[start + len(speech) :]
        assert max(len(before), len(after)) <= 0.4 * RATE
        seen.append(len(before))
    assert max(seen) > 0.3 * RATE


def test_shift_cuts_less_than_a_frame_from_the_beginning_only() -> None:
    speech, cut = rng().normal(0, 0.2, RATE).astype(np.float32), []
    for seed in range(60):
        y = RandomShift(max_seconds=0.04)(speech, RATE, rng(seed))
        cut.append(len(speech) - len(y))
        assert np.array_equal(y, speech[cut[-1] :])
    assert 0 <= min(cut) < 0.005 * RATE
    assert 0.035 * RATE < max(cut) <= 0.04 * RATE
    assert len(RandomShift(max_seconds=1.0)(speech[:10], RATE, rng())) >= 5


def test_noise_of_pauses_is_as_loud_as_the_quiet_parts() -> None:
    speech = np.concatenate([rng().normal(0, 0.2, RATE), rng(1).normal(0, 0.01, RATE)]).astype(np.float32)
    noisy = [y for seed in range(20) if (y := PadSilence(max_seconds=1.0, probability=1.0)(speech, RATE, rng(seed)))[0] != 0]
    assert noisy
    for y in noisy:
        pause = y[: int(np.flatnonzero(np.abs(y) > 0.1)[0])]
        assert np.std(pause) == pytest.approx(0.01, rel=0.2)


def test_lengths_add_up_along_a_chain() -> None:
    chain = Compose(transforms=[PadSilence(max_seconds=0.5), SpeedPerturb(factors=[0.5])])
    assert (chain.max_stretch, chain.max_added) == (2.0, 2.0)
    chain = Compose(transforms=[SpeedPerturb(factors=[0.5]), PadSilence(max_seconds=0.5)])
    assert (chain.max_stretch, chain.max_added) == (2.0, 1.0)


def recordings(directory: Path, waves: dict[str, np.ndarray], rate: int = RATE) -> Path:
    rows = []
    for name, x in waves.items():
        save_audio(directory / name, x, rate, subtype="FLOAT")
        rows.append({"audio_filepath": name, "duration": len(x) / rate})
    manifest = directory / "list.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.mark.parametrize("source", ["coloured", "short", "long", "other rate"])
def test_noise_is_mixed_at_its_ratio(tmp_path: Path, source: str) -> None:
    manifest = None
    if source != "coloured":
        seconds = 0.3 if source == "short" else 5.0
        rate = 44100 if source == "other rate" else RATE
        manifest = recordings(tmp_path, {"n.wav": rng(5).normal(0, 0.01, round(seconds * rate)).astype(np.float32)}, rate)
    transform = AddNoise(manifest=manifest, min_snr_db=7.0, max_snr_db=7.0, probability=1.0)
    for seed in range(4):
        added = transform(wave(), RATE, rng(seed)) - wave()
        assert 10 * np.log10(power(wave()) / power(added)) == pytest.approx(7.0, abs=0.01)
        assert np.abs(added[-2000:]).max() > 0  # the noise covers the end as well


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_has_its_colour(colour: float) -> None:
    x = coloured_noise(1 << 17, RATE, colour, rng())
    spectrum = np.abs(np.fft.rfft(x)) ** 2
    hz = np.fft.rfftfreq(len(x), 1 / RATE)
    bands = [(200, 400), (400, 800), (800, 1600), (1600, 3200), (3200, 6400)]
    levels = [np.log2(spectrum[(hz >= a) & (hz < b)].mean()) for a, b in bands]
    np.testing.assert_allclose(np.diff(levels), -colour, atol=0.15)
    assert power(x) == pytest.approx(1.0, rel=0.3)


def test_reverberation_keeps_alignment_and_level(tmp_path: Path) -> None:
    x = rng(3).normal(0, 0.1, RATE).astype(np.float32)
    late = np.zeros(8000, np.float32)
    late[3000] = 0.5  # a direct path after 188 ms, and an echo
    late[3800] = 0.2
    from_file = Reverb(manifest=recordings(tmp_path, {"rir.wav": late}), probability=1.0)
    for transform in (from_file, Reverb(probability=1.0), Reverb(min_drr_db=-3, max_drr_db=-3, probability=1.0)):
        for seed in range(3):
            y = transform(x, RATE, rng(seed))
            assert lag(x, y) == 0
            assert power(y) == pytest.approx(power(x), rel=1e-3)
            assert not np.allclose(x, y, atol=1e-3)
    expected = 0.5 * x
    expected[800:] += 0.2 * x[:-800]
    expected *= np.sqrt(power(x) / power(expected))
    np.testing.assert_allclose(from_file(x, RATE, rng()), expected, atol=1e-5)


@pytest.mark.parametrize("codec", ["mulaw", "narrowband", "mp3", "opus", "vorbis"])
@pytest.mark.parametrize("rate", [16000, 22050])
def test_codecs_keep_alignment_and_sound_alike(codec: str, rate: int) -> None:
    rough = rng(1).normal(0, 1, rate)
    smooth = np.convolve(rough, np.hanning(12) / 6, mode="same")  # little above 3 kHz
    x = (0.1 * smooth * (1 + np.sin(np.arange(rate) / 900))).astype(np.float32)
    y = CodecSim(codecs=[codec], probability=1.0)(x, rate, rng())
    assert abs(lag(x, y)) <= 1
    assert np.corrcoef(x[500:-500], y[500:-500])[0, 1] > 0.9
    assert power(y) == pytest.approx(power(x), rel=0.2)
    assert not np.array_equal(x, y)


def test_mu_law_is_that_of_soundfile(tmp_path: Path) -> None:
    import soundfile

    x = np.linspace(-0.9, 0.9, 2001).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", x, 8000, subtype="ULAW")
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    y = CodecSim(codecs=["mulaw"], probability=1.0)(x, 8000, rng())
    assert np.abs(y - expected).max() < 0.04  # both have steps of up to 0.03 there
    assert len(np.unique(y)) < 256


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpeedPerturb(factors=[]), "factors="),
        (lambda: SpeedPerturb(factors=[0.0]), "factors="),
        (lambda: Gain(min_db=3, max_db=-3), "min_db=3, max_db=-3"),
        (lambda: AddNoise(probability=2.0), "probability=2.0"),
        (lambda: AddNoise(manifest="/nowhere/list.jsonl"), "cannot be read"),
        (lambda: Reverb(min_rt60=0.0), "min_rt60=0.0"),
        (lambda: CodecSim(codecs=["amr"]), "'amr' is unknown"),
        (lambda: CodecSim(codecs=[]), "codecs: is empty"),
    ],
)
def test_errors_name_the_option(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_noise_manifest_names_the_line(tmp_path: Path) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"audio_filepath": "a.wav", "duration": 1.0}\n{"audio_filepath": "b.wav"}\n')
    with pytest.raises(ValueError, match=r"list\.jsonl:2: needs audio_filepath and duration"):
        AddNoise(manifest=manifest)
    manifest.write_text("\n")
    with pytest.raises(ValueError, match="lists no recordings"):
        AddNoise(manifest=manifest)

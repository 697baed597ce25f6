"""Recognizer: inputs, order, batch invariance, long recordings in windows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechkit.data.corpora.demo import prepare_demo
from speechkit.data.manifest import read_manifest
from speechkit.metrics.wer import count_errors
from speechkit.models.ctc.infer import CtcDecodeOptions, infer
from speechkit.pretrained import load
from speechkit.recognizer import Recognizer, join_hypotheses
from speechkit.search.longform import stitch
from speechkit.types import Hypothesis, Word

RATE = 16000


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return load("fsdd-ctc", device="cpu")


@pytest.fixture
def digits(data_root: Path) -> list[Path]:
    return sorted((data_root / "fsdd" / "audio").rglob("*_0[0-4].flac"))[:24]


def _buzz(seconds: float, seed: int = 0) -> np.ndarray:
    """A vowel-like buzz in bursts."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 110 + 40 * rng.random()
    wave = sum(np.sin(2 * np.pi * pitch * k * time + rng.random()) / k for k in range(1, 16))
    return (0.1 * wave * (np.sin(2 * np.pi * 1.3 * time) > -0.3)).astype(np.float32)


def test_every_kind_of_input_gives_the_same(tmp_path: Path, recognizer: Recognizer) -> None:
    wave = _buzz(1.5)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    stereo = np.stack([wave, wave])
    inputs = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), wave, torch.from_numpy(wave), stereo, stereo.T]
    results = recognizer.transcribe(inputs, batch_size=3)
    assert len({hypothesis.tokens for hypothesis in results}) == 1
    assert all(hypothesis.audio_s == pytest.approx(1.5) for hypothesis in results)
    integers = recognizer.transcribe((wave * 32767).astype(np.int16))[0]
    assert integers.tokens == results[0].tokens


def test_arrays_of_another_rate_are_resampled(recognizer: Recognizer) -> None:
    assert recognizer.transcribe(_buzz(1.0), sample_rate=8000)[0].audio_s == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("bad", [3, {"a": 1}, np.zeros((2, 3, 4), np.float32), np.array(["a"])])
def test_wrong_kinds_are_refused(recognizer: Recognizer, bad: object) -> None:
    with pytest.raises(ValueError, match="audio"):
        recognizer.transcribe(bad)


def test_wrong_options_are_refused(recognizer: Recognizer) -> None:
    for options, message in [
        ({"batch_size": 0}, "batch_size=0"),
        ({"on_error": "ignore"}, "on_error"),
        ({"language": "xx"}, "language='xx'"),
        ({"timestamps": "syllable"}, "timestamps"),
    ]:
        with pytest.raises(ValueError, match=message):
            recognizer.transcribe(_buzz(0.5), **options)


def test_silence_and_noise_give_no_words(recognizer: Recognizer, rng: np.random.Generator) -> None:
    hum = 0.05 * np.sin(2 * np.pi * 50 * np.arange(3 * RATE) / RATE)
    noises = [np.zeros(RATE), np.zeros(0), 0.1 * rng.normal(size=3 * RATE), hum, 1e-4 * rng.normal(size=40 * RATE)]
    for hypothesis in recognizer.transcribe([noise.astype(np.float32) for noise in noises]):
        assert (hypothesis.text, hypothesis.error) == ("", "")


def test_batch_size_and_order_never_change_the_text(recognizer: Recognizer, digits: list[Path]) -> None:
    one = recognizer.transcribe(digits, batch_size=1, timestamps="word")
    for batch_size in (4, 16):
        assert [h.tokens for h in recognizer.transcribe(digits, batch_size=batch_size)] == [h.tokens for h in one]
    order = np.random.default_rng(1).permutation(len(digits))
    shuffled = recognizer.transcribe([digits[i] for i in order], batch_size=16)
    assert [shuffled[i].tokens for i in np.argsort(order)] == [h.tokens for h in one]


def test_a_long_recording_is_the_sum_of_its_regions(tmp_path: Path) -> None:
    """One call over a long recording: the words of each speech region decoded by itself, at their times in the recording."""
    pytest.importorskip("espeakng_loader")
    recognizer = load("demo-ctc", device="cpu")
    prepare_demo(tmp_path, num_train=1, num_dev=1, num_test=24, num_workers=0)
    pause = np.zeros(int(1.2 * RATE), np.float32)
    waves = [soundfile.read(u.audio_path, dtype="float32")[0] for u in read_manifest(tmp_path / "test.jsonl")]
    recording = np.concatenate([part for wave in waves for part in (pause, wave)])
    regions = recognizer.speech_regions(recording)
    assert len(regions) > 12
    assert all(round(begin * RATE) % 640 == 0 for begin, _ in regions), "on whole output frames of the recording"
    hypothesis = recognizer.transcribe(recording, timestamps="word", batch_size=3)[0]
    parts = recognizer.transcribe([recording[round(b * RATE) : round(e * RATE)] for b, e in regions], timestamps="word")
    assert hypothesis.audio_s == pytest.approx(len(recording) / RATE)
    assert hypothesis.text == " ".join(part.text for part in parts if part.text)
    expected = [begin + word.start for (begin, _), part in zip(regions, parts) for word in part.words]
    assert [word.start for word in hypothesis.words] == pytest.approx(expected)
    assert expected == sorted(expected)


def test_sentences_with_short_pauses_are_recognised_as_well_as_one_by_one(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    recognizer = load("demo-ctc", device="cpu")
    prepare_demo(tmp_path, num_train=1, num_dev=1, num_test=30, num_text=0, num_workers=0)
    utterances = read_manifest(tmp_path / "test.jsonl")
    recording = np.concatenate([soundfile.read(u.audio_path, dtype="float32")[0] for u in utterances])
    reference = " ".join(u.text for u in utterances)
    one_call = count_errors(reference, recognizer.transcribe(recording)[0].text)
    one_by_one = count_errors(reference, " ".join(h.text for h in recognizer.transcribe([u.audio_path for u in utterances])))
    assert one_by_one.rate < 0.15
    assert one_call.rate < one_by_one.rate + 0.05


def test_windows_of_unbroken_speech_are_stitched(recognizer: Recognizer) -> None:
    """A region longer than the window: stitched windows agree with one pass over the whole region, up to context."""
    short = Recognizer(
        features=recognizer.features,
        model=recognizer.model,
        tokenizer=recognizer.tokenizer,
        infer=infer,
        options=CtcDecodeOptions(),
        window_seconds=4.0,
    )
    feats_TF = torch.randn(1543, recognizer.features.output_dim)
    windows = short._windows(feats_TF)
    assert len(windows) > 3
    whole, lens = recognizer.model.frame_log_probs(feats_TF[None], torch.tensor([len(feats_TF)]))
    parts = [
        recognizer.model.frame_log_probs(feats_TF[None, w.start : w.end], torch.tensor([w.end - w.start]))[0][0] for w in windows
    ]
    stitched = stitch(parts, windows)
    assert len(stitched) == int(lens[0])
    agreement = (stitched.argmax(-1) == whole[0].argmax(-1)).float().mean()
    assert agreement > 0.8


def test_joining_shifts_times_and_weighs_confidence() -> None:
    first = Hypothesis(text="a b", tokens=(5, 6), score=-1.0, words=(Word("a", 0.0, 0.1, 0.9),), confidence=0.9)
    second = Hypothesis(text="c", tokens=(7,), score=-2.0, words=(Word("c", 0.5, 0.6, 0.3),), confidence=0.3)
    joined = join_hypotheses([(1.0, first), (10.0, second)], audio_s=12.0)
    assert (joined.text, joined.tokens, joined.score) == ("a b c", (5, 6, 7), -3.0)
    assert [(word.start, word.end) for word in joined.words] == [(1.0, 1.1), (10.5, 10.6)]
    assert joined.confidence == pytest.approx((2 * 0.9 + 0.3) / 3)
    assert join_hypotheses([], audio_s=1.0).text == ""
    chinese = [Hypothesis(text="你好"), Hypothesis(text=""), Hypothesis(text="世界")]
    assert join_hypotheses([(float(i), part) for i, part in enumerate(chinese)], audio_s=3.0).text == "你好世界"

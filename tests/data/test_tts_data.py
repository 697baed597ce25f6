"""The data of synthesis: times to frames, prosody kept between runs, batches, and what is said of rows that do not fit."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.data.alignment import frame_durations, phone_boundaries, timed_phones
from speechkit.data.collate import collate_tts
from speechkit.data.manifest import write_manifest
from speechkit.data.prosody import compile_prosody
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.tts_data import TtsData
from speechkit.text.tokenizers import PhonemeTokenizer
from speechkit.types import TimedPhone, TtsBatch, Utterance

MEL = MelSpectrogram.preset(16000)
SAMPLER = functools.partial(BucketBatchSampler, max_batch_seconds=6.0, num_buckets=2, seed=0)


class Letters:
    """A front end whose phones are letters."""

    def phones(self, text: str, *, lang: str | None = None) -> list[str]:
        """Words of letters between boundaries."""
        symbols = ["|"]
        for word in text.rstrip(".").split():
            symbols += [*word, "|"]
        return [*symbols[:-1], "."] if len(symbols) > 1 else []


def _corpus(directory: Path, *, num: int = 6, timed: bool = True) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num):
        seconds = 1.0 + 0.17 * number
        times = np.arange(int(seconds * 16000)) / 16000
        hz = 120.0 + 20.0 * (number % 2)
        wave = 0.3 * np.sign(np.sin(2 * np.pi * hz * times)) + 0.01 * rng.standard_normal(len(times))
        path = directory / f"{number}.wav"
        soundfile.write(path, wave.astype(np.float32), 16000)
        letters = "abcd"
        step = (seconds - 0.4) / 5
        phones = [[letter, 0.2 + step * (k + (k > 1)), 0.2 + step * (k + 1 + (k > 1))] for k, letter in enumerate(letters)]
        extra: dict[str, Any] = {"phonemes": phones} if timed else {}
        labels = {"text": "ab cd.", "speaker": f"s{number % 2}", "lang": "en"}
        rows.append(Utterance(id=f"u{number}", audio_path=path, duration=len(wave) / 16000, **labels, extra=extra))
    manifest = directory / "all.jsonl"
    write_manifest(manifest, rows)
    return manifest


def _data(manifest: Path, cache: Path, **options: Any) -> TtsData:
    data = TtsData(train=manifest, valid=manifest, mel=MEL, sampler=SAMPLER, frontend=Letters(), cache_dir=cache, **options)
    data.tokenizer = PhonemeTokenizer.train(data.texts())
    return data


def test_batches_hold_phones_that_fill_all_frames(tmp_path: Path) -> None:
    data = _data(_corpus(tmp_path), tmp_path / "cache")
    batches: list[TtsBatch] = list(data.train_loader(rank=0, world_size=1))
    assert sorted(utterance_id for batch in batches for utterance_id in batch.ids) == [f"u{n}" for n in range(6)]
    for batch in batches:
        mel_BTF, mel_lens_B = MEL(batch.wave_BN, batch.wave_lens_B)
        assert batch.durations_BP is not None
        assert batch.pitch_BT is not None
        assert torch.equal(batch.durations_BP.sum(1), mel_lens_B)
        assert batch.pitch_BT.shape == mel_BTF.shape[:2]
        assert batch.phones_BP.shape == batch.durations_BP.shape
        assert data.tokenizer is not None
        assert data.tokenizer.decode(batch.phones_BP[0].tolist()) == "| a b | c d ."
        assert batch.durations_BP[0, 0] == 5  # a margin of 50 ms
        assert batch.speakers_B.tolist() == [int(name[1:]) % 2 for name in batch.ids]


def test_pitch_is_normalised_by_speaker(tmp_path: Path) -> None:
    data = _data(_corpus(tmp_path), tmp_path / "cache")
    assert data.stats is not None
    assert math.exp(data.stats.log_f0_mean["s0"]) == pytest.approx(120.0, rel=0.02)
    assert math.exp(data.stats.log_f0_mean["s1"]) == pytest.approx(140.0, rel=0.02)
    batch = collate_tts([data.train_dataset[i] for i in range(6)])
    assert batch.pitch_BT is not None
    raw_T = batch.pitch_BT[1] * data.stats.log_f0_std + data.stats.log_f0_mean["s1"]
    assert float(raw_T[10].exp()) == pytest.approx(140.0, rel=0.02)


def test_prosody_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, cache = _corpus(tmp_path), tmp_path / "cache"
    first = _data(manifest, cache).train_dataset[2]
    monkeypatch.setattr("speechkit.data.prosody.f0", lambda *_, **__: pytest.fail("computed again"))
    again = _data(manifest, cache).train_dataset[2]
    assert first is not None
    assert again is not None
    for one, other in zip(first[7:], again[7:], strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "2.wav").touch()
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        _data(manifest, cache).train_dataset  # noqa: B018


def test_silence_has_the_usual_pitch_and_is_reported(tmp_path: Path) -> None:
    utterances = [Utterance(id=name, audio_path=tmp_path / name, duration=1.0, speaker="s") for name in ("voice", "silence")]
    voice = np.sign(np.sin(2 * np.pi * 150.0 * np.arange(16000) / 16000)).astype(np.float32)
    index = compile_prosody(utterances, lambda i: voice * (i == 0), tmp_path, mel=MEL)
    assert index.silent == ["silence"]
    np.testing.assert_array_equal(index(1, "s").pitch_T, 0.0)
    assert np.isfinite(index(1, "s").energy_T).all()
    right = compile_prosody(utterances, lambda i: voice * (i == 0), tmp_path, mel=MEL, channel=1)
    assert right.directory != index.directory
    with pytest.raises(ValueError, match="none of 1 utterances has a voiced frame"):
        compile_prosody(utterances[1:], lambda _: np.zeros(16000, np.float32), tmp_path, mel=MEL)


def test_known_pauses_are_cut_to_the_margin_too(tmp_path: Path) -> None:
    from speechkit.data.manifest import read_manifest

    rows = read_manifest(_corpus(tmp_path))
    first = [rows[0].extra["phonemes"]]
    (a, b, c, d) = first[0]
    every = [["|", 0.0, a[1]], a, b, ["|", b[2], c[1]], c, d, [".", d[2], rows[0].duration]]
    write_manifest(tmp_path / "every.jsonl", [dataclasses.replace(rows[0], extra={"phonemes": every}), *rows[1:]])
    sounds, whole = (_data(tmp_path / name, tmp_path).train_dataset[0] for name in ("all.jsonl", "every.jsonl"))
    assert sounds is not None
    assert whole is not None
    assert whole.durations_P is not None
    np.testing.assert_array_equal(whole.durations_P, sounds.durations_P)
    assert whole.durations_P[0] == 5


def test_without_times(tmp_path: Path) -> None:
    manifest = _corpus(tmp_path, timed=False)
    batch = next(iter(_data(manifest, tmp_path, alignment=None, prosody=False).train_loader(rank=0, world_size=1)))
    assert (batch.durations_BP, batch.pitch_BT) == (None, None)
    assert batch.phone_lens_B.tolist() == [7] * len(batch.ids)
    with pytest.raises(ValueError, match="no times in field 'phonemes'; run `speechkit align`"):
        _data(manifest, tmp_path).train_dataset  # noqa: B018


def test_speech_alone_for_models_that_read_no_text(tmp_path: Path) -> None:
    data = TtsData(train=_corpus(tmp_path), valid=tmp_path / "all.jsonl", mel=MEL, sampler=SAMPLER, prosody=False)
    [*batches] = data.valid_loader(rank=0, world_size=1)
    assert sum(len(batch.ids) for batch in batches) == 6
    assert batches[0].phones_BP.shape[1] == 0


def test_rows_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from speechkit.data.manifest import read_manifest

    rows = read_manifest(_corpus(tmp_path))
    rows[0] = dataclasses.replace(rows[0], text="ab dd.")
    write_manifest(tmp_path / "wrong.jsonl", rows)
    data = _data(tmp_path / "wrong.jsonl", tmp_path)
    assert len(data.train_dataset) == 5
    printed = capsys.readouterr().out
    assert "left out 1 of 6 utterances, such as u0" in printed
    assert "part at phone 2: 'd d' against 'c d'" in printed
    write_manifest(tmp_path / "wrong.jsonl", [dataclasses.replace(row, text="xy") for row in rows])
    with pytest.raises(ValueError, match="6 of 6 utterances cannot be used"):
        _data(tmp_path / "wrong.jsonl", tmp_path).train_dataset  # noqa: B018


def test_a_damaged_alignment_is_refused(tmp_path: Path) -> None:
    row = Utterance(id="u", audio_path=tmp_path, duration=1.0, extra={"phonemes": [["a", 0.5, 0.6], ["b", 0.1, 0.2]]})
    with pytest.raises(ValueError, match="do not increase"):
        timed_phones(row)
    with pytest.raises(ValueError, match=r"must be \[\[symbol, start, end\]"):
        timed_phones(dataclasses.replace(row, extra={"phonemes": ["a"]}))
    assert timed_phones(dataclasses.replace(row, extra={})) == ()


def test_pauses_lie_between_words() -> None:
    phones = (TimedPhone("a", 0.1, 0.2), TimedPhone("b", 0.2, 0.3), TimedPhone("c", 0.5, 0.6))
    found = phone_boundaries(["|", "a", "b", ",", "c", "."], phones, start=0.0, end=1.0)
    np.testing.assert_allclose(found, [0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 1.0])
    every = tuple(TimedPhone(s, 0.1 * k, 0.1 * (k + 1)) for k, s in enumerate(["|", "a", "."]))
    np.testing.assert_allclose(phone_boundaries(["|", "a", "."], every, start=0.0, end=0.3), [0.0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(phone_boundaries(["a"], phones[:1], start=0.0, end=1.0), [0.0, 1.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 0.5), min_size=1, max_size=20), st.integers(0, 400))
def test_durations_add_up_to_the_frames(gaps: list[float], num_frames: int) -> None:
    durations = frame_durations(np.concatenate([[0.0], np.cumsum(gaps)]), frame_shift=0.01, num_frames=num_frames)
    assert durations.sum() == num_frames
    assert (durations >= 0).all()

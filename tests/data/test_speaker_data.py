"""Speech of many speakers: who is in a batch, which utterances are kept, what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkit.data.speaker_batches import SpeakerBatchSampler
from speechkit.data.speaker_data import SpeakerData

RATE = 8000


def write(directory: Path, name: str, speakers: list[str], seconds: float = 0.6) -> Path:
    """A manifest with an utterance of each of these speakers: the first sample tells which."""
    rows = []
    for number, speaker in enumerate(speakers):
        wave_N = np.zeros(int(seconds * RATE) + number, np.float32)
        wave_N[0] = number / 64
        soundfile.write(directory / f"{name}{number}.wav", wave_N, RATE)
        row = {"id": f"{name}{number}", "audio_filepath": f"{name}{number}.wav", "duration": len(wave_N) / RATE, "text": "a"}
        rows.append(row | ({"speaker": speaker} if speaker else {}))
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(train: Path, valid: Path, **options: Any) -> SpeakerData:
    sampler = partial(SpeakerBatchSampler, speakers_per_batch=2, utterances_per_speaker=2)
    return SpeakerData(train=train, valid=valid, sampler=sampler, sample_rate=RATE, **options)


def test_batches_hold_speakers_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speakers = [f"s{number % 3}" for number in range(12)]
    source = build(write(tmp_path, "t", speakers), write(tmp_path, "v", ["a", "b", "a", "b", "t9"]))
    assert source.speakers == {"a": 0, "b": 1, "s0": 2, "s1": 3, "s2": 4, "t9": 5}
    loader = source.train_loader(rank=0, world_size=1)
    seen = []
    for batch in loader:
        assert len(batch.ids) == 4
        assert batch.phones_BP.shape == (4, 0)
        for utterance, number, first in zip(batch.ids, batch.speakers_B.tolist(), batch.wave_BN[:, 0].tolist()):
            place = int(utterance[1:])
            assert number == 2 + place % 3
            assert first == pytest.approx(place / 64, abs=1e-4)
        assert len(set(batch.speakers_B.tolist())) == 2
        seen += batch.ids
    assert sorted(seen) == sorted(f"t{number}" for number in range(12))
    valid = [*source.valid_loader(rank=0, world_size=1)]
    assert sorted(name for batch in valid for name in batch.ids) == [f"v{number}" for number in range(5)]
    assert source.describe(loader.dataset) == "12 utterances (0.00 h, 3 speakers)"
    assert capsys.readouterr().out == ""


def test_ranks_share_the_validation(tmp_path: Path) -> None:
    source = build(write(tmp_path, "t", ["a", "b"] * 6), write(tmp_path, "v", ["c", "d"] * 4), valid_batch_seconds=1.5)
    parts = [{name for batch in source.valid_loader(rank=rank, world_size=2) for name in batch.ids} for rank in (0, 1)]
    assert parts[0] | parts[1] == {f"v{number}" for number in range(8)}
    assert not parts[0] & parts[1]


def test_what_is_left_out_and_who_is_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = build(write(tmp_path, "t", ["a", "b"] * 4), write(tmp_path, "v", ["a", "c", "c"]), max_seconds=0.6005)
    source.valid_loader(rank=0, world_size=1)
    said = capsys.readouterr().out
    assert "data.train 0: " in said
    assert "data.valid: 1 of 2 speakers are trained on, too" in said


def test_unusable_manifests_are_refused(tmp_path: Path) -> None:
    good, nameless = write(tmp_path, "g", ["a", "b"] * 3), write(tmp_path, "n", ["a", "", "a"])
    with pytest.raises(ValueError, match=r"data\.train: utterance 'n1' has no speaker"):
        build(nameless, good).train_loader(rank=0, world_size=1)
    with pytest.raises(ValueError, match=r"data\.valid: utterance 'n1' has no speaker"):
        build(good, nameless).valid_loader(rank=0, world_size=1)
    for name, speakers in (("x", ["a", "a"]), ("y", ["a", "b", "c"])):
        with pytest.raises(ValueError, match=r"data\.valid: \d speakers with at most \d utterances"):
            build(good, write(tmp_path, name, speakers)).valid_loader(rank=0, world_size=1)
    with pytest.raises(ValueError, match=r"data\.train: no utterance of"):
        build(good, good, min_seconds=9.0).train_loader(rank=0, world_size=1)

"""Transcript formats."""

from __future__ import annotations

import json

import pytest

from speechkit.transcripts import FORMATS, cues, to_json, to_srt, to_tsv, to_vtt
from speechkit.types import Hypothesis, Word


def _hypothesis(*words: tuple[str, float, float]) -> Hypothesis:
    return Hypothesis(
        text=" ".join(text for text, _, _ in words),
        words=tuple(Word(text, start, end, 0.9) for text, start, end in words),
    )


def test_a_pause_begins_a_new_cue() -> None:
    found = cues(_hypothesis(("one", 0.0, 0.4), ("two", 0.5, 0.9), ("three", 2.0, 2.4)))
    assert [(cue.text, cue.start, cue.end) for cue in found] == [("one two", 0.0, 0.9), ("three", 2.0, 2.4)]


def test_chinese_words_are_not_spaced() -> None:
    [cue] = cues(_hypothesis(("你", 0.0, 0.2), ("好", 0.2, 0.4), ("OK", 0.5, 0.7)))
    assert cue.text == "你好 OK"


def test_a_full_line_begins_a_new_cue() -> None:
    words = [("word", 0.3 * i, 0.3 * i + 0.2) for i in range(20)]
    found = cues(_hypothesis(*words))
    assert max(len(cue.text) for cue in found) <= 42
    assert " ".join(cue.text for cue in found) == " ".join(["word"] * 20)


def test_a_long_cue_is_split_by_time() -> None:
    words = [("a", 0.75 * i, 0.75 * i + 0.7) for i in range(20)]
    assert max(cue.end - cue.start for cue in cues(_hypothesis(*words))) <= 7.0


def test_srt_and_vtt_clock() -> None:
    hypothesis = _hypothesis(("late", 3723.4567, 3724.0))
    assert to_srt(hypothesis) == "1\n01:02:03,457 --> 01:02:04,000\nlate\n"
    assert to_vtt(hypothesis) == "WEBVTT\n\n01:02:03.457 --> 01:02:04.000\nlate\n"
    assert to_tsv(hypothesis) == "start\tend\ttext\n3723457\t3724000\tlate\n"


def test_json_is_whole_and_readable() -> None:
    fields = json.loads(to_json(_hypothesis(("grüße", 0.0, 0.4))))
    assert fields["text"] == "grüße"
    assert fields["words"][0] == {"text": "grüße", "start": 0.0, "end": 0.4, "confidence": 0.9}
    assert "error" not in fields


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_empty_transcripts_can_be_written(name: str) -> None:
    assert isinstance(FORMATS[name](Hypothesis(text="")), str)

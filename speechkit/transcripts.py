"""Transcripts as files: plain text, JSON, TSV, and the subtitle formats SRT and WebVTT."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from speechkit.text.token_table import join_texts
from speechkit.types import Hypothesis, Seconds, Word

MAX_LINE_CHARACTERS = 42  # width of a subtitle line that broadcasters commonly ask for
MAX_CUE_SECONDS: Seconds = 7.0
MAX_PAUSE: Seconds = 0.8  # a longer pause begins a new subtitle


def to_txt(hypothesis: Hypothesis) -> str:
    """The text on one line."""
    return hypothesis.text + "\n"


def to_json(hypothesis: Hypothesis) -> str:
    """Everything that is known, as one JSON object."""
    fields = dataclasses.asdict(hypothesis)
    for name in ("error", "language", "words", "token_times"):
        if not fields[name]:
            del fields[name]
    return json.dumps(fields, ensure_ascii=False, indent=2) + "\n"


def to_tsv(hypothesis: Hypothesis) -> str:
    """Subtitles as rows of start and end in milliseconds and text, tab-separated, with a header."""
    rows = [f"{round(1000 * cue.start)}\t{round(1000 * cue.end)}\t{cue.text}" for cue in cues(hypothesis)]
    return "\n".join(["start\tend\ttext", *rows]) + "\n"


def to_srt(hypothesis: Hypothesis) -> str:
    """SubRip subtitles."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues(hypothesis), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(hypothesis: Hypothesis) -> str:
    """WebVTT subtitles."""
    blocks = [f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{cue.text}\n" for cue in cues(hypothesis)]
    return "WEBVTT\n\n" + "\n".join(blocks)


FORMATS: dict[str, Callable[[Hypothesis], str]] = {
    "txt": to_txt,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
}
NEEDS_WORDS = ("srt", "vtt", "tsv")


def cues(hypothesis: Hypothesis) -> list[Word]:
    """Words grouped into subtitles: a new one at a pause, at a full line, or when it stands too long on the screen."""
    groups: list[list[Word]] = []
    for word in hypothesis.words:
        if groups and _fits(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [
        Word(
            text=join_texts(word.text for word in group),
            start=group[0].start,
            end=group[-1].end,
            confidence=min(word.confidence for word in group),
        )
        for group in groups
    ]


def _fits(group: Sequence[Word], word: Word) -> bool:
    characters = sum(len(other.text) + 1 for other in group) + len(word.text)
    return (
        word.start - group[-1].end <= MAX_PAUSE
        and word.end - group[0].start <= MAX_CUE_SECONDS
        and characters <= MAX_LINE_CHARACTERS
    )


def _clock(seconds: Seconds, separator: str) -> str:
    """hh:mm:ss and milliseconds, as subtitle files write them."""
    milliseconds = round(1000 * seconds)
    hours, milliseconds = divmod(milliseconds, 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{separator}{milliseconds % 1000:03d}"

"""From a recording, block by block, to the stretches of speech in it, in bounded memory.

Voice activity is judged page by page; a stretch that may go on waits for the next page. Stretches with short pauses between
them are joined. All begin on a grid of samples counted from the beginning of the recording, which for a recogniser is that
of its output frames: the same speech may read otherwise 10 ms further on, and the grid keeps it where it would lie
if the whole recording were read at once.

Shape legend: N samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from speechkit.audio.vad import energy_vad
from speechkit.types import Seconds

PAGE_SECONDS: Seconds = 120.0  # voice activity is judged on pages of this length, which bounds the memory
REGION_PADDING: Seconds = 0.25  # kept around each speech region
MAX_MERGE_GAP: Seconds = 1.0  # regions closer than this may share one window
MIN_PAUSE: Seconds = 0.2  # shorter pauses do not end a region
HANGOVER: Seconds = 0.1  # of speech regions, for soft beginnings and endings


class SpeechRegion(NamedTuple):
    """A stretch of speech: where it starts in its recording, in seconds, and its samples, shape (N,)."""

    start: Seconds
    wave_N: np.ndarray


def speech_regions(
    blocks: Iterable[np.ndarray], sample_rate: int, *, whole: Seconds, merge: Seconds, stride: int = 1
) -> Iterator[SpeechRegion]:
    """Finds the stretches of speech of one recording.

    Args:
        blocks: the recording, one block of samples after the other, each of shape (N,).
        sample_rate: their rate, Hz.
        whole: recordings up to this length are one stretch if there is speech in them at all, seconds.
        merge: stretches with short pauses between them are joined up to this length, seconds.
        stride: stretches begin, and end, at multiples of so many samples; but the last one ends with the recording.

    Yields:
        the stretches in order; they do not overlap.
    """
    buffer_N = np.zeros(0, dtype=np.float32)
    offset = 0  # samples of the recording before buffer_N[0], a multiple of the stride
    for block_N, is_last in _mark_last(blocks):
        buffer_N = np.concatenate([buffer_N, block_N]) if len(buffer_N) else block_N
        if not is_last and len(buffer_N) < PAGE_SECONDS * sample_rate:
            continue
        speech = energy_vad(buffer_N, sample_rate, min_silence=MIN_PAUSE, hangover=HANGOVER)
        if is_last and offset == 0 and len(buffer_N) <= whole * sample_rate:
            if speech:
                yield SpeechRegion(0.0, buffer_N)
            return
        keep_from = len(buffer_N)
        if not is_last:
            speech, keep_from = hold_back_open_region(speech, len(buffer_N), sample_rate)
            keep_from = _round_down(keep_from, stride)
        for begin, end in merge_regions(speech, len(buffer_N) / sample_rate, merge):
            first, last = _round_down(int(begin * sample_rate), stride), round(end * sample_rate)
            if not is_last or last < len(buffer_N):
                last = _round_down(last, stride)
            yield SpeechRegion((offset + first) / sample_rate, buffer_N[first:last])
        buffer_N, offset = buffer_N[keep_from:], offset + keep_from


def merge_regions(speech: Sequence[tuple[Seconds, Seconds]], length: Seconds, longest: Seconds) -> list[tuple[Seconds, Seconds]]:
    """Pads the regions, and joins neighbours with a short pause between them while the result is no longer than `longest`."""
    merged: list[tuple[Seconds, Seconds]] = []
    for begin, end in speech:
        begin, end = max(0.0, begin - REGION_PADDING), min(length, end + REGION_PADDING)
        if merged and begin <= merged[-1][1]:  # the paddings touch: split the pause between the two
            begin = (begin + merged[-1][1]) / 2
            merged[-1] = (merged[-1][0], begin)
        if merged and begin - merged[-1][1] <= MAX_MERGE_GAP and end - merged[-1][0] <= longest:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return merged


def hold_back_open_region(
    speech: list[tuple[Seconds, Seconds]], num_samples: int, rate: int
) -> tuple[list[tuple[Seconds, Seconds]], int]:
    """Splits the regions of a page into those that are over and the one that may go on in the next page.

    Returns:
        The finished regions, and the sample from which the page must be kept. A region that fills most of the page (speech
        without a pause) is cut at the end of the page: memory stays bounded.
    """
    length = num_samples / rate
    if not speech or speech[-1][1] < length - 2 * REGION_PADDING:
        return speech, max(0, num_samples - int(2 * REGION_PADDING * rate))
    begin = max(0.0, speech[-1][0] - REGION_PADDING)
    if begin < length / 4:
        return speech, num_samples
    return speech[:-1], int(begin * rate)


def _mark_last(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each block with a flag that is True for the last one; a recording without blocks counts as one empty block."""
    previous: np.ndarray | None = None
    for block_N in blocks:
        if previous is not None:
            yield previous, False
        previous = block_N
    yield (np.zeros(0, dtype=np.float32) if previous is None else previous), True


def _round_down(value: int, factor: int) -> int:
    return value // factor * factor

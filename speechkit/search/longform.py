"""Long recordings in windows: where to cut, and how to join what was made of each.

Neighbouring windows overlap by twice the context. Of each window's output frames the middle is kept, so that every
frame kept has seen its context, and the kept frames tile the recording. Frames are joined before decoding: repeats
and blanks then collapse once over the whole recording and no text has to be merged (Peng et al. 2024, "OWSM-CTC",
section 3.4). What a decoder writes freely cannot be joined so; there the words of neighbouring windows are, by their times.
Shape legend: T frames, V vocab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechkit.types import Hypothesis, Seconds, Word

if TYPE_CHECKING:
    from speechkit.text.tokenizers import Tokenizer

SEAM_SLACK: Seconds = 0.3  # by which the times of a word may differ between two windows


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a long recording.

    Attributes:
        start, end: the inputs (samples or feature frames) it takes, end excluded.
        first_frame: output frame of the recording that its first output frame is.
        keep_start, keep_end: output frames of the recording to take from it; `keep_end` is None for the last
            window, which gives all it has.
    """

    start: int
    end: int
    first_frame: int
    keep_start: int
    keep_end: int | None


def plan_windows(num_inputs: int, *, window: int, context: int, stride: int = 1) -> list[Window]:
    """Cut a recording into overlapping windows that begin on whole output frames.

    All windows are equally long, the last one up to one stride shorter; a recording no longer than a window is one.

    Args:
        num_inputs: length of the recording, in samples or feature frames.
        window: length of a window in inputs; rounded down to whole output frames.
        context: inputs at each inner edge of a window whose output is not used; rounded up to whole output frames.
        stride: inputs for each output frame: the encoder's subsampling factor, times the hop length when the inputs
            are samples.

    Returns:
        The windows in order; none for an empty recording.

    Raises:
        ValueError: a length is negative, or a window has no middle to keep.
    """
    if num_inputs < 0 or context < 0 or stride < 1:
        raise ValueError(f"num_inputs {num_inputs}, context {context}, stride {stride}; give 0, 0 and 1 or more")
    size, edge = window // stride, -(-context // stride)
    hop = size - 2 * edge
    if hop < 1:
        raise ValueError(
            f"window {window} leaves nothing between two contexts of {context} at stride {stride}; "
            f"give a window of at least {(2 * edge + 1) * stride}"
        )
    if num_inputs == 0:
        return []
    last = max(0, -(-num_inputs // stride) - size)  # output frame where the last window begins
    firsts = [*range(0, last, hop), last]
    seams = [0, *(first + size - edge for first in firsts[:-1]), None]
    return [
        Window(
            start=first * stride,
            end=min((first + size) * stride, num_inputs),
            first_frame=first,
            keep_start=keep_start,
            keep_end=keep_end,
        )
        for first, (keep_start, keep_end) in zip(firsts, pairwise(seams), strict=True)
    ]


def stitch(outputs: Sequence[Tensor], windows: Sequence[Window], *, prefix: int = 0) -> Tensor:
    """Join the output frames of the windows into those of the recording.

    Args:
        outputs: output of each window, time first: log-probabilities (T, V), or labels (T,). Frames after the
            window's own last one (padding) must be cut off.
        windows: the plan that the outputs were made by.
        prefix: frames at the beginning of every output that stand for no input, such as that of the language.

    Returns:
        The output frames of the recording, shape (T, ...), behind the prefix: the mean of those of the windows.

    Raises:
        ValueError: there are not as many outputs as windows, or an output ends before the frames to keep from it.
    """
    if len(outputs) != len(windows) or not windows:
        raise ValueError(f"outputs has {len(outputs)} entries for {len(windows)} windows; give one for each, at least one")
    pieces = [torch.stack([output[:prefix] for output in outputs]).mean(dim=0)] if prefix else []
    for i, (output, window) in enumerate(zip(outputs, windows, strict=True)):
        output = output[prefix:]
        begin = window.keep_start - window.first_frame
        end = len(output) if window.keep_end is None else window.keep_end - window.first_frame
        if end > len(output):
            raise ValueError(
                f"outputs[{i}] has {len(output)} frames where {end} are needed; give a longer context or check stride"
            )
        pieces.append(output[begin:end])
    return torch.cat(pieces)


def stitch_words(parts: Sequence[Sequence[Word]], seams: Sequence[Seconds], *, slack: Seconds = SEAM_SLACK) -> list[slice]:
    """Choose from overlapping windows the words that make the recording, each once.

    A word belongs to the window that the middle of the word falls into. Where a seam goes through a word, and where two
    windows do not quite agree on its times, it is the earlier window's. The later one goes on after the same word (that of
    the same text which overlaps it, the nearest if there are several), or by the time where it has not heard it so.

    Args:
        parts: words of each window, with times in the recording.
        seams: where each window but the last ends to count, in seconds.
        slack: by how much the times of a word may differ between two windows.

    Returns:
        The range of words to keep from each window.
    """
    kept = []
    begin: Seconds = float("-inf")
    before: Word | None = None  # the last word kept so far
    for words, seam in zip(parts, [*seams, float("inf")], strict=True):
        same = None if before is None else _same_word(words, before, slack)
        first = next((i for i, word in enumerate(words) if _middle(word) >= begin), len(words)) if same is None else same + 1
        last = max(first, next((i for i, word in enumerate(words) if _middle(word) >= seam), len(words)))
        kept.append(slice(first, last))
        begin = max(seam - slack, begin)
        if last > first:
            before = words[last - 1]
            begin = max(seam - slack, before.end)
    return kept


def _middle(word: Word) -> Seconds:
    return (word.start + word.end) / 2


def _same_word(words: Sequence[Word], other: Word, slack: Seconds) -> int | None:
    """Index of the word that another window has heard as `other`; None where it has not.

    The same word overlaps it, and their middles are no further apart than `slack`, or half of the shorter one.
    """

    def shift(i: int) -> Seconds:
        return abs(_middle(words[i]) - _middle(other))

    alike = [i for i, word in enumerate(words) if word.text == other.text and word.start < other.end and other.start < word.end]
    lengths = {i: min(words[i].end - words[i].start, other.end - other.start) for i in alike}
    return min((i for i in alike if shift(i) <= max(slack, lengths[i] / 2)), key=shift, default=None)


def trim_to_seams(
    hypotheses: Sequence[Hypothesis], windows: Sequence[Window], *, tokenizer: Tokenizer, frame_shift: Seconds
) -> list[tuple[Seconds, Hypothesis]]:
    """Cut the transcripts of overlapping windows down to the words that are each window's own.

    Args:
        hypotheses: transcript of each window with the times of its words and tokens.
        windows: the plan that they were made by.
        tokenizer: turns ids into text.
        frame_shift: seconds between output frames.

    Returns:
        For each window its beginning in seconds and what is left of its transcript; scores stay those of whole windows.
    """
    starts = [window.first_frame * frame_shift for window in windows]
    parts = [
        [dataclasses.replace(word, start=start + word.start, end=start + word.end) for word in hypothesis.words]
        for start, hypothesis in zip(starts, hypotheses, strict=True)
    ]
    seams = [window.keep_end * frame_shift for window in windows if window.keep_end is not None]
    trimmed = []
    for start, hypothesis, own in zip(starts, hypotheses, stitch_words(parts, seams), strict=True):
        spans = [span for _, span in tokenizer.split_words(hypothesis.tokens)][own]
        span = slice(spans[0].start, spans[-1].stop) if spans else slice(0, 0)
        token_times = hypothesis.token_times[span]
        sure = [token.confidence for token in token_times]
        rest = dataclasses.replace(
            hypothesis,
            text=tokenizer.decode(hypothesis.tokens[span]),
            tokens=hypothesis.tokens[span],
            words=hypothesis.words[own],
            token_times=token_times,
            confidence=sum(sure) / len(sure) if sure else 1.0,
        )
        trimmed.append((start, rest))
    return trimmed

"""From frame log-probabilities to transcripts with times and confidences.

Shape legend: B batch, T frames, U tokens, V vocab, F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from speechkit.models.ctc.model import BLANK, CtcModel
from speechkit.search.ctc_greedy import CtcPath, ctc_greedy
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds, Word

Timestamps = Literal["token", "word"]


@dataclass(frozen=True, slots=True)
class CtcDecodeOptions:
    """How to decode.

    Attributes:
        method: "greedy" or "beam".
        timestamps: None, "token", or "word" (which gives tokens too).
    """

    method: Literal["greedy", "beam"] = "greedy"
    timestamps: Timestamps | None = None

    def __post_init__(self) -> None:
        if self.timestamps not in (None, "token", "word"):
            raise ValueError(f"timestamps={self.timestamps!r} is unknown; choose none, token or word")


@torch.inference_mode()
def infer(
    model: CtcModel,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: CtcDecodeOptions | None = None,
    frame_shift: Seconds = 0.01,
) -> list[Hypothesis]:
    """Transcribes a batch of features.

    Args:
        model: a CTC model; put in eval mode by the caller.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: the tokenizer that the model was trained with.
        options: how to decode; greedy without times when None.
        frame_shift: seconds between input frames.

    Returns:
        one hypothesis per row.
    """
    log_probs_BTV, lens_B = model.frame_log_probs(feats_BTF, feat_lens_B)
    shift = frame_shift * model.subsampling_factor
    return decode_log_probs(log_probs_BTV, lens_B, tokenizer=tokenizer, options=options, frame_shift=shift)


def decode_log_probs(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: CtcDecodeOptions | None = None,
    frame_shift: Seconds,
) -> list[Hypothesis]:
    """Decodes frame log-probabilities.

    Args:
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: turns ids into text.
        options: how to decode; greedy without times when None.
        frame_shift: seconds between these frames.

    Returns:
        one hypothesis per row.
    """
    options = CtcDecodeOptions() if options is None else options
    paths = ctc_greedy(log_probs_BTV, lens_B, blank=BLANK)
    return [_hypothesis(path, tokenizer, options.timestamps, frame_shift) for path in paths]


def _hypothesis(path: CtcPath, tokenizer: Tokenizer, timestamps: Timestamps | None, shift: Seconds) -> Hypothesis:
    """Text, times and confidences of one path."""
    tokens: tuple[Word, ...] = ()
    words: tuple[Word, ...] = ()
    if timestamps is not None:
        tokens = tuple(
            Word(text=piece, start=start * shift, end=end * shift, confidence=confidence)
            for piece, start, end, confidence in zip(
                tokenizer.pieces(path.tokens), path.start_frames, path.end_frames, path.confidences
            )
        )
    if timestamps == "word":
        words = tuple(_word(text, tokens[span]) for text, span in tokenizer.split_words(path.tokens))
    return Hypothesis(
        text=tokenizer.decode(path.tokens),
        tokens=path.tokens,
        score=path.score,
        words=words,
        token_times=tokens,
        confidence=_mean([float(c) for c in path.confidences]),
    )


def _word(text: str, tokens: Sequence[Word]) -> Word:
    """A word spans its tokens and is as sure as they are on average."""
    return Word(text=text, start=tokens[0].start, end=tokens[-1].end, confidence=_mean([t.confidence for t in tokens]))


def _mean(confidences: Sequence[float]) -> float:
    """Mean, 1.0 for none."""
    return sum(confidences) / len(confidences) if confidences else 1.0

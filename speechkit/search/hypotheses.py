"""From tokens with places and probabilities to a transcript with words, times and confidences.

Shape legend: U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds, Word

Timestamps = Literal["token", "word"]


def make_hypothesis(
    tokens: Sequence[int],
    *,
    tokenizer: Tokenizer,
    score: float,
    confidences: Sequence[float],
    times: Sequence[tuple[Seconds, Seconds]] = (),
    timestamps: Timestamps | None = None,
) -> Hypothesis:
    """Puts a transcript together.

    Args:
        tokens: U token ids.
        tokenizer: turns ids into text.
        score: log-probability of the tokens under the search that found them.
        confidences: of each token, in [0, 1].
        times: beginning and end of each token in seconds; needed with `timestamps`.
        timestamps: None, "token", or "word" (which gives tokens too).

    Returns:
        the transcript; a word spans its tokens and is as sure as they are on average.
    """
    assert len(confidences) == len(tokens), (len(confidences), len(tokens))
    token_times: tuple[Word, ...] = ()
    words: tuple[Word, ...] = ()
    if timestamps is not None:
        assert len(times) == len(tokens), (len(times), len(tokens))
        token_times = tuple(
            Word(text=piece, start=start, end=end, confidence=confidence)
            for piece, (start, end), confidence in zip(tokenizer.pieces(tokens), times, confidences)
        )
    if timestamps == "word":
        words = tuple(_word(text, token_times[span]) for text, span in tokenizer.split_words(tokens))
    return Hypothesis(
        text=tokenizer.decode(tokens),
        tokens=tuple(tokens),
        score=score,
        words=words,
        token_times=token_times,
        confidence=_mean(confidences),
    )


def _word(text: str, tokens: Sequence[Word]) -> Word:
    return Word(text=text, start=tokens[0].start, end=tokens[-1].end, confidence=_mean([t.confidence for t in tokens]))


def _mean(confidences: Sequence[float]) -> float:
    """Mean, 1.0 for none."""
    return sum(confidences) / len(confidences) if confidences else 1.0

"""From tokens with places and probabilities to a transcript with words, times and confidences.

Shape legend: B batch, T frames, U tokens, V vocab.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from speechkit.search.ctc_align import Alignment, ctc_align
from speechkit.search.ctc_greedy import CtcPath
from speechkit.search.ctc_prefix_beam import BeamResult
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds, Word

Timestamps = Literal["token", "word"]


def check_timestamps(timestamps: str | None) -> None:
    """Raises ValueError unless this is None, "token" or "word"."""
    if timestamps not in (None, "token", "word"):
        raise ValueError(f"timestamps={timestamps!r} is unknown; choose none, token or word")


def align_to_frames(
    tokens: Sequence[Sequence[int]],
    scores: Sequence[float],
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    *,
    confidences: Sequence[Sequence[float]] | None = None,
    spread: bool = True,
    blank: int = 0,
) -> list[CtcPath]:
    """Lays one token sequence per row onto its frames by the best CTC path.

    Args:
        tokens: token ids of each row, B of them.
        scores: taken over into the paths.
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        confidences: of each token, taken over into the paths; None for those of CTC.
        spread: lays tokens that no path of non-zero probability spells (more of them than frames) evenly over the frames, with
            a warning; False where CTC itself has found the tokens, so that there is a path.
        blank: id of the blank token.

    Returns:
        one path per row.
    """
    token_lens_B = torch.tensor([len(ids) for ids in tokens], dtype=torch.long)
    tokens_BU = torch.zeros(len(tokens), max(map(len, tokens), default=0), dtype=torch.long)
    for row, ids in zip(tokens_BU, tokens):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    alignments = ctc_align(log_probs_BTV, lens_B, tokens_BU, token_lens_B, blank=blank)
    paths = []
    for row, (ids, score, found, length) in enumerate(zip(tokens, scores, alignments, lens_B.tolist())):
        if found is None:
            assert spread or not ids, f"the search found {tuple(ids)}, which no path of row {row} spells"
            if ids:
                warnings.warn("a transcript has too many tokens to be aligned; its times are spread evenly", stacklevel=3)
            edges = [round(length * i / max(len(ids), 1)) for i in range(len(ids) + 1)]
            found = Alignment(tuple(edges[:-1]), tuple(edges[1:]), (0.0,) * len(ids), score)
        own = found.confidences if confidences is None else tuple(confidences[row])
        paths.append(CtcPath(tuple(ids), found.start_frames, found.end_frames, own, score))
    return paths


def best_paths(nbest: Sequence[Sequence[BeamResult]], log_probs_BTV: Tensor, lens_B: Tensor, *, blank: int = 0) -> list[CtcPath]:
    """The first result of each row laid onto its frames; an empty path of score -inf where there is none.

    Args:
        nbest: what `ctc_prefix_beam` found on these frames.
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        blank: id of the blank token.
    """
    impossible = BeamResult(tokens=(), start_frames=(), score=float("-inf"), am_score=float("-inf"))
    best = [results[0] if results else impossible for results in nbest]
    return align_to_frames([r.tokens for r in best], [r.score for r in best], log_probs_BTV, lens_B, spread=False, blank=blank)


def to_hypothesis(path: CtcPath, tokenizer: Tokenizer, timestamps: Timestamps | None, frame_shift: Seconds) -> Hypothesis:
    """`make_hypothesis` for tokens that lie on frames, which are `frame_shift` seconds apart."""
    return make_hypothesis(
        path.tokens,
        tokenizer=tokenizer,
        score=path.score,
        confidences=path.confidences,
        times=[(start * frame_shift, end * frame_shift) for start, end in zip(path.start_frames, path.end_frames)],
        timestamps=timestamps,
    )


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
        confidence=_mean([float(c) for c in confidences]),
    )


def _word(text: str, tokens: Sequence[Word]) -> Word:
    """A word spans its tokens and is as sure as they are on average."""
    return Word(text=text, start=tokens[0].start, end=tokens[-1].end, confidence=_mean([t.confidence for t in tokens]))


def _mean(confidences: Sequence[float]) -> float:
    """Mean, 1.0 for none."""
    return sum(confidences) / len(confidences) if confidences else 1.0

"""From frame log-probabilities of a CTC head to transcripts, for every family that labels frames.

Shape legend: B batch, T frames, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from speechkit.search.ctc_greedy import ctc_greedy
from speechkit.search.ctc_prefix_beam import BeamResult, ctc_prefix_beam
from speechkit.search.hypotheses import best_paths, to_hypothesis
from speechkit.search.options import SearchOptions
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds


@dataclass(frozen=True, slots=True)
class CtcSearchOptions(SearchOptions):
    """How to decode; times, beam, language model and hotwords as in `speechkit.search.options.SearchOptions`.

    Attributes:
        method: "greedy" (best label of each frame) or "beam" (prefix beam search).
        token_top_k: tokens that may be appended at a frame; beam only, as all that follow; None for no limit.
        token_min_logp: tokens below this log-probability are not appended; None for no limit.
        blank_skip: frames where blank is more probable count as blank alone; None for never.

    Raises:
        ValueError: a choice is unknown, or an option of beam search is given for greedy.
    """

    method: Literal["greedy", "beam"] = "greedy"
    token_top_k: int | None = 30
    token_min_logp: float | None = -5.0
    blank_skip: float | None = None

    def __post_init__(self) -> None:
        SearchOptions.__post_init__(self)
        if self.method not in ("greedy", "beam"):
            raise ValueError(f"method={self.method!r} is unknown; choose greedy or beam")
        if self.method == "greedy" and (self.lm is not None or self.hotwords):
            raise ValueError("lm and hotwords need method=beam; greedy decoding cannot use them")


def ctc_decode(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: CtcSearchOptions,
    frame_shift: Seconds,
    blank: int = 0,
) -> list[Hypothesis]:
    """Decodes frame log-probabilities.

    Args:
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: turns ids into text.
        options: how to decode.
        frame_shift: seconds between these frames.
        blank: id of the blank token.

    Returns:
        one hypothesis per row; an empty one where every path is impossible.
    """
    if options.method == "greedy":
        paths = ctc_greedy(log_probs_BTV, lens_B, blank=blank)
    else:
        nbest = ctc_nbest(log_probs_BTV, lens_B, tokenizer=tokenizer, options=options, blank=blank)
        paths = best_paths(nbest, log_probs_BTV, lens_B, blank=blank)
    return [to_hypothesis(path, tokenizer, options.timestamps, frame_shift) for path in paths]


def ctc_nbest(
    log_probs_BTV: Tensor, lens_B: Tensor, *, tokenizer: Tokenizer, options: CtcSearchOptions, blank: int = 0
) -> list[list[BeamResult]]:
    """Up to `beam_size` transcripts of each row, best first, from prefix beam search; arguments as `ctc_decode`."""
    return ctc_prefix_beam(
        log_probs_BTV,
        lens_B,
        beam_size=options.beam_size,
        blank=blank,
        scorer=options.scorer(tokenizer),
        token_top_k=options.token_top_k,
        token_min_logp=options.token_min_logp,
        blank_skip=options.blank_skip,
    )

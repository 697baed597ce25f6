"""From frame log-probabilities of a CTC head to transcripts, for every family that labels frames.

Shape legend: B batch, T frames, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from speechkit.search.ctc_greedy import CtcPath, ctc_greedy
from speechkit.search.ctc_prefix_beam import ctc_prefix_beam
from speechkit.search.fusion import LmUnit, build_scorer, check_fusion
from speechkit.search.hypotheses import Timestamps, best_paths, check_timestamps, to_hypothesis
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds


@dataclass(frozen=True, slots=True)
class CtcSearchOptions:
    """How to decode.

    Attributes:
        method: "greedy" (best label of each frame) or "beam" (prefix beam search).
        timestamps: None, "token", or "word" (which gives tokens too).
        beam_size: prefixes kept; beam only, as all that follow.
        lm: path of an n-gram model, ARPA or KenLM; None for no language model.
        lm_unit: what the model was trained on: "word", or "token" for the tokenizer's pieces.
        lm_weight: factor on the model's log-probabilities.
        word_bonus: added for every word (for every token with lm_unit "token"); needs `lm`.
        hotwords: phrases to favour, or a mapping from phrases to weights of their own.
        hotword_weight: natural log-probability added per token of a phrase without its own weight.
        token_top_k: tokens that may be appended at a frame; None for no limit.
        token_min_logp: tokens below this log-probability are not appended; None for no limit.
        blank_skip: frames where blank is more probable count as blank alone; None for never.

    Raises:
        ValueError: a choice is unknown, or an option of beam search is given for greedy.
    """

    method: Literal["greedy", "beam"] = "greedy"
    timestamps: Timestamps | None = None
    beam_size: int = 10
    lm: str | None = None
    lm_unit: LmUnit = "word"
    lm_weight: float = 0.5
    word_bonus: float = 0.0
    hotwords: Sequence[str] | Mapping[str, float] = ()
    hotword_weight: float = 2.0
    token_top_k: int | None = 30
    token_min_logp: float | None = -5.0
    blank_skip: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ("greedy", "beam"):
            raise ValueError(f"method={self.method!r} is unknown; choose greedy or beam")
        check_timestamps(self.timestamps)
        check_fusion(lm=self.lm, lm_unit=self.lm_unit, word_bonus=self.word_bonus, hotwords=self.hotwords)
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
        one hypothesis per row.
    """
    if options.method == "greedy":
        paths = ctc_greedy(log_probs_BTV, lens_B, blank=blank)
    else:
        paths = _beam_paths(log_probs_BTV, lens_B, tokenizer, options, blank)
    return [to_hypothesis(path, tokenizer, options.timestamps, frame_shift) for path in paths]


def _beam_paths(
    log_probs_BTV: Tensor, lens_B: Tensor, tokenizer: Tokenizer, options: CtcSearchOptions, blank: int
) -> list[CtcPath]:
    """The best prefix of each row, laid onto its frames; an empty one where every path is impossible."""
    scorer = build_scorer(
        tokenizer,
        lm=options.lm,
        lm_unit=options.lm_unit,
        lm_weight=options.lm_weight,
        word_bonus=options.word_bonus,
        hotwords=options.hotwords,
        hotword_weight=options.hotword_weight,
    )
    nbest = ctc_prefix_beam(
        log_probs_BTV,
        lens_B,
        beam_size=options.beam_size,
        blank=blank,
        scorer=scorer,
        token_top_k=options.token_top_k,
        token_min_logp=options.token_min_logp,
        blank_skip=options.blank_skip,
    )
    return best_paths(nbest, log_probs_BTV, lens_B, blank=blank)

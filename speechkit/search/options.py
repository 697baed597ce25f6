"""Decode options that every search with a beam takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechkit.search.fusion import Lm, LmUnit, build_scorer, check_fusion
from speechkit.search.hypotheses import Timestamps, check_timestamps
from speechkit.search.lm import Scorer
from speechkit.text.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What is told, how wide the beam is, and what beside the network has a say.

    Attributes:
        timestamps: None, "token", or "word" (which gives tokens too).
        beam_size: hypotheses kept; of beam searches only, as all that follow.
        lm: path of an n-gram model, ARPA or KenLM; or a neural model (a `Recognizer` also takes the path of its folder); None
            for no language model.
        lm_unit: what an n-gram model was trained on: "word", or "token" for the tokenizer's pieces, as neural ones are.
        lm_weight: factor on the model's log-probabilities.
        word_bonus: added for every word (for every token with lm_unit "token" and neural models); needs `lm`.
        hotwords: phrases to favour, or a mapping from phrases to weights of their own.
        hotword_weight: natural log-probability added per token of a phrase without its own weight.

    Raises:
        ValueError: a choice is unknown, or a bonus is given without what it belongs to.
    """

    timestamps: Timestamps | None = None
    beam_size: int = 10
    lm: Lm | None = None
    lm_unit: LmUnit = "word"
    lm_weight: float = 0.5
    word_bonus: float = 0.0
    hotwords: Sequence[str] | Mapping[str, float] = ()
    hotword_weight: float = 2.0

    def __post_init__(self) -> None:
        check_timestamps(self.timestamps)
        check_fusion(lm=self.lm, lm_unit=self.lm_unit, word_bonus=self.word_bonus, hotwords=self.hotwords)

    def scorer(self, tokenizer: Tokenizer) -> Scorer | None:
        """Language model and hotwords as a search takes them; None for neither."""
        return build_scorer(
            tokenizer,
            lm=self.lm,
            lm_unit=self.lm_unit,
            lm_weight=self.lm_weight,
            word_bonus=self.word_bonus,
            hotwords=self.hotwords,
            hotword_weight=self.hotword_weight,
        )

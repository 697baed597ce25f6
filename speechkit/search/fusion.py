"""What decode options say about language models and hotwords, as the `Scorer` that a beam search takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from speechkit.search.hotwords import HotwordScorer
from speechkit.search.lm import LanguageModel, Scorer, SumScorer, TokenScorer, WordScorer, load_lm
from speechkit.search.neural_lm import NeuralLm

if TYPE_CHECKING:
    from speechkit.text.tokenizers import Tokenizer

LmUnit = Literal["word", "token"]
Lm = str | NeuralLm  # path of an n-gram model (of a neural one too, where options come to a `Recognizer`), or a neural model


def check_fusion(*, lm: Lm | None, lm_unit: str, word_bonus: float, hotwords: Sequence[str] | Mapping[str, float]) -> None:
    """Rejects options of fusion that cannot be meant; arguments as those of `build_scorer`.

    Raises:
        ValueError: `lm_unit` is unknown, `hotwords` is one string, or there is a bonus without a model.
    """
    if lm_unit not in ("word", "token"):
        raise ValueError(f"lm_unit={lm_unit!r} is unknown; choose word or token")
    if isinstance(hotwords, str):
        raise ValueError(f"hotwords={hotwords!r} is one string; give a list of phrases")
    if word_bonus and lm is None:
        raise ValueError(f"word_bonus={word_bonus} needs lm")


def build_scorer(
    tokenizer: Tokenizer,
    *,
    lm: Lm | None = None,
    lm_unit: LmUnit = "word",
    lm_weight: float = 0.5,
    word_bonus: float = 0.0,
    hotwords: Sequence[str] | Mapping[str, float] = (),
    hotword_weight: float = 2.0,
) -> Scorer | None:
    """Language model and hotwords as a search takes them.

    Args:
        tokenizer: the tokenizer of the recogniser.
        lm: path of an n-gram model, ARPA or KenLM, read once as long as the file does not change; or a neural model; None
            for none.
        lm_unit: what an n-gram model was trained on: "word", or "token" for the tokenizer's pieces, as neural ones are.
        lm_weight: factor on the model's log-probabilities.
        word_bonus: added for every word (for every token with `lm_unit` "token" and neural models).
        hotwords: phrases to favour, or a mapping from phrases to weights of their own.
        hotword_weight: natural log-probability added per token of a phrase without its own weight.

    Returns:
        the sum of both; None for neither.

    Raises:
        ValueError: the model cannot be read, is the folder of a neural one that is not loaded, or has other tokens.
    """
    scorers: list[Scorer] = []
    if isinstance(lm, NeuralLm):
        scorers.append(lm.scorer(tokenizer, weight=lm_weight, token_bonus=word_bonus))
    elif lm is not None:
        if Path(lm).is_dir():
            raise ValueError(f"lm={lm} is a folder; give what speechkit.pretrained.load_language_model returns for it")
        model = _language_model(lm, Path(lm).stat().st_mtime_ns if Path(lm).exists() else 0)
        if lm_unit == "word":
            scorers.append(WordScorer(lm=model, tokenizer=tokenizer, weight=lm_weight, word_bonus=word_bonus))
        else:
            scorers.append(TokenScorer(lm=model, tokenizer=tokenizer, weight=lm_weight, token_bonus=word_bonus))
    if hotwords:
        scorers.append(HotwordScorer(hotwords, tokenizer=tokenizer, weight=hotword_weight))
    if len(scorers) < 2:
        return scorers[0] if scorers else None
    return SumScorer(scorers)


@lru_cache(maxsize=2)
def _language_model(path: str, changed_ns: int) -> LanguageModel:
    """The model in a file."""
    return load_lm(path)

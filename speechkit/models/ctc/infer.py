"""From frame log-probabilities to transcripts with times and confidences.

Shape legend: B batch, T frames, U tokens, V vocab, F mel bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from speechkit.models.ctc.model import BLANK, CtcModel
from speechkit.search.ctc_align import ctc_align
from speechkit.search.ctc_greedy import CtcPath, ctc_greedy
from speechkit.search.ctc_prefix_beam import BeamResult, ctc_prefix_beam
from speechkit.search.hotwords import HotwordScorer
from speechkit.search.lm import LanguageModel, Scorer, SumScorer, TokenScorer, WordScorer, load_lm
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds, Word

Timestamps = Literal["token", "word"]


@dataclass(frozen=True, slots=True)
class CtcDecodeOptions:
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
    lm_unit: Literal["word", "token"] = "word"
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
        if self.timestamps not in (None, "token", "word"):
            raise ValueError(f"timestamps={self.timestamps!r} is unknown; choose none, token or word")
        if self.lm_unit not in ("word", "token"):
            raise ValueError(f"lm_unit={self.lm_unit!r} is unknown; choose word or token")
        if isinstance(self.hotwords, str):
            raise ValueError(f"hotwords={self.hotwords!r} is one string; give a list of phrases")
        if self.method == "greedy" and (self.lm is not None or self.hotwords):
            raise ValueError("lm and hotwords need method=beam; greedy decoding cannot use them")
        if self.word_bonus and self.lm is None:
            raise ValueError(f"word_bonus={self.word_bonus} needs lm")


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
    if options.method == "greedy":
        paths = ctc_greedy(log_probs_BTV, lens_B, blank=BLANK)
    else:
        paths = _beam_paths(log_probs_BTV, lens_B, tokenizer, options)
    return [_hypothesis(path, tokenizer, options.timestamps, frame_shift) for path in paths]


def _beam_paths(log_probs_BTV: Tensor, lens_B: Tensor, tokenizer: Tokenizer, options: CtcDecodeOptions) -> list[CtcPath]:
    """The best prefix of each row, laid onto its frames; an empty one where every path is impossible."""
    nbest = ctc_prefix_beam(
        log_probs_BTV,
        lens_B,
        beam_size=options.beam_size,
        blank=BLANK,
        scorer=_scorer(tokenizer, options),
        token_top_k=options.token_top_k,
        token_min_logp=options.token_min_logp,
        blank_skip=options.blank_skip,
    )
    impossible = BeamResult(tokens=(), start_frames=(), score=float("-inf"), am_score=float("-inf"))
    best = [results[0] if results else impossible for results in nbest]
    token_lens_B = torch.tensor([len(result.tokens) for result in best])
    tokens_BU = torch.zeros(len(best), max(map(len, (result.tokens for result in best)), default=0), dtype=torch.long)
    for row, result in zip(tokens_BU, best):
        row[: len(result.tokens)] = torch.tensor(result.tokens, dtype=torch.long)
    paths = []
    for result, alignment in zip(best, ctc_align(log_probs_BTV, lens_B, tokens_BU, token_lens_B, blank=BLANK)):
        if alignment is None:
            assert not result.tokens, f"the search found {result.tokens}, which no path spells"
            paths.append(CtcPath((), (), (), (), result.score))
            continue
        times = (alignment.start_frames, alignment.end_frames, alignment.confidences)
        paths.append(CtcPath(result.tokens, *times, result.score))
    return paths


def _scorer(tokenizer: Tokenizer, options: CtcDecodeOptions) -> Scorer | None:
    """Language model and hotwords as the search takes them; None for neither."""
    scorers: list[Scorer] = []
    if options.lm is not None:
        lm = _language_model(options.lm, Path(options.lm).stat().st_mtime_ns if Path(options.lm).exists() else 0)
        weight, bonus = options.lm_weight, options.word_bonus
        if options.lm_unit == "word":
            scorers.append(WordScorer(lm=lm, tokenizer=tokenizer, weight=weight, word_bonus=bonus))
        else:
            scorers.append(TokenScorer(lm=lm, tokenizer=tokenizer, weight=weight, token_bonus=bonus))
    if options.hotwords:
        scorers.append(HotwordScorer(options.hotwords, tokenizer=tokenizer, weight=options.hotword_weight))
    if len(scorers) < 2:
        return scorers[0] if scorers else None
    return SumScorer(scorers)


@lru_cache(maxsize=2)
def _language_model(path: str, changed_ns: int) -> LanguageModel:
    """The model in a file; read once as long as the file does not change."""
    return load_lm(path)


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

"""From features to transcripts: greedy, beam and joint search, rescoring, CTC alone.

Shape legend: B batch, T frames, D model, V vocab, F mel bins.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from speechkit.models.aed.model import BLANK, EOS, SOS, AedModel
from speechkit.nn.decoder import Source
from speechkit.search.attention import AttentionResult, TokenRules, attention_greedy
from speechkit.search.attention_beam import BeamSettings, attention_beam
from speechkit.search.ctc_greedy import CtcPath, ctc_greedy
from speechkit.search.ctc_prefix_beam import BeamResult, ctc_prefix_beam
from speechkit.search.ctc_prefix_score import CtcPrefixScorer
from speechkit.search.fusion import LmUnit, build_scorer, check_fusion
from speechkit.search.hypotheses import Timestamps, align_to_frames, best_paths, check_timestamps, to_hypothesis
from speechkit.search.lm import Scorer
from speechkit.search.rescoring import rescore
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds


@dataclass(frozen=True, slots=True)
class AedDecodeOptions:
    """How to decode.

    Attributes:
        method: "greedy" (the decoder's best token, again and again), "beam" (beam search; joint with CTC for a
            `ctc_weight` above 0), "rescore" (prefix beam search with CTC, ranked with the decoder) or "ctc" (CTC alone).
        timestamps: None, "token", or "word" (which gives tokens too), by CTC alignment of the transcript.
        language: language code, for models with language tokens.
        beam_size: hypotheses kept; not for greedy. With method "ctc", 1 is the best path.
        ctc_weight: w in (1 - w) log p(decoder) + w log p(CTC), of "beam" and "rescore".
        length_bonus: added for every token, of "beam" and "rescore".
        coverage_bonus: added for every frame that was attended to, of "beam".
        pre_beam: candidates that CTC and the language model see, in multiples of `beam_size`, of "beam"; None for all.
        end_margin: how much better than all that still runs an ended hypothesis must be to end a "beam" search. With
            bonuses or hotwords scores may rise again: a few nats then find more.
        max_tokens_per_second: of audio; longer transcripts are cut short.
        max_repeats: how often a sequence of up to 8 tokens may stand in a row; None for no limit.
        lm: path of an n-gram model, ARPA or KenLM; None for no language model. Not for greedy, as all that follow.
        lm_unit: what the model was trained on: "word", or "token" for the tokenizer's pieces.
        lm_weight: factor on the model's log-probabilities.
        word_bonus: added for every word (for every token with lm_unit "token"); needs `lm`.
        hotwords: phrases to favour, or a mapping from phrases to weights of their own.
        hotword_weight: natural log-probability added per token of a phrase without its own weight.

    Raises:
        ValueError: a choice is unknown, a value is out of range, or an option of a beam is given without one.
    """

    method: Literal["greedy", "beam", "rescore", "ctc"] = "greedy"
    timestamps: Timestamps | None = None
    language: str | None = None
    beam_size: int = 10
    ctc_weight: float = 0.0
    length_bonus: float = 0.0
    coverage_bonus: float = 0.0
    pre_beam: float | None = 1.5
    end_margin: float = 0.0
    max_tokens_per_second: float = 30.0
    max_repeats: int | None = 8
    lm: str | None = None
    lm_unit: LmUnit = "word"
    lm_weight: float = 0.5
    word_bonus: float = 0.0
    hotwords: Sequence[str] | Mapping[str, float] = ()
    hotword_weight: float = 2.0

    def __post_init__(self) -> None:
        if self.method not in ("greedy", "beam", "rescore", "ctc"):
            raise ValueError(f"method={self.method!r} is unknown; choose greedy, beam, rescore or ctc")
        check_timestamps(self.timestamps)
        check_fusion(lm=self.lm, lm_unit=self.lm_unit, word_bonus=self.word_bonus, hotwords=self.hotwords)
        searches = self.method != "greedy" and not (self.method == "ctc" and self.beam_size == 1)
        if not searches and (self.lm is not None or self.hotwords):
            raise ValueError(f"lm and hotwords need a beam; method={self.method} cannot use them")
        if not self.max_tokens_per_second > 0.0:
            raise ValueError(f"max_tokens_per_second={self.max_tokens_per_second} must be above 0")
        self.rules()
        self.settings()

    def rules(self, tags: Sequence[int] = ()) -> TokenRules:
        """What the decoder may say; no blank, no start, none of `tags`."""
        return TokenRules(eos=EOS, never=(BLANK, SOS, *tags), max_repeats=self.max_repeats)

    def settings(self) -> BeamSettings:
        """How beam search goes."""
        return BeamSettings(
            beam_size=self.beam_size,
            ctc_weight=self.ctc_weight,
            length_bonus=self.length_bonus,
            coverage_bonus=self.coverage_bonus,
            pre_beam=self.pre_beam,
            end_margin=self.end_margin,
        )


class Encoded(NamedTuple):
    """A batch as every search takes it.

    Attributes:
        source: encoder output, read by the decoder.
        lens_B: valid frames of each row, int64, shape (B,).
        prompts_BP: what every row begins with, int64, shape (B, P).
        limits_B: most tokens of each row, int64, shape (B,).
        log_probs_BTV: of CTC at each frame; None where CTC is not asked.
    """

    source: Source
    lens_B: Tensor
    prompts_BP: Tensor
    limits_B: Tensor
    log_probs_BTV: Tensor | None


@torch.inference_mode()
def infer(
    model: AedModel,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: AedDecodeOptions | None = None,
    frame_shift: Seconds = 0.01,
) -> list[Hypothesis]:
    """Transcribes a batch of features.

    Args:
        model: an AED model; put in eval mode by the caller.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: the tokenizer that the model was trained with.
        options: how to decode; greedy without times when None.
        frame_shift: seconds between input frames.

    Returns:
        one hypothesis per row; confidences are the decoder's, CTC's with method "ctc".

    Raises:
        ValueError: CTC is needed and the model has no such head, or the language has no token.
    """
    options = AedDecodeOptions() if options is None else options
    shift = frame_shift * model.subsampling_factor
    language = _language(model, options.language)
    x_BTD, lens_B = model.encode(feats_BTF, feat_lens_B)
    needs_ctc = options.method in ("ctc", "rescore") or options.timestamps or (options.method == "beam" and options.ctc_weight)
    log_probs_BTV = model.ctc_log_probs(x_BTD) if needs_ctc else None
    scorer = _scorer(tokenizer, options)
    if options.method == "ctc":
        assert log_probs_BTV is not None
        paths = _ctc_paths(log_probs_BTV, lens_B, options, scorer)
    else:
        limits_B = (lens_B * (shift * options.max_tokens_per_second)).ceil().long()
        prompts_BP = model.prompts([language] * len(lens_B))
        encoded = Encoded(model.decoder.read(x_BTD, lens_B), lens_B, prompts_BP, limits_B, log_probs_BTV)
        results = _search(model, encoded, tokenizer, options, scorer)
        paths = _paths(results, encoded, options)
    hypotheses = [to_hypothesis(path, tokenizer, options.timestamps, shift) for path in paths]
    return [dataclasses.replace(hypothesis, language=language) for hypothesis in hypotheses]


def _language(model: AedModel, language: str | None) -> str:
    """The language to decode in; "" for models without language tokens."""
    if not model.language_tokens:
        return ""
    if language is None:
        language = next(iter(model.language_tokens))
        if len(model.language_tokens) > 1:
            known = ", ".join(model.language_tokens)
            warnings.warn(f"no language given to a model of {known}: taking {language!r}", stacklevel=3)
    return language


def _scorer(tokenizer: Tokenizer, options: AedDecodeOptions) -> Scorer | None:
    return build_scorer(
        tokenizer,
        lm=options.lm,
        lm_unit=options.lm_unit,
        lm_weight=options.lm_weight,
        word_bonus=options.word_bonus,
        hotwords=options.hotwords,
        hotword_weight=options.hotword_weight,
    )


def _search(
    model: AedModel, encoded: Encoded, tokenizer: Tokenizer, options: AedDecodeOptions, scorer: Scorer | None
) -> list[AttentionResult]:
    """The best transcript of each row; an empty one of score -inf where every one is impossible."""
    first_piece = EOS + 1 + len(tokenizer.tags)
    rules = options.rules(range(EOS + 1, first_piece))
    what = encoded.source, encoded.prompts_BP
    if options.method == "greedy":
        return attention_greedy(model.decoder, *what, encoded.limits_B, rules=rules)
    log_probs_BTV, lens_B = encoded.log_probs_BTV, encoded.lens_B
    if options.method == "beam":
        ctc = CtcPrefixScorer(log_probs_BTV, lens_B, blank=BLANK) if log_probs_BTV is not None else None
        settings = options.settings()
        found = attention_beam(model.decoder, *what, encoded.limits_B, rules=rules, settings=settings, ctc=ctc, scorer=scorer)
    else:
        assert log_probs_BTV is not None
        nbest = _ctc_nbest(log_probs_BTV, lens_B, options, scorer)
        weight, bonus = options.ctc_weight, options.length_bonus
        found = rescore(model.decoder, *what, nbest, eos=EOS, ctc_weight=weight, length_bonus=bonus)
    impossible = AttentionResult(score=-math.inf, att_score=-math.inf)
    return [own[0] if own else impossible for own in found]


def _ctc_nbest(log_probs_BTV: Tensor, lens_B: Tensor, options: AedDecodeOptions, scorer: Scorer | None) -> list[list[BeamResult]]:
    return ctc_prefix_beam(log_probs_BTV, lens_B, beam_size=options.beam_size, blank=BLANK, scorer=scorer)


def _ctc_paths(log_probs_BTV: Tensor, lens_B: Tensor, options: AedDecodeOptions, scorer: Scorer | None) -> list[CtcPath]:
    """Transcripts of the CTC head alone."""
    if options.beam_size == 1:
        return ctc_greedy(log_probs_BTV, lens_B, blank=BLANK)
    return best_paths(_ctc_nbest(log_probs_BTV, lens_B, options, scorer), log_probs_BTV, lens_B, blank=BLANK)


def _paths(results: Sequence[AttentionResult], encoded: Encoded, options: AedDecodeOptions) -> list[CtcPath]:
    """Transcripts with the decoder's confidences and, if times are asked for, with frames from CTC.

    What CTC finds impossible (more tokens than frames) is spread evenly over the frames, with a warning.
    """
    confidences = [tuple(min(math.exp(value), 1.0) for value in result.log_probs) for result in results]
    if options.timestamps is None:
        return [CtcPath(result.tokens, (), (), own, result.score) for result, own in zip(results, confidences)]
    assert encoded.log_probs_BTV is not None
    tokens, scores = [result.tokens for result in results], [result.score for result in results]
    paths = []
    aligned = align_to_frames(tokens, scores, encoded.log_probs_BTV, encoded.lens_B, blank=BLANK)
    for path, ids, own, score, length in zip(aligned, tokens, confidences, scores, encoded.lens_B.tolist()):
        if path is None:
            warnings.warn("a transcript has too many tokens to be aligned; its times are spread evenly", stacklevel=3)
            edges = [round(length * i / len(ids)) for i in range(len(ids) + 1)]
            path = CtcPath(ids, tuple(edges[:-1]), tuple(edges[1:]), own, score)
        paths.append(dataclasses.replace(path, confidences=own))
    return paths

"""From features to transcripts: greedy, beam and joint search, rescoring, CTC alone.

Greedy search is speculative where the model has a CTC head: the CTC transcript is checked many tokens at a time, and what
comes out is what the decoder would have said one token at a time.

Shape legend: B batch, T frames, U tokens, P prompt, D model, V vocab, H attention heads chosen, F mel bins.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.models.aed.model import AedModel
from speechkit.nn.decoder import Source, TransformerDecoder
from speechkit.search.attention import AttentionResult, TokenRules, attention_greedy
from speechkit.search.attention_align import attention_spans
from speechkit.search.attention_beam import BeamSettings, attention_beam
from speechkit.search.ctc_decode import CtcSearchOptions, ctc_decode, ctc_nbest
from speechkit.search.ctc_greedy import CtcPath, ctc_greedy
from speechkit.search.ctc_prefix_score import CtcPrefixScorer
from speechkit.search.hypotheses import align_to_frames, to_hypothesis
from speechkit.search.options import SearchOptions
from speechkit.search.rescoring import rescore
from speechkit.search.speculative import (
    AdaptiveDraft,
    Draft,
    HypothesisDraft,
    NgramDraft,
    PromptLookupDraft,
    SpeculativeStats,
    speculative_greedy,
)
from speechkit.text.tokenizers import BLANK, EOS, SOS, Tokenizer
from speechkit.types import Hypothesis, Seconds

CPU_POSITIONS = 128  # read in one call without an accelerator: from there on a call costs about what it reads


@dataclass(frozen=True, slots=True)
class AedDecodeOptions(SearchOptions):
    """How to decode; times, beam, language model and hotwords as in `speechkit.search.options.SearchOptions`.

    A beam, language model and hotwords are not for greedy. With method "ctc" a `beam_size` of 1 is the best path.

    Attributes:
        method: "greedy" (the decoder's best token, again and again), "beam" (beam search; joint with CTC for a
            `ctc_weight` above 0), "rescore" (prefix beam search with CTC, ranked with the decoder) or "ctc" (CTC alone).
        language: language code, for models with language tokens.
        task: name of the task, for models with task tokens; None for the model's first. What CTC spells is the transcript, so
            that it drafts, scores and times nothing else.
        draft: what "greedy" checks many tokens of at once; the transcript is the same for all (in float32; less exact types
            may round otherwise where two tokens are as good). "auto": CTC's best path, for each utterance as long as it
            pays, where there is a CTC head; "ctc": that in any case; "ngram": what followed the last tokens in all that
            was decoded with these options; "prompt": what followed them in this transcript; "none": a token at a time; or
            an object that proposes, such as `HypothesisDraft` with transcripts of the batch by another model.
        num_draft: most tokens checked at once, of each utterance.
        align_by: what tells times: "ctc", "attention" (where the decoder looked), or "auto" for CTC where there is a head.
        align_heads: pairs of layer and attention head, counted from 0, that "attention" goes by; () for all of the upper
            half of the layers. Some heads follow the speech better than others.
        ctc_weight: w in (1 - w) log p(decoder) + w log p(CTC), of "beam" and "rescore".
        length_bonus: added for every token, of "beam" and "rescore".
        coverage_bonus: added for every frame that was attended to, of "beam".
        pre_beam: candidates that CTC and the language model see, in multiples of `beam_size`, of "beam"; None for all.
        end_margin: how much better than all that still runs an ended hypothesis must be to end a "beam" search. With
            bonuses or hotwords scores may rise again: a few nats then find more.
        max_tokens_per_second: of audio; longer transcripts are cut short.
        max_repeats: how often a sequence of up to 8 tokens may stand in a row; None for no limit.

    Raises:
        ValueError: a choice is unknown, a value is out of range, or an option is given for another method.
    """

    method: Literal["greedy", "beam", "rescore", "ctc"] = "greedy"
    language: str | None = None
    task: str | None = None
    draft: Literal["auto", "ctc", "ngram", "prompt", "none"] | Draft = "auto"
    num_draft: int = 16
    align_by: Literal["auto", "ctc", "attention"] = "auto"
    align_heads: Sequence[tuple[int, int]] = ()
    ctc_weight: float = 0.0
    length_bonus: float = 0.0
    coverage_bonus: float = 0.0
    pre_beam: float | None = 1.5
    end_margin: float = 0.0
    max_tokens_per_second: float = 30.0
    max_repeats: int | None = 8

    def __post_init__(self) -> None:
        SearchOptions.__post_init__(self)
        if self.method not in ("greedy", "beam", "rescore", "ctc"):
            raise ValueError(f"method={self.method!r} is unknown; choose greedy, beam, rescore or ctc")
        searches = self.method != "greedy" and not (self.method == "ctc" and self.beam_size == 1)
        if not searches and (self.lm is not None or self.hotwords):
            raise ValueError(f"lm and hotwords need a beam; method={self.method} cannot use them")
        if isinstance(self.draft, str) and self.draft not in ("auto", "ctc", "ngram", "prompt", "none"):
            raise ValueError(f"draft={self.draft!r} is unknown; choose auto, ctc, ngram, prompt, none, or give a draft")
        if self.draft not in ("auto", "none") and self.method != "greedy":
            raise ValueError(f"draft={self.draft!r} is only for method=greedy, not for method={self.method}")
        if self.draft == "ngram":
            object.__setattr__(self, "draft", NgramDraft())  # one table for all that is decoded with these options
        if self.num_draft < 1:
            raise ValueError(f"num_draft={self.num_draft} must be at least 1; draft=none takes a token at a time")
        if self.align_by not in ("auto", "ctc", "attention"):
            raise ValueError(f"align_by={self.align_by!r} is unknown; choose auto, ctc or attention")
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

    def ctc(self) -> CtcSearchOptions:
        """How CTC is searched, alone or for transcripts to rank."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(SearchOptions)}
        greedy = self.method == "ctc" and self.beam_size == 1
        return CtcSearchOptions(method="greedy" if greedy else "beam", **shared)


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
    speculation: list[SpeculativeStats] | None = None,
) -> list[Hypothesis]:
    """Transcribes a batch of features.

    Args:
        model: an AED model; put in eval mode by the caller.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: the tokenizer that the model was trained with.
        options: how to decode; greedy without times when None.
        frame_shift: seconds between input frames.
        speculation: takes what greedy search with a draft cost, one entry for the batch.

    Returns:
        one hypothesis per row; confidences are the decoder's, CTC's with method "ctc".

    Raises:
        ValueError: CTC is needed and the model has no such head or the task is another, the language or the task has no token,
            or a head to align by does not exist.
    """
    options = AedDecodeOptions() if options is None else options
    if not _transcribes(model, options):
        options = _without_ctc(options)
    shift = frame_shift * model.subsampling_factor
    language = decode_language(model, options.language)
    x_BTD, lens_B = model.encode(feats_BTF, feat_lens_B)
    log_probs_BTV = model.ctc_log_probs(x_BTD) if _needs_ctc(model, options) else None
    if options.method == "ctc":
        assert log_probs_BTV is not None
        hypotheses = ctc_decode(log_probs_BTV, lens_B, tokenizer=tokenizer, options=options.ctc(), frame_shift=shift, blank=BLANK)
    else:
        limits_B = (lens_B * (shift * options.max_tokens_per_second)).ceil().long()
        prompts_BP = model.prompts([language] * len(lens_B), [options.task or ""] * len(lens_B))
        encoded = Encoded(model.decoder.read(x_BTD, lens_B), lens_B, prompts_BP, limits_B, log_probs_BTV)
        results = _search(model, encoded, tokenizer, options, speculation)
        hypotheses = [to_hypothesis(p, tokenizer, options.timestamps, shift) for p in _paths(model, results, encoded, options)]
    return [dataclasses.replace(hypothesis, language=language) for hypothesis in hypotheses]


def decode_language(model: AedModel, language: str | None) -> str:
    """The language to decode in, the model's first if none is given; "" for models without language tokens."""
    if not model.language_tokens:
        return ""
    if language is None:
        language = next(iter(model.language_tokens))
        if len(model.language_tokens) > 1:
            known = ", ".join(model.language_tokens)
            warnings.warn(f"no language given to a model of {known}: taking {language!r}", stacklevel=3)
    return language


def _transcribes(model: AedModel, options: AedDecodeOptions) -> bool:
    """Whether the task is to say what CTC spells."""
    return not options.task or not model.task_tokens or options.task == next(iter(model.task_tokens))


def _without_ctc(options: AedDecodeOptions) -> AedDecodeOptions:
    """Options for a task that is not to transcribe.

    Raises:
        ValueError: they ask for what only CTC can do.
    """
    if options.method in ("rescore", "ctc") or options.ctc_weight or options.draft == "ctc" or options.align_by == "ctc":
        raise ValueError(
            f"task={options.task!r}: CTC spells transcripts and nothing else; use method=greedy or beam with ctc_weight=0, "
            "and another draft and align_by than ctc"
        )
    draft = "none" if options.draft == "auto" else options.draft
    return dataclasses.replace(options, draft=draft, align_by="attention")


def _aligns_by_ctc(model: AedModel, options: AedDecodeOptions) -> bool:
    return options.align_by == "ctc" or (options.align_by == "auto" and model.head is not None)


def _needs_ctc(model: AedModel, options: AedDecodeOptions) -> bool:
    """Whether CTC has a say in transcripts, drafts or times."""
    if options.timestamps is not None and _aligns_by_ctc(model, options):
        return True
    if options.method == "greedy":
        return options.draft == "ctc" or (options.draft == "auto" and model.head is not None)
    return options.method != "beam" or options.ctc_weight > 0.0


def _search(
    model: AedModel,
    encoded: Encoded,
    tokenizer: Tokenizer,
    options: AedDecodeOptions,
    speculation: list[SpeculativeStats] | None,
) -> list[AttentionResult]:
    """The best transcript of each row; an empty one of score -inf where every one is impossible."""
    first_piece = EOS + 1 + len(tokenizer.tags)
    rules = options.rules(range(EOS + 1, first_piece))
    if options.method == "greedy":
        return _greedy(model, encoded, rules, options, speculation)
    what = encoded.source, encoded.prompts_BP
    log_probs_BTV, lens_B = encoded.log_probs_BTV, encoded.lens_B
    if options.method == "beam":
        ctc = CtcPrefixScorer(log_probs_BTV, lens_B, blank=BLANK) if log_probs_BTV is not None else None
        settings, scorer = options.settings(), options.scorer(tokenizer)
        found = attention_beam(model.decoder, *what, encoded.limits_B, rules=rules, settings=settings, ctc=ctc, scorer=scorer)
    else:
        assert log_probs_BTV is not None
        nbest = ctc_nbest(log_probs_BTV, lens_B, tokenizer=tokenizer, options=options.ctc(), blank=BLANK)
        weight, bonus = options.ctc_weight, options.length_bonus
        found = rescore(model.decoder, *what, nbest, eos=EOS, ctc_weight=weight, length_bonus=bonus)
    impossible = AttentionResult(score=-math.inf, att_score=-math.inf)
    return [own[0] if own else impossible for own in found]


def _greedy(
    model: AedModel,
    encoded: Encoded,
    rules: TokenRules,
    options: AedDecodeOptions,
    speculation: list[SpeculativeStats] | None,
) -> list[AttentionResult]:
    """Greedy search, with a draft if there is one."""
    what = encoded.source, encoded.prompts_BP, encoded.limits_B
    draft = _draft(options, encoded)
    if draft is None:
        return attention_greedy(model.decoder, *what, rules=rules)
    most = CPU_POSITIONS if encoded.lens_B.device.type == "cpu" else None
    results, stats = speculative_greedy(
        model.decoder, *what, rules=rules, draft=draft, num_draft=options.num_draft, max_positions=most
    )
    if speculation is not None:
        speculation.append(stats)
    return results


def _draft(options: AedDecodeOptions, encoded: Encoded) -> Draft | None:
    """What proposes; None for nothing."""
    if not isinstance(options.draft, str):
        return options.draft
    if options.draft == "prompt":
        return PromptLookupDraft()
    if options.draft == "none" or encoded.log_probs_BTV is None:
        return None
    paths = ctc_greedy(encoded.log_probs_BTV, encoded.lens_B, blank=BLANK)
    draft = HypothesisDraft([path.tokens for path in paths], end=EOS)
    return AdaptiveDraft(draft) if options.draft == "auto" else draft


def _paths(model: AedModel, results: Sequence[AttentionResult], encoded: Encoded, options: AedDecodeOptions) -> list[CtcPath]:
    """Transcripts with the decoder's confidences and, if times are asked for, with frames."""
    tokens, scores = [result.tokens for result in results], [result.score for result in results]
    confidences = [tuple(min(math.exp(value), 1.0) for value in result.log_probs) for result in results]
    if options.timestamps is None:
        spans: list[list[tuple[int, int]]] = [[] for _ in results]
    elif _aligns_by_ctc(model, options):
        assert encoded.log_probs_BTV is not None
        return align_to_frames(tokens, scores, encoded.log_probs_BTV, encoded.lens_B, confidences=confidences, blank=BLANK)
    else:
        weights_BHUT = _looks(model.decoder, tokens, encoded, options.align_heads)
        spans = attention_spans(weights_BHUT, [len(ids) for ids in tokens], encoded.lens_B.tolist())
    return [
        CtcPath(ids, tuple(start for start, _ in own), tuple(end for _, end in own), sure, score)
        for ids, own, sure, score in zip(tokens, spans, confidences, scores)
    ]


def _looks(
    decoder: TransformerDecoder, tokens: Sequence[Sequence[int]], encoded: Encoded, heads: Sequence[tuple[int, int]]
) -> Tensor:
    """How much some heads looked at each frame when a token or, last, the end was chosen, fp32, shape (B, H, U + 1, T)."""
    num_layers, num_heads = len(decoder.layers), decoder.num_heads
    heads = heads or [(layer, head) for layer in range(num_layers // 2, num_layers) for head in range(num_heads)]
    for layer, head in heads:
        if not (0 <= layer < num_layers and 0 <= head < num_heads):
            raise ValueError(f"align_heads holds {(layer, head)}; the decoder has {num_layers} layers of {num_heads} heads")
    prompts_BP, source = encoded.prompts_BP, encoded.source
    tokens_BU = nn.utils.rnn.pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in tokens], batch_first=True)
    queries: dict[int, Tensor] = {}

    def keep(layer: int, module: nn.Module, args: tuple[Tensor, ...], query_BUD: Tensor) -> None:
        queries[layer] = query_BUD[:, prompts_BP.shape[1] - 1 :].unflatten(-1, (num_heads, -1)).float()

    hooks = [
        decoder.layers[layer].cross_attention.query.register_forward_hook(functools.partial(keep, layer))  # type: ignore[union-attr]
        for layer in {layer for layer, _ in heads}
    ]
    try:
        decoder(torch.cat((prompts_BP, tokens_BU.to(prompts_BP.device)), dim=1), source)
    finally:
        for hook in hooks:
            hook.remove()
    weights = []
    for layer, head in heads:
        query_BUK, key_BTK = queries[layer][:, :, head], source.keys[layer][:, head].float()
        scores_BUT = query_BUK @ key_BTK.transpose(1, 2) * key_BTK.shape[2] ** -0.5
        mask = None if source.visible is None else source.visible.dense(key_BTK.shape[1], key_BTK.device)
        weights.append((scores_BUT if mask is None else scores_BUT.masked_fill(~mask[:, 0], -torch.inf)).softmax(dim=-1))
    return torch.stack(weights, dim=1)

"""From features to transcripts in one pass over one alignment of each utterance, or over many of which the best is kept.

Source: Fan et al. 2021, "CASS-NAT", section 3.3 (error-based sampling alignment, ESA).

Shape legend: B batch, R alignments, T frames, U tokens, Q = U + 1 places (tokens and the end of sentence), F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from speechkit.models.cassnat.model import CassNatModel, Prediction
from speechkit.search.alignment_sampling import Alignments, sample_alignments
from speechkit.search.ctc_greedy import CtcPath
from speechkit.search.fusion import Lm, LmUnit, build_scorer, check_fusion
from speechkit.search.hypotheses import Timestamps, check_timestamps, to_hypothesis
from speechkit.search.lm import Scorer, score_ends, score_pairs
from speechkit.text.tokenizers import BLANK, Tokenizer
from speechkit.types import Hypothesis, Seconds


class Ranker(Protocol):
    """Another model that says how well tokens fit an utterance, such as an attention decoder."""

    def score(
        self, sequences: Sequence[Sequence[tuple[int, ...]]], feats_BTF: Tensor, feat_lens_B: Tensor
    ) -> Sequence[Sequence[float]]:
        """Natural log-probability of token sequences, their end included.

        Args:
            sequences: for each of B utterances, some token sequences.
            feats_BTF: features of the utterances, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            in the order of `sequences`.
        """


@dataclass(frozen=True, slots=True)
class CassNatDecodeOptions:
    """How to decode.

    Attributes:
        num_samples: CTC paths tried for each utterance; 1 for the best path alone.
        threshold: frames whose best label is less probable are in doubt, and differ between samples.
        seed: of the samples.
        rank_by: what chooses between the transcripts that come of the paths, each divided by the number of tokens and end
            of sentence: "model" (log-probability under the model), "lm" (that and `lm`) or "ranker" (`ranker` alone).
        lm: path of an n-gram model, ARPA or KenLM, or a neural model, as in `speechkit.search.options.SearchOptions`; only
            and always with rank_by "lm", as the next three.
        lm_unit: what an n-gram model was trained on: "word", or "token" for the tokenizer's pieces.
        lm_weight: factor on its log-probabilities.
        word_bonus: added for every word (for every token with lm_unit "token" and neural models).
        ranker: a model that ranks, such as `speechkit.models.aed.ranker.AedRanker`; only and always with rank_by "ranker".
            Or the folder of an attention encoder-decoder, which a `Recognizer` loads when it is given the options.
        timestamps: None, "token", or "word" (which gives tokens too): where CTC saw the tokens.

    Raises:
        ValueError: a choice is unknown, a number is out of range, or what rank_by needs is missing.
    """

    num_samples: int = 1
    threshold: float = 0.9
    seed: int = 0
    rank_by: Literal["model", "lm", "ranker"] = "model"
    lm: Lm | None = None
    lm_unit: LmUnit = "word"
    lm_weight: float = 0.5
    word_bonus: float = 0.0
    ranker: Ranker | str | None = None
    timestamps: Timestamps | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples} must be at least 1, the best path")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold={self.threshold} must be a probability, in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        if self.rank_by not in ("model", "lm", "ranker"):
            raise ValueError(f"rank_by={self.rank_by!r} is unknown; choose model, lm or ranker")
        for name, value in (("lm", self.lm), ("ranker", self.ranker)):
            if (value is not None) != (self.rank_by == name):
                raise ValueError(f"rank_by={self.rank_by} and {name}={value} do not fit; {name} goes with rank_by={name}")
        check_fusion(lm=self.lm, lm_unit=self.lm_unit, word_bonus=self.word_bonus, hotwords=())
        check_timestamps(self.timestamps)


@torch.inference_mode()
def infer(
    model: CassNatModel,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: CassNatDecodeOptions | None = None,
    frame_shift: Seconds = 0.01,
) -> list[Hypothesis]:
    """Transcribes a batch of features; all alignments of all utterances go through the decoder together.

    Args:
        model: put in eval mode by the caller.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: the tokenizer that the model was trained with.
        options: how to decode; the best path without times when None.
        frame_shift: seconds between input frames.

    Returns:
        one hypothesis per row: the best token of each place, blank, start and end left out; the score is what the
        alternatives were ranked by, a log-probability per token.
    """
    options = CassNatDecodeOptions() if options is None else options
    encoding = model.encode(feats_BTF, feat_lens_B)
    alignments = sample_alignments(
        encoding.log_probs_BTV,
        encoding.lens_B,
        num_samples=options.num_samples,
        threshold=options.threshold,
        seed=options.seed,
        blank=BLANK,
    )
    paths = _read_off(model.predict(encoding, alignments), alignments, tokenizer)
    rows, places = alignments.rows_R.tolist(), (alignments.token_lens_R + 1).tolist()
    scores = _scores(paths, rows, feats_BTF, feat_lens_B, tokenizer, options)
    best: dict[int, CtcPath] = {}  # in the order of the batch, for that is the order of the alignments
    for row, path, score, count in zip(rows, paths, scores, places):
        if row not in best or score / count > best[row].score:
            best[row] = replace(path, score=score / count)
    shift = frame_shift * model.subsampling_factor
    return [to_hypothesis(path, tokenizer, options.timestamps, shift) for path in best.values()]


def _read_off(prediction: Prediction, alignments: Alignments, tokenizer: Tokenizer) -> list[CtcPath]:
    """Tokens of each alignment, with the frames where CTC saw them; the score is their log-probability, end included."""
    silent = {tokenizer.blank_id, tokenizer.sos_id, tokenizer.eos_id}
    log_probs_RQ = prediction.log_probs_RQ.double()
    sums, probs, lens = log_probs_RQ.sum(dim=1).tolist(), log_probs_RQ.exp().tolist(), alignments.token_lens_R.tolist()
    tokens, starts, ends = (x.tolist() for x in (prediction.tokens_RU, alignments.starts_RU, alignments.ends_RU))
    paths = []
    for r, length in enumerate(lens):
        kept = [u for u in range(length) if tokens[r][u] not in silent]
        own = [tuple(values[r][u] for u in kept) for values in (tokens, starts, ends, probs)]
        paths.append(CtcPath(own[0], own[1], own[2], own[3], sums[r]))
    return paths


def _scores(
    paths: Sequence[CtcPath],
    rows: Sequence[int],
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    tokenizer: Tokenizer,
    options: CassNatDecodeOptions,
) -> list[float]:
    """Log-probability of each path's tokens as `rank_by` says; tokens that several paths of an utterance share are asked for
    once."""
    if options.rank_by == "model":
        return [path.score for path in paths]
    if isinstance(options.ranker, str):
        raise ValueError(f"ranker={options.ranker} is not loaded; set these options on a Recognizer, or give an AedRanker")
    if options.ranker is not None:
        sequences: list[list[tuple[int, ...]]] = [[] for _ in range(len(feats_BTF))]
        for row, tokens in dict.fromkeys((row, path.tokens) for row, path in zip(rows, paths)):
            sequences[row].append(tokens)
        found = options.ranker.score(sequences, feats_BTF, feat_lens_B)
        scores = [dict(zip(own, own_scores, strict=True)) for own, own_scores in zip(sequences, found, strict=True)]
        return [scores[row][path.tokens] for row, path in zip(rows, paths)]
    scorer = build_scorer(
        tokenizer, lm=options.lm, lm_unit=options.lm_unit, lm_weight=options.lm_weight, word_bonus=options.word_bonus
    )
    assert scorer is not None
    added = _score_all(scorer, list(dict.fromkeys(path.tokens for path in paths)))
    return [path.score + added[path.tokens] for path in paths]


def _score_all(scorer: Scorer, sequences: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """What a scorer adds to each whole token sequence; all sequences advance together."""
    totals, states = [0.0] * len(sequences), [scorer.initial_state() for _ in sequences]
    for u in range(max(map(len, sequences), default=0)):
        growing = [i for i, tokens in enumerate(sequences) if len(tokens) > u]
        pairs = score_pairs(scorer, [states[i] for i in growing], [sequences[i][u] for i in growing])
        for i, (added, state) in zip(growing, pairs, strict=True):
            totals[i], states[i] = totals[i] + added, state
    return {tokens: total + end for tokens, total, end in zip(sequences, totals, score_ends(scorer, states))}

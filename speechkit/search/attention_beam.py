"""Beam search through an autoregressive decoder: all beams of all utterances in one decoder call per token.

Joint scores follow Watanabe et al. 2017, section IV: (1 - w) log p(decoder) + w log p(CTC prefix), and what a language model
adds. The expensive scores are only asked for the tokens that the decoder finds best ("pre-beam"). Coverage counts the
frames that were attended to (Chorowski and Jaitly 2017, "Towards better decoding and language model integration in
sequence to sequence models", section 3.2).

A hypothesis ends when its end is among the best `beam_size` continuations of its utterance, and an utterance when nothing
that still runs can come before the best that have ended. Utterances that have ended leave the batch when they are half of it.

Shape legend: B utterances still running, W hypotheses of one, R = B W, P prompt, U tokens, K candidates (the last one is the
end), V vocab, T source frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.search.attention import AttentionResult, TokenDecoder, TokenRules
from speechkit.search.ctc_prefix_score import CtcPrefixScorer, CtcPrefixState
from speechkit.search.lm import Scorer, score_ends, score_pairs


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """How to search.

    Attributes:
        beam_size: hypotheses kept after each token.
        num_best: transcripts returned, best first.
        ctc_weight: w; 0 for the decoder alone.
        length_bonus: added for every token.
        coverage_bonus: added for every frame whose attention, summed over tokens, exceeds `coverage_threshold`.
        coverage_threshold: in attention; 0.5 in the paper.
        pre_beam: candidates of a hypothesis that CTC and the language model see, in multiples of `beam_size`; None for
            the whole vocabulary.
        end_margin: an utterance goes on until all that runs scores this much less than the best that have ended. 0 is
            exact without bonuses, for scores then only fall; inf goes on to the limit.

    Raises:
        ValueError: a value is out of range.
    """

    beam_size: int = 10
    num_best: int = 1
    ctc_weight: float = 0.0
    length_bonus: float = 0.0
    coverage_bonus: float = 0.0
    coverage_threshold: float = 0.5
    pre_beam: float | None = 1.5
    end_margin: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("beam_size", self.beam_size), ("num_best", self.num_best)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0.0 <= self.ctc_weight <= 1.0:
            raise ValueError(f"ctc_weight={self.ctc_weight} must be in [0, 1]")
        if self.pre_beam is not None and self.pre_beam < 1.0:
            raise ValueError(f"pre_beam={self.pre_beam} must be at least 1, or none for the whole vocabulary")
        if self.end_margin < 0.0:
            raise ValueError(f"end_margin={self.end_margin} must not be negative")


@torch.inference_mode()
def attention_beam(
    decoder: TokenDecoder,
    source: Any,
    prompts_BP: Tensor,
    limits_B: Tensor,
    *,
    rules: TokenRules,
    settings: BeamSettings | None = None,
    ctc: CtcPrefixScorer | None = None,
    scorer: Scorer | None = None,
) -> list[list[AttentionResult]]:
    """Searches the best transcripts of every utterance of a batch.

    An utterance's result does not depend on its batch mates. With a beam and a pre-beam that hold everything the result
    is exact.

    Args:
        decoder: in eval mode.
        source: what it attends to, of B rows.
        prompts_BP: what every row begins with, int64, shape (B, P), P at least 1.
        limits_B: most tokens of each row, int64, shape (B,); 0 for rows without speech, which are not decoded.
        rules: what may be said; blank must be among `rules.never` with `ctc`.
        settings: how to search; the defaults when None.
        ctc: prefix scores of the same utterances; needed for a `ctc_weight` above 0.
        scorer: language model and hotwords.

    Returns:
        up to `num_best` transcripts of each utterance, best first; none where every one is impossible.

    Raises:
        ValueError: `ctc_weight` is above 0 and `ctc` is missing.
    """
    settings = BeamSettings() if settings is None else settings
    if settings.ctc_weight and ctc is None:
        raise ValueError(f"ctc_weight={settings.ctc_weight} needs the CTC prefix scores of the batch")
    rows_B = limits_B.nonzero()[:, 0]
    if not settings.ctc_weight:
        ctc = None
    search = _Search(decoder, source.select(rows_B), prompts_BP[rows_B], limits_B[rows_B], rules, settings, scorer)
    if ctc is not None:
        search.use_ctc(ctc.select(rows_B))
    results = [[AttentionResult()] for _ in range(len(prompts_BP))]
    for row, found in zip(rows_B.tolist(), search.run()):
        results[row] = sorted(found, key=lambda result: -result.score)[: settings.num_best]
    return results


class _Candidates(NamedTuple):
    """Continuations of all hypotheses, each of shape (B, W, K); `lm_states` is a list over B of W of K states."""

    tokens: Tensor
    log_probs: Tensor
    ctc: Tensor
    added: Tensor
    total: Tensor
    lm_states: list[list[list[Any]]] | None


class _Search:
    """The hypotheses of all utterances still running. Those with a total of -inf are dead and only fill the beam."""

    def __init__(
        self,
        decoder: TokenDecoder,
        source: Any,
        prompts_BP: Tensor,
        limits_B: Tensor,
        rules: TokenRules,
        settings: BeamSettings,
        scorer: Scorer | None,
    ) -> None:
        batch, device = len(prompts_BP), prompts_BP.device
        self.decoder, self.source, self.rules, self.settings, self.scorer = decoder, source, rules, settings, scorer
        self.cache = decoder.start(batch)
        self.reading_RJ, self.limits_B = prompts_BP, limits_B
        self.found: list[list[AttentionResult]] = [[] for _ in range(batch)]
        self.utterances = list(range(batch))
        self.tokens_BWU = torch.zeros(batch, 1, 0, dtype=torch.long, device=device)
        self.log_probs_BWU = torch.zeros(batch, 1, 0, dtype=torch.float64, device=device)
        self.att_BW, self.added_BW, self.ctc_BW = (torch.zeros(batch, 1, dtype=torch.float64, device=device) for _ in range(3))
        self.total_BW = torch.zeros(batch, 1, dtype=torch.float64, device=device)
        self.cover_BWT: Tensor | None = None
        self.lm_states = None if scorer is None else [[scorer.initial_state()] for _ in range(batch)]
        self.ctc: CtcPrefixScorer | None = None
        self.ctc_state: CtcPrefixState | None = None

    def use_ctc(self, ctc: CtcPrefixScorer) -> None:
        """Joins prefix scores in."""
        self.ctc, self.ctc_state = ctc, ctc.start()

    def run(self) -> list[list[AttentionResult]]:
        """What was found for each utterance, in no order."""
        while self.utterances:
            candidates = self._candidates(self._read())
            self._take_ends(candidates)
            self._go_on(candidates)
            done = [self._is_done(*pair) for pair in zip(self.utterances, self.total_BW.max(dim=1).values.tolist())]
            if 2 * sum(done) >= len(done):
                self._keep([row for row, is_done in enumerate(done) if not is_done])
            elif any(done):  # what stays on in the batch only for its mates must not find any more
                self.total_BW[torch.tensor(done, device=self.total_BW.device)] = -torch.inf
        return self.found

    def _read(self) -> Tensor:
        """Log-probabilities of what follows each hypothesis, fp32, shape (B, W, V); counts what the decoder looks at."""
        batch, width, length = self.tokens_BWU.shape
        looks: list[Tensor] | None = [] if self.settings.coverage_bonus else None
        logits_RV = self.decoder.extend(self.reading_RJ, self.cache, self.source, attention=looks)[:, -1]
        if looks:
            look_BWT = torch.stack([look_RJT[:, -1] for look_RJT in looks]).mean(dim=0).unflatten(0, (batch, width))
            self.cover_BWT = look_BWT if self.cover_BWT is None else self.cover_BWT + look_BWT
        limits_R = self.limits_B.repeat_interleave(width)
        lens_R = torch.full_like(limits_R, length)
        return self.rules.log_probs(logits_RV, self.tokens_BWU.flatten(0, 1), lens_R, limits_R).unflatten(0, (batch, width))

    def _candidates(self, log_probs_BWV: Tensor) -> _Candidates:
        """The most probable tokens of each hypothesis and, last, the end, with all scores."""
        settings, eos = self.settings, self.rules.eos
        width = settings.beam_size
        if self.ctc is not None or self.scorer is not None:
            width = log_probs_BWV.shape[2] if settings.pre_beam is None else math.ceil(settings.pre_beam * width)
        end_BW1 = log_probs_BWV[..., eos : eos + 1].clone()
        log_probs_BWV[..., eos] = -torch.inf
        best = log_probs_BWV.topk(min(width, log_probs_BWV.shape[2] - 1), dim=2)
        tokens = torch.cat((best.indices, torch.full_like(best.indices[..., :1], eos)), dim=2)
        log_probs = torch.cat((best.values, end_BW1), dim=2).double()
        alive = (log_probs > -torch.inf) & (self.total_BW[..., None] > -torch.inf)
        total = (1.0 - settings.ctc_weight) * (self.att_BW[..., None] + log_probs)
        ctc = torch.zeros_like(log_probs)
        if self.ctc is not None and self.ctc_state is not None:
            inner = self.ctc.score(self.ctc_state, best.indices)
            ctc = torch.cat((inner, self.ctc.score_end(self.ctc_state)[..., None]), dim=2)
            total = total + settings.ctc_weight * ctc
        added, lm_states = self._added(tokens, alive)
        if self.cover_BWT is not None:
            covered_BW = (self.cover_BWT > settings.coverage_threshold).sum(dim=2)
            total = total + settings.coverage_bonus * covered_BW[..., None]
        bonus_K = torch.full((tokens.shape[2],), settings.length_bonus, dtype=torch.float64, device=tokens.device)
        bonus_K[-1] = 0.0  # the end is no token
        total = total + added + bonus_K + settings.length_bonus * self.tokens_BWU.shape[2]
        return _Candidates(tokens, log_probs, ctc, added, total.masked_fill(~alive, -torch.inf), lm_states)

    def _added(self, tokens_BWK: Tensor, alive_BWK: Tensor) -> tuple[Tensor, list[list[list[Any]]] | None]:
        """What the scorer has added to each candidate, and its states after them."""
        batch, width, num = tokens_BWK.shape
        added = self.added_BW[..., None].expand(batch, width, num)
        if self.scorer is None or self.lm_states is None:
            return added, None
        places = alive_BWK.nonzero().tolist()
        inner = [place for place in places if place[2] < num - 1]
        all_tokens = tokens_BWK.tolist()
        pairs = [self.lm_states[b][w] for b, w, _ in inner], [all_tokens[b][w][k] for b, w, k in inner]
        more = torch.zeros(batch, width, num, dtype=torch.float64)
        states: list[list[list[Any]]] = [[[None] * num for _ in range(width)] for _ in range(batch)]
        for (b, w, k), (value, state) in zip(inner, score_pairs(self.scorer, *pairs)):
            more[b, w, k] = value
            states[b][w][k] = state
        ends = [place for place in places if place[2] == num - 1]
        for (b, w, k), value in zip(ends, score_ends(self.scorer, [self.lm_states[b][w] for b, w, _ in ends])):
            more[b, w, k] = value
        return added + more.to(added.device), states

    def _take_ends(self, candidates: _Candidates) -> None:
        """Puts hypotheses aside whose end is among the best continuations of their utterance."""
        num = candidates.total.shape[2]
        flat = candidates.total.flatten(1)
        best = flat.topk(min(self.settings.beam_size, flat.shape[1]), dim=1)
        ends = (best.indices % num == num - 1) & (best.values > -torch.inf)
        if not ends.any():
            return
        for b, slot in ends.nonzero().tolist():
            w = int(best.indices[b, slot]) // num
            self.found[self.utterances[b]].append(
                AttentionResult(
                    tokens=tuple(self.tokens_BWU[b, w].tolist()),
                    log_probs=tuple(self.log_probs_BWU[b, w].tolist()),
                    score=float(best.values[b, slot]),
                    att_score=float(self.att_BW[b, w] + candidates.log_probs[b, w, -1]),
                    ctc_score=float(candidates.ctc[b, w, -1]),
                )
            )

    def _go_on(self, candidates: _Candidates) -> None:
        """Continues with the best tokens of each utterance."""
        batch, width, num = candidates.total.shape
        total = candidates.total.clone()
        total[..., -1] = -torch.inf
        best = total.flatten(1).topk(min(self.settings.beam_size, width * num), dim=1)
        parents_BW, slots_BW = best.indices // num, best.indices % num
        rows_B1 = torch.arange(batch, device=total.device)[:, None]
        tokens_BW, log_probs_BW, self.ctc_BW, self.added_BW = (x[rows_B1, parents_BW, slots_BW] for x in candidates[:4])
        self.total_BW = best.values
        self.tokens_BWU = torch.cat((self.tokens_BWU[rows_B1, parents_BW], tokens_BW[..., None]), dim=2)
        self.log_probs_BWU = torch.cat((self.log_probs_BWU[rows_B1, parents_BW], log_probs_BW[..., None]), dim=2)
        self.att_BW = self.att_BW[rows_B1, parents_BW] + log_probs_BW
        if self.cover_BWT is not None:
            self.cover_BWT = self.cover_BWT[rows_B1, parents_BW]
        if self.ctc is not None and self.ctc_state is not None:
            self.ctc_state = self.ctc.advance(self.ctc_state, parents_BW, tokens_BW)
        if candidates.lm_states is not None:
            places = zip(candidates.lm_states, parents_BW.tolist(), slots_BW.tolist())
            self.lm_states = [[states[w][k] for w, k in zip(*chosen)] for states, *chosen in places]
        rows_R = (rows_B1 * width + parents_BW).flatten()
        if not torch.equal(rows_R, torch.arange(batch * width, device=rows_R.device)):
            self.cache = self.cache.select(rows_R)
        self.reading_RJ = tokens_BW.flatten()[:, None]

    def _is_done(self, utterance: int, best_running: float) -> bool:
        """Whether nothing that runs can come before the best that have ended."""
        if best_running == -math.inf:
            return True
        scores, num = sorted((result.score for result in self.found[utterance]), reverse=True), self.settings.num_best
        return len(scores) >= num and best_running + self.settings.end_margin <= scores[num - 1]

    def _keep(self, rows: Sequence[int]) -> None:
        """Leaves the other utterances behind."""
        width = self.tokens_BWU.shape[1]
        rows_B = torch.tensor(rows, dtype=torch.long, device=self.limits_B.device)
        self.utterances = [self.utterances[row] for row in rows]
        if not rows:
            return
        rows_R = (rows_B[:, None] * width + torch.arange(width, device=rows_B.device)).flatten()
        self.cache, self.source, self.reading_RJ = self.cache.select(rows_R), self.source.select(rows_B), self.reading_RJ[rows_R]
        for name in ("limits_B", "tokens_BWU", "log_probs_BWU", "att_BW", "added_BW", "ctc_BW", "total_BW"):
            setattr(self, name, getattr(self, name)[rows_B])
        if self.cover_BWT is not None:
            self.cover_BWT = self.cover_BWT[rows_B]
        if self.lm_states is not None:
            self.lm_states = [self.lm_states[row] for row in rows]
        if self.ctc is not None and self.ctc_state is not None:
            self.ctc, self.ctc_state = self.ctc.select(rows_B), self.ctc_state.select(rows_B)

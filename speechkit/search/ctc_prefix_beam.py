"""CTC prefix beam search over a batch, with shallow fusion of any `Scorer` (language model, hotwords).

Source: Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
Recurrent DNNs", algorithm 1. Each prefix carries the log-probabilities of its paths that end in blank and in
its last token. What differs from the textbook:

- A step handles all utterances, beams and surviving tokens at once. Two candidates can only be the same prefix
  when one is a prefix in the beam and the other extends its parent, so prefixes carry a 64-bit hash of their
  tokens and of their parent's, and merging is one comparison of hashes.
- Pruned tokens count as impossible. A run of frames in which only blank survives then turns every prefix into
  "ends in blank" and adds the same log-probability to all, so it is taken in one step, exactly.

Shape legend: B batch, T frames, V vocab, A frames with a surviving token, W beam, K surviving tokens of a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkit.search.inputs import check_log_probs
from speechkit.search.lm import Scorer, score_ends, score_pairs

_ROOT, _DEAD, _NO_PARENT = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0, 1))
_NO_TOKEN, _FILL = -1, -2  # tokens of the empty prefix and of the empty places of a frame: neither equals any other


@dataclass(frozen=True, slots=True)
class BeamResult:
    """One of the best prefixes of an utterance.

    Attributes:
        tokens: token ids.
        start_frames: frame at which each token came in with most of its probability; `ctc_align` has exact times.
        score: acoustic score plus what the scorer added.
        am_score: log-probability of the tokens, summed over the paths that the search kept.
    """

    tokens: tuple[int, ...]
    start_frames: tuple[int, ...]
    score: float
    am_score: float


def ctc_prefix_beam(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    *,
    beam_size: int = 10,
    blank: int = 0,
    scorer: Scorer | None = None,
    token_top_k: int | None = 30,
    token_min_logp: float | None = -5.0,
    blank_skip: float | None = None,
) -> list[list[BeamResult]]:
    """Search the most probable token sequences of every utterance of a batch.

    An utterance's result does not depend on its batch mates or on padding. Without token pruning and with a beam
    that holds all prefixes the scores are exact.

    Args:
        log_probs_BTV: frame log-probabilities, any float type and device, shape (B, T, V).
        lens_B: valid frames of each row, shape (B,).
        beam_size: prefixes kept after each frame.
        blank: id of the blank token.
        scorer: adds to a prefix's score when a token is appended and at the end; None searches by sound alone.
        token_top_k: tokens other than blank that may be appended at a frame, equal ones at the edge included;
            None for no limit.
        token_min_logp: tokens at or below this log-probability are not appended at a frame; None for no limit.
        blank_skip: frames where blank is more probable than this, such as 0.999, count as blank alone (faster,
            not exact); None for never.

    Returns:
        For each utterance up to `beam_size` results, best first; none at all where every path is impossible.

    Raises:
        ValueError: shapes or lengths do not fit together, or an option is out of range.
    """
    for name, value in (("beam_size", beam_size), ("token_top_k", token_top_k)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    if blank_skip is not None and not 0.0 < blank_skip <= 1.0:
        raise ValueError(f"blank_skip is {blank_skip}; give a probability, such as 0.999, or None")
    lens = check_log_probs(log_probs_BTV, lens_B, blank)
    keep_BTV = _surviving_tokens(log_probs_BTV.detach(), lens, blank, token_top_k, token_min_logp, blank_skip)
    frames = _compact(log_probs_BTV.detach(), keep_BTV, lens, blank)
    beam = _Beam(batch=len(lens), beam_size=beam_size, scorer=scorer)
    for a in range(len(frames.width)):
        beam.skip_blanks(frames.gap_AB[a], frames.has_gap_AB[a])
        k = frames.width[a]
        beam.step(frames.tokens_ABK[a, :, :k], frames.log_probs_ABK[a, :, :k], frames.blank_AB[a])
    beam.skip_blanks(frames.gap_AB[-1], frames.has_gap_AB[-1])
    return beam.results(frames.index_AB)


def _surviving_tokens(
    log_probs_BTV: Tensor,
    lens_B: np.ndarray,
    blank: int,
    top_k: int | None,
    min_logp: float | None,
    blank_skip: float | None,
) -> Tensor:
    """Which tokens may be appended at which frame, bool, shape (B, T, V)."""
    num_frames = log_probs_BTV.shape[1]
    keep_BTV = log_probs_BTV > (-math.inf if min_logp is None else min_logp)
    keep_BTV[..., blank] = False
    usable_BT = torch.from_numpy(np.arange(num_frames) < lens_B[:, None]).to(log_probs_BTV.device)
    if blank_skip is not None:
        usable_BT &= log_probs_BTV[..., blank] <= math.log(blank_skip)
    keep_BTV &= usable_BT[..., None]
    if top_k is not None:
        crowded_BT = keep_BTV.sum(dim=2) > top_k
        rows = log_probs_BTV[crowded_BT]
        rows[:, blank] = -math.inf
        if len(rows):
            keep_BTV[crowded_BT] &= rows >= rows.topk(top_k, dim=1).values[:, -1:]
    return keep_BTV


@dataclass(frozen=True, slots=True)
class _Frames:
    """The frames that the search has to look at, in time order; rows with fewer are filled with certain blanks.

    Attributes:
        tokens_ABK, log_probs_ABK: surviving tokens, by rising id, filled with -2 and -inf.
        blank_AB: log-probability of blank.
        gap_AB: summed log-probability of blank in the frames left out before each frame and, last, after all.
        has_gap_AB: whether there is any such frame.
        index_AB: the frame's place in the utterance.
        width: largest number of surviving tokens in the batch at each of the A frames.
    """

    tokens_ABK: np.ndarray
    log_probs_ABK: np.ndarray
    blank_AB: np.ndarray
    gap_AB: np.ndarray
    has_gap_AB: np.ndarray
    index_AB: np.ndarray
    width: list[int]


def _compact(log_probs_BTV: Tensor, keep_BTV: Tensor, lens_B: np.ndarray, blank: int) -> _Frames:
    """Gather the surviving tokens frame by frame, and what blank costs in the frames between."""
    batch, num_frames, _ = log_probs_BTV.shape
    row, frame, token = (x.cpu().numpy() for x in keep_BTV.nonzero(as_tuple=True))
    values = log_probs_BTV[keep_BTV].cpu().double().numpy()
    blank_BT = log_probs_BTV[..., blank].cpu().double().numpy()

    count_BT = np.bincount(row * num_frames + frame, minlength=batch * num_frames).reshape(batch, num_frames)
    active_BT = count_BT > 0
    before_BT: np.ndarray = np.cumsum(active_BT, axis=1) - active_BT  # active frames before this one
    num_active = int(active_BT.sum(axis=1).max(initial=0))
    active_row, active_frame = np.nonzero(active_BT)
    place = before_BT[active_row, active_frame], active_row
    slot = np.arange(len(row)) - np.repeat(np.cumsum(count_BT[active_BT]) - count_BT[active_BT], count_BT[active_BT])

    def table(values: np.ndarray, fill: float) -> np.ndarray:
        filled = np.full((num_active, batch), fill, dtype=values.dtype)
        filled[place] = values[active_BT]
        return filled

    count_AB = table(count_BT, 0)
    tokens = np.full((num_active, batch, int(count_AB.max(initial=0))), _FILL)
    log_probs = np.full(tokens.shape, -np.inf)
    tokens[before_BT[row, frame], row, slot] = token
    log_probs[before_BT[row, frame], row, slot] = values
    gap_row, gap_frame = np.nonzero(~active_BT & (np.arange(num_frames) < lens_B[:, None]))
    key = before_BT[gap_row, gap_frame] * batch + gap_row
    size = (num_active + 1) * batch
    return _Frames(
        tokens_ABK=tokens,
        log_probs_ABK=log_probs,
        blank_AB=table(blank_BT, 0.0),
        gap_AB=np.bincount(key, weights=blank_BT[gap_row, gap_frame], minlength=size).reshape(-1, batch),
        has_gap_AB=np.bincount(key, minlength=size).reshape(-1, batch) > 0,
        index_AB=table(np.broadcast_to(np.arange(num_frames), active_BT.shape), 0),
        width=count_AB.max(axis=1, initial=0).tolist(),
    )


class _Beam:
    """The prefixes of all utterances, arrays of shape (B, W); dead places have probability zero."""

    def __init__(self, *, batch: int, beam_size: int, scorer: Scorer | None) -> None:
        shape = (batch, beam_size)
        self.rows = np.arange(batch)[:, None]
        self.ends_blank = np.full(shape, -np.inf)
        self.ends_blank[:, 0] = 0.0
        self.ends_token = np.full(shape, -np.inf)
        self.total = self.ends_blank.copy()
        self.last = np.full(shape, _NO_TOKEN)
        self.prefix = np.full(shape, _DEAD)
        self.prefix[:, 0] = _ROOT
        self.parent = np.full(shape, _NO_PARENT)
        self.history: list[tuple[np.ndarray, np.ndarray]] = []  # (place before, token appended or -1) of each step
        self.fusion = None if scorer is None else _Fusion(scorer, shape)

    def skip_blanks(self, gap_B: np.ndarray, has_gap_B: np.ndarray) -> None:
        """Pass the frames left out, where everything but blank is impossible."""
        self.total = self.total + gap_B[:, None]
        self.ends_blank = np.where(has_gap_B[:, None], self.total, self.ends_blank)
        self.ends_token = np.where(has_gap_B[:, None], -np.inf, self.ends_token)

    def step(self, tokens_BK: np.ndarray, log_probs_BK: np.ndarray, blank_B: np.ndarray) -> None:
        """Pass one frame: stay or append one of the surviving tokens, then keep the best."""
        batch, beam_size = self.last.shape
        same_BWK = self.last[:, :, None] == tokens_BK[:, None, :]
        extend_BWK = np.where(same_BWK, self.ends_blank[:, :, None], self.total[:, :, None]) + log_probs_BK[:, None, :]
        stay_token = self.ends_token + np.where(same_BWK, log_probs_BK[:, None, :], -np.inf).max(axis=2)
        stay_blank = self.total + blank_B[:, None]
        came_from, appended = self._merge(same_BWK, extend_BWK, stay_blank, stay_token)

        total = np.concatenate([np.logaddexp(stay_blank, stay_token), extend_BWK.reshape(batch, -1)], axis=1)
        score = total if self.fusion is None else total + self.fusion.scores(self.prefix, tokens_BK, extend_BWK)
        order = np.argsort(-score, axis=1, kind="stable")[:, :beam_size]

        stays = order < beam_size
        from_place, from_token = np.divmod(order - beam_size, tokens_BK.shape[1])
        place = np.where(stays, order, from_place)
        token = np.where(stays, _NO_TOKEN, tokens_BK.take(from_token + self.rows * tokens_BK.shape[1]))
        at = place + self.rows * beam_size  # in flattened arrays of shape (B, W)
        self.total = total.take(order + self.rows * total.shape[1])
        self.ends_blank = np.where(stays, stay_blank.take(at), -np.inf)
        self.ends_token = np.where(stays, stay_token.take(at), self.total)
        self.history.append((np.where(stays, came_from.take(at), place), np.where(stays, appended.take(at), token)))
        if self.fusion is not None:
            self.fusion.move(self.prefix, place, token, order)
        self._rename(stays, at, token)

    def _merge(
        self, same_BWK: np.ndarray, extend_BWK: np.ndarray, stay_blank: np.ndarray, stay_token: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move extensions that are already in the beam there; returns through which place and token they came.

        A prefix takes the history of an extension that brings more probability than it had.
        """
        came_from = np.tile(np.arange(self.last.shape[1]), (len(self.last), 1))
        appended = np.full(self.last.shape, _NO_TOKEN)
        is_parent = self.parent[:, :, None] == self.prefix[:, None, :]
        row, child = np.nonzero(is_parent.any(axis=2) & same_BWK.any(axis=2))
        if len(row):
            parent = is_parent[row, child].argmax(axis=1)
            source = row, parent, same_BWK[row, child].argmax(axis=1)
            moved = extend_BWK[source]
            extend_BWK[source] = -np.inf
            wins = moved > np.logaddexp(stay_blank[row, child], stay_token[row, child])
            came_from[row[wins], child[wins]] = parent[wins]
            appended[row[wins], child[wins]] = self.last[row[wins], child[wins]]
            stay_token[row, child] = np.logaddexp(stay_token[row, child], moved)
        return came_from, appended

    def _rename(self, stays: np.ndarray, at: np.ndarray, token: np.ndarray) -> None:
        """Bring the hashes and last tokens up to date with the places chosen."""
        before = self.prefix.take(at)
        mixed = (before ^ (before >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed += token.astype(np.uint64) * np.uint64(0x94D049BB133111EB)
        self.prefix = np.where(stays, before, mixed)
        self.parent = np.where(stays, self.parent.take(at), before)
        self.last = np.where(stays, self.last.take(at), token)
        dead = ~(self.total > -np.inf)
        if dead.any():
            self.prefix[dead], self.parent[dead], self.last[dead] = _DEAD, _NO_PARENT, _NO_TOKEN

    def results(self, index_AB: np.ndarray) -> list[list[BeamResult]]:
        """Read the prefixes out, best first."""
        score = self.total if self.fusion is None else self.total + self.fusion.finals(self.total)
        order = np.argsort(-score, axis=1, kind="stable")
        place = order
        tokens_ABW = np.empty((len(self.history), *order.shape), dtype=np.int64)
        for a in reversed(range(len(self.history))):
            came_from, appended = self.history[a]
            tokens_ABW[a] = appended[self.rows, place]
            place = came_from[self.rows, place]
        results: list[list[BeamResult]] = [[] for _ in range(len(order))]
        for b, w in zip(*np.nonzero(np.take_along_axis(score, order, axis=1) > -np.inf), strict=True):
            used = np.nonzero(tokens_ABW[:, b, w] != _NO_TOKEN)[0]
            results[b].append(
                BeamResult(
                    tokens=tuple(tokens_ABW[used, b, w].tolist()),
                    start_frames=tuple(index_AB[used, b].tolist()),
                    score=float(score[b, order[b, w]]),
                    am_score=float(self.total[b, order[b, w]]),
                )
            )
        return results


class _Fusion:
    """What the scorer added to each prefix so far, and its states, shape (B, W)."""

    def __init__(self, scorer: Scorer, shape: tuple[int, int]) -> None:
        self.scorer = scorer
        self.added = np.zeros(shape)
        self.states = np.empty(shape, dtype=object)
        self.states[:, 0] = [scorer.initial_state() for _ in range(shape[0])]
        self.candidates = np.zeros(shape)
        # (prefix, token) -> (log-probability, state), for the candidates of the frame before: most come again.
        self.known: dict[tuple[int, int], tuple[float, Any]] = {}

    def scores(self, prefix: np.ndarray, tokens_BK: np.ndarray, extend_BWK: np.ndarray) -> np.ndarray:
        """What to add to the candidates' acoustic scores: prefixes that stay, then extensions, shape (B, W + W K)."""
        batch, _, width = extend_BWK.shape
        row, place, slot = np.nonzero(extend_BWK > -np.inf)
        keys = list(zip(prefix[row, place].tolist(), tokens_BK[row, slot].tolist(), strict=True))
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        indices = list(new.values())
        scored = score_pairs(self.scorer, [self.states[row[i], place[i]] for i in indices], [keys[i][1] for i in indices])
        fresh = dict(zip(new, scored, strict=True))
        self.known = {key: fresh[key] if key in fresh else self.known[key] for key in keys}
        extended = np.repeat(self.added[:, :, None], width, axis=2)
        extended[row, place, slot] += [self.known[key][0] for key in keys]
        self.candidates = np.concatenate([self.added, extended.reshape(batch, -1)], axis=1)
        return self.candidates

    def move(self, prefix: np.ndarray, place: np.ndarray, token: np.ndarray, order: np.ndarray) -> None:
        """Follow the beam to the candidates it chose."""
        rows = np.arange(len(place))[:, None]
        self.added = self.candidates[rows, order]
        self.states = self.states[rows, place]
        row, column = np.nonzero(token != _NO_TOKEN)
        keys = zip(prefix[row, place[row, column]].tolist(), token[row, column].tolist(), strict=True)
        for b, w, key in zip(row.tolist(), column.tolist(), keys, strict=True):
            if key in self.known:  # else an impossible candidate
                self.states[b, w] = self.known[key][1]

    def finals(self, total: np.ndarray) -> np.ndarray:
        """What was added to each prefix, the scorer's last word included."""
        added = self.added.copy()
        alive = np.nonzero(total > -np.inf)
        added[alive] += score_ends(self.scorer, list(self.states[alive]))
        return added

"""How probable CTC finds the beginnings of transcripts, for many of them at once.

The probability of a prefix is that of all label paths whose transcript begins with it (Watanabe et al. 2017, "Hybrid
CTC/attention architecture for end-to-end speech recognition", section IV-B). What differs from the paper's algorithm: a
candidate's score needs the forward variables of its parent alone, so that those of the candidate are only computed once it
is chosen; and their recursion over time, x[t] = p[t] (x[t-1] + y[t-1]), is solved as cumulative sums in the log domain,
so that no step of this file loops over frames. Both are exact; sums are taken in float64.

Shape legend: B utterances, T frames, V vocab, W prefixes of an utterance, K candidates of a prefix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_FLOOR = -1e3  # log-probabilities below it count as this: cumulative sums have to stay finite


class CtcPrefixState(NamedTuple):
    """Forward variables of prefixes: log-probabilities that the first t frames spell the prefix, t = 0 .. T.

    Attributes:
        in_token: paths that end in the prefix's last token, float64, shape (B, W, T + 1).
        in_blank: paths that end in blank, float64, shape (B, W, T + 1).
        last: last token, -1 of the empty prefix, int64, shape (B, W).
    """

    in_token: Tensor
    in_blank: Tensor
    last: Tensor

    def select(self, rows_R: Tensor) -> CtcPrefixState:
        """The prefixes of utterances `rows_R`."""
        return CtcPrefixState(self.in_token[rows_R], self.in_blank[rows_R], self.last[rows_R])


class CtcPrefixScorer:
    """Scores prefixes of the transcripts of a batch.

    Args:
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        blank: id of the blank.
    """

    def __init__(self, log_probs_BTV: Tensor, lens_B: Tensor, *, blank: int = 0) -> None:
        self._log_probs_BVT = log_probs_BTV.detach().transpose(1, 2).clamp(min=_FLOOR).contiguous()
        self._lens_B, self._blank = lens_B, blank
        self._outside_BT = torch.arange(log_probs_BTV.shape[1], device=lens_B.device) >= lens_B[:, None]

    def select(self, rows_R: Tensor) -> CtcPrefixScorer:
        """A scorer of utterances `rows_R` (int64, shape (R,))."""
        return CtcPrefixScorer(self._log_probs_BVT[rows_R].transpose(1, 2), self._lens_B[rows_R], blank=self._blank)

    def start(self) -> CtcPrefixState:
        """The empty prefix of every utterance, W = 1."""
        in_blank = F.pad(self._log_probs_BVT[:, self._blank].double().cumsum(dim=1), (1, 0))[:, None]
        last = torch.full(in_blank.shape[:2], -1, dtype=torch.long, device=in_blank.device)
        return CtcPrefixState(torch.full_like(in_blank, -torch.inf), in_blank, last)

    def score(self, state: CtcPrefixState, tokens_BWK: Tensor) -> Tensor:
        """Log-probability that the transcript begins with each prefix followed by each of its candidates.

        Args:
            state: W prefixes of each utterance.
            tokens_BWK: candidates, blank excluded, int64, shape (B, W, K).

        Returns:
            float64, shape (B, W, K).
        """
        before_BWT = torch.logaddexp(state.in_token, state.in_blank)[..., :-1].masked_fill(self._outside_BT[:, None], -torch.inf)
        emit_BWKT = self._emissions(tokens_BWK)
        scores_BWK = _logsumexp(before_BWT[:, :, None] + emit_BWKT)
        # A token equal to the one before it needs a blank between the two.
        repeats_BWK = tokens_BWK == state.last[..., None]
        if repeats_BWK.any():
            after_blank_BWT = state.in_blank[..., :-1].masked_fill(self._outside_BT[:, None], -torch.inf)
            row, prefix, slot = repeats_BWK.nonzero(as_tuple=True)
            scores_BWK[row, prefix, slot] = _logsumexp(after_blank_BWT[row, prefix] + emit_BWKT[row, prefix, slot])
        return scores_BWK

    def score_end(self, state: CtcPrefixState) -> Tensor:
        """Log-probability that each prefix is the whole transcript, float64, shape (B, W)."""
        total = torch.logaddexp(state.in_token, state.in_blank)
        return total.gather(2, self._lens_B[:, None, None].expand(*total.shape[:2], 1))[..., 0]

    def advance(self, state: CtcPrefixState, parents_BW: Tensor, tokens_BW: Tensor) -> CtcPrefixState:
        """The state of new prefixes, each one of the old ones followed by a token.

        Args:
            state: the old prefixes.
            parents_BW: which of them each new one continues, int64, shape (B, W), W of its own.
            tokens_BW: the token that follows, blank excluded, int64, shape (B, W).
        """
        rows = torch.arange(len(parents_BW), device=parents_BW.device)[:, None]
        in_token, in_blank, last = (x[rows, parents_BW] for x in state)
        before = torch.where((tokens_BW == last)[..., None], in_blank, torch.logaddexp(in_token, in_blank))
        own = _recur(before, self._emissions(tokens_BW[..., None])[:, :, 0])
        blank_BT = self._log_probs_BVT[:, self._blank].double()
        return CtcPrefixState(own, _recur(own, blank_BT[:, None].expand_as(own[..., 1:])), tokens_BW)

    def _emissions(self, tokens_BWK: Tensor) -> Tensor:
        """Log-probabilities of tokens at all frames, float64, shape (B, W, K, T)."""
        rows = torch.arange(len(tokens_BWK), device=tokens_BWK.device)[:, None, None]
        return self._log_probs_BVT[rows, tokens_BWK].double()


def _recur(enter: Tensor, log_probs: Tensor) -> Tensor:
    """x[0] = 0 and x[t] = p[t] (x[t-1] + y[t-1]) over the last axis, all as logarithms.

    Args:
        enter: log y[0 .. T], shape (..., T + 1).
        log_probs: log p[1 .. T], finite, shape (..., T).

    Returns:
        log x[0 .. T], shape (..., T + 1).
    """
    stay = F.pad(log_probs.cumsum(dim=-1), (1, 0))
    x = stay[..., 1:] + torch.logcumsumexp(enter[..., :-1] - stay[..., :-1], dim=-1)
    return F.pad(x, (1, 0), value=-torch.inf)


def _logsumexp(x: Tensor) -> Tensor:
    """Over the last axis; -inf where it is empty."""
    return x.logsumexp(dim=-1) if x.shape[-1] else x.new_full(x.shape[:-1], -torch.inf)

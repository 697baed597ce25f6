"""The padding report: what a plan of batches spends on padding, and what it left out.

Shape legend: S steps, W ranks, N utterances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechkit.data.plan import Budget, Plan
from speechkit.types import Seconds

IntArray = npt.NDArray[np.integer]
_SHOWN_INDICES = 8


@dataclass(frozen=True, slots=True)
class GroupShare:
    """What one corpus of a mixture contributes to an epoch.

    Attributes:
        name: path name of the group.
        wanted: its share of the utterances by weight.
        utterances: how many of the epoch's utterances are its.
        realised: its share of the epoch's utterances.
        realised_seconds: its share of the epoch's seconds.
    """

    name: str
    wanted: float
    utterances: int
    realised: float
    realised_seconds: float


@dataclass(frozen=True, slots=True)
class PaddingReport:
    """What an epoch's batches cost, over all ranks. Percentages are in 0 to 100.

    Attributes:
        epoch: the epoch that was measured.
        world_size: number of ranks.
        num_utterances: utterances in the batches, repeated ones counted again.
        steps: batches of each rank.
        audio_seconds: true seconds of all batches.
        audio_percent: padded seconds that are padding.
        token_percent: padded target tokens that are padding; None without token counts.
        mean_batch_size: utterances of a batch.
        mean_batch_seconds: padded seconds of a batch, the "seconds per step" of one rank.
        utilisation_percent: mean over the batches of cost over budget; of size over the bucket's size with a table.
        idle_percent: time that ranks wait for the slowest at each step, if time goes as padded seconds.
        excluded: utterances never used (too long, or outliers when those are excluded), by index.
        outliers: utterances of extreme tokens per second, by index; used unless they are in `excluded`.
        left_out: utterances not used in this epoch because of drop_last, by index.
        repeated: utterances used twice in this epoch because ranks would have had no batch, by index.
        shares: contributions of the corpora of a mixture; empty without one.
    """

    epoch: int
    world_size: int
    num_utterances: int
    steps: int
    audio_seconds: Seconds
    audio_percent: float
    token_percent: float | None
    mean_batch_size: float
    mean_batch_seconds: Seconds
    utilisation_percent: float
    idle_percent: float
    excluded: tuple[int, ...] = ()
    outliers: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    shares: tuple[GroupShare, ...] = ()

    def __str__(self) -> str:
        """A table of a dozen lines."""
        token = "not planned" if self.token_percent is None else f"{self.token_percent:.2f} %"
        lines = [
            (f"epoch {self.epoch}", f"{self.num_utterances:,} utterances, {self.audio_seconds / 3600:,.2f} h"),
            ("steps", f"{self.steps:,} on each of {self.world_size} rank(s)"),
            ("audio padding", f"{self.audio_percent:.2f} %"),
            ("token padding", token),
            ("mean batch", f"{self.mean_batch_size:.1f} utterances, {self.mean_batch_seconds:.1f} s padded"),
            ("budget used", f"{self.utilisation_percent:.1f} %"),
            ("ranks idle", f"{self.idle_percent:.2f} %"),
            ("excluded", _show(self.excluded)),
            ("tokens/s outliers", _show(self.outliers)),
        ]
        lines += [(name, _show(value)) for name, value in self._remainders() if value]
        lines += [
            (f"corpus {share.name}", f"{100 * share.realised:.1f} % of utterances (wanted {100 * share.wanted:.1f} %), "
             f"{100 * share.realised_seconds:.1f} % of seconds")
            for share in self.shares
        ]  # fmt: skip
        width = max(len(name) for name, _ in lines)
        return "\n".join(["padding report", *(f"  {name:<{width}}  {value}" for name, value in lines)])

    def _remainders(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        return (("left out", self.left_out), ("repeated", self.repeated))


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """Totals and means over the batches of a plan; see `PaddingReport` for the meaning of each field."""

    num_utterances: int
    audio_seconds: Seconds
    audio_percent: float
    token_percent: float | None
    mean_batch_size: float
    mean_batch_seconds: Seconds
    utilisation_percent: float
    idle_percent: float


def batch_costs(
    plan: Plan,
    *,
    durations_N: npt.NDArray[np.floating],
    num_tokens_N: IntArray | None,
    capacity_N: npt.NDArray[np.uint16],
    budget: Budget | None,
) -> BatchCosts:
    """Measures the batches of all ranks.

    Args:
        plan: the batches, as indices into the following columns.
        durations_N: seconds.
        num_tokens_N: target tokens, or None.
        capacity_N: largest batch that each utterance may be in.
        budget: of the padded seconds of a batch; None when a table of batch sizes is used.
    """
    if not len(plan):
        return BatchCosts(0, 0.0, 0.0, None if num_tokens_N is None else 0.0, 0.0, 0.0, 0.0, 0.0)
    bounds = [plan.bounds(rank) for rank in range(plan.world_size)]
    starts = np.concatenate([begin for begin, _ in bounds])
    sizes = np.concatenate([end for _, end in bounds]) - starts
    longest, seconds = _max_and_sum(durations_N, plan.indices, starts, sizes)
    padded = sizes * longest
    token_percent = None
    if num_tokens_N is not None:
        most, tokens = _max_and_sum(num_tokens_N, plan.indices, starts, sizes)
        token_percent = _wasted(float(tokens.sum()), float((sizes * most).sum()))
    if budget is not None:
        used = sizes * budget.cost(longest) / budget.max_batch_seconds
    else:
        used = -sizes / _max_and_sum(-capacity_N.astype(np.int32), plan.indices, starts, sizes)[0]
    per_rank_WS = padded.reshape(plan.world_size, len(plan))
    slowest = float(per_rank_WS.max(axis=0).sum()) * plan.world_size
    return BatchCosts(
        num_utterances=int(sizes.sum()),
        audio_seconds=float(seconds.sum()),
        audio_percent=_wasted(float(seconds.sum()), float(padded.sum())),
        token_percent=token_percent,
        mean_batch_size=float(sizes.mean()),
        mean_batch_seconds=float(padded.mean()),
        utilisation_percent=100.0 * float(used.mean()),
        idle_percent=_wasted(float(padded.sum()), slowest),
    )


def _max_and_sum(
    column_N: npt.NDArray[np.number], indices: IntArray, starts: IntArray, sizes: IntArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Maximum and sum of a column over each batch; batches may lie anywhere in `indices` but do not overlap."""
    values = column_N[indices]
    values = np.append(values, values[:1])  # so that an end at the very end is a valid place to reduce from
    by_place = np.argsort(starts, kind="stable")
    cuts = np.stack([starts[by_place], (starts + sizes)[by_place]], axis=1).ravel()
    largest, total = np.empty(len(starts)), np.empty(len(starts))
    largest[by_place] = np.maximum.reduceat(values, cuts)[::2]
    total[by_place] = np.add.reduceat(values, cuts, dtype=np.float64)[::2]
    return largest, total


def _wasted(used: float, paid: float) -> float:
    return 100.0 * (1.0 - used / paid) if paid > 0 else 0.0


def _show(indices: tuple[int, ...]) -> str:
    if not indices:
        return "none"
    more = ", ..." if len(indices) > _SHOWN_INDICES else ""
    return f"{len(indices):,}: indices {', '.join(map(str, indices[:_SHOWN_INDICES]))}{more}"

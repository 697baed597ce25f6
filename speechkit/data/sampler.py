"""Batches of indices with next to no padding, in step on all ranks, resumable to the batch.

`BucketBatchSampler` sees only columns: durations and token counts. From them it plans each epoch afresh (see
`speechkit.data.plan` for the method) as a pure function of the columns, the settings, the seed and the epoch, so that
all ranks hold the same plan without talking to each other, and a position in it is all there is to save.

Shape legend: N utterances, S steps, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from speechkit.data.admission import Admission, admit
from speechkit.data.buckets import BatchSizeTable, PathLike
from speechkit.data.mixing import EpochSize, Group, Mixture, without
from speechkit.data.padding import GroupShare, PaddingReport, batch_costs
from speechkit.data.plan import MAX_STRIPS, Budget, Columns, Layout, Plan, make_plan, strip_levels
from speechkit.data.position import Position
from speechkit.types import Seconds

IntArray = npt.NDArray[np.integer]


class BucketBatchSampler:
    """Yields the batches of one rank as lists of indices; give it to a DataLoader as `batch_sampler`.

    The budget is in padded units: batch size times the longest member never exceeds `max_batch_seconds`. Every step
    gives each rank a batch from the same place in the plan, of the same size up to one, and every rank has the same
    number of steps. The union over ranks is the data minus what was reported, each utterance once: where the last step
    has fewer utterances than ranks, the missing ones are taken from a neighbouring step, and only if all batches hold
    a single utterance (or the data has fewer utterances than ranks) are up to W - 1 utterances used twice, and
    reported. With `drop_last` steps that could not be filled are left out instead, and reported; which ones is a
    matter of chance each epoch.

    Resume: `state_dict()` holds the epoch and the number of batches drawn. A DataLoader with workers draws ahead, so a
    trainer passes what it has really trained on: `state_dict(next_batch=...)`. After `load_state_dict` iteration
    begins with the exact next batch, in O(1), until the epoch has been drawn to its end.

    Args:
        durations: seconds of each utterance, shape (N,); an array, a memory map or a list.
        num_tokens: target tokens of each utterance, shape (N,); None plans over durations alone.
        max_batch_seconds: largest padded seconds of a batch.
        quadratic_duration: q; a duration d then costs d + d^2 / q of the budget, for attention (15 to 40 s).
        max_batch_size: largest number of utterances of a batch; keeps batches of very short ones in bounds.
        max_batch_tokens: largest padded number of tokens of a batch.
        batch_sizes: sizes per bucket as measured by `speechkit batch-size`, or the YAML file that holds them; takes
            the place of `max_batch_seconds`, `quadratic_duration` and `max_batch_tokens`. No batch then exceeds the
            size of its bucket or has a member outside its bounds.
        num_buckets: number of duration strips; fewer are made when the data is too small for `pair_repeat`. None
            chooses a number that balances audio against token padding and grows with the data.
        pair_repeat: about how large a part of the pairs of utterances that share a batch may share one again in the
            next epoch. Less means better shuffling and more padding.
        groups: corpora to mix (see `speechkit.data.mixing`); None uses every utterance once per epoch.
        temperature: exponent for those of `groups` that have no weight.
        epoch_size: utterances of an epoch of a mixture, or "all_once", "until_first_ends"; see `Mixture`.
        too_long: what to do with utterances that fit no batch: refuse, or exclude and report them.
        max_tokens_per_second: utterances above are outliers; None takes those more than 4 standard deviations above
            the mean of their duration bucket.
        outliers: report outliers of the tokens per second, or report and exclude them.
        shuffle: plan every epoch afresh; False gives a sorted plan, longest first, the same every epoch.
        seed: of all randomness.
        rank: this process among the ranks.
        world_size: number of ranks, W.
        drop_last: leave out steps that could not be filled.

    Raises:
        ValueError: for values out of range, columns of different length, non-positive or non-finite durations, and
            utterances that fit no batch.
    """

    def __init__(
        self,
        *,
        durations: npt.ArrayLike,
        num_tokens: npt.ArrayLike | None = None,
        max_batch_seconds: Seconds = 360.0,
        quadratic_duration: Seconds | None = None,
        max_batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        batch_sizes: BatchSizeTable | PathLike | None = None,
        num_buckets: int | None = 30,
        pair_repeat: float = 0.08,
        groups: Sequence[Group] | None = None,
        temperature: float = 1.0,
        epoch_size: EpochSize = None,
        too_long: Literal["raise", "exclude"] = "raise",
        max_tokens_per_second: float | None = None,
        outliers: Literal["report", "exclude"] = "report",
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        budget = Budget(max_batch_seconds, quadratic_duration, max_batch_size, max_batch_tokens)
        _check_positive(
            **asdict(budget), num_buckets=num_buckets, pair_repeat=pair_repeat, world_size=world_size,
            max_tokens_per_second=max_tokens_per_second,
        )  # fmt: skip
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; with world_size={world_size} it must be in 0..{world_size - 1}")
        table = batch_sizes
        if table is not None and not isinstance(table, BatchSizeTable):
            table = BatchSizeTable.load(table)
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self._budget = budget if table is None else None
        self._data = admit(
            durations=durations, num_tokens=num_tokens, budget=budget, table=table, too_long=too_long,
            max_tokens_per_second=max_tokens_per_second, outliers=outliers,
        )  # fmt: skip
        self._mixture: Mixture | None = None
        if groups is not None:
            kept = without(groups, self._data.excluded)
            self._mixture = Mixture(groups=kept, temperature=temperature, epoch_size=epoch_size, seed=seed)
        self._included = self._data.included()
        self._columns, self._layout = _lay_out(
            self._data, table, num_buckets=num_buckets, pair_repeat=pair_repeat, shuffle=shuffle, drop_last=drop_last
        )
        self._settings: dict[str, Any] = {
            **asdict(budget), "num_buckets": num_buckets, "pair_repeat": pair_repeat, "shuffle": shuffle,
            "drop_last": drop_last, "batch_sizes": None if table is None else [asdict(row) for row in table.rows],
            "num_excluded": len(self._data.excluded),
            "mixture": None if self._mixture is None else self._mixture.settings(),
        }  # fmt: skip
        self._data_hash: str | None = None
        self._plan: Plan | None = None
        self._plan_epoch = 0
        self._place = Position()

    # ------------------------------------------------------------------ the DataLoader's side

    @property
    def sampler(self) -> BucketBatchSampler:
        """Itself: Lightning calls `set_epoch` on `batch_sampler.sampler`."""
        return self

    @property
    def epoch(self) -> int:
        """The epoch being planned."""
        return self._place.epoch

    @property
    def position(self) -> int:
        """Batches of this epoch drawn so far, those before a restored state included."""
        return self._place.drawn

    @property
    def next_batch(self) -> int:
        """Where the next iteration begins: 0, or after `load_state_dict` the restored position."""
        return self._place.next_batch

    @property
    def plan(self) -> Plan:
        """The batches of all ranks in this epoch."""
        if self._plan_epoch != self.epoch:
            self._plan, self._plan_epoch = None, self.epoch  # two plans at once would double the peak of memory
        if self._plan is None:
            self._plan = self._make_plan(self.epoch)
        return self._plan

    def __len__(self) -> int:
        """Number of batches of this rank in this epoch, all of them also after a restore."""
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        """Draws the batches of this epoch: all, or after `load_state_dict` the remaining ones."""
        plan = self.plan
        return self._place.begin_pass(lambda first: self._batches(plan, first))

    def _batches(self, plan: Plan, first: int) -> Iterator[list[int]]:
        begin_S, end_S = plan.bounds(self.rank)
        for begin, end in zip(begin_S[first:].tolist(), end_S[first:].tolist()):
            yield plan.indices[begin:end].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch. The epoch that it is in already stays as it is, position included."""
        self._place.set_epoch(epoch)

    # ------------------------------------------------------------------ state

    def state_dict(self, *, next_batch: int | None = None) -> dict[str, Any]:
        """State from which any rank, of an equal number of ranks, goes on with the exact next batch.

        Args:
            next_batch: number of batches of this epoch that were really trained on, those before a restored state
                included. None counts the batches drawn, which is the same only without DataLoader workers.

        Raises:
            ValueError: when `next_batch` is negative or more than were drawn.
        """
        return self._place.state_dict(self._fingerprint(), next_batch=next_batch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state: the next iteration begins with the exact next batch.

        Raises:
            ValueError: naming everything in which data or settings differ from those of the state.
        """
        self._place.load_state_dict(state, self._fingerprint())

    def _fingerprint(self) -> dict[str, Any]:
        """All that a plan depends on besides the epoch."""
        if self._data_hash is None:
            self._data_hash = self._data.fingerprint()
        return {
            "seed": self.seed,
            "world_size": self.world_size,
            "num_utterances": len(self._data.durations_N),
            "data": self._data_hash,
            "settings": self._settings,
        }

    # ------------------------------------------------------------------ report

    def padding_report(self) -> PaddingReport:
        """What the batches of this epoch cost on all ranks; print it before the first step."""
        plan, data = self.plan, self._data
        costs = batch_costs(
            plan,
            durations_N=data.durations_N,
            num_tokens_N=data.num_tokens_N,
            capacity_N=data.capacity_N,
            budget=self._budget,
        )
        return PaddingReport(
            epoch=self.epoch,
            world_size=self.world_size,
            steps=len(plan),
            **asdict(costs),
            excluded=tuple(data.excluded.tolist()),
            outliers=tuple(data.outliers().tolist()),
            left_out=tuple(plan.left_out.tolist()),
            repeated=tuple(plan.repeated.tolist()),
            shares=self._shares(),
        )

    def _shares(self) -> tuple[GroupShare, ...]:
        """Realised shares of the corpora of a mixture in this epoch."""
        if self._mixture is None:
            return ()
        seconds = [float(self._data.durations_N[part].sum(dtype=np.float64)) for part in self._mixture.parts(self.epoch)]
        quotas = self._mixture.quotas_G.tolist()
        return tuple(
            GroupShare(name, wanted, quota, quota / sum(quotas), part / sum(seconds))
            for name, wanted, quota, part in zip(self._mixture.names, self._mixture.shares_G.tolist(), quotas, seconds)
        )

    # ------------------------------------------------------------------ planning

    def _make_plan(self, epoch: int) -> Plan:
        """The plan of an epoch: a pure function of the columns, the settings, the seed and the epoch."""
        members = self._included if self._mixture is None else self._mixture.epoch(epoch)
        columns = self._columns if members is None else self._columns.take(members)
        rng = np.random.default_rng([self.seed, epoch])
        plan = make_plan(columns, layout=self._layout, world_size=self.world_size, rng=rng)
        return plan if members is None else plan.renamed(members)


def _lay_out(
    data: Admission,
    table: BatchSizeTable | None,
    *,
    num_buckets: int | None,
    pair_repeat: float,
    shuffle: bool,
    drop_last: bool,
) -> tuple[Columns, Layout]:
    """Chooses strips and shuffling window.

    In a strip of L batches in random order a pair meets again with probability 1 / L if it shares a strip again, which
    random borders make true for two pairs in three; the same holds for utterances that move by up to M batches to
    either side along the walk, with 2 M in the place of L. So both L and 2 M are 2 / (3 pair_repeat). The automatic
    number of strips makes a strip as many shuffling windows long as there are strips.
    """
    fitting_N = np.maximum(data.capacity_N, 1)
    min_batches = 2.0 / (3.0 * pair_repeat)
    window = min_batches / 2.0
    if table is not None:
        assert data.rows_N is not None
        layout = Layout(len(table.rows), True, window, shuffle, drop_last)
        return Columns(fitting_N, data.rows_N, data.num_tokens_N), layout
    num_batches = float(sum((1.0 / part).sum() for part in np.array_split(fitting_N, len(fitting_N) // 2**20 + 1)))
    if not shuffle:
        min_batches = 1.0
        num_buckets = MAX_STRIPS if data.num_tokens_N is None else num_buckets  # next to a full sort
    most = int(np.clip(num_batches / min_batches, 1, MAX_STRIPS))
    if num_buckets is None:
        num_buckets = most if data.num_tokens_N is None else round(np.sqrt(num_batches / window))
    num_strips = max(1, min(num_buckets, most))
    levels_N = strip_levels(data.durations_N, fitting_N, num_strips=num_strips, min_batches=min_batches)
    return Columns(fitting_N, levels_N, data.num_tokens_N), Layout(num_strips, False, window, shuffle, drop_last)


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")

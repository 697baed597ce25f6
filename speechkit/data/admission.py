"""Which utterances a plan can use: checks of the columns, the room each utterance has, outliers, exclusions.

Nothing is left out quietly: an utterance that fits no batch is refused by index, duration and remedy unless exclusion
was asked for, and whatever is excluded is logged and kept for the padding report.

Shape legend: N utterances.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from speechkit.data.buckets import BatchSizeTable, equal_duration_buckets, rate_outliers
from speechkit.data.plan import MAX_CAPACITY, Budget

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]

_OUTLIER_THRESHOLD = 4.0
_OUTLIER_BUCKETS = 30
_SHOWN = 5
_HASH_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """The columns of a data set and what planning may do with each utterance.

    Attributes:
        durations_N: seconds, as given (a memory map stays one).
        num_tokens_N: target tokens, or None.
        capacity_N: largest batch that each utterance may be in; 0 where it fits none.
        rows_N: row of each utterance in the table of batch sizes, or None without a table.
        excluded: indices that must not be planned, ascending.
        max_tokens_per_second: bound of the outliers; None finds them by their deviation.
    """

    durations_N: FloatArray
    num_tokens_N: IntArray | None
    capacity_N: npt.NDArray[np.uint16]
    rows_N: npt.NDArray[np.uint16] | None
    excluded: IntArray
    max_tokens_per_second: float | None

    def outliers(self) -> IntArray:
        """Indices of extreme tokens per second, ascending; not needed for planning, so found when asked for."""
        return _find_outliers(self.durations_N, self.num_tokens_N, self.max_tokens_per_second)

    def included(self) -> npt.NDArray[np.int32] | None:
        """Indices that may be planned; None means all."""
        if not len(self.excluded):
            return None
        return np.delete(np.arange(len(self.capacity_N), dtype=np.int32), self.excluded)

    def fingerprint(self) -> str:
        """Digest of the columns."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.durations_N, self.num_tokens_N):
            for begin in range(0, 0 if column is None else len(column), _HASH_CHUNK):
                assert column is not None
                dtype = np.float32 if column is self.durations_N else np.int64
                digest.update(np.ascontiguousarray(column[begin : begin + _HASH_CHUNK], dtype=dtype).data)
            digest.update(b"|")
        return digest.hexdigest()


def admit(
    *,
    durations: npt.ArrayLike,
    num_tokens: npt.ArrayLike | None,
    budget: Budget,
    table: BatchSizeTable | None,
    too_long: Literal["raise", "exclude"],
    max_tokens_per_second: float | None,
    outliers: Literal["report", "exclude"],
) -> Admission:
    """Checks the columns and decides which utterances can be planned.

    Args:
        durations: seconds, shape (N,).
        num_tokens: target tokens, shape (N,), or None.
        budget: what a batch may hold; only its `max_batch_size` counts beside a table.
        table: batch sizes per bucket, or None.
        too_long: refuse or exclude utterances that fit no batch.
        max_tokens_per_second: bound of the outliers; None finds them by their deviation.
        outliers: keep or exclude them.

    Raises:
        ValueError: for unusable columns, and for utterances that fit no batch when `too_long` is "raise".
    """
    durations_N, num_tokens_N = _as_columns(durations, num_tokens)
    rows_N: npt.NDArray[np.uint16] | None = None
    if table is None:
        capacity_N = budget.capacity(durations_N, num_tokens_N)
    else:
        placed_N = table.place(durations_N, num_tokens_N)
        sizes = np.minimum([row.batch_size for row in table.rows], budget.max_batch_size or MAX_CAPACITY)
        capacity_N = np.where(placed_N < 0, 0, sizes[placed_N]).astype(np.uint16)
        rows_N = np.maximum(placed_N, 0).astype(np.uint16)
    unfit = np.flatnonzero(capacity_N == 0)
    if len(unfit) and too_long == "raise":
        raise ValueError(_describe_unfit(unfit, durations_N, num_tokens_N, budget, table))
    excluded = unfit
    if outliers == "exclude":
        excluded = np.union1d(unfit, _find_outliers(durations_N, num_tokens_N, max_tokens_per_second))
    if len(excluded):
        logger.warning(
            "%d of %d utterances are excluded: %d fit no batch, %d tokens-per-second outliers; the first are at indices %s",
            len(excluded), len(durations_N), len(unfit), len(excluded) - len(unfit), excluded[:_SHOWN].tolist(),
        )  # fmt: skip
    return Admission(durations_N, num_tokens_N, capacity_N, rows_N, excluded, max_tokens_per_second)


def _as_columns(durations: npt.ArrayLike, num_tokens: npt.ArrayLike | None) -> tuple[FloatArray, IntArray | None]:
    """Columns as one-dimensional arrays, without copying arrays and memory maps."""
    durations_N = np.asarray(durations)
    if not np.issubdtype(durations_N.dtype, np.floating):
        durations_N = durations_N.astype(np.float64)
    if durations_N.ndim != 1 or not len(durations_N):
        raise ValueError(f"durations has shape {durations_N.shape}; expected one number of seconds per utterance, at least one")
    wrong = np.flatnonzero(~(np.isfinite(durations_N) & (durations_N > 0)))
    if len(wrong):
        raise ValueError(
            f"durations[{wrong[0]}] is {durations_N[wrong[0]]} ({len(wrong)} such); every utterance needs a positive "
            "duration: run `speechkit validate` on the manifest"
        )
    if num_tokens is None:
        return durations_N, None
    num_tokens_N = np.asarray(num_tokens)
    if num_tokens_N.shape != durations_N.shape:
        raise ValueError(f"num_tokens has shape {num_tokens_N.shape}, durations {durations_N.shape}; give one per utterance")
    if not np.issubdtype(num_tokens_N.dtype, np.integer):
        raise ValueError(f"num_tokens has dtype {num_tokens_N.dtype}; expected whole numbers")
    if (lowest := int(num_tokens_N.min())) < 0:
        raise ValueError(f"num_tokens[{int(num_tokens_N.argmin())}] is {lowest}; expected 0 or more")
    return durations_N, num_tokens_N


def _find_outliers(
    durations_N: FloatArray, num_tokens_N: IntArray | None, max_tokens_per_second: float | None
) -> IntArray:
    if num_tokens_N is None:
        return np.empty(0, dtype=np.int64)
    if max_tokens_per_second is not None:
        return np.flatnonzero(num_tokens_N > max_tokens_per_second * durations_N)
    bucket_N = equal_duration_buckets(durations_N, _OUTLIER_BUCKETS)
    return np.flatnonzero(rate_outliers(durations_N, num_tokens_N, bucket_N, threshold=_OUTLIER_THRESHOLD))


def _describe_unfit(
    unfit: IntArray, durations_N: FloatArray, num_tokens_N: IntArray | None, budget: Budget, table: BatchSizeTable | None
) -> str:
    """One line naming the first utterances that fit no batch, the limit, and what to do."""
    named = ", ".join(
        f"index {index} ({durations_N[index]:.2f} s" + ("" if num_tokens_N is None else f", {num_tokens_N[index]} tokens") + ")"
        for index in unfit[:_SHOWN].tolist()
    )  # fmt: skip
    if table is None:
        limit = f"max_batch_seconds={budget.max_batch_seconds:g}"
        if budget.quadratic_duration is not None:
            limit += f" with quadratic_duration={budget.quadratic_duration:g}"
        if budget.max_batch_tokens is not None:
            limit += f", max_batch_tokens={budget.max_batch_tokens}"
    else:
        limit = f"the {len(table.rows)} buckets of batch_sizes (longest {table.rows[-1].max_duration:g} s)"
    return (
        f"{len(unfit)} utterance(s) alone exceed {limit}: {named}{', ...' if len(unfit) > _SHOWN else ''}; raise the "
        "limit, cut or filter them from the manifest, or set too_long='exclude' to leave them out"
    )

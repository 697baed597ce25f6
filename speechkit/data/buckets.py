"""Buckets over (duration, tokens): bin estimation, tables of bins and of batch sizes, rate outliers.

`estimate_bins` is what `speechkit bins` runs, `BatchSizeTable` is what `speechkit batch-size` writes and
`BucketBatchSampler(batch_sizes=...)` reads. Source: two-dimensional bucketing of Canary (Zelasko et al. 2025,
"Training and Inference Efficiency of Encoder-Decoder Speech Models", section 3); equal total duration per bucket, and
equal total tokens per sub-bucket, make buckets drain evenly.

Shape legend: N utterances, R rows of a table, K duration buckets, S token sub-buckets of each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from speechkit.types import Seconds

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bucket, by its upper bounds (inclusive).

    Attributes:
        max_duration: longest utterance in seconds.
        max_tokens: most target tokens; None for a bucket over durations alone.
        max_tokens_per_second: highest rate seen in the duration bucket, rate outliers set aside; None in 1-D.
    """

    max_duration: Seconds
    max_tokens: int | None = None
    max_tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Bins:
    """Buckets in ascending order of duration, then tokens, and what was set aside to find them.

    Attributes:
        rows: the buckets.
        outliers: indices of the utterances whose tokens per second were too far above their duration bucket to shape
            the bounds; they are reported here and stay in the data.
    """

    rows: tuple[Bin, ...]
    outliers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_rows(self.rows)

    def __str__(self) -> str:
        """A table of the buckets and the number of outliers."""
        return f"{_table(self.rows)}\n{len(self.outliers)} tokens-per-second outliers did not shape the bounds"

    def save(self, path: PathLike) -> None:
        """Writes YAML."""
        _save_yaml(path, {"rows": [asdict(row) for row in self.rows], "outliers": list(self.outliers)})

    @classmethod
    def load(cls, path: PathLike) -> Bins:
        """Reads what `save` wrote.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        document = _load_yaml(path)
        return cls(rows=_parse_rows(path, document, Bin), outliers=tuple(document.get("outliers", ())))


@dataclass(frozen=True, slots=True)
class BatchSizeRow:
    """The batch size of one bucket; bounds are inclusive upper bounds, `max_tokens` None means any number."""

    max_duration: Seconds
    max_tokens: int | None
    batch_size: int


@dataclass(frozen=True, slots=True)
class BatchSizeTable:
    """Batch sizes per bucket, in ascending order of duration, then tokens.

    Attributes:
        rows: the buckets with their batch sizes.
        measured: how the sizes were found (device, precision, memory limit, ...), for the reader of the file.
    """

    rows: tuple[BatchSizeRow, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rows(self.rows)
        for place, row in enumerate(self.rows):
            if row.batch_size < 1:
                raise ValueError(f"rows[{place}].batch_size is {row.batch_size}; it must be at least 1")

    def __str__(self) -> str:
        """A table of the buckets and their batch sizes."""
        return _table(self.rows)

    def save(self, path: PathLike) -> None:
        """Writes YAML."""
        _save_yaml(path, {"measured": dict(self.measured), "rows": [asdict(row) for row in self.rows]})

    @classmethod
    def load(cls, path: PathLike) -> BatchSizeTable:
        """Reads what `save` wrote.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        document = _load_yaml(path)
        return cls(rows=_parse_rows(path, document, BatchSizeRow), measured=document.get("measured") or {})

    def place(self, durations_N: FloatArray, num_tokens_N: IntArray | None) -> npt.NDArray[np.int32]:
        """Row of each utterance: its own bucket, else the row of largest batch size that holds it, else -1.

        An utterance's own bucket is the first by duration and, among the rows of that duration, the first by tokens.
        """
        bounds = np.array([row.max_duration for row in self.rows])
        tokens = np.array([np.inf if row.max_tokens is None else row.max_tokens for row in self.rows])
        first = np.searchsorted(bounds, durations_N, side="left")  # first row of the first fitting duration
        placed = np.full(len(durations_N), -1, dtype=np.int32)
        need_N = np.zeros(len(durations_N)) if num_tokens_N is None else num_tokens_N
        unique_bounds, starts = np.unique(bounds, return_index=True)
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(bounds)], strict=True):
            here = np.flatnonzero(first == start)
            row = start + np.searchsorted(tokens[start:stop], need_N[here], side="left")
            placed[here] = np.where(row < stop, row, -1)
        homeless = np.flatnonzero((placed < 0) & (np.asarray(durations_N) <= unique_bounds[-1]))
        for row in sorted(range(len(bounds)), key=lambda row: self.rows[row].batch_size):
            holds = (durations_N[homeless] <= bounds[row]) & (need_N[homeless] <= tokens[row])
            placed[homeless[holds]] = row  # rows of larger batch size come later and win
        return placed


def estimate_bins(
    durations: npt.ArrayLike,
    num_tokens: npt.ArrayLike | None = None,
    *,
    num_buckets: int = 30,
    num_sub_buckets: int = 2,
    outlier_threshold: float = 4.0,
) -> Bins:
    """Finds buckets of equal total duration, each cut into sub-buckets of equal total tokens.

    Where much of the data has one and the same length, the buckets that would have equal bounds are merged and the
    merged one gets their share of sub-buckets.

    Args:
        durations: seconds, shape (N,).
        num_tokens: target tokens as the model will see them (prompt included), shape (N,); None for 1-D buckets.
        num_buckets: number of duration buckets, K.
        num_sub_buckets: number of token sub-buckets of each, S; not used in 1-D.
        outlier_threshold: standard deviations above the mean tokens per second of its duration bucket from which an
            utterance does not shape the bounds.

    Returns:
        The buckets, at most K (1-D) or K * S (2-D), and the indices of the outliers.

    Raises:
        ValueError: on empty or non-positive durations, or numbers of buckets below 1.
    """
    durations_N = np.asarray(durations, dtype=np.float64)
    for name, value in (("num_buckets", num_buckets), ("num_sub_buckets", num_sub_buckets)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not len(durations_N) or not (durations_N > 0).all():
        raise ValueError("durations must hold at least one utterance and only positive values; validate the manifest")
    bounds, num_merged = np.unique(_equal_mass_bounds(np.sort(durations_N), num_buckets), return_counts=True)
    if num_tokens is None:
        return Bins(tuple(Bin(float(bound)) for bound in bounds))
    tokens_N = np.asarray(num_tokens)
    bucket_N = np.searchsorted(bounds, durations_N, side="left")
    outlier_N = rate_outliers(durations_N, tokens_N, bucket_N, threshold=outlier_threshold)
    rows: list[Bin] = []
    for bucket, bound in enumerate(bounds.tolist()):
        inside = (bucket_N == bucket) & ~outlier_N
        tokens = np.sort(tokens_N[inside])
        highest = float((tokens_N[inside] / durations_N[inside]).max())
        cuts = _equal_mass_bounds(tokens, num_sub_buckets * int(num_merged[bucket]))
        rows += [Bin(bound, int(cut), highest) for cut in np.unique(cuts)]
    return Bins(tuple(rows), tuple(np.flatnonzero(outlier_N).tolist()))


def equal_duration_buckets(durations_N: FloatArray, num_buckets: int) -> npt.NDArray[np.int64]:
    """Bucket of each utterance when buckets have equal total duration."""
    bounds = np.unique(_equal_mass_bounds(np.sort(durations_N), num_buckets))
    return np.searchsorted(bounds, durations_N, side="left")


def rate_outliers(
    durations_N: FloatArray, num_tokens_N: IntArray, bucket_N: IntArray, *, threshold: float
) -> npt.NDArray[np.bool_]:
    """Marks utterances whose tokens per second lie more than `threshold` deviations above their bucket's mean."""
    rate_N = num_tokens_N / durations_N
    count = np.maximum(np.bincount(bucket_N), 1)
    mean = np.bincount(bucket_N, weights=rate_N) / count
    deviation_N = rate_N - mean[bucket_N]
    spread = np.sqrt(np.bincount(bucket_N, weights=deviation_N**2) / count)
    return deviation_N > threshold * np.maximum(spread[bucket_N], 1e-9)


def _equal_mass_bounds(ascending: npt.NDArray[Any], num_bins: int) -> npt.NDArray[Any]:
    """Upper bounds of bins of about equal sum; the last is the maximum, equal bounds come as often as they occur."""
    mass = np.cumsum(ascending, dtype=np.float64)
    places = np.searchsorted(mass, mass[-1] * np.arange(1, num_bins) / num_bins, side="left")
    return ascending[np.append(np.minimum(places, len(ascending) - 1), len(ascending) - 1)]


def _check_rows(rows: Sequence[Bin] | Sequence[BatchSizeRow]) -> None:
    keys = [(row.max_duration, np.inf if row.max_tokens is None else row.max_tokens) for row in rows]
    if not keys:
        raise ValueError("rows is empty; a table needs at least one bucket")
    for place, (before, after) in enumerate(pairwise(keys), start=1):
        if not before < after:
            raise ValueError(f"rows[{place}] {after} does not come after {before}; sort by max_duration, then max_tokens")


def _table(rows: Sequence[Bin] | Sequence[BatchSizeRow]) -> str:
    """One line a row, columns named by the fields."""
    names = [item.name for item in fields(rows[0])]
    lines = [names, *([_cell(getattr(row, name)) for name in names] for row in rows)]
    return "\n".join("  ".join(f"{cell:>{len(name)}}" for name, cell in zip(names, line)) for line in lines)


def _cell(value: float | None) -> str:
    return "any" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


RowT = TypeVar("RowT", Bin, BatchSizeRow)


def _parse_rows(path: PathLike, document: Mapping[str, Any], row_type: type[RowT]) -> tuple[RowT, ...]:
    rows = document.get("rows")
    names = {item.name for item in fields(row_type)}
    if not isinstance(rows, list):
        raise ValueError(f"{path}: no list 'rows'; expected what {row_type.__name__} tables save")
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping) or not set(row) <= names:
            raise ValueError(f"{path}: rows[{place}] is {row!r}; expected the fields {sorted(names)}")
    try:
        return tuple(row_type(**row) for row in rows)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


def _save_yaml(path: PathLike, document: Mapping[str, Any]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
    temporary.replace(target)


def _load_yaml(path: PathLike) -> dict[str, Any]:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a mapping with 'rows', found {type(document).__name__}")
    return document

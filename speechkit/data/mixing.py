"""Mixing corpora: which utterances an epoch consists of.

A `Group` is a corpus (indices with an optional weight) or a group of groups. The share of a corpus is the product of
the shares along the path to it, each normalised among siblings; without a weight a group counts its utterances to the
power of its parent's temperature (1 keeps natural proportions, 0 makes siblings equal; see "temperature sampling" in
Conneau et al. 2020, section 3). Every corpus is an endless stream of its own permutations, a new one each time it is
exhausted, and an epoch takes the next stretch of fixed length from each stream: a pure function of (seed, epoch).

Shape legend: N utterances of the data, E utterances of an epoch, G corpora.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
EpochSize = int | Literal["all_once", "until_first_ends"] | None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A corpus, or several groups as one.

    Attributes:
        name: for reports.
        indices: utterance indices of a corpus (array or range); None for a group of groups.
        groups: members of a group of groups.
        weight: share relative to the siblings; None means (number of utterances) ** (temperature of the parent).
        temperature: exponent for those members of `groups` that have no weight; 0.3 to 0.7 lifts small corpora.
    """

    name: str
    indices: IntArray | range | None = None
    groups: Sequence[Group] = ()
    weight: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if (self.indices is None) == (not self.groups):
            raise ValueError(f"group {self.name!r}: give either indices or groups")
        if self.weight is not None and not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"group {self.name!r}: weight is {self.weight}; it must be positive, leave the group out instead")

    def __len__(self) -> int:
        """Number of utterances."""
        if self.indices is not None:
            return len(self.indices)
        return sum(len(group) for group in self.groups)


def consecutive_groups(
    sizes: Mapping[str, int], *, weights: Mapping[str, float] | None = None
) -> tuple[Group, ...]:
    """Groups for corpora laid end to end, as when manifests are read one after another.

    Args:
        sizes: number of utterances of each corpus, in the order of the data.
        weights: weights of some or all of them.

    Raises:
        ValueError: when `weights` names a corpus that is not in `sizes`.
    """
    weights = weights or {}
    if unknown := sorted(set(weights) - set(sizes)):
        raise ValueError(f"weights names {unknown}, but the corpora are {sorted(sizes)}")
    starts = np.cumsum([0, *sizes.values()]).tolist()
    return tuple(
        Group(name, range(start, start + size), weight=weights.get(name))
        for start, (name, size) in zip(starts, sizes.items())
    )


def without(groups: Sequence[Group], excluded: IntArray) -> tuple[Group, ...]:
    """The groups less some utterances."""
    if not len(excluded):
        return tuple(groups)
    return tuple(
        replace(group, groups=without(group.groups, excluded))
        if group.indices is None
        else replace(group, indices=np.setdiff1d(np.asarray(group.indices), excluded))
        for group in groups
    )


def flatten(group: Group) -> list[tuple[str, IntArray, float]]:
    """All corpora below a group as (path name, indices, share); shares sum to 1."""
    return list(_flatten(group, 1.0, ""))


def _flatten(group: Group, share: float, prefix: str) -> Iterator[tuple[str, IntArray, float]]:
    name = f"{prefix}{group.name}"
    if group.indices is not None:
        yield name, np.asarray(group.indices), share
        return
    for member in group.groups:
        if not len(member):
            raise ValueError(f"group {member.name!r} is empty; leave it out")
    weights = [
        len(member) ** group.temperature if member.weight is None else member.weight for member in group.groups
    ]
    for member, weight in zip(group.groups, weights):
        yield from _flatten(member, share * weight / sum(weights), f"{name}/" if name else "")


class Mixture:
    """The endless streams of several corpora, cut into epochs.

    Attributes:
        names: path names of the corpora, G of them.
        shares_G: wanted share of each in the utterances of an epoch.
        quotas_G: utterances that an epoch takes from each; they sum to the epoch size.
    """

    def __init__(
        self, *, groups: Sequence[Group], temperature: float = 1.0, epoch_size: EpochSize = None, seed: int = 0
    ) -> None:
        """Lays out the streams.

        Args:
            groups: corpora or groups of them; their indices must not overlap.
            temperature: exponent for those of `groups` without a weight.
            epoch_size: utterances per epoch; "all_once": as many as it takes until each utterance was used at least
                once; "until_first_ends": as many as there are before some corpus would repeat; None: as many as the
                data has.
            seed: of the permutations.

        Raises:
            ValueError: for empty or overlapping groups, and when an epoch is too short for a corpus to appear in it.
        """
        leaves = flatten(Group("", groups=tuple(groups), temperature=temperature))
        self.names = tuple(name for name, _, _ in leaves)
        self._indices = tuple(indices for _, indices, _ in leaves)
        self._seed = seed
        sizes_G = np.array([len(indices) for indices in self._indices])
        self.shares_G = np.array([share for _, _, share in leaves])
        every = np.sort(np.concatenate(self._indices))
        if (repeats := every[1:][every[1:] == every[:-1]]).size:
            raise ValueError(f"groups overlap: utterance {repeats[0]} is in more than one of {list(self.names)}")
        self.quotas_G = _quotas(self.shares_G, _epoch_length(epoch_size, sizes_G, self.shares_G))
        if (self.quotas_G == 0).any():
            name = self.names[int(np.argmin(self.quotas_G))]
            raise ValueError(f"epoch_size {self.quotas_G.sum()} gives group {name!r} no utterance; raise it or its weight")

    def epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """Utterance indices of one epoch, shape (E,), corpus after corpus; indices repeat when a corpus is upsampled."""
        return np.concatenate(self.parts(epoch))

    def parts(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The same, one array for each corpus."""
        return [self._stretch(group, epoch) for group in range(len(self.names))]

    def settings(self) -> dict[str, list[int]]:
        """Quota, size and checksum of the indices of each corpus: what epochs depend on besides the seed."""
        checksums = [zlib.crc32(np.ascontiguousarray(indices, dtype=np.int64).data) for indices in self._indices]
        sizes = [len(indices) for indices in self._indices]
        return {
            name: list(row) for name, row in zip(self.names, zip(self.quotas_G.tolist(), sizes, checksums, strict=True))
        }

    def _stretch(self, group: int, epoch: int) -> npt.NDArray[np.int64]:
        """The part of a corpus's stream that belongs to an epoch."""
        indices, quota = self._indices[group], int(self.quotas_G[group])
        begin, end = epoch * quota, (epoch + 1) * quota
        parts = []
        for cycle in range(begin // len(indices), -(-end // len(indices))):
            low = max(begin - cycle * len(indices), 0)
            high = min(end - cycle * len(indices), len(indices))
            if high - low == len(indices):
                parts.append(indices)  # whole: the order does not matter
            else:
                rng = np.random.default_rng([self._seed, group, cycle])
                parts.append(indices[rng.permutation(len(indices))[low:high]])
        return np.concatenate(parts).astype(np.int64)


def _epoch_length(epoch_size: EpochSize, sizes_G: IntArray, shares_G: npt.NDArray[np.float64]) -> int:
    if epoch_size is None:
        return int(sizes_G.sum())
    if epoch_size == "all_once":
        return int(np.ceil((sizes_G / shares_G).max() - 1e-9))
    if epoch_size == "until_first_ends":
        return int(np.floor((sizes_G / shares_G).min() + 1e-9))
    if not isinstance(epoch_size, (int, np.integer)) or epoch_size < 1:
        raise ValueError(f"epoch_size is {epoch_size!r}; give a positive number, 'all_once', 'until_first_ends' or None")
    return int(epoch_size)


def _quotas(shares_G: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Whole numbers nearest to the shares that sum to the total (largest remainder)."""
    exact_G = shares_G * total
    quotas_G = np.floor(exact_G + 1e-9).astype(np.int64)
    largest = np.argsort(quotas_G - exact_G, kind="stable")[: total - int(quotas_G.sum())]
    quotas_G[largest] += 1
    return quotas_G

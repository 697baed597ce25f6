"""A torch dataset that streams tar shards, split over ranks and workers.

For sequential reading from slow stores. Where the store allows seeking, prefer `compile_index` of the shards'
manifest.jsonl with the bucketing sampler: it pads less, mixes better and keeps ranks in step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from speechkit.data.shards import ShardInfo, ShardReader, read_shard_list
from speechkit.types import Utterance


def as_pair(utterance: Utterance, data: bytes) -> tuple[Utterance, bytes]:
    """An utterance and the bytes of its audio file, as they are."""
    return utterance, data


class ShardDataset(IterableDataset):  # type: ignore[type-arg]
    """Iterates over the utterances of a directory of shards; every shard is read once, by one worker of one rank.

    The order depends on seed, epoch, ranks and workers alone: shards are shuffled over the whole directory, utterances
    within a buffer. Ranks get different numbers of utterances when shards differ in size.

    Args:
        directory: what `write_shards` wrote.
        decode: makes an item of (utterance, bytes of its audio file); must be picklable for workers.
        shuffle: shuffle shards and utterances.
        buffer_size: utterances held for shuffling, with their audio.
        seed: seed of the order.
        rank: this process, of `world_size`.
        world_size: number of processes.

    Raises:
        ManifestError: there is no list of shards, or it is damaged.
        ValueError: there are fewer shards than ranks, or an option is out of range.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        decode: Callable[[Utterance, bytes], Any] = as_pair,
        shuffle: bool = True,
        buffer_size: int = 1000,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.shards = read_shard_list(self.directory)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, world_size={world_size}: the rank must be from 0 to world_size - 1")
        if len(self.shards) < world_size:
            raise ValueError(
                f"world_size={world_size} but {self.directory} holds {len(self.shards)} shards; "
                "write smaller shards, so that every rank has one"
            )
        if buffer_size < 1 or seed < 0:
            raise ValueError(f"buffer_size={buffer_size}, seed={seed}: must be >= 1 and >= 0")
        self.decode, self.shuffle, self.buffer_size, self.seed = decode, shuffle, buffer_size, seed
        self.rank, self.world_size = rank, world_size
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by persistent workers

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is shuffled for."""
        self._epoch.fill_(epoch)

    def rank_shards(self) -> list[ShardInfo]:
        """The shards of this rank in this epoch, in reading order."""
        order = np.arange(len(self.shards))
        if self.shuffle:
            np.random.default_rng([self.seed, int(self._epoch)]).shuffle(order)
        return [self.shards[i] for i in order[self.rank :: self.world_size]]

    def __iter__(self) -> Iterator[Any]:
        """
        Raises:
            ManifestError: a shard is truncated, unsafe, or does not hold what its rows say.
        """
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        pairs = self._read(self.rank_shards()[worker::num_workers])
        if self.shuffle:
            stream = self.rank * num_workers + worker
            pairs = self._shuffled(pairs, np.random.default_rng([self.seed, int(self._epoch), 1 + stream]))
        for utterance, data in pairs:
            yield self.decode(utterance, data)

    def _read(self, shards: list[ShardInfo]) -> Iterator[tuple[Utterance, bytes]]:
        for shard in shards:
            yield from ShardReader(self.directory / shard.tar)

    def _shuffled(self, pairs: Iterator[tuple[Utterance, bytes]], rng: np.random.Generator) -> Iterator[tuple[Utterance, bytes]]:
        buffer: list[tuple[Utterance, bytes]] = []
        for pair in pairs:
            if len(buffer) < self.buffer_size:
                buffer.append(pair)
                continue
            i = int(rng.integers(len(buffer)))
            chosen, buffer[i] = buffer[i], pair
            yield chosen
        for i in rng.permutation(len(buffer)):
            yield buffer[i]

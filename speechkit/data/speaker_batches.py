"""Batches of N speakers with M utterances each, as speaker encoders are trained on; resumable to the batch.

Every epoch shuffles the utterances of each speaker, cuts them into groups of M and deals the groups out: a batch takes one group
each of the N speakers that have most left, so that few groups remain that have nobody to be told from. The plan of an epoch is a
pure function of the speakers, the settings, the seed and the epoch, the same on all ranks.

Source: the batches of Wan et al. 2018, "Generalized End-to-End Loss for Speaker Verification", section 2.1.

Shape legend: U utterances, S speakers, W ranks.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from speechkit.data.padding import PaddingReport
from speechkit.data.position import Position

IntArray = npt.NDArray[np.integer]


class SpeakerBatchSampler:
    """Yields the batches of one rank as lists of indices; give it to a DataLoader as `batch_sampler`.

    No utterance comes twice in an epoch. A group has M utterances, or 2 or more where a speaker has no more left; a batch has N
    groups of different speakers, or 2 or more towards the end. What makes no group or no batch, or no step of all ranks, is
    left out of the epoch, by chance anew in each, and reported; speakers with one utterance are never used.

    Resume: as `speechkit.data.sampler.BucketBatchSampler`.

    Args:
        durations: seconds of each utterance, shape (U,), for the report alone.
        speakers: who speaks in each utterance, U of them.
        speakers_per_batch: N; 64 in the paper.
        utterances_per_speaker: M; 10 in the paper.
        seed: of all randomness.
        rank: this process among the ranks.
        world_size: number of ranks, W.

    Raises:
        ValueError: values are out of range, numbers of utterances differ, or there are no two speakers with two utterances.
    """

    def __init__(
        self,
        *,
        durations: npt.ArrayLike,
        speakers: Sequence[str] | Sequence[int],
        speakers_per_batch: int = 64,
        utterances_per_speaker: int = 10,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("speakers_per_batch", speakers_per_batch), ("utterances_per_speaker", utterances_per_speaker)):
            if value < 2:
                raise ValueError(f"{name}={value}: must be at least 2, or there is nothing to compare")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; with world_size={world_size} it must be in 0..{world_size - 1}")
        self._durations_U = np.asarray(durations, np.float64)
        if self._durations_U.shape != (len(speakers),):
            raise ValueError(f"durations has shape {self._durations_U.shape} for {len(speakers)} speakers: give one of each")
        names = np.asarray(speakers)
        _, owners_U, counts_S = np.unique(names, return_inverse=True, return_counts=True)
        by_owner = np.split(np.argsort(owners_U, kind="stable"), np.cumsum(counts_S)[:-1])
        self._members = [own for own in by_owner if len(own) > 1]
        if len(self._members) < 2:
            raise ValueError(f"speakers: {len(self._members)} of them have two utterances or more; give two at least")
        self._excluded = tuple(np.flatnonzero(counts_S[owners_U] < 2).tolist())
        self._data_hash = hashlib.sha256(owners_U.astype(np.int64).tobytes()).hexdigest()[:16]
        self.speakers_per_batch, self.utterances_per_speaker = speakers_per_batch, utterances_per_speaker
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._plan: tuple[int, list[IntArray]] | None = None
        self._place = Position()

    # ------------------------------------------------------------------ the DataLoader's side

    @property
    def sampler(self) -> SpeakerBatchSampler:
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

    def __len__(self) -> int:
        """Number of batches of this rank in this epoch, all of them also after a restore."""
        return len(self._batches()) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        """Draws the batches of this epoch: all, or after `load_state_dict` the remaining ones."""
        own = self._batches()[self.rank :: self.world_size]
        return self._place.begin_pass(lambda first: (batch.tolist() for batch in own[first:]))

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
        return {
            "seed": self.seed,
            "world_size": self.world_size,
            "num_utterances": len(self._durations_U),
            "data": self._data_hash,
            "speakers_per_batch": self.speakers_per_batch,
            "utterances_per_speaker": self.utterances_per_speaker,
        }

    # ------------------------------------------------------------------ report and plan

    def padding_report(self) -> PaddingReport:
        """What the batches of this epoch cost on all ranks, as whole utterances; budget is N x M utterances."""
        batches = self._batches()
        seconds = float(sum(self._durations_U[batch].sum() for batch in batches))
        sizes_K = np.array([len(batch) for batch in batches])
        padded_K = sizes_K * np.array([self._durations_U[batch].max() for batch in batches])
        slowest = float(padded_K.reshape(-1, self.world_size).max(axis=1).sum()) * self.world_size
        unused_U = np.ones(len(self._durations_U), np.bool_)
        unused_U[np.concatenate([*batches, np.array(self._excluded, np.int64)])] = False
        return PaddingReport(
            epoch=self.epoch,
            world_size=self.world_size,
            num_utterances=int(sizes_K.sum()),
            steps=len(self),
            audio_seconds=seconds,
            audio_percent=100.0 * (1.0 - seconds / float(padded_K.sum())),
            token_percent=None,
            mean_batch_size=float(sizes_K.mean()),
            mean_batch_seconds=float(padded_K.mean()),
            utilisation_percent=100.0 * float(sizes_K.mean()) / (self.speakers_per_batch * self.utterances_per_speaker),
            idle_percent=100.0 * (1.0 - float(padded_K.sum()) / slowest),
            excluded=self._excluded,
            left_out=tuple(np.flatnonzero(unused_U).tolist()),
        )

    def _batches(self) -> list[IntArray]:
        """The batches of all ranks in this epoch, W after each other for each step."""
        if self._plan is None or self._plan[0] != self.epoch:
            rng = np.random.default_rng([self.seed, self.epoch])
            batches = _deal(self._members, self.speakers_per_batch, self.utterances_per_speaker, rng)
            if len(batches) < self.world_size:
                raise ValueError(
                    f"there are {len(batches)} batches for {self.world_size} processes: lower speakers_per_batch="
                    f"{self.speakers_per_batch} or utterances_per_speaker={self.utterances_per_speaker}"
                )
            self._plan = self.epoch, batches[: len(batches) - len(batches) % self.world_size]
        return self._plan[1]


def _deal(members: Sequence[IntArray], num_speakers: int, num_utterances: int, rng: np.random.Generator) -> list[IntArray]:
    """Cuts the utterances of each speaker into groups and deals these out, the speakers with most groups left first."""
    groups: list[list[IntArray]] = []
    for own in members:
        order = rng.permutation(own)
        cuts = [order[begin : begin + num_utterances] for begin in range(0, len(order), num_utterances)]
        groups.append([group for group in cuts if len(group) > 1])
    heap = [(-len(own), rng.random(), speaker) for speaker, own in enumerate(groups)]
    heapq.heapify(heap)
    batches = []
    while len(heap) > 1:
        taken = [heapq.heappop(heap) for _ in range(min(num_speakers, len(heap)))]
        batches.append(np.concatenate([groups[speaker].pop() for _, _, speaker in taken]))
        for _, _, speaker in taken:
            if groups[speaker]:
                heapq.heappush(heap, (-len(groups[speaker]), rng.random(), speaker))
    return [batches[place] for place in rng.permutation(len(batches)).tolist()]

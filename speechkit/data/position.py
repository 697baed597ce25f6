"""How far a sampler is in its epoch: counts the batches drawn, and goes on with the exact next one.

Samplers whose epoch is a pure function of data, settings, seed and epoch hold one; a place in it is all there is to save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_STATE_VERSION = 1


class Position:
    """Epoch and number of batches drawn from it.

    Attributes:
        epoch: the epoch that the sampler is in.
        drawn: batches of this epoch drawn so far, those before a restored state included.
        next_batch: where the next pass begins: 0, or after `load_state_dict` the restored position.
    """

    def __init__(self) -> None:
        self.epoch = self.drawn = self.next_batch = 0
        self._pass_number = 0

    def begin_pass(self, batches_from: Callable[[int], Iterable[list[int]]]) -> Iterator[list[int]]:
        """Draws the batches of this epoch: all, or after `load_state_dict` the remaining ones.

        Args:
            batches_from: gives those from a number on.
        """
        self.drawn = self.next_batch
        self._pass_number += 1
        return self._count(batches_from(self.drawn), self.drawn, self._pass_number)

    def _count(self, batches: Iterable[list[int]], first: int, pass_number: int) -> Iterator[list[int]]:
        for step, batch in enumerate(batches, first + 1):
            if pass_number == self._pass_number:  # an abandoned pass must not move the position of a newer one
                self.drawn = step
            yield batch
        if pass_number == self._pass_number:
            self.next_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch. The epoch that it is in already stays as it is, position included.

        Raises:
            ValueError: it is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must not be negative")
        if epoch != self.epoch:
            self._go_to(epoch, 0)

    def _go_to(self, epoch: int, batch: int) -> None:
        self.epoch, self.drawn, self.next_batch = epoch, batch, batch
        self._pass_number += 1

    def state_dict(self, fingerprint: Mapping[str, Any], *, next_batch: int | None = None) -> dict[str, Any]:
        """State from which any rank, of an equal number of ranks, goes on with the exact next batch.

        Args:
            fingerprint: all that an epoch depends on besides its number, as plain values; settings may stand in a mapping
                of their own, under "settings".
            next_batch: number of batches of this epoch that were really trained on, those before a restored state
                included. None counts the batches drawn, which is the same only without DataLoader workers.

        Raises:
            ValueError: when `next_batch` is negative or more than were drawn.
        """
        batch = self.drawn if next_batch is None else next_batch
        if not 0 <= batch <= self.drawn:
            raise ValueError(
                f"next_batch is {next_batch}, but {self.drawn} batches of epoch {self.epoch} were drawn; count the "
                "batches of this epoch alone"
            )
        return {"version": _STATE_VERSION, "epoch": self.epoch, "position": batch, **fingerprint}

    def load_state_dict(self, state: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Restores a state: the next pass begins with the exact next batch.

        Args:
            state: what `state_dict` gave.
            fingerprint: that of the sampler that is to go on.

        Raises:
            ValueError: naming everything in which data or settings differ from those of the state.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"sampler state has version {state.get('version')!r}; this release reads {_STATE_VERSION}")
        here = _flat(fingerprint)
        there = _flat({name: state.get(name) for name in fingerprint})
        differing = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
        if state["position"] == 0 and differing == ["world_size"]:
            differing = []  # at the beginning of an epoch nothing has been handed to ranks yet
        if differing:
            listed = "; ".join(f"{name}: state {there.get(name)!r}, here {here.get(name)!r}" for name in differing)
            raise ValueError(
                f"sampler state does not fit, because the plan would be another one ({listed}); restore these, or drop "
                f"the state and begin an epoch with set_epoch({state['epoch'] + 1})"
            )
        self._go_to(int(state["epoch"]), int(state["position"]))


def _flat(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint with the settings beside the rest, for naming what differs."""
    settings = fingerprint.get("settings") or {}
    return {**{name: value for name, value in fingerprint.items() if name != "settings"}, **settings}

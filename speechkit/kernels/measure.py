"""Time and peak memory of an operation, forward and backward, on one machine: what scripts/bench_kernels.py reads off.

On a GPU, CUDA events are read; its cache is overwritten before each run, so that inputs come from memory, and what the
processor needs to launch kernels shows once it exceeds that overwriting (about 0.1 ms). On a CPU, times are those of the wall,
and memory is resident memory of the process, which allocators keep: measure it in a fresh one.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkit.kernels.case import Arguments, Op

PARTS = ("forward", "backward", "both")
LEAST_ROUNDS = 3
_FLUSH_BYTES = 256 << 20  # more than the cache of any GPU


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to run an operation.

    Attributes:
        kind: "backend" for an implementation of ours, "baseline" for one of others.
        name: of the backend or baseline.
        run: gives the outputs of a call.
    """

    kind: str
    name: str
    run: Callable[[Arguments], tuple[Tensor, ...]]


class Runner:
    """One contestant on fixed arguments. The first run is not to be measured: it compiles and allocates.

    Args:
        op: the operation, which names the arguments that take gradients.
        contestant: how to run it.
        arguments: of the call.
        device: where these are.
    """

    def __init__(self, op: Op, contestant: Contestant, arguments: Arguments, device: torch.device) -> None:
        self.contestant, self.arguments, self.device = contestant, arguments, device
        self.names = [name for name in op.differentiable if isinstance(arguments.get(name), Tensor)]
        self._upstream: list[Tensor] = []
        self._flushed = torch.empty(_FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.int8, device=device)

    def seconds(self) -> dict[str, float]:
        """Times of one run by part: "forward" as in training, with what backward needs kept, "backward", and "both"."""
        self._flushed.zero_()
        marks = [self._mark()]
        forward = self._forward()
        marks.append(self._mark())
        if self._backward(*forward):
            marks.append(self._mark())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        times = [
            end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000
            for begin, end in itertools.pairwise(marks)
        ]
        return dict(zip(PARTS, times)) | {"both": sum(times)}

    def peak_bytes(self) -> dict[str, int]:
        """Peak memory of one run by part, above what is there before it: the inputs. Empty where it cannot be known."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            before = torch.cuda.memory_allocated(self.device)
            return self._peaks(torch.cuda.reset_peak_memory_stats, torch.cuda.max_memory_allocated, before)
        if not _CLEAR_PEAK.exists():
            return {}
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return self._peaks(lambda: _CLEAR_PEAK.write_text("5"), lambda: _status("VmHWM"), _status("VmRSS"))

    def _peaks(self, reset: Callable[[], Any], peak: Callable[[], int], before: int) -> dict[str, int]:
        reset()
        forward = self._forward()
        peaks = {"forward": peak() - before}
        reset()
        if self._backward(*forward):
            peaks["backward"] = peak() - before
        return peaks | {"both": max(peaks.values())}

    def _forward(self) -> tuple[list[Tensor], list[Tensor]]:
        leaves = {name: self.arguments[name].detach().requires_grad_() for name in self.names}
        with torch.set_grad_enabled(bool(leaves)):
            outputs = self.contestant.run({**self.arguments, **leaves})
        return [output for output in outputs if output.requires_grad], list(leaves.values())

    def _backward(self, flowing: list[Tensor], leaves: list[Tensor]) -> bool:
        if not flowing:
            return False
        if not self._upstream:
            self._upstream = [torch.randn_like(output) for output in flowing]
        torch.autograd.grad(flowing, leaves, self._upstream, allow_unused=True)
        return True

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def play_rounds(runners: Sequence[Runner], *, rounds: int, seconds: float) -> dict[Contestant, list[dict[str, float]]]:
    """Lets contestants take turns, in an order that rotates, so that what else the machine does falls on all alike.

    Args:
        runners: which have run before.
        rounds: how often each runs.
        seconds: no further round begins after this time, but the first three are always played.

    Returns:
        the times of each by round, as `Runner.seconds` gives them.
    """
    times: dict[Contestant, list[dict[str, float]]] = {runner.contestant: [] for runner in runners}
    end = time.perf_counter() + seconds
    for number in range(rounds if runners else 0):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        turn = number % len(runners)
        for runner in [*runners[turn:], *runners[:turn]]:
            times[runner.contestant].append(runner.seconds())
    return times


def _status(name: str) -> int:
    """A figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


_CLEAR_PEAK = Path("/proc/self/clear_refs")  # writing 5 there sets the peak to what is resident now

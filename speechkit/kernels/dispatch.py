"""Which implementation of an operation runs.

In order: the `backend=` of the call, unless it is "auto"; the innermost `with backend(name)`; the environment variable
`SPEECHKIT_KERNELS`; Triton on a GPU; the first other implementation that the operation has.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("auto", "reference", "torch", "numba", "triton")
ENVIRONMENT = "SPEECHKIT_KERNELS"

_forced = "auto"
_warned: set[str] = set()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every operation that has an implementation of this name with it, in the whole process.

    Operations without one choose as they always do. For finding out whether a kernel is at fault: `with
    backend("reference"): ...`, or `SPEECHKIT_KERNELS=reference` for a whole run.

    Args:
        name: "auto", "reference", "torch", "numba" or "triton".

    Raises:
        ValueError: no such name.
    """
    global _forced
    before = _forced
    _forced = _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def choose(op: str, wanted: str, device: torch.device, available: tuple[str, ...]) -> str:
    """The implementation to run.

    Args:
        op: name of the operation, for messages.
        wanted: what the caller asked for; "auto" to leave it open.
        device: where the tensors are.
        available: implementations that the operation has, the preferred one on a CPU first.

    Returns:
        one of `available`.

    Raises:
        ValueError: the operation has no such implementation, or Triton is asked for on a CPU without its interpreter.
    """
    if wanted != "auto" and wanted not in available:
        raise ValueError(f"backend={wanted!r} is unknown to {op}; choose auto or one of {', '.join(available)}")
    asked = asked_for(wanted, available)
    if asked is not None:
        return _runnable(op, asked, device)
    if device.type == "cuda" and "triton" in available:
        if HAS_TRITON:
            return "triton"
        warn_slow(op, 'Triton is not installed; pip install "speechkit[kernels]"')
    for name in available:
        if name in ("torch", "reference") or (name == "numba" and HAS_NUMBA):
            return name
    raise AssertionError(f"{op} has no implementation for {device}")


def asked_for(wanted: str, available: tuple[str, ...]) -> str | None:
    """The implementation that the call, a `with backend(...)` or the environment names; None when it is left open.

    Raises:
        ValueError: the environment names something unknown.
    """
    for name in (wanted, _forced, _checked(_from_environment, ENVIRONMENT)):
        if name in available:
            return name
        if name != "auto":
            return None
    return None


def warn_slow(op: str, reason: str) -> None:
    """Says once per operation and reason that a GPU does not get the fused kernel."""
    message = f"{op}: slow path on the GPU: {reason}"
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU. Triton reads this when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _runnable(op: str, name: str, device: torch.device) -> str:
    if name == "triton" and device.type != "cuda" and not interpreting():
        raise ValueError(f"{op}: backend='triton' needs a CUDA tensor, got one on {device}; set TRITON_INTERPRET=1 to interpret")
    return name


def _checked(name: str, field: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{field}={name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    return name


HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None
_from_environment = os.environ.get(ENVIRONMENT, "auto")

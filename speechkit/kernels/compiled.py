"""Loops compiled by numba: kept between runs, spread over threads by rows, and started only when that pays.

Starting numba takes some seconds, so short jobs are done without it until they have cost as much together.

numba's own threads are not used: with OpenMP they end a process that forks afterwards, as data loaders do, and its plain
ones end it when two threads call at once. Compiled loops let go of the interpreter's lock instead, and each of a few Python
threads takes its share of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

START_SECONDS = 3.0  # importing numba with what it imports in turn, and reading loops compiled before
CELLS_OF_A_THREAD = 200_000  # cells of a table below which waking another thread costs more than it saves, about 0.1 ms

_started = False
_done_without = 0.0
_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def compiled(signature: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Compiles a function for one signature, at once; from numba's cache when an earlier run has done so.

    The cache lies beside the source, or in the user's cache directory where that cannot be written; where neither can, the
    function is compiled in every process.

    Args:
        signature: types of the arguments in numba's notation.

    Raises:
        ImportError: numba is not installed; names the extra that brings it.
    """
    try:
        import numba
    except ImportError as error:
        raise ImportError('backend="numba" needs numba; pip install "speechkit[kernels]"') from error

    def compile_function(function: Callable[..., None]) -> Callable[..., None]:
        global _started
        _started = True
        try:
            result: Callable[..., None] = numba.njit(signature, nogil=True, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            result = numba.njit(signature, nogil=True)(function)
        return result

    return compile_function


def pays_to_start(seconds: float) -> bool:
    """Whether to run a job with numba rather than without it.

    True once it runs; before, when all jobs asked about so far would together have taken longer without it than
    starting it does. So the choice never costs more than twice what the best one in hindsight would have.

    Args:
        seconds: what the job takes without numba, by estimate.
    """
    global _done_without
    if _started:
        return True
    _done_without += seconds
    return _done_without > START_SECONDS


def over_rows(kernel: Callable[..., None], cells_B: np.ndarray, *arguments: Any) -> None:
    """Runs `kernel(rows, *arguments)` on shares of the rows, on up to `torch.get_num_threads()` threads.

    Args:
        kernel: a compiled function that works on the rows listed in its first argument, int64.
        cells_B: work of each row, in cells of its table, shape (B,).
        arguments: passed on.
    """
    rows = np.argsort(-cells_B, kind="stable")
    count = int(min(torch.get_num_threads(), len(rows), 1 + cells_B.sum() // CELLS_OF_A_THREAD))
    if count < 2:
        kernel(rows, *arguments)
        return
    pool = _threads(torch.get_num_threads() - 1)
    others = [pool.submit(kernel, rows[share::count].copy(), *arguments) for share in range(1, count)]
    kernel(rows[::count].copy(), *arguments)
    for other in others:
        other.result()


def _threads(count: int) -> ThreadPoolExecutor:
    """A pool of so many threads, kept; a forked process, which inherits no threads, makes its own."""
    global _pool
    if _pool is None or _pool[:2] != (os.getpid(), count):
        _pool = (os.getpid(), count, ThreadPoolExecutor(count, thread_name_prefix="speechkit-kernels"))
    return _pool[2]

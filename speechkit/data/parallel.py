"""Work on many files at once: ordered threads, helper processes that may die without harm, and a progress bar.

A decoder fed with a damaged file can crash its process or never return. `IsolatedWorkers` runs such work in helper
processes, ends one that takes too long, starts another and goes on with the rest.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from speechkit.types import Seconds

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[tuple[Item, Result]]:
    """Apply `function` to every item in threads; yields (item, result) in the order of the items.

    Items are drawn as results are taken, a few per thread ahead, so that endless or huge iterables do not fill memory.

    Args:
        function: what to apply; its exceptions are raised here.
        items: the arguments.
        num_threads: 0 works in the calling thread.
    """
    if num_threads <= 0:
        for item in items:
            yield item, function(item)
        return
    pending: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) >= 4 * num_threads:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def progress_bar(items: Iterable[Item], *, description: str, total: int | None = None, unit: str = "utt") -> Iterable[Item]:
    """The items, with a progress bar when standard error is a terminal and tqdm is installed."""
    if not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=description, total=total, unit=unit, smoothing=0.05)


class WorkerDied(RuntimeError):
    """A helper process ended before it answered; `timed_out` tells whether its time was up."""

    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class IsolatedWorkers:
    """Helper processes that call functions, one call at a time each; a context manager.

    Args:
        num_workers: how many processes; 0 calls in this process, without protection.
        timeout: seconds that one call may take (where the system has interval timers).
    """

    def __init__(self, num_workers: int, *, timeout: Seconds = 300.0) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers}: must be >= 0")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout}: must be > 0 seconds")
        self.num_workers = num_workers
        self.timeout = timeout
        self._closed = False
        self._idle: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._idle.put(None)  # started at its first call

    def __enter__(self) -> IsolatedWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                _end(worker)

    def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function of a module, with picklable arguments, in an idle helper; safe to call from threads.

        Raises:
            WorkerDied: the helper crashed or its time was up.
            Exception: whatever the function raises.
        """
        if self.num_workers == 0:
            return function(*args)
        worker = self._idle.get() or _start()
        healthy = False
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                pickle.dump((function, args, self.timeout), worker.stdin)
                worker.stdin.flush()
                succeeded, result = pickle.load(worker.stdout)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                code = worker.wait()
                timed_out = hasattr(signal, "SIGALRM") and code == -signal.SIGALRM
                reason = f"took more than {self.timeout:g} s" if timed_out else f"ended with exit status {code}"
                raise WorkerDied(f"the helper process {reason}", timed_out=timed_out) from error
            healthy = True
        finally:
            if not healthy or self._closed:
                _end(worker)
            self._idle.put(worker if healthy and not self._closed else None)
        if not succeeded:
            raise result
        return result  # type: ignore[no-any-return]


def _start() -> subprocess.Popen[bytes]:
    # Not multiprocessing: its spawn runs the caller's main module again, its fork copies the locks of other threads.
    return subprocess.Popen(
        [sys.executable, "-c", "from speechkit.data.parallel import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},  # noqa: PTH109
    )


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    for stream in (worker.stdin, worker.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:
            pass
    worker.wait()


def serve() -> None:
    """The loop of a helper process: reads calls from standard input, answers on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    while True:
        try:
            function, args, timeout = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a library call
            signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            answer = (True, function(*args))
        except Exception as error:
            answer = (False, error)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            message = pickle.dumps(answer)
        except Exception as error:
            message = pickle.dumps((False, RuntimeError(f"cannot be sent between processes: {error!r}")))
        answers.write(message)
        answers.flush()

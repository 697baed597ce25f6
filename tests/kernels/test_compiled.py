"""Loops compiled by numba: when it is started, threads, forks, and what is said without it."""

from __future__ import annotations

import builtins
import os
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.kernels import compiled


def test_numba_starts_when_work_without_it_has_cost_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_started", False)
    monkeypatch.setattr(compiled, "_done_without", 0.0)
    share = compiled.START_SECONDS / 3
    assert [compiled.pays_to_start(share * 0.99) for _ in range(4)] == [False, False, False, True]
    monkeypatch.setattr(compiled, "_started", True)
    monkeypatch.setattr(compiled, "_done_without", 0.0)
    assert compiled.pays_to_start(0.0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without_numba(name: str, *rest: Any, **named: Any) -> Any:
        if name == "numba":
            raise ImportError(name)
        return whole(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_numba)
    with pytest.raises(ImportError, match=r'pip install "speechkit\[kernels\]"'):
        compiled.compiled("void()")


def test_a_place_that_cannot_be_written_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    whole = numba.njit

    def njit(*signature: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available for file 'x.py'")
        return whole(*signature, **options)

    monkeypatch.setattr(numba, "njit", njit)

    @compiled.compiled("void(int64[::1])")
    def double(x: np.ndarray) -> None:
        x *= 2

    values = np.arange(3)
    double(values)
    assert values.tolist() == [0, 2, 4]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("cells", [1, compiled.CELLS_OF_A_THREAD])
def test_every_row_is_worked_on_once(threads: int, cells: int) -> None:
    before = torch.get_num_threads()
    found = np.zeros(7, dtype=np.int64)

    def kernel(rows: np.ndarray, marks: np.ndarray) -> None:
        assert rows.flags.c_contiguous
        np.add.at(marks, rows, 1)

    try:
        torch.set_num_threads(threads)
        compiled.over_rows(kernel, np.full(7, cells), found)
    finally:
        torch.set_num_threads(before)
    assert found.tolist() == [1] * 7


def test_errors_of_threads_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(rows: np.ndarray) -> None:
        if 3 in rows:
            raise ValueError("row 3")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(ValueError, match="row 3"):
        compiled.over_rows(kernel, np.full(6, compiled.CELLS_OF_A_THREAD))


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(rows: np.ndarray, marks: np.ndarray) -> None:
        marks[rows] += 1

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    work, found = np.full(4, compiled.CELLS_OF_A_THREAD), np.zeros(4, dtype=np.int64)
    compiled.over_rows(kernel, work, found)
    child = os.fork()
    if not child:
        compiled.over_rows(kernel, work, found)
        os._exit(0 if found.tolist() == [2] * 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Which implementation runs: what a call asks for, what `with backend` and the environment force, and what is there."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from speechkit.kernels import backend, dispatch
from speechkit.kernels.dispatch import choose

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
ALL = ("numba", "torch", "reference", "triton")


@pytest.fixture(autouse=True)
def a_machine_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages are there, nothing is forced, nothing was warned of, and Triton has no interpreter."""
    for name, value in (("HAS_TRITON", True), ("HAS_NUMBA", True), ("_from_environment", "auto"), ("_warned", set())):
        monkeypatch.setattr(dispatch, name, value)
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        (CPU, ALL, "numba"),
        (CPU, ("torch", "reference", "triton"), "torch"),
        (CPU, ("triton", "reference"), "reference"),
        (GPU, ALL, "triton"),
        (GPU, ("torch", "reference"), "torch"),
    ],
)
def test_auto_takes_the_fastest_there_is(device: torch.device, available: tuple[str, ...], expected: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("op", "auto", device, available) == expected


def test_a_call_outranks_the_context_which_outranks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_from_environment", "reference")
    assert choose("op", "auto", CPU, ALL) == "reference"
    with backend("torch"):
        assert choose("op", "auto", CPU, ALL) == "torch"
        assert choose("op", "numba", CPU, ALL) == "numba"
    assert choose("op", "auto", CPU, ALL) == "reference"


def choose_and_fail() -> None:
    assert choose("op", "auto", CPU, ALL) == "torch"
    raise RuntimeError


def test_contexts_nest_and_end_with_errors() -> None:
    with backend("reference"):
        with pytest.raises(RuntimeError), backend("torch"):
            choose_and_fail()
        assert choose("op", "auto", CPU, ALL) == "reference"
        with backend("auto"):
            assert choose("op", "auto", CPU, ALL) == "numba"
    assert choose("op", "auto", CPU, ALL) == "numba"


def test_an_unknown_name_in_the_environment_is_refused_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_from_environment", "cuda")
    with pytest.raises(ValueError, match="SPEECHKIT_KERNELS='cuda' is unknown; choose one of auto, reference"):
        dispatch.choose("attention", "auto", torch.device("cpu"), ("torch", "reference", "triton"))



def test_operations_without_the_forced_implementation_choose_as_always() -> None:
    with backend("numba"):
        assert choose("op", "auto", CPU, ("torch", "reference", "triton")) == "torch"
        assert choose("op", "auto", GPU, ("torch", "reference", "triton")) == "triton"


def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"op: backend='triton' needs a CUDA tensor, got one on cpu; set TRITON_INTERPRET=1"):
        choose("op", "triton", CPU, ALL)
    with backend("triton"), pytest.raises(ValueError, match="needs a CUDA tensor"):
        choose("op", "auto", CPU, ALL)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("op", "triton", CPU, ALL) == "triton"
    assert choose("op", "auto", CPU, ALL) == "numba", "the interpreter is never chosen by itself"


def test_what_is_missing_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_NUMBA", False)
    assert choose("op", "auto", CPU, ALL) == "torch"
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with pytest.warns(RuntimeWarning, match=r'op: slow path on the GPU: Triton is not installed; pip install "speechkit'):
        assert choose("op", "auto", GPU, ALL) == "torch"


def test_a_slow_path_is_told_once_per_operation_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for op in ("first", "first", "second"):
            choose(op, "auto", GPU, ALL)
        dispatch.warn_slow("first", "another reason")
    assert [str(warning.message).split(":")[0] for warning in caught] == ["first", "second", "first"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="backend='cuda' is unknown to op; choose auto or one of torch, reference"):
        choose("op", "cuda", CPU, ("torch", "reference"))
    with pytest.raises(ValueError, match="backend='numba' is unknown to op"):
        choose("op", "numba", CPU, ("torch", "reference"))
    with pytest.raises(ValueError, match="backend='cuda' is unknown; choose one of auto, reference"), backend("cuda"):
        pass


@pytest.mark.parametrize(("value", "code"), [("reference", 0), ("quickest", 1)])
def test_the_environment_is_read_at_import(value: str, code: int) -> None:
    script = (
        "import torch\nfrom speechkit.kernels.dispatch import choose\n"
        "assert choose('op', 'auto', torch.device('cpu'), ('torch', 'reference')) == 'reference'"
    )
    environment = {**os.environ, "SPEECHKIT_KERNELS": value}
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == code, finished.stderr
    assert code == 0 or "SPEECHKIT_KERNELS='quickest' is unknown; choose one of" in finished.stderr

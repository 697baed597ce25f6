"""Every Triton kernel compiles for two generations of GPUs without one, and takes no more of them than there is."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from speechkit.kernels import aot

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # that a block may take
MOST_REGISTERS = 65536  # of a multiprocessor; a block that wants more cannot start
MOST_SPILLED_BYTES = 64  # of a thread: what a loop keeps in local memory costs more than it saves


@pytest.fixture(scope="session", params=aot.operations())
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the command writes for one operation."""
    out = tmp_path_factory.mktemp("aot") / f"{request.param}.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "speechkit.kernels.aot", "--op", request.param, "--json", str(out)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(out.read_text())


def test_every_variant_compiles_and_fits(rows: list[dict[str, Any]]) -> None:
    variants = aot.variants(rows[0]["op"])
    assert [row["name"] for row in rows] == [variant.name for variant in variants for _ in aot.CAPABILITIES]
    assert {row["capability"] for row in rows} == set(aot.CAPABILITIES)
    for row in rows:
        assert row["shared_bytes"] <= SHARED_BYTES[row["capability"]], row
        assert row["spilled_bytes"] <= MOST_SPILLED_BYTES, row
        assert 0 < row["registers"] * 32 * row["num_warps"] <= MOST_REGISTERS, row


def test_every_kernel_that_is_started_is_compiled(rows: list[dict[str, Any]]) -> None:
    folder = Path(aot.__file__).parent / rows[0]["op"]
    started = kernels(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    assert {row["kernel"] for row in rows} == started


def kernels(sources: Any) -> set[str]:
    """Functions compiled by Triton that no other of them calls, and those that are started with a grid."""
    jitted: dict[str, ast.FunctionDef] = {}
    started: set[str] = set()
    for tree in map(ast.parse, sources):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(each) for each in node.decorator_list):
                jitted[node.name] = node
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                started.add(ast.unparse(node.func.value).split(".")[-1])
    called = {
        ast.unparse(node.func)
        for function in jitted.values()
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    }  # fmt: skip
    return (set(jitted) - called) | (set(jitted) & started)


def test_kernels_are_found_in_sources() -> None:
    source = """
@triton.jit
def helper(x):
    return x
@triton.jit
def both(x):
    return helper(x)
@triton.jit(do_not_specialize=["n"])
def outer(x, n):
    both(x)
def launch(grid, x):
    outer[grid](x, 3)
    both[(1,)](x)
    table[0](x)
"""
    assert kernels([source]) == {"outer", "both"}


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    variant = aot.Variant("any", None, {}, {})
    with pytest.raises(RuntimeError, match="kernels cannot be compiled under TRITON_INTERPRET=1; unset it"):
        aot.compile_variant("any", variant, 80)


def test_the_table_has_a_row_per_variant() -> None:
    rows = [aot.Usage("op", "kernel", f"kernel {size}", sm, 40 + sm, 0, 2048, 4) for size in "ab" for sm in (80, 90)]
    lines = aot.markdown(rows).splitlines()
    assert lines[2:] == [f"| op | kernel {size} | 4 | 120 | 0 | 2,048 | 130 | 0 | 2,048 |" for size in "ab"]


def test_folders_without_variants_are_not_operations() -> None:
    for op in aot.operations():
        assert hasattr(importlib.import_module(f"speechkit.kernels.{op}.triton_impl"), "compile_variants")

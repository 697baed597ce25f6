"""scripts/bench_kernels.py: its rows, what cannot run, its table and drawing; on an operation of the tests' own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

CASES = Path(__file__).parent / "weighted_sum_cases.py"


@pytest.fixture(scope="module")
def bench(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_kernels")


def measure(bench: ModuleType, *arguments: object) -> int:
    return bench.main(["--cases", str(CASES), "--device", "cpu", "--rounds", "4", *map(str, arguments)])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_all_parts_with_ratios_and_memory(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "rows.csv", tmp_path / "rows.png"
    assert not measure(
        bench, "--op", "weighted_sum", "--shape", "wide", "--without", "in pieces", "--commit", "abc",
        "--out", out, "--plot", picture, "--table",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "weighted_sum: triton left out" in printed
    assert "| weighted_sum | wide (B=8 D=250000) | fp32 | **torch** |" in printed
    assert "| absent | not installed: no module named absent |" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")

    rows = read(out)
    ran = {(row["contestant"], row["part"]): row for row in rows if not row["note"]}
    assert set(ran) == {(name, part) for name in ("torch", "matrix product") for part in ("forward", "backward", "both")}
    for row in ran.values():
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert (row["rounds"], row["against"], row["commit"], row["dtype"]) == ("4", "matrix product", "abc", "fp32")
    assert float(ran["matrix product", "both"]["speedup"]) == 1
    # Forward holds products of 8 MB and their sum of 1 MB; backward the gradient of the rows, at times products beside it.
    forward, both = (float(ran["torch", part]["peak_mb"]) for part in ("forward", "both"))
    assert 8 < forward < 14
    assert 8 < both < 30
    assert float(ran["matrix product", "forward"]["peak_mb"]) < 5

    notes = {row["contestant"]: row["note"] for row in rows if row["note"]}
    assert notes == {
        "absent": "not installed: no module named absent",
        "strict": "not supported: only fp64",
        "large": "out of memory",
    }


def test_appends_and_refuses_other_columns(bench: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    for backend in ("torch", "reference"):
        measure(bench, "--op", "weighted_sum", "--shape", "tall", "--backend", backend, "--no-memory", "--out", out)
    assert {row["contestant"] for row in read(out) if row["kind"] == "backend"} == {"torch", "reference"}
    assert not any(row["peak_mb"] for row in read(out))
    assert not bench.main(["--rows", str(out), "--table", "--plot", str(tmp_path / "drawn.png")])
    assert (tmp_path / "drawn.png").exists()
    out.write_text("date,op\n")
    with pytest.raises(ValueError, match="other columns"):
        measure(bench, "--out", out)


def test_without_gradients_there_is_one_part_and_a_fault_is_a_row_and_a_status(bench: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    assert measure(bench, "--op", "broken", "--no-memory", "--out", out) == 1
    rows = read(out)
    assert [(row["contestant"], row["part"]) for row in rows if not row["note"]] == [("torch", "forward"), ("torch", "both")]
    assert [row["note"] for row in rows if row["note"]] == ["failed: KeyError: 'faulty'"]


def test_baselines_are_chosen_by_name(bench: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    measure(bench, "--op", "weighted_sum", "--small", "--no-memory", "--against", "torch", "--dtype", "fp32,bf16", "--out", out)
    rows = [row for row in read(out) if not row["note"]]
    assert {row["against"] for row in rows} == {"torch"}
    assert {(row["shape"], row["dtype"]) for row in rows} == {("tiny", "fp32"), ("tiny", "bf16")}


def test_unknown_operations_are_refused(bench: ModuleType) -> None:
    with pytest.raises(ValueError, match="--op nothing is unknown; choose among broken, weighted_sum"):
        measure(bench, "--op", "nothing")


def test_the_package_has_operations(bench: ModuleType) -> None:
    for op in bench.find_ops(None, []):
        assert op.bench_shapes, op.name
        assert op.test_shapes, op.name

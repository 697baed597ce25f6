"""scripts/gpu_check.py: steps that fail, hang or find no time; wheels; goals; and the flow in miniature on the CPU."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def check(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("gpu_check")


@pytest.fixture(scope="module")
def bench(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_kernels")


def step(check: ModuleType, name: str, code: str, share: float = 1.0) -> object:
    """A step that runs Python with OUT set to its output file."""

    def command(out: Path, seconds: float, args: Namespace) -> list[str]:
        return [sys.executable, "-c", f"OUT = {str(out)!r}\n{code}"]

    return check.Step(name, share, command)


def run(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, steps: Sequence[object], *options: str
) -> tuple[int, dict]:
    monkeypatch.setattr(check, "STEPS", tuple(steps))
    status = check.main(["--out", str(out), "--commit", "abc", "--cpu", *options])
    return status, json.loads((out / "summary.json").read_text())


def test_a_step_that_fails_or_hangs_does_not_stop_the_others(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hang = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    steps = [
        step(check, "good", "open(OUT, 'w').write('{\"found\": 3}'); print('all is well')"),
        step(check, "bad", "raise ValueError('broken')"),
        step(check, "slow", hang, share=0.2),
        step(check, "last", "print('still here')"),
    ]
    status, summary = run(check, monkeypatch, tmp_path, steps, "--budget", "12", "--least", "0.1")
    assert status == 1
    assert {name: each["status"].split(" after")[0] for name, each in summary["steps"].items()} == {
        "good": "ran", "bad": "failed with exit status 1", "slow": "stopped", "last": "ran",
    }  # fmt: skip
    assert summary["steps"]["good"]["result"] == {"found": 3}
    assert summary["commit"] == "abc"
    assert "ValueError: broken" in (tmp_path / "log.txt").read_text()
    assert "| slow | stopped after" in (tmp_path / "report.md").read_text()
    printed = capsys.readouterr().out
    assert "all is well" in printed
    assert "not measured: CTC, V=1k: 2 times as fast as torch" in printed


def test_steps_without_time_are_skipped_and_said(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [step(check, "first", "import time; time.sleep(2)", share=9.0), step(check, "second", "")]
    status, summary = run(check, monkeypatch, tmp_path, steps, "--budget", "4", "--least", "2.5")
    assert status == 1
    assert [each["status"] for each in summary["steps"].values()] == ["ran", "skipped: no time left"]
    assert "== second: skipped, no time left" in capsys.readouterr().out


def test_all_steps_that_run_give_status_0(check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = [step(check, "first", ""), step(check, "second", "raise SystemExit(1)")]
    assert run(check, monkeypatch, tmp_path, steps, "--step", "first")[0] == 0
    with pytest.raises(SystemExit, match="--step third: choose among first, second"):
        run(check, monkeypatch, tmp_path, steps, "--step", "third")


def make_wheel(folder: Path, *, sound: bool) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "wanted-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("wanted/__init__.py", "VALUE = 7\n")
        if sound:
            info = "wanted-1.0.dist-info"
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: wanted\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize("sound", [True, False])
def test_wheels_are_importable_in_the_steps(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sound: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "_added", [])
    make_wheel(tmp_path / "wheels", sound=sound)
    steps = [step(check, "first", "import wanted; assert wanted.VALUE == 7; import speechkit")]
    assert run(check, monkeypatch, tmp_path / "out", steps, "--wheels", str(tmp_path / "wheels"))[0] == 0
    assert "1 wheels" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds no wheel"):
        run(check, monkeypatch, tmp_path / "out", steps, "--wheels", str(tmp_path / "out"))


def test_children_get_neither_the_interpreter_nor_forced_kernels(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("SPEECHKIT_KERNELS", "reference")
    assert not {"TRITON_INTERPRET", "SPEECHKIT_KERNELS"} & set(check.child_environment())


def write_rows(bench: ModuleType, path: Path, rows: Sequence[tuple[str, str, str, str, float, float]]) -> None:
    """Rows of (op, shape, sizes, contestant, milliseconds, megabytes); "triton" is ours, others are baselines."""
    whole = []
    for op, shape, sizes, name, milliseconds, megabytes in rows:
        kind = "backend" if name == "triton" else "baseline"
        facts = {"date": "today", "commit": "abc", "device": "card", "threads": 1, "python": "3", "torch": "2", "triton": "3"}
        named = {"op": op, "shape": shape, "sizes": sizes, "dtype": "fp32", "kind": kind, "contestant": name}
        whole.append(bench.Row(**facts, **named, p50_ms=milliseconds, peak_mb=megabytes))
    with path.open("w", newline="") as file:
        csv.DictWriter(file, bench.COLUMNS).writeheader()
    bench.append_rows(path, whole)


def test_goals_are_judged_by_the_rows(check: ModuleType, bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "kernels.csv"
    small, large = "B=16 T=400 U=60 V=1000", "B=8 T=400 U=60 V=5000"
    ctc = [
        ("ctc_loss", "V=1k", small, "triton", 1.0, 10.0),
        ("ctc_loss", "V=1k", small, "torch.ctc_loss", 2.5, 100.0),
        ("ctc_loss", "V=5k", large, "triton", 1.0, 50.0),
        ("ctc_loss", "V=5k", large, "torch.ctc_loss", 2.5, 100.0),
    ]
    attention = [
        ("attention", f"relative T={frames}", f"frames={frames} heads=8 position=relative lens=32x{frames}", name, time, size)
        for frames in (250, 750)
        for name, time, size in (("triton", 1.0, 0.02 * frames), ("eager", 4.0, 1e-4 * frames**2), ("sdpa", 1.5, 9.0))
    ]
    write_rows(bench, path, [*ctc, *attention])
    found = {text.split(":")[0] + text.split(":")[1][:4]: reached for reached, text in check.kernel_goals(path)}
    assert list(found.values()) == [True, False, False, True, False, True]
    assert check.kernel_goals(path)[0][1] == "CTC, V=1k: 2 times as fast as torch: V=1k fp32 2.50"
    assert [reached for reached, _ in check.kernel_goals(tmp_path / "absent.csv")] == [None] * 6


def test_goals_of_training(check: ModuleType) -> None:
    results = {
        "end_to_end": {"result": {"relative": {"speedup": 1.4}, "rope": {"speedup": 1.1}}},
        "padding": {"result": {"mixed": {"ratio": 2.3}, "read": {"ratio": 1.6}}},
    }
    assert [reached for reached, _ in check.training_goals(results)] == [True, False, True]
    assert [reached for reached, _ in check.training_goals({"end_to_end": {"result": None}})] == [None] * 3


def test_in_miniature_on_the_cpu(check: ModuleType, tmp_path: Path) -> None:
    steps = ["--step", "environment", "--step", "padding", "--step", "end_to_end"]
    assert check.main(["--out", str(tmp_path), "--cpu", "--budget", "150", *steps]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["miniature"]
    results = {name: each["result"] for name, each in summary["steps"].items()}
    assert results["environment"]["packages"]["torch"]
    for position in ("relative", "rope"):
        assert set(results["end_to_end"][position]["ms"]) == {"fused", "torch"}
        assert results["end_to_end"][position]["kernels"]["fused"]["kinds"]
    for lengths in ("mixed", "read"):
        sides = results["padding"][lengths]
        assert sides["bucketed"]["wasted_percent"] < sides["random"]["wasted_percent"]
        assert sides["bucketed"]["worst_s"] <= sides["random"]["worst_s"]
        assert all(sides[side]["audio_s_per_s"] > 0 for side in ("random", "bucketed"))
    assert len(list(tmp_path.iterdir())) <= 8
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000

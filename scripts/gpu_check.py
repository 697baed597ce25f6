"""Checks speechkit on the GPU of a bare machine, without a network: python scripts/gpu_check.py --out DIR

Runs, in the order of their worth and each in a process of its own with its share of the time: what machine it is, the tests of
the kernels, the kernels' benchmark, a training step with fused kernels and without, batches of similar length against random
ones, the batch-size search, and a recipe. A step that fails or runs out of time is reported and the others go on. DIR gets
summary.json, report.md, log.txt, kernels.csv and kernels.png. The exit status is 0 only if every step ran. docs/gpu.md says
what the machine needs.

    --wheels FOLDER   packages that are missing, as wheels: installed beside, not into, what is there
    --data DIR        a manifest (or its folder) whose audio the comparison of batches reads, in place of made-up speech
    --budget SECONDS  for all steps together (default: 490)
    --step NAME       only this step; repeat for several
    --cpu             the same in miniature without a GPU: shows that the steps run, measures nothing
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOG_CHARACTERS = 60_000  # of each step
GRACE_SECONDS = 8.0  # between what a step is told to keep to and what ends it


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: as the user sees it.
        share: of the time, against the shares of the steps that are still to come.
        command: what runs, given the output file, the seconds that it has, and the arguments of the command line.
    """

    name: str
    share: float
    command: Callable[[Path, float, argparse.Namespace], list[str]]


def script_step(script: str, step: str, *options: str) -> Callable[[Path, float, argparse.Namespace], list[str]]:
    """A step of gpu_machine.py or gpu_training.py; `options` name arguments to pass on when they are given."""

    def command(out: Path, seconds: float, args: argparse.Namespace) -> list[str]:
        parts = [sys.executable, str(HERE / script), step, "--out", str(out), "--until", f"{time.time() + seconds:.0f}"]
        for option in options:
            value = getattr(args, option)
            parts += [f"--{option}", str(value)] if value is not None else []
        return parts + (["--cpu"] if args.cpu else [])

    return command


def test_command(out: Path, seconds: float, args: argparse.Namespace) -> list[str]:
    """pytest on the kernels, without Triton's interpreter on a GPU."""
    tests = ["tests/kernels/test_case.py"] if args.cpu else ["tests/kernels"]
    parallel = ["-n", "8"] if not args.cpu and installed("xdist") else []
    return [sys.executable, "-m", "pytest", *tests, "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *parallel]


STEPS = (
    Step("environment", 6, script_step("gpu_machine.py", "environment")),
    Step("tests", 20, test_command),
    Step("benchmarks", 32, script_step("gpu_machine.py", "benchmarks", "commit")),
    Step("end_to_end", 12, script_step("gpu_training.py", "end_to_end")),
    Step("padding", 12, script_step("gpu_training.py", "padding", "data")),
    Step("batch_size", 12, script_step("gpu_training.py", "batch_size")),
    Step("recipe", 12, script_step("gpu_training.py", "recipe")),
)


def installed(module: str) -> bool:
    """Whether the children can import a module."""
    environment = child_environment()
    return (
        subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, capture_output=True, check=False).returncode
        == 0
    )


# ---------------------------------------------------------------------- packages

_added: list[str] = []  # folders with packages that the children import from


def add_wheels(folder: Path, site: Path) -> str:
    """Unpacks wheels for the children, by pip where it works; returns what was done.

    Raises:
        ValueError: there is no wheel in the folder.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ValueError(f"--wheels {folder} holds no wheel (*.whl)")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", str(folder), "--no-deps", "--upgrade"]
    pip = subprocess.run([*command, "--target", str(site), *map(str, wheels)], capture_output=True, text=True, check=False)
    if pip.returncode:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:  # refuses members that would leave the folder
                archive.extractall(site)
    _added.append(str(site))
    return f"{len(wheels)} wheels {'unpacked, pip would not install them' if pip.returncode else 'installed by pip'}"


def child_environment() -> dict[str, str]:
    """The environment of the steps: the checkout and the wheels first, no interpreter, no forced kernels."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "SPEECHKIT_KERNELS")}
    paths = [*_added, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


# ---------------------------------------------------------------------- steps


def run_steps(steps: Sequence[Step], args: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """Runs the steps while there is time; what a step leaves goes to those after it."""
    end = time.monotonic() + args.budget
    results: dict[str, dict[str, Any]] = {}
    for number, step in enumerate(steps):
        left = end - time.monotonic()
        limit = left * step.share / sum(each.share for each in steps[number:])
        if limit < args.least:
            results[step.name] = {"status": "skipped: no time left", "seconds": 0.0, "result": None}
            say(f"== {step.name}: skipped, no time left")
            continue
        say(f"== {step.name}: at most {limit:.0f} s")
        results[step.name] = run_step(step, limit, args, work)
        say(f"== {step.name}: {results[step.name]['status']} in {results[step.name]['seconds']:.0f} s")
    return results


def run_step(step: Step, limit: float, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs one step, its output shown as it comes and kept in log.txt, and ends it with all its children when its time is up."""
    out, log = work / f"{step.name}.json", work / f"{step.name}.log"
    begin = time.monotonic()
    command = step.command(out, max(limit - GRACE_SECONDS, limit / 2), args)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=child_environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = "ran" if code == 0 else f"failed with exit status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"stopped after {limit:.0f} s"
    text = log.read_text(encoding="utf-8", errors="replace")
    with (args.out / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"== {step.name}: {status}\n{text[-LOG_CHARACTERS:]}\n")
    say("\n".join(text.splitlines()[-args.lines :]))
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else None
    return {"status": status, "seconds": round(time.monotonic() - begin, 1), "result": result}


def say(text: str) -> None:
    """Prints at once."""
    print(text, flush=True)


# ---------------------------------------------------------------------- goals


@dataclass(frozen=True)
class KernelGoal:
    """What a fused kernel is to reach against a baseline in every shape that fits.

    Attributes:
        text: the goal in words.
        op: operation.
        baseline: pattern of the baselines' names.
        fits: whether the goal is about a shape, given its sizes.
        faster: least ratio of the baseline's time to ours, forward and backward; None for no such goal.
        memory: greatest ratio of our peak memory to the baseline's; None for no such goal.
    """

    text: str
    op: str
    baseline: str
    fits: Callable[[dict[str, float]], bool]
    faster: float | None = None
    memory: float | None = None


def is_long(sizes: dict[str, float]) -> bool:
    """Relative attention of 750 frames or more with 64 heads in all or more."""
    return sizes["relative"] == 1 and sizes["frames"] >= 750 and sizes["rows"] * sizes["heads"] >= 64


KERNEL_GOALS = (
    KernelGoal("CTC, V=1k: 2 times as fast as torch", "ctc_loss", "torch", lambda s: 1000 <= s["V"] < 2000, faster=2.0),
    KernelGoal("CTC, V=5k: 3 times as fast as torch", "ctc_loss", "torch", lambda s: s["V"] >= 5000, faster=3.0),
    KernelGoal("CTC, V=5k: 0.4 of torch's memory", "ctc_loss", "torch", lambda s: s["V"] >= 5000, memory=0.4),
    KernelGoal("relative attention: 3 times as fast as eager", "attention", "eager", is_long, faster=3.0),
    KernelGoal("relative attention: 2 times as fast as SDPA with a bias", "attention", "sdpa", is_long, faster=2.0),
)


def read_sizes(text: str) -> dict[str, float]:
    """The numbers of a shape as the benchmark writes it, "V=1000 lens=32x750"; `rows` of its lengths; whether it is relative."""
    sizes = {name: float(value) for name, value in re.findall(r"(\w+)=(\d+)(?!\S)", text)}
    rows = re.search(r"\blens=(\d+)x", text)
    return sizes | {"rows": float(rows[1]) if rows else sizes.get("B", 1.0), "relative": float("position=relative" in text)}


def kernel_goals(path: Path) -> list[tuple[bool | None, str]]:
    """Whether each goal is reached, None where it was not measured, and a line that says by how much."""
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["part"] == "both" and not row["note"]]
    lines: list[tuple[bool | None, str]] = []
    for goal in KERNEL_GOALS:
        found = []
        for ours in [row for row in rows if (row["op"], row["contestant"], row["kind"]) == (goal.op, "triton", "backend")]:
            sizes = read_sizes(ours["sizes"])
            case = {name: ours[name] for name in ("op", "shape", "dtype", "date", "device")}
            rivals = [row for row in rows if case.items() <= row.items() and row["kind"] == "baseline"]
            for other in [row for row in rivals if goal.fits(sizes) and re.search(goal.baseline, row["contestant"])]:
                column, best = ("p50_ms", goal.faster) if goal.faster else ("peak_mb", goal.memory)
                assert best is not None
                ratio = float(other[column]) / float(ours[column]) if goal.faster else float(ours[column]) / float(other[column])
                found.append((ratio >= best if goal.faster else ratio <= best, f"{ours['shape']} {ours['dtype']} {ratio:.2f}"))
        reached = all(good for good, _ in found) if found else None
        lines.append((reached, f"{goal.text}: {'; '.join(text for _, text in found) or 'not measured'}"))
    return [*lines, linear_memory(rows)]


def linear_memory(rows: Sequence[dict[str, str]]) -> tuple[bool | None, str]:
    """Whether the memory of relative attention grows no faster than the number of frames."""
    text = "relative attention: memory grows as T"
    points: dict[str, list[tuple[float, float]]] = {}
    for row in [row for row in rows if (row["op"], row["contestant"]) == ("attention", "triton") and row["peak_mb"]]:
        sizes = read_sizes(row["sizes"])
        if sizes["relative"] and "chunk_size" not in sizes:
            by_frame = float(row["peak_mb"]) / (sizes["rows"] * sizes["heads"] * sizes["frames"])
            points.setdefault(row["dtype"], []).append((sizes["frames"], by_frame))
    growth = [max(found)[1] / min(found)[1] for found in points.values() if len(found) > 1]
    if not growth:
        return None, f"{text}: not measured"
    return max(growth) < 1.3, f"{text}: per frame, the longest takes {max(growth):.2f} times as much as the shortest"


def training_goals(results: dict[str, dict[str, Any]]) -> list[tuple[bool | None, str]]:
    """The same for training."""
    step, padding = ((results.get(name) or {}).get("result") for name in ("end_to_end", "padding"))
    lines: list[tuple[bool | None, str]] = []
    for position in ("relative", "rope"):
        ratio = step[position]["speedup"] if step else None
        lines.append((_at_least(ratio, 1.3), f"training step, {position} positions: 1.3 times as fast: {_number(ratio)}"))
    ratios = {name: each["ratio"] for name, each in (padding or {}).items()}
    best = max(ratios.values()) if ratios else None
    lines.append((_at_least(best, 2.0), f"batches of similar length: 2 times the audio per second: {ratios or 'not measured'}"))
    return lines


def _at_least(value: float | None, least: float) -> bool | None:
    return None if value is None else value >= least


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


# ---------------------------------------------------------------------- report


def write_report(args: argparse.Namespace, results: dict[str, dict[str, Any]], goals: Sequence[tuple[bool | None, str]]) -> None:
    """summary.json, report.md and the drawing."""
    summary = {"commit": args.commit, "miniature": args.cpu, "steps": results, "goals": [[*goal] for goal in goals]}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    lines = ["# GPU check", "", *(["A miniature on a CPU: its figures mean nothing.", ""] if args.cpu else [])]
    facts = (results.get("environment") or {}).get("result") or {}
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "packages"]
    lines += ["", "| step | | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {each['status']} | {each['seconds']:.0f} |" for name, each in results.items()]
    lines += ["", "| goal | |", "|---|---|", *(f"| {text} | {VERDICTS[reached]} |" for reached, text in goals), ""]
    rows = args.out / "kernels.csv"
    if rows.exists():
        command = [sys.executable, str(HERE / "bench_kernels.py"), "--rows", str(rows), "--table"]
        command += ["--plot", str(args.out / "kernels.png")] if installed("matplotlib") else []
        made = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
        lines += [made.stdout or made.stderr[-500:]]
    (args.out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


VERDICTS = {True: "reached", False: "missed", None: "not measured"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps and reports; 0 if all ran."""
    args = _parser().parse_args(argv)
    if unknown := set(args.step) - {step.name for step in STEPS}:
        raise SystemExit(f"--step {unknown.pop()}: choose among {', '.join(step.name for step in STEPS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "report.md", "log.txt", "kernels.csv", "kernels.png"):
        (args.out / name).unlink(missing_ok=True)
    if args.commit is None:
        found = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        args.commit = found.stdout.strip() or "unknown"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if args.wheels:
            say(add_wheels(args.wheels, work / "site"))
        results = run_steps([step for step in STEPS if not args.step or step.name in args.step], args, work)
        if (work / "kernels.csv").exists():
            (args.out / "kernels.csv").write_bytes((work / "kernels.csv").read_bytes())
    goals = [*kernel_goals(args.out / "kernels.csv"), *training_goals(results)]
    write_report(args, results, goals)
    for reached, text in goals:
        say(f"{VERDICTS[reached]}: {text}")
    return int(any(each["status"] != "ran" for each in results.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    add("--wheels", type=Path, metavar="FOLDER", help="packages that are missing")
    add("--data", type=Path, metavar="DIR", help="manifest of real speech for the comparison of batches")
    add("--budget", type=float, default=490.0, metavar="SECONDS", help="for all steps together (default: 490)")
    add("--least", type=float, default=5.0, metavar="SECONDS", help="a step with less than this is skipped (default: 5)")
    add("--step", action="append", default=[], metavar="NAME", help="only this step; repeat for several")
    add("--lines", type=int, default=25, help="lines of each step's output to show (default: 25; log.txt has more)")
    add("--commit", help="what to write as the commit (default: that of the checkout)")
    add("--cpu", action="store_true", help="in miniature, without a GPU")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

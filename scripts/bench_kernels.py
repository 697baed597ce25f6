"""Kernels side by side with what else does the same: time of forward and backward, peak memory.

    python scripts/bench_kernels.py [--op NAME] [--backend NAME] [--without NAME] [--shape NAME] [--dtype fp32,bf16]
                                    [--rounds N] [--out FILE.csv] [--table] [--against NAME] [--plot FILE.png]

Operations, sizes and baselines are those of `speechkit/kernels/<op>/cases.py`. All contestants of a case (operation, shape,
dtype) take turns in every round, in an order that rotates. `forward` runs as in training, with what backward needs kept;
`backward` follows on it; `both` is one after the other. On a GPU CUDA events are read, its cache is overwritten before each
run, and what the processor needs to launch kernels is in the times once it exceeds that overwriting (0.1 ms). `speedup` is
the median over rounds of the time of the baseline named by `against` over the contestant's time in the same round.

Peak memory is what a contestant takes above its inputs: of torch's allocator on a GPU; on a CPU resident memory of a fresh
process, which has run a few of the test shapes before, so that libraries and compiled code are not counted.

A contestant that cannot run (package missing, arguments not supported, out of memory) is a row that says so. Triton is left
out without a GPU: its interpreter's times mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gc
import importlib
import importlib.util
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from speechkit.data.batch_size import is_out_of_memory
from speechkit.kernels import case
from speechkit.kernels.case import Op
from speechkit.kernels.dispatch import HAS_NUMBA, HAS_TRITON, interpreting
from speechkit.kernels.measure import PARTS, Contestant, Runner, play_rounds

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP_SHAPES = 3
NUMBERS, COUNTS = ("p20_ms", "p50_ms", "p80_ms", "peak_mb", "speedup"), ("threads", "rounds")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the CSV: a part of a contestant's run; empty numbers and a note where it could not run.

    Attributes:
        kind: "backend" for an implementation of ours, "baseline" for one of others.
        part: "forward", "backward" or "both".
        p20_ms, p50_ms, p80_ms: percentiles over rounds, milliseconds.
        peak_mb: megabytes (1e6 bytes) above the inputs.
        speedup: of this contestant over `against`, above 1 when it is faster.
    """

    date: str
    commit: str
    device: str
    threads: int
    python: str
    torch: str
    triton: str
    op: str
    shape: str
    sizes: str
    dtype: str
    kind: str
    contestant: str
    part: str = "both"
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    peak_mb: float | None = None
    rounds: int = 0
    against: str = ""
    speedup: float | None = None
    note: str = ""

    @property
    def case(self) -> tuple[str, str, str]:
        """Rows of one case are comparable."""
        return self.op, self.shape, self.dtype


COLUMNS = [field.name for field in fields(Row)]


# ---------------------------------------------------------------------- what takes part


def find_ops(cases: Path | None, names: Sequence[str]) -> list[Op]:
    """Operations by their name or that of their folder; all when no names are given.

    Args:
        cases: a file that exports `OPS`; None for those of the package.
        names: which to take.

    Raises:
        ValueError: no operation has the name.
    """
    found: list[tuple[str, Op]] = []
    if cases is None:
        for path in sorted(Path(case.__file__).parent.glob("*/cases.py")):
            module = importlib.import_module(f"speechkit.kernels.{path.parent.name}.cases")
            found += [(path.parent.name, op) for op in module.OPS]
    else:
        spec = importlib.util.spec_from_file_location("kernel_cases", cases)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        found += [(cases.stem, op) for op in module.OPS]
    known = {name for folder, op in found for name in (folder, op.name)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--op {unknown[0]} is unknown; choose among {', '.join(sorted(known))}")
    own = {op.name for _, op in found}  # an operation stands before a folder of the same name
    return [op for folder, op in found if not names or op.name in names or (folder in names and folder not in own)]


def contestants(op: Op, backends: Sequence[str], without: Sequence[str], device: torch.device) -> Iterator[Contestant]:
    """Backends that run here, then baselines; says what is left out. The reference takes part only when asked for."""
    for name in op.backends:
        if name not in backends if backends else name == "reference":
            continue
        if name == "triton" and (device.type != "cuda" or interpreting() or not HAS_TRITON):
            print(f"{op.name}: triton left out: it needs a GPU and the triton package, without TRITON_INTERPRET", flush=True)
        elif name == "numba" and not HAS_NUMBA:
            print(f"{op.name}: numba left out: it is not installed", flush=True)
        else:
            yield Contestant("backend", name, lambda arguments, name=name: op.run(arguments, name))  # type: ignore[misc]
    for name, run in op.baselines.items():
        if name not in without:
            yield Contestant("baseline", name, run)


def shapes(op: Op, names: Sequence[str], *, small: bool) -> dict[str, case.Shape]:
    """Sizes to measure: those named, else all of real use, or the first of the tests."""
    every = {**op.test_shapes, **op.bench_shapes}
    if names:
        return {name: every[name] for name in names if name in every}
    return dict(list(op.test_shapes.items())[:1]) if small else dict(op.bench_shapes)


# ---------------------------------------------------------------------- measuring


def measure_case(
    op: Op, shape_name: str, dtype_name: str, rivals: Sequence[Contestant], base: Row, args: argparse.Namespace
) -> list[Row]:
    """Rows of all contestants of one case."""
    device = torch.device(args.device)
    shape = {**op.test_shapes, **op.bench_shapes}[shape_name]
    base = replace(base, op=op.name, shape=shape_name, sizes=describe(shape), dtype=dtype_name)
    runners: dict[Contestant, Runner] = {}
    rows: list[Row] = []
    try:
        arguments = op.draw(shape, dtype=DTYPES[dtype_name], device=device, seed=0)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return [replace(base, kind=rival.kind, contestant=rival.name, note="inputs: out of memory") for rival in rivals]
    for rival in rivals:
        runner = Runner(op, rival, arguments, device)
        note = try_out(runner)
        if note:
            rows.append(replace(base, kind=rival.kind, contestant=rival.name, note=note))
        else:
            runners[rival] = runner
    times = play_rounds(list(runners.values()), rounds=args.rounds, seconds=args.seconds)
    against = choose_baseline(list(runners), args.against)
    for rival, runner in runners.items():
        peaks = {} if args.no_memory else peak_memory(op, shape_name, dtype_name, runner, args)
        rows += rows_of(replace(base, kind=rival.kind, contestant=rival.name), times, rival, against, peaks)
    return rows


def try_out(runner: Runner) -> str:
    """Runs a contestant twice: it compiles, allocates, and either works or says why not."""
    try:
        for _ in range(2):
            runner.seconds()
    except ImportError as error:
        note = f"not installed: {error}"
    except NotImplementedError as error:
        note = f"not supported: {error}"
    except Exception as error:
        note = "out of memory" if is_out_of_memory(error) else f"failed: {type(error).__name__}: {error}"
    else:
        return ""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return re.sub(r"\s+", " ", note)[:200]


def choose_baseline(rivals: Sequence[Contestant], wanted: str | None) -> Contestant | None:
    """What others are compared with: the one asked for, else the first baseline, else the backend "torch"."""
    ranked = sorted(rivals, key=lambda rival: (rival.name != wanted, rival.kind != "baseline", rival.name != "torch"))
    if not ranked or (ranked[0].kind == "backend" and ranked[0].name not in (wanted, "torch")):
        return None
    return ranked[0]


def rows_of(
    base: Row,
    times: dict[Contestant, list[dict[str, float]]],
    rival: Contestant,
    against: Contestant | None,
    peaks: dict[str, int],
) -> Iterator[Row]:
    """Rows of one contestant."""
    for part in [part for part in PARTS if part in times[rival][0]]:
        own = [each[part] for each in times[rival]]
        p20, p50, p80 = (1000 * np.percentile(own, (20, 50, 80))).tolist()
        row = replace(base, part=part, p20_ms=p20, p50_ms=p50, p80_ms=p80, rounds=len(own))
        if part in peaks:
            row = replace(row, peak_mb=peaks[part] / 1e6)
        if against is not None and part in times[against][0]:
            ratio = np.median([other[part] / mine for other, mine in zip(times[against], own, strict=True)])
            row = replace(row, against=against.name, speedup=float(ratio))
        yield row


def peak_memory(op: Op, shape_name: str, dtype_name: str, runner: Runner, args: argparse.Namespace) -> dict[str, int]:
    """Bytes above the inputs, by part; nothing where they cannot be measured."""
    rival = runner.contestant
    if runner.device.type == "cuda":
        return runner.peak_bytes()
    child = {"op": op.name, "shape": shape_name, "dtype": dtype_name, "kind": rival.kind, "name": rival.name}
    command = [sys.executable, __file__, "--memory-child", json.dumps(child), "--threads", str(torch.get_num_threads())]
    command += ["--cases", str(args.cases)] if args.cases else []
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        print(f"{op.name}, {rival.name}: memory not measured: {finished.stderr.strip().splitlines()[-1:]}", flush=True)
        return {}
    return json.loads(finished.stdout.splitlines()[-1])


def memory_child(args: argparse.Namespace) -> dict[str, int]:
    """What `peak_memory` runs in a process of its own on a CPU."""
    wanted = json.loads(args.memory_child)
    [op] = [op for op in find_ops(args.cases, [wanted["op"]]) if op.name == wanted["op"]]
    backends = [wanted["name"]] if wanted["kind"] == "backend" else []
    device = torch.device("cpu")
    [rival] = [
        each for each in contestants(op, backends, [], device) if (each.kind, each.name) == (wanted["kind"], wanted["name"])
    ]
    draw = {"dtype": DTYPES[wanted["dtype"]], "device": device, "seed": 0}
    for shape in list(op.test_shapes.values())[:WARM_UP_SHAPES]:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            Runner(op, rival, op.draw(shape, **draw), device).seconds()
    shape = {**op.test_shapes, **op.bench_shapes}[wanted["shape"]]
    return Runner(op, rival, op.draw(shape, **draw), device).peak_bytes()


# ---------------------------------------------------------------------- reporting


def describe(shape: case.Shape) -> str:
    """A shape in one line: its plain values, and of lists how many there are and the largest."""
    values = {name: value for name, value in shape.items() if isinstance(value, bool | int | float | str)}
    values |= {name: f"{len(value)}x{max(value)}" for name, value in shape.items() if isinstance(value, list | tuple) and value}
    return " ".join(f"{name}={value}" for name, value in values.items())


def environment(device: torch.device, commit: str | None) -> Row:
    """What all rows of a run share."""
    if commit is None:
        found = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or "unknown"
    triton = importlib.import_module("triton").__version__ if HAS_TRITON else ""
    return Row(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        commit=commit,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=triton,
        op="", shape="", sizes="", dtype="", kind="", contestant="",
    )  # fmt: skip


def cpu_name() -> str:
    """Name of the processor."""
    with suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a CSV, which gets its header when it is new.

    Raises:
        ValueError: it has other columns.
    """
    is_new = not path.exists() or not path.stat().st_size
    if not is_new:
        read_rows(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()})


def read_rows(path: Path) -> list[Row]:
    """What `append_rows` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path} has other columns than this script writes; name another file")
        rows = []
        for values in reader:
            numbers = {key: float(values[key]) if values[key] else None for key in NUMBERS}
            whole = {key: int(values[key]) for key in COUNTS}
            rows.append(Row(**{**values, **numbers, **whole}))  # type: ignore[arg-type]
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows as markdown: milliseconds (medians), memory, and how many times as fast as the baseline."""
    lines = ["| op | shape | dtype | | forward, ms | backward, ms | both, ms | times as fast | peak MB | of its memory |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((*row.case, row.kind, row.contestant) for row in rows):
        own = {row.part: row for row in rows if (*row.case, row.kind, row.contestant) == key}
        whole = own["both"] if "both" in own else own["forward"]
        name = f"**{whole.contestant}**" if whole.kind == "backend" else whole.contestant
        head = f"| {whole.op} | {whole.shape} ({whole.sizes}) | {whole.dtype} | {name}"
        if whole.note:
            lines.append(f"{head} | {whole.note} | | | | | |")
            continue
        other = next((r for r in rows if r.case == whole.case and (r.contestant, r.part) == (whole.against, whole.part)), None)
        memory = whole.peak_mb / other.peak_mb if other and other.peak_mb and whole.peak_mb is not None else None
        cells = [_cell(own[part].p50_ms if part in own else None) for part in PARTS]
        cells += [_cell(whole.speedup), _cell(whole.peak_mb), _cell(memory)]
        lines.append(f"{head} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    """Three digits, or all before the point."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of the median times of `both` (or `forward` where there is no gradient), one panel per operation and dtype."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    whole = [row for row in rows if row.part == "both" and row.p50_ms is not None]
    panels = list(dict.fromkeys((row.op, row.dtype) for row in whole))
    if not panels:
        return
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, 2.6 * len(panels)), squeeze=False, layout="constrained")
    for (op, dtype), axis in zip(panels, axes[:, 0]):
        own = [row for row in whole if (row.op, row.dtype) == (op, dtype)]
        names, places = (list(dict.fromkeys(values)) for values in zip(*((row.contestant, row.shape) for row in own)))
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            bars = [(places.index(row.shape) + number * width, row.p50_ms) for row in own if row.contestant == name]
            axis.bar(*zip(*bars), width, label=name)
        axis.set_xticks([place + 0.4 - width / 2 for place in range(len(places))], places, fontsize=7)
        axis.set(yscale="log", ylabel="ms", title=f"{op}, {dtype}")
        axis.legend(fontsize=7)
    figure.suptitle(f"{whole[0].device}, torch {whole[0].torch}, {whole[0].date[:10]}", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the status is 1 when a contestant failed for no good reason."""
    args = _parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_child:
        print(json.dumps(memory_child(args)))
        return 0
    rows: list[Row] = []
    if args.rows:
        rows = read_rows(args.rows)
    else:
        if args.out and args.out.exists():
            read_rows(args.out)  # refuses before anything is measured
        rows = list(measure_all(args))
    if args.table:
        print(table(rows))
    if args.plot:
        plot(rows, args.plot)
    return int(any(row.note.startswith("failed") for row in rows))


def measure_all(args: argparse.Namespace) -> Iterator[Row]:
    """Measures what was asked for, and writes the rows of each case at once."""
    device = torch.device(args.device)
    base = environment(device, args.commit)
    dtypes = args.dtype.split(",") if args.dtype else ["fp32", "bf16"] if device.type == "cuda" else ["fp32"]
    for op in find_ops(args.cases, args.op):
        rivals = list(contestants(op, args.backend, args.without, device))
        for shape_name in shapes(op, args.shape, small=args.small):
            for dtype_name in dtypes:
                rows = measure_case(op, shape_name, dtype_name, rivals, base, args)
                if args.out:
                    append_rows(args.out, rows)
                for row in rows:
                    if row.part == "both" or row.note:
                        ratio = "" if row.speedup is None else f"  x{row.speedup:.2f}"
                        result = row.note or f"{row.p50_ms:.4g} ms{ratio}"
                        print(f"{op.name} {shape_name} {dtype_name} {row.contestant}: {result}", flush=True)
                yield from rows
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_kernels.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--op", action="append", default=[], help="operation, or folder of operations; repeat for several (default: all)")
    add("--backend", action="append", default=[], help="implementation; repeat for several (default: all but reference)")
    add("--without", action="append", default=[], help="baseline to leave out; repeat for several")
    add("--shape", action="append", default=[], help="name of a shape; repeat for several (default: all of real use)")
    add("--small", action="store_true", help="the first of the test shapes instead: only shows that everything runs")
    add("--dtype", help="fp32, bf16, fp16, or several with commas (default: fp32, and bf16 on a GPU)")
    add("--rounds", type=int, default=20, help="most rounds of a case (default: 20)")
    add("--seconds", type=float, default=20.0, help="no further round of a case after this time (default: 20)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default: cuda if there is one)")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--against", help="baseline of the ratios (default: the first that ran)")
    add("--no-memory", action="store_true", help="times alone")
    add("--out", type=Path, metavar="FILE.csv", help="append the rows there")
    add("--rows", type=Path, metavar="FILE.csv", help="measure nothing: draw and print what this file holds")
    add("--table", action="store_true", help="print the rows as markdown")
    add("--plot", type=Path, metavar="FILE.png", help="draw the rows")
    add("--cases", type=Path, metavar="FILE.py", help="operations of this file, which exports OPS, instead of the package's")
    add("--commit", help="what to write as the commit (default: that of the checkout)")
    add("--memory-child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

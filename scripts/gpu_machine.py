"""Steps of scripts/gpu_check.py that look at the machine and its kernels: `python scripts/gpu_machine.py STEP --out FILE.json`.

`--cpu` is the same in miniature, without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "torch", "triton", "numpy", "pytest", "hypothesis", "numba", "torchaudio", "pyyaml", "lightning", "hydra-core", "omegaconf",
    "soundfile", "soxr", "sentencepiece", "matplotlib",
)  # fmt: skip
# Operations and options of scripts/bench_kernels.py, in the order of their worth; FlexAttention takes long to compile.
RELATIVE = ("--shape", "relative T=250", "--shape", "relative T=750", "--shape", "relative T=1500")
OTHERS = ("--shape", "rope T=750", "--shape", "rope T=1500", "--shape", "relative chunks T=1500", "--shape", "causal T=64")
PLAN = (
    ("ctc_loss", "--dtype", "bf16,fp32"),
    ("attention", "--dtype", "bf16", "--without", "flex", *RELATIVE),
    ("linear_ctc_loss", "--dtype", "bf16"),
    ("attention", "--dtype", "bf16", "--without", "flex", *OTHERS),
    ("decode_attention", "--dtype", "bf16"),
    ("attention", "--dtype", "fp32", "--without", "flex", *RELATIVE),
    ("attention", "--dtype", "bf16", "--without", "eager", "--without", "sdpa", "--shape", "relative T=750"),
)


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """The machine, what is installed, and how fast the card copies and multiplies."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    facts: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count(), "packages": versions}
    facts["absent"] = [name for name, version in versions.items() if not version]
    if args.device.type == "cuda":
        card = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        facts |= {
            "card": card.name, "capability": f"{card.major}.{card.minor}", "memory_gb": card.total_memory / 1e9,
            "multiprocessors": card.multi_processor_count, "driver": driver, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
        source = torch.randn(1 << 29, device=args.device)
        facts["copy_tb_per_s"] = 2 * source.nbytes / _median_seconds(source.clone) / 1e12
        square = torch.randn(8192, 8192, device=args.device, dtype=torch.bfloat16)
        facts["bf16_tflop_per_s"] = 2 * 8192**3 / _median_seconds(lambda: square @ square) / 1e12
    print(json.dumps(facts, indent=1))
    return facts


def _median_seconds(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(8):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[2:])


def benchmarks(args: argparse.Namespace) -> dict[str, Any]:
    """scripts/bench_kernels.py, one operation after the other in processes of their own, until the time is up."""
    end = time.monotonic() + args.seconds
    folders = sorted(path.parent.name for path in (HERE.parent / "speechkit" / "kernels").glob("*/cases.py"))
    planned = {name for name, *_ in PLAN}
    rest = [(name, "--dtype", "fp32") for name in folders if name not in planned]
    plan = [(name, "--dtype", "fp32") for name in folders] if args.cpu else [*PLAN[:5], *rest, *PLAN[5:]]
    settings = ["--device", args.device.type, "--seconds", "0.1" if args.cpu else "1.5"]
    settings += ["--out", str(args.out.with_name("kernels.csv")), *(["--small", "--no-memory"] if args.cpu else [])]
    settings += ["--commit", args.commit] if args.commit else []
    status: dict[str, str] = {}
    for name, *options in plan:
        case, left = " ".join([name, *options]), end - time.monotonic()
        if left < 5:
            status[case] = "no time left"
            continue
        command = [sys.executable, str(HERE / "bench_kernels.py"), "--op", name, *options, *settings]
        try:
            code = subprocess.run(command, timeout=left, check=False).returncode
            status[case] = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            status[case] = "stopped: no time left"
    for case, outcome in status.items():
        print(f"{outcome}: {case}")
    return {"status": status, "failed": any(outcome.startswith("exit code") for outcome in status.values())}


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {step.__name__: step for step in (environment, benchmarks)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write; benchmarks adds kernels.csv beside it")
    parser.add_argument("--cpu", action="store_true", help="in miniature, on the CPU")
    parser.add_argument("--until", type=float, default=time.time() + 120, help="when the step should end, in seconds since 1970")
    parser.add_argument("--commit", help="what to write as the commit of the benchmark's rows")
    args = parser.parse_args(argv)
    args.seconds = max(0.0, args.until - time.time())
    args.device = torch.device("cpu" if args.cpu else "cuda")
    result = STEPS[args.step](args)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(result.get("failed", False))


if __name__ == "__main__":
    raise SystemExit(main())

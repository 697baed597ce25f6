"""Speed of recognition (RTFx) from hypotheses files, with a statement of what was timed.

    python scripts/rtfx.py hyps.jsonl [more.jsonl ...] [--json FILE]

RTFx = sum(audio_s) / sum(decode_s): seconds of audio recognised in one second; higher is better. How the times were taken
is read from hyps.jsonl.meta.json, which decoding writes. Exit status: 0, or 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechkit.metrics.hyps import read_hyps
from speechkit.metrics.rtfx import Band, RtfxReport, RunInfo, measure_rtfx, read_run_info, run_info_path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rtfx.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hyps", nargs="+", help="hyps.jsonl with audio_s and decode_s in each row")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    args = parser.parse_args(argv)
    results: list[tuple[Path, RtfxReport, RunInfo | None]] = []
    try:
        for path in map(Path, args.hyps):
            rows = read_hyps(path, texts=(), seconds=("audio_s", "decode_s"))
            results.append((path, measure_rtfx(rows), read_run_info(path)))
        if args.json:
            text = json.dumps({"files": [_to_json(*result) for result in results]}, indent=2, ensure_ascii=False)
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"rtfx: {error}", file=sys.stderr)
        return 2
    for path, report, info in results:
        _print_report(path, report, info)
    return 0


def _to_json(path: Path, report: RtfxReport, info: RunInfo | None) -> dict[str, Any]:
    return {
        "path": str(path),
        **_band_json(report.overall),
        "bands": [_band_json(band) for band in report.bands],
        "run": asdict(info) if info else None,
    }


def _band_json(band: Band) -> dict[str, Any]:
    return {**asdict(band), "rtfx": band.rtfx if math.isfinite(band.rtfx) else None}


def _print_report(path: Path, report: RtfxReport, info: RunInfo | None) -> None:
    total = report.overall
    print(f"{path}: RTFx {total.rtfx:.1f}  ({total.audio_s:.1f} s of audio in {total.decode_s:.2f} s)")
    for line in _describe(path, info):
        print(f"  {line}")
    print(f"  {'audio length':<14}{'utterances':>10}{'audio s':>12}{'decode s':>12}{'RTFx':>10}")
    for band in report.bands:
        print(f"  {band.label:<14}{band.num_utterances:>10}{band.audio_s:>12.1f}{band.decode_s:>12.3f}{band.rtfx:>10.1f}")
    print()


def _describe(path: Path, info: RunInfo | None) -> list[str]:
    """What was timed and how, in lines of text."""
    if info is None:
        return [f"how this was timed is not known: {run_info_path(path).name} is not there"]
    if info.batch_seconds is not None:
        batch = f"batches of {info.batch_seconds:g} padded seconds"
    else:
        batch = f"batch size {info.batch_size}" if info.batch_size is not None else "batch size not stated"
    lines = [
        f"timed: {', '.join(info.timed)}; not timed: {', '.join(info.not_timed)}",
        f"device {info.device}, {info.dtype}, {info.threads} CPU threads, {batch}, {info.warmup_batches} warm-up batches",
    ]
    if info.wall_s is not None:
        lines.append(f"whole run, everything included: {info.wall_s:.2f} s")
    if info.decode:
        lines.append("decode: " + ", ".join(f"{name}={value}" for name, value in info.decode.items()))
    if info.checkpoint:
        lines.append(f"checkpoint: {info.checkpoint}")
    if info.versions:
        lines.append("versions: " + ", ".join(f"{name} {value}" for name, value in info.versions.items()))
    if info.command:
        lines.append(f"command: {info.command}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

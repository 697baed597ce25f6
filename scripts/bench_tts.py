"""Synthesis side by side, in one run: ours of every family, an autoregressive baseline, vocoders, and what others have published.

    python scripts/bench_tts.py [--quick] [--only NAME] [--batches 1,8] [--threads N] [--rounds N] [--seconds S]
                                [--jsonl FILE] [--markdown FILE.md]

Random weights, 10 s of speech of 120 phones from every system: predictors of durations run, and what they say is then replaced.
Sizes are those of conf/model: fastspeech_base and matcha_base with mels at 22.05 kHz, f5_small at 24 kHz without a prompt, and
MaskGCT with two Transformers 12 x 768 and the decoder of codec_rvq_base. Vocoders are Vocos (8 x 512), HiFi-GAN V1 with its
weight norm folded, and Griffin-Lim with 60 iterations.

The baseline, which is kept here alone, is a decoder in the manner of Transformer-TTS (Li et al. 2019): one frame a step, prenet,
six layers 256 wide with self-attention and attention to the encoded phones; encoder and PostNet are those of FastSpeech 2.
"AR Transformer" keeps keys and values of past frames; "equal size" has wider feed-forward layers, for as many parameters as
FastSpeech 2; "no cache" goes through all past frames again for every new one, as the plainest code does. The prenet has no
dropout. It says exactly 10 s: there is nothing to learn when to stop from.

Published systems (scripts/tts_peers.py has their sizes) take part where they are installed, each called as its own inference code
does; those that are not are named and left out.

The systems take turns within each round, in an order that rotates, after a warm-up on little speech. `s` is the median over
rounds with percentiles 20 and 80; `as fast` how many times as fast as "AR Transformer", the median over rounds; a case gets no
further round once it has taken --seconds, but always one. `x real time` is seconds of speech per second, over all of a batch.
`first audio` is what `Synthesizer.stream` waits for: from the phones of a first piece of 60 characters (5 s) to its waveform, by
the Vocos of the mels; for vocoders it is their own share. The slowest are measured in batches of one row alone.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tts_contestants import BASELINE, EQUAL_SIZE, ESPNET_AR, SMALL, UNCACHED, Sizes, System, Work, build
from tts_peers import peers

from speechkit.models.vocoder.model import Vocoder

ROOT = Path(__file__).resolve().parent.parent
HEADINGS = ("system", "batch", "parameters, M", "s", "20 to 80 %", "as fast", "real-time factor", "x real time", "first audio, s",
            "rounds")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a report; `as_fast` is None for vocoders, `first_audio_s` for batches of several rows and for peers."""

    date: str
    commit: str
    cpu: str
    threads: int
    versions: str
    system: str
    kind: str
    steps: int
    guided: bool
    parameters: int
    speech_s: float
    batch: int
    rounds: int = 0
    s: float = 0.0
    p20_s: float = 0.0
    p80_s: float = 0.0
    as_fast: float | None = None
    real_time_factor: float = 0.0
    first_audio_s: float | None = None


# ---------------------------------------------------------------------- measuring


class Measured(NamedTuple):
    """Seconds by round, of all cases (label, rows of the batch), and of first pieces of speech (label)."""

    whole: dict[tuple[str, int], dict[int, float]]
    first: dict[str, dict[int, float]]


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Wall-clock seconds of one call, and what it gives."""
    start = time.perf_counter()
    with torch.inference_mode():
        made = function()
    return time.perf_counter() - start, made


def first_audio(system: System, work: Work, vocos: Sequence[Vocoder]) -> Tensor:
    """Phones to a waveform; mels to a waveform for vocoders."""
    made = system.run(work)
    if system.vocoder:
        return made
    [vocoder] = [each for each in vocos if each.mel is system.mel]
    return vocoder.vocode(made, torch.full((len(made),), made.shape[1]))[0]


def check(system: System, work: Work, made: Tensor) -> None:
    """Sees that the work was the same.

    Raises:
        SystemExit: a system made more or less speech, or not of all rows.
    """
    frames = work.num_frames(system.mel)
    size = int(system.mel.num_samples(torch.tensor(frames))) if system.vocoder else frames
    if made.shape[:2] != (work.rows, size):
        raise SystemExit(f"{system.label}: {tuple(made.shape)} instead of {work.rows} rows of {size}")


def measure(
    systems: Sequence[System], vocos: Sequence[Vocoder], sizes: Sizes, batches: Sequence[int], rounds: int, seconds: float
) -> Measured:
    """Runs the rounds after a warm-up on little speech; a case that has taken `seconds` gets no further one."""
    measured = Measured(defaultdict(dict), defaultdict(dict))
    first = Work(sizes.first_seconds, 1)
    cases = [(system, batch) for batch in batches for system in systems if batch == 1 or not system.alone]
    for system in systems:
        warm_up = system.run if system.rival else partial(first_audio, system, vocos=vocos)
        timed(partial(warm_up, Work(min(1.0, sizes.first_seconds), 1)))
    for number in range(rounds):
        turn = number % len(cases)
        for system, batch in [*cases[turn:], *cases[:turn]]:
            own = measured.whole[system.label, batch]
            if sum(own.values()) >= seconds and number:
                continue
            work = Work(sizes.seconds, batch)
            own[number], made = timed(partial(system.run, work))
            check(system, work, made)
            if batch == 1 and not system.rival:
                measured.first[system.label][number], _ = timed(partial(first_audio, system, first, vocos))
            print(f"round {number + 1}: {system.label}, batch {batch}: {own[number]:.3f} s", file=sys.stderr, flush=True)
    return measured


def ratio(slow: dict[int, float], fast: dict[int, float]) -> float | None:
    """Median over common rounds of how many times as fast; None without any."""
    both = slow.keys() & fast.keys()
    return statistics.median(slow[number] / fast[number] for number in both) if both else None


def to_rows(systems: Sequence[System], measured: Measured, sizes: Sizes, base: Row) -> list[Row]:
    """Rows of all cases, as they were measured."""
    rows, by_label = [], {system.label: system for system in systems}
    for (label, batch), times in measured.whole.items():
        system, first = by_label[label], measured.first[label]
        p20, median, p80 = (float(value) for value in np.percentile(list(times.values()), (20, 50, 80)))
        baseline = {} if system.vocoder else measured.whole[BASELINE, batch]
        rows.append(
            replace(
                base,
                system=system.name,
                kind="vocoder" if system.vocoder else "mel",
                steps=system.steps,
                guided=system.guided,
                parameters=system.parameters,
                speech_s=sizes.seconds,
                batch=batch,
                rounds=len(times),
                s=median,
                p20_s=p20,
                p80_s=p80,
                as_fast=ratio(baseline, times),
                real_time_factor=median / (batch * sizes.seconds),
                first_audio_s=statistics.median(first.values()) if first and batch == 1 else None,
            )
        )
    return rows


def goals(measured: Measured, rows: Sequence[Row], systems: Sequence[System] = ()) -> list[str]:
    """What the figures should be, and whether they are; nothing of what was not measured."""
    lines = []
    for slow in (BASELINE, EQUAL_SIZE, UNCACHED):
        found = ratio(measured.whole.get((slow, 1), {}), measured.whole.get(("FastSpeech 2", 1), {}))
        if found is not None:
            lines.append(f"FastSpeech 2 against {slow}: {found:.1f} times as fast; wanted 100: {_met(found >= 100)}")
    for row in rows:
        if row.batch == 1 and row.system.startswith("Vocos 2"):
            found = 1.0 / row.real_time_factor
            lines.append(f"{row.system}: {found:.1f} x real time; wanted 40: {_met(found >= 40)}")
    for system in systems:
        found = ratio(measured.whole.get((system.label, 1), {}), measured.whole.get((system.rival, 1), {}))
        if found is not None:
            wanted = 100 if system.name == ESPNET_AR else 1
            said = f"{found:.3g} times as fast; wanted {wanted}: {_met(found >= wanted)}"
            lines.append(f"{system.rival} against {system.label}: {said}")
    return lines


def _met(met: bool) -> str:
    return "met" if met else "NOT MET"


# ---------------------------------------------------------------------- reports


def environment(threads: int) -> Row:
    """What rows of this run have in common."""
    found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return Row(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=found.stdout.strip() or "unknown",
        cpu=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        threads=threads,
        versions=f"torch {torch.__version__}, numpy {np.__version__}",
        system="",
        kind="",
        steps=0,
        guided=False,
        parameters=0,
        speech_s=0.0,
        batch=0,
    )


def table(rows: Sequence[Row]) -> str:
    """Rows as markdown, those of models first."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for row in sorted(rows, key=lambda row: (row.kind, row.batch)):
        steps = f", {row.steps} steps" if row.steps else ""
        as_fast = "" if row.as_fast is None else f"{row.as_fast:.3g}"
        first = "" if row.first_audio_s is None else f"{row.first_audio_s:.3f}"
        cells = [
            row.system + steps + (", guided" if row.guided else ""),
            str(row.batch),
            f"{row.parameters / 1e6:.1f}",
            f"{row.s:.3f}",
            f"{row.p20_s:.3f} to {row.p80_s:.3f}",
            as_fast,
            f"{row.real_time_factor:.4f}",
            f"{1.0 / row.real_time_factor:.1f}",
            first,
            str(row.rounds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def document(rows: Sequence[Row], lines: Sequence[str], command: str) -> str:
    """A page with the table."""
    first = rows[0]
    about = (__doc__ or "").split("\n\n", 2)[2].strip()
    head = f"`{command}`, {first.date[:10]}, commit {first.commit}, {first.cpu}, {first.threads} threads, {first.versions}."
    parts = ["# Speed of synthesis", head, table(rows), *(f"- {line}" for line in lines), "## What is measured", about]
    return "\n\n".join(parts) + "\n"


def batch_sizes(text: str) -> list[int]:
    """Numbers of rows, between commas.

    Raises:
        argparse.ArgumentTypeError: one is no number, or below 1.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers from 1 on, such as 1,8")
    return [int(part) for part in parts]


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small models, 1 s of speech, one round: whether all runs, not how fast")
    add("--only", action="append", default=[], metavar="NAME", help="systems whose names contain this; repeat for several")
    add("--batches", type=batch_sizes, default="1,8", metavar="N,N", help="rows of a batch (default 1,8)")
    add("--threads", type=int, default=2, help="CPU threads (default 2)")
    add("--rounds", type=int, default=7, help="most rounds (default 7)")
    add("--seconds", type=float, default=60.0, help="no further round of a case that has taken so long (default 60)")
    add("--jsonl", type=Path, metavar="FILE", help="append the rows there, an object a line")
    add("--markdown", type=Path, metavar="FILE.md", help="write a page with the table there")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    sizes = SMALL if args.quick else Sizes()
    with contextlib.redirect_stdout(sys.stderr):  # peers print
        systems, vocos = build(sizes, args.only, peers)
    measured = measure(systems, vocos, sizes, args.batches, 1 if args.quick else args.rounds, args.seconds)
    rows = to_rows(systems, measured, sizes, environment(args.threads))
    lines = [] if args.quick else goals(measured, rows, systems)
    print(table(rows), *lines, sep="\n")
    if args.jsonl:
        with args.jsonl.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    if args.markdown:
        command = " ".join(["python scripts/bench_tts.py", *(sys.argv[1:] if argv is None else argv)])
        args.markdown.write_text(document(rows, lines, command), encoding="utf-8")


if __name__ == "__main__":
    main()

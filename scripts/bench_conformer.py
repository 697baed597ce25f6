"""Conformer side by side with torchaudio's: training step and inference, one run.

    python scripts/bench_conformer.py [--quick] [--json FILE] [--threads N] [--precision fp32,bf16] [--rounds N]

Every system is a CTC model with 12 blocks 256 wide, 4 heads, feed-forward 1024, kernel 31, behind one and the same conv2d
subsampling by 4, on 8 utterances of 10 s (80 mels, 1,000 frames), 500 labels. A training step is forward, CTC loss,
backward and AdamW; inference is forward to frame log-probabilities. torchaudio's Conformer has no positions at all.

The systems take turns within each round, in an order that rotates, so that what else the machine does falls on all
alike. `ratio` is the median over rounds of a system's time over that of torchaudio in fp32 in the same round; `batch 1`
is the time per utterance of the same utterances one by one, `8 / 1` the median over rounds of batch 8 per utterance
over it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.models.ctc.model import CtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.subsampling import ConvSubsampling
from speechkit.types import AsrBatch

BASELINE = "torchaudio"
VOCAB, MELS, FRAMES_PER_SECOND, TOKENS_PER_SECOND = 500, 80, 100, 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured."""

    layers: int = 12
    dim: int = 256
    heads: int = 4
    ff_dim: int = 1024
    kernel: int = 31
    batch: int = 8
    seconds: float = 10.0
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One system at one precision; times in seconds, ratios against torchaudio in fp32."""

    system: str
    precision: str
    train_s: float
    train_ratio: float
    infer_s: float
    infer_ratio: float
    infer_batch1_s: float
    batch_over_single: float


class TorchaudioEncoder(nn.Module):
    """torchaudio's Conformer behind our subsampling, with the interface of our encoders."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        from torchaudio.models import Conformer

        self.subsampling = ConvSubsampling(input_dim=MELS, dim=sizes.dim)
        self.subsampling_factor, self.output_dim = self.subsampling.factor, sizes.dim
        self.conformer = Conformer(sizes.dim, sizes.heads, sizes.ff_dim, sizes.layers, sizes.kernel, sizes.dropout)

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor, *, tap: None = None) -> tuple[Tensor, Tensor]:
        """As `ConformerEncoder.forward`."""
        x_BTD, lens_B = self.conformer(*self.subsampling(feats_BTF, feat_lens_B))
        return x_BTD, lens_B


def build(system: str, sizes: Sizes) -> CtcModel:
    """A model: torchaudio's, or ours by the name of its positions."""
    torch.manual_seed(0)
    encoder = (
        TorchaudioEncoder(sizes)
        if system == BASELINE
        else ConformerEncoder(
            input_dim=MELS,
            dim=sizes.dim,
            num_layers=sizes.layers,
            num_heads=sizes.heads,
            ff_dim=sizes.ff_dim,
            kernel_size=sizes.kernel,
            position=system.removeprefix("ours "),  # type: ignore[arg-type]
            dropout=sizes.dropout,
            attention_dropout=sizes.dropout,
        )
    )
    return CtcModel(encoder=encoder, vocab_size=VOCAB, dropout=sizes.dropout)


class Bench:
    """Models, data and one measurement of each kind."""

    def __init__(self, systems: list[str], sizes: Sizes) -> None:
        self.models = {system: build(system, sizes) for system in systems}
        self.optimizers = {name: torch.optim.AdamW(m.parameters(), lr=1e-4) for name, m in self.models.items()}
        self.sizes = sizes
        frames, tokens = int(sizes.seconds * FRAMES_PER_SECOND), int(sizes.seconds * TOKENS_PER_SECOND)
        self.feats_BTF = torch.randn(sizes.batch, frames, MELS)
        self.lens_B = torch.full((sizes.batch,), frames)
        names = ("",) * sizes.batch
        self.batch = AsrBatch(
            wave_BN=torch.zeros(sizes.batch, 0),
            wave_lens_B=torch.zeros(sizes.batch, dtype=torch.long),
            tokens_BU=torch.randint(1, VOCAB, (sizes.batch, tokens)),
            token_lens_B=torch.full((sizes.batch,), tokens),
            ids=names,
            texts=names,
            langs=names,
        )

    def train(self, system: str, precision: str) -> float:
        """Seconds of one training step."""
        model, optimizer = self.models[system].train(), self.optimizers[system]

        def step() -> None:
            with autocast(precision):
                loss = model.loss(self.feats_BTF, self.lens_B, self.batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return timed(step)

    def infer(self, system: str, precision: str, rows: int) -> float:
        """Seconds per utterance of inference on all utterances, `rows` at a time."""
        model = self.models[system].eval()

        def run() -> None:
            with torch.inference_mode(), autocast(precision):
                for feats, lens in zip(self.feats_BTF.split(rows), self.lens_B.split(rows)):
                    model.frame_log_probs(feats, lens)

        return timed(run) / self.sizes.batch


def autocast(precision: str) -> Any:
    """Mixed precision on the CPU, or nothing for fp32."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def timed(function: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(bench: Bench, cases: list[tuple[str, str]], rounds: int) -> list[Row]:
    """Runs the rounds (after one to warm up) and takes medians."""
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for i in range(rounds + 1):
        turn = i % len(cases)
        order = cases[turn:] + cases[:turn]
        for kind in ("train", "infer", "single"):
            for system, precision in order:
                if kind == "train":
                    seconds = bench.train(system, precision)
                else:
                    seconds = bench.infer(system, precision, bench.sizes.batch if kind == "infer" else 1)
                if i:
                    times[kind, system, precision].append(seconds)
        print(f"\rround {i}/{rounds}", end="" if i < rounds else "\r", flush=True)

    def ratio(kind: str, case: tuple[str, str], base_kind: str, base: tuple[str, str]) -> float:
        pairs = zip(times[kind, case[0], case[1]], times[base_kind, base[0], base[1]])
        return statistics.median(own / other for own, other in pairs)

    base = (BASELINE, "fp32")
    return [
        Row(
            system=case[0],
            precision=case[1],
            train_s=statistics.median(times["train", case[0], case[1]]),
            train_ratio=ratio("train", case, "train", base),
            infer_s=bench.sizes.batch * statistics.median(times["infer", case[0], case[1]]),
            infer_ratio=ratio("infer", case, "infer", base),
            infer_batch1_s=statistics.median(times["single", case[0], case[1]]),
            batch_over_single=ratio("infer", case, "single", case),
        )
        for case in cases
    ]


def print_table(rows: list[Row], sizes: Sizes) -> None:
    """The rows as a table."""
    print(f"{sizes.layers} x {sizes.dim}, batch {sizes.batch} x {sizes.seconds:g} s, dropout {sizes.dropout:g}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    print(f"{'system':16}{'':6}{'train s':>9}{'ratio':>8}{'infer s':>9}{'ratio':>8}{'batch 1 s':>11}{'8 / 1':>8}")
    for r in rows:
        print(f"{r.system:16}{r.precision:6}{r.train_s:9.3f}{r.train_ratio:8.3f}{r.infer_s:9.3f}{r.infer_ratio:8.3f}"
              f"{r.infer_batch1_s:11.3f}{r.batch_over_single:8.3f}")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 blocks, 4 s, 3 rounds: under a minute")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--precision", help="fp32, or fp32,bf16 (autocast); the default has bf16 where the CPU has it")
    parser.add_argument("--dropout", type=float, default=0.1, help="rate in all systems (default 0.1)")
    parser.add_argument("--positions", default="rope,relative", help="of ours: rope, relative, absolute, none")
    args = parser.parse_args(argv)
    native_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    precisions = (args.precision or ("fp32,bf16" if native_bf16 else "fp32")).split(",")
    if "fp32" not in precisions or not set(precisions) <= {"fp32", "bf16"}:
        parser.error(f"--precision {args.precision}: give fp32, or fp32,bf16")
    torch.set_num_threads(args.threads)
    sizes = Sizes(layers=3, seconds=4.0, dropout=args.dropout) if args.quick else Sizes(dropout=args.dropout)
    systems = [BASELINE, *(f"ours {position}" for position in args.positions.split(","))]
    cases = [(system, precision) for precision in precisions for system in systems]
    rows = measure(Bench(systems, sizes), cases, rounds=3 if args.quick else args.rounds)
    print_table(rows, sizes)
    if not native_bf16:
        print("this CPU has no bf16 instructions: bf16 is measured only when asked for, and is slow")
    if args.json:
        machine = {"processor": platform.processor(), "cpu": torch.backends.cpu.get_cpu_capability()}
        info = {"sizes": asdict(sizes), "threads": args.threads, "torch": torch.__version__, **machine}
        args.json.write_text(json.dumps({**info, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()

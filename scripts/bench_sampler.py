"""Batching side by side: padding, shuffling and planning speed of our sampler and others, same budget, one run.

    python scripts/bench_sampler.py [--quick] [--json FILE] [--data-root DIR] [--tokenizer DIR]
    python scripts/bench_sampler.py --scale 10000000

Every method plans two epochs of the same columns. Speed is the better of the two, from columns (for lhotse: from an
existing CutSet) to the last batch as a list of indices, construction included, in CPU seconds: all methods work in one
thread, and a busy machine does not distort the comparison. Padding is measured by one function on those lists. `pair
repeat` is the part of the pairs of utterances sharing a batch in epoch 0 that share one in epoch 1. `over` is the
largest batch relative to the budget: a method above 100 % needs more memory than the others were given. `--scale`
plans that many utterances in a process of its own, on one core, and reports seconds and peak memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechkit.data.buckets import estimate_bins
from speechkit.data.sampler import BucketBatchSampler

Batches = list[list[int]]
Method = Callable[[int], Batches]


@dataclass(frozen=True, slots=True)
class Columns:
    """One data set: durations in seconds and token counts."""

    name: str
    durations_N: npt.NDArray[np.float32]
    num_tokens_N: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Row:
    """What one method did on one data set; percentages in 0 to 100."""

    data: str
    method: str
    audio_percent: float
    token_percent: float
    pair_repeat_percent: float
    mean_batch: float
    mean_seconds: float
    budget_percent: float
    over_percent: float
    steps: int
    utterances_per_s: float


def librispeech_like(num: int) -> Columns:
    """72 % long read utterances, the rest short; 1.5 to 6 tokens per second."""
    rng = np.random.default_rng(0)
    num_read = int(0.72 * num)
    read = 16.8 - np.abs(rng.normal(0.0, 1.9, num_read))
    durations_N = rng.permutation(np.concatenate([read, rng.uniform(1.4, 12.5, num - num_read)])).clip(1.3, 35.0)
    tokens_N = np.maximum(durations_N * rng.normal(3.2, 0.55, num).clip(1.5, 6.0), 1)
    return Columns("(a) LibriSpeech-like", durations_N.astype(np.float32), tokens_N.astype(np.int32))


def mixed_corpus(num: int) -> Columns:
    """Short commands, read sentences and long recordings; 3 to 9 tokens per second."""
    rng = np.random.default_rng(1)
    commands, read = int(0.4 * num), int(0.45 * num)
    durations_N = np.concatenate([
        rng.uniform(0.6, 3.0, commands),
        rng.normal(9.0, 3.5, read).clip(2.0, 20.0),
        rng.uniform(15.0, 40.0, num - commands - read),
    ])  # fmt: skip
    durations_N = rng.permutation(durations_N)
    tokens_N = np.maximum(durations_N * rng.uniform(3.0, 9.0, num), 1)
    return Columns("(b) mixed", durations_N.astype(np.float32), tokens_N.astype(np.int32))


def speechocean(data_root: Path, tokenizer: Path | None) -> Columns | None:
    """The training manifest of speechocean762; tokens are characters unless a tokenizer is given."""
    manifest = data_root / "speechocean762" / "train" / "manifest.jsonl"
    if not manifest.is_file():
        print(f"(c) left out: {manifest} is not there; name its root with --data-root")
        return None
    count: Callable[[str], int] = len
    if tokenizer is not None:
        from speechkit.text.tokenizers import load_tokenizer

        encode = load_tokenizer(tokenizer).encode
        count = lambda text: len(encode(text))  # noqa: E731
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    durations_N = np.array([row["duration"] for row in rows], dtype=np.float32)
    return Columns("(c) speechocean762", durations_N, np.array([count(row["text"]) for row in rows], dtype=np.int32))


# ---------------------------------------------------------------------- methods


def ours(
    data: Columns, budget: float, *, tokens: bool = True, num_buckets: int | None = 30, pair_repeat: float = 0.08
) -> Method:
    """Our sampler."""

    def plan(epoch: int) -> Batches:
        sampler = BucketBatchSampler(
            durations=data.durations_N,
            num_tokens=data.num_tokens_N if tokens else None,
            max_batch_seconds=budget,
            num_buckets=num_buckets,
            pair_repeat=pair_repeat,
        )
        sampler.set_epoch(epoch)
        return list(sampler)

    return plan


def full_sort(data: Columns, budget: float) -> Method:
    """Sort by duration, cut under the padded budget, shuffle the batches: the same batches every epoch."""

    def plan(epoch: int) -> Batches:
        batches = capped(np.argsort(data.durations_N, kind="stable"), data.durations_N, budget)
        order = np.random.default_rng(epoch).permutation(len(batches))
        return [batches[place] for place in order.tolist()]

    return plan


def random_capped(data: Columns, budget: float) -> Method:
    """Random order, cut under the padded budget."""
    return lambda epoch: capped(np.random.default_rng(epoch).permutation(len(data.durations_N)), data.durations_N, budget)


def random_fixed(data: Columns, budget: float) -> Method:
    """Random order, batches of one size: as many utterances as have the budget on average."""
    size = max(1, int(budget / data.durations_N.mean()))

    def plan(epoch: int) -> Batches:
        order = np.random.default_rng(epoch).permutation(len(data.durations_N)).tolist()
        return [order[begin : begin + size] for begin in range(0, len(order), size)]

    return plan


def capped(order: npt.NDArray[np.intp], durations_N: npt.NDArray[np.float32], budget: float) -> Batches:
    """Cuts an order into batches of at most `budget` padded seconds."""
    batches: Batches = []
    batch: list[int] = []
    longest = 0.0
    for index, duration in zip(order.tolist(), durations_N[order].tolist()):
        if batch and (len(batch) + 1) * max(longest, duration) > budget:
            batches.append(batch)
            batch, longest = [], 0.0
        batch.append(index)
        longest = max(longest, duration)
    return [*batches, batch]


def lhotse_methods(data: Columns, budget: float) -> Iterator[tuple[str, Method]]:
    """DynamicBucketingSampler: by time, with fixed sizes per bucket, and over two dimensions as NeMo does."""
    from lhotse import CutSet, MonoCut
    from lhotse.dataset.sampling import DynamicBucketingSampler
    from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint

    class Constraint2D(FixedBucketBatchSizeConstraint):
        """First bucket that holds both the duration and the tokens, as NeMo's lenient mode."""

        def measure_length(self, example: MonoCut) -> tuple[float, int]:
            return example.duration, example.custom["num_tokens"]

        def select_bucket(
            self, buckets: list[tuple[float, int]], example: MonoCut | None = None, example_len: tuple | None = None
        ) -> int:
            duration, tokens = self.measure_length(example) if example_len is None else example_len
            fitting = (place for place, (longest, most) in enumerate(buckets) if duration <= longest and tokens <= most)
            return next(fitting, len(buckets))

    columns = zip(data.durations_N.tolist(), data.num_tokens_N.tolist())
    cuts = CutSet.from_cuts([
        MonoCut(id=str(index), start=0, duration=duration, channel=0, supervisions=[], custom={"num_tokens": tokens})
        for index, (duration, tokens) in enumerate(columns)
    ])  # fmt: skip

    def method(**options: object) -> Method:
        def plan(epoch: int) -> Batches:
            sampler = DynamicBucketingSampler(cuts, shuffle=True, drop_last=False, seed=0, **options)
            sampler.set_epoch(epoch)
            return [[int(cut.id) for cut in batch] for batch in sampler]

        return plan

    yield "lhotse 1-D, 30 buckets", method(max_duration=budget, num_buckets=30)
    bounds = [row.max_duration for row in estimate_bins(data.durations_N, num_buckets=30).rows]
    sizes = [max(1, int(budget / bound)) for bound in bounds]
    fixed = FixedBucketBatchSizeConstraint(max_seq_len_buckets=bounds, batch_sizes=sizes)
    yield "lhotse fixed sizes, 30", method(constraint=fixed, duration_bins=bounds[:-1])
    rows = estimate_bins(
        data.durations_N, data.num_tokens_N, num_buckets=15, num_sub_buckets=2, outlier_threshold=np.inf
    ).rows
    pairs = [(row.max_duration, row.max_tokens) for row in rows]
    constraint = Constraint2D(max_seq_len_buckets=pairs, batch_sizes=[max(1, int(budget / row.max_duration)) for row in rows])
    yield "lhotse 2-D (NeMo), 15 x 2", method(constraint=constraint, duration_bins=pairs[:-1])


def methods(data: Columns, budget: float) -> Iterator[tuple[str, Method]]:
    """All methods with their names, ours first."""
    yield "speechkit 2-D, 30 buckets", ours(data, budget)
    yield "speechkit 2-D, automatic", ours(data, budget, num_buckets=None)
    yield "speechkit 2-D, pair_repeat 0.5", ours(data, budget, pair_repeat=0.5)
    yield "speechkit 1-D, 30 buckets", ours(data, budget, tokens=False)
    yield "speechkit 1-D, automatic", ours(data, budget, tokens=False, num_buckets=None)
    try:
        yield from lhotse_methods(data, budget)
    except ImportError:
        print('lhotse left out: it is not installed (pip install "speechkit[data]")')
    yield "full sort", full_sort(data, budget)
    yield "random, capped", random_capped(data, budget)
    yield "random, fixed size", random_fixed(data, budget)


# ---------------------------------------------------------------------- measures


def measure(data: Columns, budget: float, name: str, method: Method) -> Row:
    """Runs a method for two epochs and measures the first."""
    epochs, seconds = [], []
    for epoch in (0, 1):
        gc.collect()
        begin = time.process_time()
        epochs.append(method(epoch))
        seconds.append(time.process_time() - begin)
    batches = epochs[0]
    missing = len(data.durations_N) - len({index for batch in batches for index in batch})
    if missing:
        name += f" (lost {missing})"
    sizes = np.array([len(batch) for batch in batches])
    flat, starts = np.concatenate(batches), np.cumsum(sizes) - sizes
    paid_seconds = sizes * np.maximum.reduceat(data.durations_N[flat], starts).astype(np.float64)
    paid_tokens = sizes * np.maximum.reduceat(data.num_tokens_N[flat], starts).astype(np.int64)
    return Row(
        data=data.name,
        method=name,
        audio_percent=100 * (1 - data.durations_N[flat].sum(dtype=np.float64) / paid_seconds.sum()),
        token_percent=100 * (1 - data.num_tokens_N[flat].sum(dtype=np.int64) / paid_tokens.sum()),
        pair_repeat_percent=100 * pair_repeat(*epochs, num=len(data.durations_N)),
        mean_batch=float(sizes.mean()),
        mean_seconds=float(paid_seconds.mean()),
        budget_percent=100 * float(paid_seconds.mean()) / budget,
        over_percent=100 * float(paid_seconds.max()) / budget,
        steps=len(batches),
        utterances_per_s=len(flat) / min(seconds),
    )


def pair_repeat(before: Batches, after: Batches, *, num: int) -> float:
    """Part of the pairs that share a batch in `before` and share one in `after`."""
    labels = []
    for batches in (before, after):
        label_N = np.full(num, -1)
        label_N[np.concatenate(batches)] = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
        labels.append(label_N[label_N >= 0] if (label_N < 0).any() else label_N)
    if len(labels[0]) != len(labels[1]):
        return float("nan")
    together = np.unique(labels[0] * (labels[1].max() + 1) + labels[1], return_counts=True)[1].astype(float)
    sizes = np.bincount(labels[0]).astype(float)
    return float((together * (together - 1)).sum() / max((sizes * (sizes - 1)).sum(), 1.0))


def compare(data: Columns, budget: float) -> list[Row]:
    """Measures all methods on one data set, printing each as it is done."""
    names = ("audio %", "token %", "repeat %", "batch", "s/batch", "used %", "over %", "steps", "utt/s")
    head = " ".join(f"{name:>{width}}" for name, width in zip(names, (8, 8, 9, 7, 8, 7, 7, 7, 11)))
    print(f"\n{data.name:<34} {head}", flush=True)
    rows = []
    for name, method in methods(data, budget):
        row = measure(data, budget, name, method)
        rows.append(row)
        print(
            f"  {row.method:<32} {row.audio_percent:8.2f} {row.token_percent:8.2f} {row.pair_repeat_percent:9.1f} "
            f"{row.mean_batch:7.1f} {row.mean_seconds:8.1f} {row.budget_percent:7.1f} {row.over_percent:7.1f} "
            f"{row.steps:7d} {row.utterances_per_s:11,.0f}",
            flush=True,
        )
    return rows


# ---------------------------------------------------------------------- scale


def run_scale(num: int, budget: float) -> dict[str, float]:
    """Plans `num` utterances in a fresh process limited to one core; seconds and peak memory."""
    data = librispeech_like(num)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "durations.npy", data.durations_N)
        np.save(Path(folder) / "num_tokens.npy", data.num_tokens_N)
        del data
        command = [sys.executable, __file__, "--scale-child", folder, "--budget", str(budget)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output)


def scale_child(folder: Path, budget: float) -> dict[str, float]:
    """The measured process of `run_scale`."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    durations_N, num_tokens_N = np.load(folder / "durations.npy"), np.load(folder / "num_tokens.npy")
    clock = [(time.perf_counter(), time.process_time())]
    sampler = BucketBatchSampler(durations=durations_N, num_tokens=num_tokens_N, max_batch_seconds=budget)
    clock.append((time.perf_counter(), time.process_time()))
    len(sampler)
    clock.append((time.perf_counter(), time.process_time()))
    num_batches = sum(1 for _ in sampler)
    clock.append((time.perf_counter(), time.process_time()))
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    (prepare, prepare_cpu), (plan, plan_cpu), (draw, draw_cpu) = np.diff(np.array(clock), axis=0).tolist()
    report = sampler.padding_report()
    assert report.token_percent is not None
    return {
        "utterances": len(durations_N), "batches": num_batches,
        "prepare_s": prepare, "prepare_cpu_s": prepare_cpu, "plan_epoch_s": plan, "plan_epoch_cpu_s": plan_cpu,
        "draw_all_s": draw, "draw_all_cpu_s": draw_cpu, "peak_memory_gb": peak * 1024 / 1e9,
        "audio_percent": report.audio_percent, "token_percent": report.token_percent,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 utterances instead of 200,000; under a minute")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--num", type=int, help="utterances of (a) and (b)")
    parser.add_argument("--budget", type=float, default=360.0, help="padded seconds of a batch")
    parser.add_argument("--data-root", type=Path, help="directory of real speech; default $SPEECHKIT_DATA or ../shared/data")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer directory for the token counts of (c)")
    parser.add_argument("--scale", type=int, help="only plan this many utterances, in a process of its own")
    parser.add_argument("--scale-child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scale_child:
        print(json.dumps(scale_child(options.scale_child, options.budget)))
        return
    if options.scale:
        result = run_scale(options.scale, options.budget)
        for name, value in result.items():
            print(f"{name:>18}: {value:,.2f}" if isinstance(value, float) else f"{name:>18}: {value:,}")
        document: object = result
    else:
        warnings.filterwarnings("ignore", message="You are using DynamicBucketingSampler with an eagerly read CutSet")
        num = options.num or (20_000 if options.quick else 200_000)
        root = options.data_root or Path(os.environ.get("SPEECHKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
        sets = [librispeech_like(num), mixed_corpus(num), speechocean(root, options.tokenizer)]
        rows = [row for data in sets if data is not None for row in compare(data, options.budget)]
        document = [asdict(row) for row in rows]
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

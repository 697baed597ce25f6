"""Training throughput: our batches against random batches of a fixed size at equal peak memory, in one run.

    python scripts/bench_training.py [--quick] [--json FILE] [--manifest FILE] [--threads N]

Random batching takes B utterances at a time, whatever their length; B is the most for which a batch with the longest
utterance keeps to the budget. Our batches get the padded seconds of the worst random batch as their budget, so that
both need the same memory. Both run real training steps (features, SpecAugment, forward, CTC loss, backward, AdamW) of
one Conformer in turn, on noise as long as the utterances of the manifest, until the time is used up or a whole epoch is
done. Audio seconds per second count what is not padding. "wasted" is the part of the padded audio, or tokens, of the
whole epoch that is padding; the part of the time that padding cost is in the ratio of the two speeds.

Without a manifest: speechocean762 under $SPEECHKIT_DATA or --data-root, else the demo corpus, made on the spot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechkit.audio.features import LogMel
from speechkit.audio.spec_augment import SpecAugment
from speechkit.data.manifest import read_manifest
from speechkit.data.sampler import BucketBatchSampler
from speechkit.models.ctc.model import CtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import AsrBatch

SAMPLE_RATE = 16000
Batches = list[list[int]]


@dataclass(frozen=True, slots=True)
class Columns:
    """A manifest as numbers: durations in seconds, token counts, and how many ids there are."""

    name: str
    durations_N: np.ndarray
    num_tokens_N: np.ndarray
    vocab_size: int


@dataclass(slots=True)
class Side:
    """One way of batching and what was measured of it; percentages in 0 to 100, of the whole epoch."""

    method: str
    batches: int
    mean_batch: float
    worst_seconds: float
    worst_tokens: int
    wasted_audio_percent: float
    wasted_token_percent: float
    steps_timed: int = 0
    audio_seconds_timed: float = 0.0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Audio seconds trained per second."""
        return self.audio_seconds_timed / self.seconds if self.seconds else 0.0


class Trainer:
    """Real training steps on noise."""

    def __init__(self, vocab_size: int, *, dim: int, num_layers: int) -> None:
        torch.manual_seed(0)
        self.features = LogMel(sample_rate=SAMPLE_RATE)
        self.augment = SpecAugment().train()
        encoder = ConformerEncoder(
            input_dim=self.features.output_dim, dim=dim, num_layers=num_layers, num_heads=4, ff_dim=3 * dim, kernel_size=15
        )
        self.model = CtcModel(encoder=encoder, vocab_size=vocab_size).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self, batch: AsrBatch) -> float:
        """Seconds that one step took."""
        started = time.perf_counter()
        with torch.no_grad():
            feats_BTF, feat_lens_B = self.features(batch.wave_BN, batch.wave_lens_B)
            feats_BTF = self.augment(feats_BTF, feat_lens_B)
        self.model.loss(feats_BTF, feat_lens_B, batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    budget = args.time if args.time is not None else 30.0 if args.quick else 600.0
    columns = read_columns(args.manifest, args.data_root)
    random_batches, our_batches = plan(columns, max_batch_seconds=args.max_batch_seconds, seed=args.seed)
    plans = {"random, fixed size": random_batches, "BucketBatchSampler": our_batches}
    sides = {name: describe(name, batches, columns) for name, batches in plans.items()}
    trainer = Trainer(columns.vocab_size, dim=args.dim, num_layers=args.layers)
    measure(trainer, columns, plans, sides, budget=budget, seed=args.seed)
    random_side, ours = sides.values()
    report = {
        "manifest": columns.name,
        "utterances": len(columns.durations_N),
        "hours": round(float(columns.durations_N.sum()) / 3600, 3),
        "model": {"dim": args.dim, "layers": args.layers, "parameters": sum(p.numel() for p in trainer.model.parameters())},
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads, "torch": torch.__version__},
        "sides": [asdict(side) | {"audio_seconds_per_second": side.speed} for side in sides.values()],
        "speedup": ours.speed / random_side.speed,
    }
    print_report(report, list(sides.values()))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def read_columns(manifest: Path | None, data_root: Path) -> Columns:
    """Durations and character counts of a manifest, the one asked for or the best there is."""
    real = data_root / "speechocean762/train/manifest.jsonl"
    if manifest is None and not real.is_file():
        from speechkit.data.corpora.demo import prepare_demo

        print(f"{real} is not there: using the demo corpus instead")
        with tempfile.TemporaryDirectory() as directory:
            prepare_demo(directory, num_train=400, num_dev=0, num_test=0)
            return _columns(Path(directory) / "train.jsonl", name="demo")
    return _columns(manifest or real, name=str(manifest or "speechocean762 train"))


def _columns(path: Path, *, name: str) -> Columns:
    utterances = read_manifest(path)
    tokenizer = CharTokenizer.train(utterance.text for utterance in utterances)
    durations_N = np.array([utterance.duration for utterance in utterances])
    num_tokens_N = np.array([len(tokenizer.encode(utterance.text)) for utterance in utterances])
    return Columns(name, durations_N, num_tokens_N, tokenizer.vocab_size)


def plan(columns: Columns, *, max_batch_seconds: float, seed: int) -> tuple[Batches, Batches]:
    """Random batches of a fixed size, and ours under the padded seconds of the worst of them."""
    size = int(max_batch_seconds // columns.durations_N.max())
    if size < 1:
        raise SystemExit(f"--max-batch-seconds {max_batch_seconds} is below the longest utterance; raise it")
    order_N = np.random.default_rng(seed).permutation(len(columns.durations_N))
    random_batches = [order_N[first : first + size].tolist() for first in range(0, len(order_N), size)]
    worst = max(len(batch) * columns.durations_N[batch].max() for batch in random_batches)
    sampler = BucketBatchSampler(
        durations=columns.durations_N, num_tokens=columns.num_tokens_N, max_batch_seconds=float(worst), seed=seed
    )
    return random_batches, list(sampler)


def describe(method: str, batches: Batches, columns: Columns) -> Side:
    """What a plan costs over the whole epoch."""

    def padded(values_N: np.ndarray) -> list[float]:
        return [len(batch) * values_N[batch].max() for batch in batches]

    seconds, tokens = padded(columns.durations_N), padded(columns.num_tokens_N)
    every = [index for batch in batches for index in batch]
    return Side(
        method=method,
        batches=len(batches),
        mean_batch=len(every) / len(batches),
        worst_seconds=float(max(seconds)),
        worst_tokens=int(max(tokens)),
        wasted_audio_percent=100 * (1 - columns.durations_N[every].sum() / sum(seconds)),
        wasted_token_percent=100 * (1 - columns.num_tokens_N[every].sum() / sum(tokens)),
    )


def measure(
    trainer: Trainer, columns: Columns, plans: dict[str, Batches], sides: dict[str, Side], *, budget: float, seed: int
) -> None:
    """Trains on randomly chosen batches of both plans in turn, the side that has used less time first."""
    rng = np.random.default_rng(seed)
    waiting = {name: rng.permutation(len(batches)).tolist() for name, batches in plans.items()}
    generator = torch.Generator().manual_seed(seed)
    for batches in plans.values():  # the first step of a shape allocates
        trainer.step(make_batch(columns, max(batches, key=len), generator))
    while sum(side.seconds for side in sides.values()) < budget and all(waiting.values()):
        name = min(sides, key=lambda each: sides[each].seconds)
        indices = plans[name][waiting[name].pop()]
        sides[name].seconds += trainer.step(make_batch(columns, indices, generator))
        sides[name].steps_timed += 1
        sides[name].audio_seconds_timed += float(columns.durations_N[indices].sum())


def make_batch(columns: Columns, indices: list[int], generator: torch.Generator) -> AsrBatch:
    """Noise and random targets of the lengths of some utterances, padded."""
    lens_B = torch.from_numpy((columns.durations_N[indices] * SAMPLE_RATE).astype(np.int64))
    token_lens_B = torch.from_numpy(columns.num_tokens_N[indices].astype(np.int64))
    wave_BN = 0.1 * torch.randn(len(indices), int(lens_B.max()), generator=generator)
    shape = (len(indices), int(token_lens_B.max()))
    tokens_BU = torch.randint(4, columns.vocab_size, shape, generator=generator)
    names = ("",) * len(indices)
    return AsrBatch(_cut(wave_BN, lens_B), lens_B, _cut(tokens_BU, token_lens_B), token_lens_B, names, names, names)


def _cut(rows: Tensor, lens_B: Tensor) -> Tensor:
    """Zeros past each length."""
    return rows.masked_fill(torch.arange(rows.shape[1]) >= lens_B[:, None], 0)


def print_report(report: dict, sides: list[Side]) -> None:
    """The table."""
    model, machine = report["model"], report["machine"]
    print(
        f"{report['manifest']}: {report['utterances']:,} utterances, {report['hours']} h; Conformer {model['layers']} x "
        f"{model['dim']}, {model['parameters']:,} parameters; {machine['threads']} threads"
    )
    print(
        f"{'batches':<20}{'number':>8}{'mean size':>11}{'worst, s':>10}{'wasted audio':>14}{'wasted tokens':>15}{'audio-s/s':>11}"
    )
    for side in sides:
        print(
            f"{side.method:<20}{side.batches:>8}{side.mean_batch:>11.1f}{side.worst_seconds:>10.1f}"
            f"{side.wasted_audio_percent:>13.1f}%{side.wasted_token_percent:>14.1f}%{side.speed:>11.1f}"
        )
    timed = ", ".join(f"{side.steps_timed} steps in {side.seconds:.0f} s" for side in sides)
    print(f"speed: {report['speedup']:.2f} times that of random batches (timed: {timed})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_training.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_root = Path(os.environ.get("SPEECHKIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    add = parser.add_argument
    add("--quick", action="store_true", help="measure for 30 s instead of ten minutes or an epoch")
    add("--json", type=Path, metavar="FILE", help="write the results as JSON")
    add("--manifest", type=Path, metavar="FILE", help="what to take the lengths from")
    add("--data-root", type=Path, default=default_root, metavar="DIR", help="where corpora lie (default: %(default)s)")
    add("--max-batch-seconds", type=float, default=120.0, metavar="S", help="padded seconds of a batch (default: 120)")
    add("--time", type=float, metavar="S", help="seconds of training, both sides together")
    add("--dim", type=int, default=144, help="width of the model (default: 144)")
    add("--layers", type=int, default=6, help="its layers (default: 6)")
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add("--seed", type=int, default=0, help="of the batches (default: 0)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

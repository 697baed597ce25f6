"""Steps of scripts/gpu_check.py that train: `python scripts/gpu_training.py STEP --out FILE.json [--cpu] [--until TIME]`.

Every step prints what it finds as it goes and writes it as JSON. `--cpu` is the same in miniature, without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechkit.kernels import backend
from speechkit.types import AsrBatch

HERE = Path(__file__).resolve().parent
SIDES = {"fused": "auto", "torch": "torch"}  # what is compared, and the backend that it stands for
KINDS = {  # of GPU kernels, by their names; the first that fits counts
    "ctc": r"ctc|alpha_beta|lse_gather|posterior|gradient_kernel|log_softmax",
    "attention": r"attn|attention|flash|fmha|softmax",
    "convolution": r"conv|glu|wgrad|dgrad|implicit|nchw|nhwc",
    "matrix products": r"gemm|nvjet|cutlass|xmma|matmul|addmm|bmm|::mm",
    "normalisation": r"norm",
    "optimizer": r"adam|multi_tensor|optimizer",
    "copies": r"memcpy|memset|copy|CatArray",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the model and its data are."""

    layers: int = 18
    dim: int = 256
    heads: int = 4
    ff_dim: int = 1024
    kernel: int = 31
    vocab: int = 1000
    batch: int = 32
    seconds: float = 20.0
    rounds: int = 12
    utterances: int = 2500
    max_batch_seconds: float = 640.0
    buckets: tuple[float, ...] = (20.0, 8.0)
    max_batch_size: int = 4096
    warm_up: int = 8


SMALL = Sizes(
    layers=2, dim=32, heads=2, ff_dim=64, kernel=5, vocab=40, batch=2, seconds=2.0, rounds=2, utterances=60,
    max_batch_seconds=40.0, buckets=(1.0,), max_batch_size=2, warm_up=1,
)  # fmt: skip


class Trainer:
    """Training steps of a Conformer-CTC, with times by part."""

    def __init__(self, sizes: Sizes, *, position: str, device: torch.device, vocab_size: int) -> None:
        from speechkit.audio.features import LogMel
        from speechkit.audio.spec_augment import SpecAugment
        from speechkit.models.ctc.model import CtcModel
        from speechkit.nn.conformer import ConformerEncoder

        torch.manual_seed(0)
        self.device = device
        self.features, self.augment = LogMel().to(device), SpecAugment().to(device).train()
        encoder = ConformerEncoder(
            input_dim=self.features.output_dim, dim=sizes.dim, num_layers=sizes.layers, num_heads=sizes.heads,
            ff_dim=sizes.ff_dim, kernel_size=sizes.kernel, position=position,  # type: ignore[arg-type]
        )  # fmt: skip
        self.model = CtcModel(encoder=encoder, vocab_size=vocab_size).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, fused=True)
        self.loss = float("nan")

    def step(self, batch: AsrBatch) -> dict[str, float]:
        """Seconds of features, forward, backward and optimizer; keeps the loss."""
        marks = [self._mark()]
        with torch.no_grad():
            feats_BTF, feat_lens_B = self.features(batch.wave_BN, batch.wave_lens_B)
            feats_BTF = self.augment(feats_BTF, feat_lens_B)
        marks.append(self._mark())
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.model.loss(feats_BTF, feat_lens_B, batch).loss
        marks.append(self._mark())
        loss.backward()
        marks.append(self._mark())
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(self._mark())
        self.loss = float(loss.detach())
        parts = dict(zip(("features", "forward", "backward", "optimizer"), map(_seconds, marks, marks[1:])))
        return parts | {"step": sum(parts.values())}

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(begin: Any, end: Any) -> float:
    if isinstance(begin, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1000


# ---------------------------------------------------------------------- training


def end_to_end(args: argparse.Namespace) -> dict[str, Any]:
    """A training step of a Conformer-CTC with fused kernels and with torch's alone, side by side."""
    from speechkit.data.batch_size import synthetic_batch

    sizes: Sizes = args.sizes
    generator = torch.Generator().manual_seed(0)
    batch = synthetic_batch(
        sizes.batch, sizes.seconds, int(4 * sizes.seconds), sample_rate=16000, vocab_size=sizes.vocab, generator=generator,
        device=args.device,
    )  # fmt: skip
    results: dict[str, Any] = {"batch": sizes.batch, "seconds": sizes.seconds, "layers": sizes.layers, "dim": sizes.dim}
    for position in ("relative", "rope"):
        trainer = Trainer(sizes, position=position, device=args.device, vocab_size=sizes.vocab)
        times: dict[str, list[dict[str, float]]] = defaultdict(list)
        peaks: dict[str, float] = {}
        for number in range(sizes.rounds + 2):  # two to warm up
            for side in sorted(SIDES, reverse=number % 2 == 1):
                with backend(SIDES[side]):
                    reset_peak(args.device)
                    times[side].append(trainer.step(batch))
                    peaks[side] = peak_gb(args.device)
        rounds = list(zip(times["torch"][2:], times["fused"][2:]))
        found: dict[str, Any] = {
            "speedup": statistics.median(slow["step"] / fast["step"] for slow, fast in rounds),
            "peak_gb": peaks,
            "ms": {
                side: {part: 1000 * statistics.median(each[part] for each in runs[2:]) for part in runs[0]}
                for side, runs in times.items()
            },
            "kernels": {side: profile_step(trainer, batch, name) for side, name in SIDES.items()},
        }
        results[position] = found
        print(f"{position}: {found['speedup']:.2f} times as fast with fused kernels; peak GB {peaks}; ms {found['ms']}")
        for side, kernels in found["kernels"].items():
            print(f"  {side}: {kernels['kinds']}")
    return results


def profile_step(trainer: Trainer, batch: AsrBatch, kernels: str) -> dict[str, Any]:
    """Milliseconds of one training step by kind of kernel, and of the longest kernels."""
    from torch.profiler import ProfilerActivity, profile

    cuda = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with backend(kernels), profile(activities=activities) as profiler:
        trainer.step(batch)
    kinds: dict[str, float] = defaultdict(float)
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if cuda and (event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation):
            continue  # what launched the kernel, or spans several; kernels count by themselves
        milliseconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000
        times[event.key[:90]] += milliseconds
        kinds[next((kind for kind, name in KINDS.items() if re.search(name, event.key, re.IGNORECASE)), "others")] += milliseconds
    longest = sorted(times, key=times.__getitem__, reverse=True)[:12]
    return {
        "kinds": {kind: round(kinds[kind], 3) for kind in sorted(kinds, key=kinds.__getitem__, reverse=True)},
        "longest": {name: round(times[name], 3) for name in longest},
    }


def reset_peak(device: torch.device) -> None:
    """Begins a measurement of memory on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """Most that was allocated since, weights and inputs included, in GB; 0 without a GPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


# ---------------------------------------------------------------------- padding
# A corpus that needs no files: words of a made-up lexicon, spelled; each letter is a vowel-like sound of 80 ms of its own two
# formants in one of eight voices, spaces are silent.

SAMPLE_RATE, LETTER_SAMPLES, VOICES = 16000, 1280, 8
LETTERS = " abcdefghijklmnopqrstuvwxyz"
FIRST_LETTER_ID = 4  # after blank, unknown, start and end


@dataclass(frozen=True, slots=True)
class Corpus:
    """Utterances in memory.

    Attributes:
        waves: samples of each, int16, at 16 kHz.
        texts: what is said, of `LETTERS`.
    """

    waves: list[np.ndarray]
    texts: list[str]

    @property
    def durations_N(self) -> np.ndarray:
        """Seconds of each utterance."""
        return np.array([len(wave) for wave in self.waves]) / SAMPLE_RATE

    def batch(self, indices: Sequence[int], device: torch.device) -> AsrBatch:
        """A padded batch on a device."""
        token_lens, wave_lens = ([len(rows[index]) for index in indices] for rows in (self.texts, self.waves))
        tokens_BU = np.zeros((len(indices), max(token_lens)), dtype=np.int64)
        wave_BN = np.zeros((len(indices), max(wave_lens)), dtype=np.int16)
        for row, index in enumerate(indices):
            tokens_BU[row, : token_lens[row]] = [LETTERS.index(letter) + FIRST_LETTER_ID for letter in self.texts[index]]
            wave_BN[row, : wave_lens[row]] = self.waves[index]
        scaled_BN = torch.from_numpy(wave_BN).to(device).float() / 32768
        lens = [torch.tensor(values, device=device) for values in (wave_lens, token_lens)]
        names = ("",) * len(indices)
        return AsrBatch(scaled_BN, lens[0], torch.from_numpy(tokens_BU).to(device), lens[1], names, names, names)


def real_speech(path: Path, num: int) -> Corpus:
    """The first utterances of a manifest, in letters."""
    from speechkit.data.dataset import SpeechDataset
    from speechkit.data.manifest import read_manifest

    utterances = [utterance for utterance in read_manifest(path)[:num] if 1.0 <= utterance.duration <= 20.0]
    dataset = SpeechDataset(utterances=utterances, sample_rate=SAMPLE_RATE)
    examples = [example for index in range(len(utterances)) if (example := dataset[index]) is not None]
    waves = [(32767 * example.wave_N.clip(-1, 1)).astype(np.int16) for example in examples]
    texts = ["".join(letter for letter in utterance.text.lower() if letter in LETTERS) for utterance in utterances]
    return Corpus(waves, texts)


def speech_like(lengths: str, num: int) -> Corpus:
    """A corpus with durations like those of read books ("read"), or of commands, sentences and recordings ("mixed")."""
    rng = np.random.default_rng(0)
    if lengths == "read":
        durations_N = rng.gamma(6.0, 2.1, num).clip(1.5, 17.0)
    else:
        parts = (rng.uniform(0.6, 3.0, num), rng.normal(9.0, 3.5, num).clip(2.0, 20.0), rng.uniform(15.0, 20.0, num))
        durations_N = np.choose(rng.choice(3, size=num, p=(0.4, 0.45, 0.15)), parts)
    sounds = letter_sounds(rng)
    lexicon = [rng.integers(1, len(LETTERS), rng.integers(2, 9)) for _ in range(300)]
    waves, texts = [], []
    for count in np.maximum(durations_N * SAMPLE_RATE / LETTER_SAMPLES, 3).astype(int):
        words = [np.append(lexicon[word], 0) for word in rng.integers(0, len(lexicon), count // 3 + 1)]
        letters = np.concatenate(words)[:count]
        waves.append(sounds[rng.integers(VOICES), letters].reshape(-1))
        texts.append("".join(LETTERS[letter] for letter in letters))
    return Corpus(waves, texts)


def letter_sounds(rng: np.random.Generator) -> np.ndarray:
    """Every letter in every voice, int16, shape (voices, letters, samples)."""
    seconds_N = np.arange(LETTER_SAMPLES) / SAMPLE_RATE
    formants = np.stack((rng.uniform(250, 850, len(LETTERS)), rng.uniform(900, 3000, len(LETTERS))), axis=1)
    sounds = rng.normal(0, 0.003, (VOICES, len(LETTERS), LETTER_SAMPLES))
    for voice, pitch in enumerate(np.geomspace(90, 250, VOICES)):
        harmonics_K = pitch * np.arange(1, int(4000 / pitch))
        waves_KN = np.sin(2 * np.pi * harmonics_K[:, None] * seconds_N)
        for letter in range(1, len(LETTERS)):
            weights_K = np.exp(-(((harmonics_K[:, None] - formants[letter]) / 120) ** 2)).sum(1)
            sounds[voice, letter] += 0.2 * (weights_K @ waves_KN) * np.hanning(LETTER_SAMPLES) ** 0.3
    return (32767 * sounds.clip(-1, 1)).astype(np.int16)


def padding(args: argparse.Namespace) -> dict[str, Any]:
    """Training on random batches of a fixed size and on ours, at equal padded seconds of the largest batch: audio per second."""
    results: dict[str, Any] = {}
    num, seconds = args.sizes.utterances, 1.0 if args.cpu else 0.35 * args.seconds
    for lengths in ("mixed", "read"):
        corpus = speech_like(lengths, num) if args.data is None else real_speech(args.data, num)
        results[lengths if args.data is None else "data"] = compare_batches(corpus, args.sizes, args.device, seconds=seconds)
        print(json.dumps({lengths: [*results.values()][-1]}), flush=True)
    return results


def compare_batches(corpus: Corpus, sizes: Sizes, device: torch.device, *, seconds: float) -> dict[str, Any]:
    """Trains a model for each way of batching, the one that has used less time next, until the time is up."""
    from speechkit.data.sampler import BucketBatchSampler

    durations_N = corpus.durations_N
    size = int(sizes.max_batch_seconds // durations_N.max())
    order = np.random.default_rng(0).permutation(len(durations_N))
    random = [order[first : first + size].tolist() for first in range(0, len(order), size)]
    worst = float(max(len(batch) * durations_N[batch].max() for batch in random))
    counts = [*map(len, corpus.texts)]
    bucketed = list(BucketBatchSampler(durations=durations_N, num_tokens=counts, max_batch_seconds=worst, seed=0))
    plans = {"random": random, "bucketed": bucketed}
    vocab_size = FIRST_LETTER_ID + len(LETTERS)
    trainers = {side: Trainer(sizes, position="relative", device=device, vocab_size=vocab_size) for side in plans}
    rng = np.random.default_rng(1)
    spent, heard, peaks = (dict.fromkeys(plans, 0.0) for _ in range(3))
    steps, waiting = dict.fromkeys(plans, -sizes.warm_up), {side: list[int]() for side in plans}
    end = time.monotonic() + seconds
    while min(steps.values()) < 1 or time.monotonic() < end:
        side = min(plans, key=lambda each: (steps[each] > 0, spent[each], steps[each]))
        waiting[side] = waiting[side] or rng.permutation(len(plans[side])).tolist()
        indices = plans[side][waiting[side].pop()]
        reset_peak(device)
        begin = time.perf_counter()
        trainers[side].step(corpus.batch(indices, device))  # reads the loss, and so waits for the device
        if steps[side] >= 0:
            spent[side] += time.perf_counter() - begin
            heard[side] += float(durations_N[indices].sum())
        peaks[side] = max(peaks[side], peak_gb(device))
        steps[side] += 1
    found = {side: _batching(plans[side], durations_N) | {"steps": steps[side], "peak_gb": peaks[side]} for side in plans}
    for side, facts in found.items():
        facts |= {"audio_s_per_s": heard[side] / spent[side], "loss": trainers[side].loss}
    return found | {"ratio": found["bucketed"]["audio_s_per_s"] / found["random"]["audio_s_per_s"]}


def _batching(batches: list[list[int]], durations_N: np.ndarray) -> dict[str, float]:
    padded = [len(batch) * float(durations_N[batch].max()) for batch in batches]
    heard = sum(float(durations_N[batch].sum()) for batch in batches)
    return {
        "mean_batch": np.mean([*map(len, batches)]).item(),
        "worst_s": max(padded),
        "wasted_percent": 100 * (1 - heard / sum(padded)),
    }


def recipe(args: argparse.Namespace) -> dict[str, Any]:
    """`recipes/train.py` as a user runs it, on made-up speech written to files, until its time is up."""
    corpus = speech_like("read", 24 if args.cpu else 1500)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(corpus, range(4, len(corpus.texts)), folder / "train")
        write_corpus(corpus, range(4), folder / "valid")
        settings = [f"data.train={folder}/train", f"data.valid={folder}/valid", f"run_dir={folder}/run", "trainer.logger=false"]
        settings += ["callbacks.progress=null", "+trainer.enable_progress_bar=false", "data.num_workers=0"]
        if args.cpu:
            settings += ["trainer.max_steps=2", "data.sampler.max_batch_seconds=40"]
        else:
            settings += ["trainer=gpu", "data.sampler.max_batch_seconds=160", "data.cache=memory"]
            settings += [f"trainer.max_time=00:00:00:{min(59, max(5, int(args.seconds) - 40)):02d}"]
        start = time.monotonic()
        command = [sys.executable, str(HERE.parent / "recipes" / "train.py"), "experiment=demo_ctc", *settings]
        subprocess.run(command, check=True, timeout=args.seconds)
        metrics = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    print(json.dumps(metrics))
    return {"metrics": metrics, "seconds": time.monotonic() - start}


def write_corpus(corpus: Corpus, indices: Sequence[int], folder: Path) -> None:
    """Some utterances as WAV files with a manifest."""
    folder.mkdir()
    rows = []
    for index in indices:
        with wave.open(str(folder / f"{index}.wav"), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(corpus.waves[index].astype("<i2").tobytes())
        facts = {"id": str(index), "audio_filepath": f"{index}.wav", "duration": len(corpus.waves[index]) / SAMPLE_RATE}
        rows.append(json.dumps({**facts, "text": corpus.texts[index].strip()}))
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------- batch sizes


def batch_size(args: argparse.Namespace) -> dict[str, Any]:
    """The largest batches that fit on the card, with fused kernels and with torch's alone, in processes of their own."""
    results: dict[str, Any] = {}
    for side, kernels in SIDES.items():
        environment = {**os.environ, "SPEECHKIT_KERNELS": kernels}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "sizes.json"
            command = [sys.executable, __file__, "search", "--out", str(out), *(["--cpu"] if args.cpu else [])]
            subprocess.run(command, env=environment, check=True, timeout=args.seconds)
            results[side] = json.loads(out.read_text(encoding="utf-8"))
    pairs = zip(results["fused"]["sizes"].items(), results["torch"]["sizes"].values())
    results["ratios"] = {duration: fused / other for (duration, fused), other in pairs}
    print(f"batch sizes with fused kernels over those without: {results['ratios']}")
    return results


def search(args: argparse.Namespace) -> dict[str, Any]:
    """One search of `batch_size`."""
    from functools import partial

    from speechkit.data.batch_size import TrainStepProbe, find_batch_sizes
    from speechkit.data.buckets import Bin, Bins

    sizes: Sizes = args.sizes
    trainer = Trainer(sizes, position="relative", device=torch.device("cpu"), vocab_size=sizes.vocab)
    cuda = args.device.type == "cuda"
    probe = TrainStepProbe(
        features=trainer.features, model=trainer.model, augment=trainer.augment, vocab_size=sizes.vocab, device=args.device,
        optimizer=partial(torch.optim.AdamW, lr=1e-4, fused=True), precision="bf16" if cuda else "fp32",
        tokens_per_second=4.0, max_memory_bytes=None if cuda else 4 << 30,
    )  # fmt: skip
    bins = Bins(tuple(Bin(seconds) for seconds in sorted(sizes.buckets)))
    start = time.monotonic()
    table = find_batch_sizes(probe, bins, start=min(64, sizes.max_batch_size), max_batch_size=sizes.max_batch_size)
    found = {f"{row.max_duration:g}": row.batch_size for row in table.rows}
    print(f"SPEECHKIT_KERNELS={os.environ.get('SPEECHKIT_KERNELS', 'auto')}: {found}", flush=True)
    return {"sizes": found, "settings": probe.settings, "search_s": time.monotonic() - start}


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    step.__name__: step for step in (end_to_end, padding, batch_size, search, recipe)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--cpu", action="store_true", help="in miniature, on the CPU")
    parser.add_argument("--until", type=float, default=time.time() + 120, help="when the step should end, in seconds since 1970")
    parser.add_argument("--data", type=Path, help="manifest, or its folder: its audio for `padding`, in place of made-up speech")
    args = parser.parse_args(argv)
    args.seconds = max(0.0, args.until - time.time())
    args.device, args.sizes = torch.device("cpu" if args.cpu else "cuda"), SMALL if args.cpu else Sizes()
    args.out.write_text(json.dumps(STEPS[args.step](args), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

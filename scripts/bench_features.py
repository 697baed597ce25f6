"""Time log-mel features against other packages on the same audio, in one run.

    python scripts/bench_features.py [--quick] [--json FILE] [--seconds S] [--threads N]

80 mel bins, 25 ms windows every 10 ms, 16 kHz, float32, one signal. Each row is the median over interleaved repeats,
after one call to warm up, and takes a float32 array or tensor to log-mel features. Peers that are not installed are
named and left out (torchaudio and librosa come with the extra "train").
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from speechkit.audio.features import KaldiFbank, LogMel

RATE, N_FFT, WINDOW, HOP, MELS = 16000, 512, 400, 160, 80
FLOOR = 1e-10
BATCH = 16


def optional(name: str) -> ModuleType | None:
    """A package that is only compared with; says so when it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out: {name} ({error})")
        return None


def ours(wave_N: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Our features: alone, and in a batch of equal parts."""
    log_mel, plain, kaldi = LogMel(), LogMel(preemphasis=None), KaldiFbank()
    one = torch.from_numpy(wave_N)[None]
    parts = one[0, : len(wave_N) // BATCH * BATCH].reshape(BATCH, -1)
    one_len, part_lens = torch.tensor([one.shape[1]]), torch.full((BATCH,), parts.shape[1])
    return {
        "speechkit LogMel": lambda: plain(one, one_len),
        "speechkit LogMel, pre-emphasis": lambda: log_mel(one, one_len),
        f"speechkit LogMel, batch of {BATCH}": lambda: plain(parts, part_lens),
        "speechkit KaldiFbank": lambda: kaldi(one, one_len),
    }


def peers(wave_N: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The same features from other packages."""
    contestants: dict[str, Callable[[], Any]] = {}
    one = torch.from_numpy(wave_N)[None]
    torchaudio = optional("torchaudio")
    if torchaudio is not None:
        mel = torchaudio.transforms.MelSpectrogram(
            RATE, n_fft=N_FFT, win_length=WINDOW, hop_length=HOP, n_mels=MELS, pad_mode="constant"
        )
        kaldi = importlib.import_module("torchaudio.compliance.kaldi")
        contestants["torchaudio MelSpectrogram"] = lambda: mel(one).clamp(min=FLOOR).log()
        contestants["torchaudio kaldi.fbank"] = lambda: kaldi.fbank(one * 32768.0, num_mel_bins=MELS, dither=0.0)
    librosa = optional("librosa")
    if librosa is not None:
        settings = {"sr": RATE, "n_fft": N_FFT, "win_length": WINDOW, "hop_length": HOP, "n_mels": MELS}
        contestants["librosa melspectrogram"] = lambda: np.log(
            np.maximum(librosa.feature.melspectrogram(y=wave_N, **settings), FLOOR)
        )
    return contestants


def timings(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, repeats interleaved, after one call each to warm up."""
    for call in contestants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, call in contestants.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats (under a minute)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the audio")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wave_N = (0.1 * np.random.default_rng(0).standard_normal(round(args.seconds * RATE))).astype(np.float32)
    with torch.inference_mode():
        seconds = timings(ours(wave_N) | peers(wave_N), repeats=3 if args.quick else 11)
    base = seconds.get("torchaudio MelSpectrogram", float("nan"))
    print(f"log-mel of {args.seconds:g} s, {args.threads} threads, torch {version('torch')}")
    print(f"{'':34} {'ms':>8} {'x real time':>12} {'x torchaudio mel':>17}")
    rows = []
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"{name:34} {1e3 * value:8.1f} {args.seconds / value:12,.0f} {base / value:17.2f}")
        rows.append({"name": name, "seconds": value, "real_time_factor": args.seconds / value, "ratio": base / value})
    if args.json:
        machine = {"machine": platform.machine(), "torch": version("torch"), "threads": args.threads}
        args.json.write_text(json.dumps({"audio_seconds": args.seconds, **machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Time CTC searches against other packages on the same posteriors, in one run.

    python scripts/bench_ctc_search.py [--quick] [--json FILE]

Posteriors are made from random token sequences: blank dominates most frames, a token takes one to three frames, and
tokens have rivals (T = 400 frames, U = 60 tokens, V = 500). Each row is the median over interleaved repeats of the
time for one utterance. Peers that are not installed are named and left out: pyctcdecode (prefix beam; it asks for an
old numpy but runs with ours: pip install --no-deps pyctcdecode pygtrie) and torchaudio (alignment, one utterance at
a time).
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkit.search.ctc_align import ctc_align
from speechkit.search.ctc_greedy import ctc_greedy
from speechkit.search.ctc_prefix_beam import ctc_prefix_beam

FRAMES, TOKENS, VOCAB, BATCH, BEAM = 400, 60, 500, 16, 10
FIRST_CHAR = 0x4E00
MIN_LOGP = -5.0  # pyctcdecode's default


def peaky_posteriors(rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (batch, FRAMES, VOCAB), float32, and the token sequences behind them, (batch, TOKENS)."""
    logits = rng.normal(0.0, 1.0, size=(batch, FRAMES, VOCAB))
    logits[:, :, 0] += 11.0
    tokens = rng.integers(1, VOCAB, size=(batch, TOKENS))
    for row in range(batch):
        starts = np.sort(rng.choice(np.arange(0, FRAMES - 4, 5), size=TOKENS, replace=False)) + rng.integers(0, 2, TOKENS)
        for start, token in zip(starts, tokens[row], strict=True):
            length = rng.integers(1, 4)
            logits[row, start : start + length, token] += rng.normal(12.5, 1.5, size=length)
            logits[row, start, rng.integers(1, VOCAB, size=3)] += rng.normal(8.0, 2.0, size=3)
    return torch.from_numpy(logits).float().log_softmax(dim=-1), torch.from_numpy(tokens)


def optional(name: str) -> ModuleType | None:
    """A package that is only compared with; says so when it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out: {name} ({error})")
        return None


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


def mean_log_prob(log_probs: Tensor, best: list[tuple[int, ...]]) -> float:
    """Mean exact log-probability of token sequences, all paths summed."""
    targets = torch.tensor([token for tokens in best for token in tokens])
    lens = torch.full((len(best),), FRAMES)
    target_lens = torch.tensor([len(tokens) for tokens in best])
    loss = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1).double(), targets, lens, target_lens, reduction="none")
    return -float(loss.mean())


def beam_rows(log_probs: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Prefix beam search, ours in a batch and one by one, and pyctcdecode; each with the log-probability of its best."""
    lens = torch.full((len(log_probs),), FRAMES)

    def ours(batch: int) -> list[tuple[int, ...]]:
        parts = zip(log_probs.split(batch), lens.split(batch), strict=True)
        searched = (ctc_prefix_beam(x, n, beam_size=BEAM, token_min_logp=MIN_LOGP) for x, n in parts)
        return [beams[0].tokens for result in searched for beams in result]

    contestants: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        f"speechkit, batch {len(log_probs)}": lambda: ours(len(log_probs)),
        "speechkit, batch 1": lambda: ours(1),
    }
    peer = optional("pyctcdecode")
    if peer is not None:
        logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
        labels = ["", *(chr(FIRST_CHAR + i) for i in range(1, VOCAB))]  # one character a token: its texts are tokens
        decoder = peer.build_ctcdecoder(labels)
        arrays = list(log_probs.numpy())

        def theirs() -> list[tuple[int, ...]]:
            texts = [decoder.decode_beams(x, beam_width=BEAM, token_min_logp=MIN_LOGP)[0][0] for x in arrays]
            return [tuple(ord(char) - FIRST_CHAR for char in text) for text in texts]

        contestants[f"pyctcdecode {version('pyctcdecode')}"] = theirs
    rows = table(f"prefix beam {BEAM}", timings(contestants, repeats), len(log_probs))
    for row in rows:
        row["log_prob_of_best"] = mean_log_prob(log_probs, contestants[row["what"]]())
    return rows


def align_rows(log_probs: Tensor, tokens: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Forced alignment, ours in a batch, torchaudio one by one."""
    lens, token_lens = torch.full((len(log_probs),), FRAMES), torch.full((len(log_probs),), TOKENS)
    name = f"speechkit, batch {len(log_probs)}"
    contestants: dict[str, Callable[[], Any]] = {name: lambda: ctc_align(log_probs, lens, tokens, token_lens)}
    peer = optional("torchaudio.functional")
    if peer is not None:
        pairs = list(zip(log_probs.split(1), tokens.split(1), strict=True))
        contestants[f"torchaudio {version('torchaudio')}"] = lambda: [peer.forced_align(x, y) for x, y in pairs]
    return table("alignment", timings(contestants, repeats), len(log_probs))


def greedy_rows(log_probs: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Greedy decoding, ours in a batch, and a loop over utterances in torch that gives the tokens alone."""
    lens = torch.full((len(log_probs),), FRAMES)

    def loop() -> list[list[int]]:
        best = [torch.unique_consecutive(x.argmax(dim=-1)) for x in log_probs]
        return [x[x != 0].tolist() for x in best]

    contestants: dict[str, Callable[[], Any]] = {
        f"speechkit, batch {len(log_probs)}": lambda: ctc_greedy(log_probs, lens),
        "torch loop, tokens alone": loop,
    }
    return table("greedy", timings(contestants, repeats), len(log_probs))


def table(task: str, seconds: dict[str, float], batch: int) -> list[dict[str, Any]]:
    """Rows of one task; `relative` is to ours in a batch."""
    first = next(iter(seconds.values()))
    return [
        {"task": task, "what": what, "ms_per_utterance": 1e3 * value / batch, "relative": value / first}
        for what, value in seconds.items()
    ]


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats (seconds instead of a minute)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the posteriors (default: 0)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    log_probs, tokens = peaky_posteriors(np.random.default_rng(args.seed), BATCH)
    survivors = (log_probs[..., 1:] > MIN_LOGP).sum(dim=-1)
    setting = {
        "frames": FRAMES,
        "tokens": TOKENS,
        "vocab": VOCAB,
        "blank_above_0.9": float((log_probs[..., 0].exp() > 0.9).float().mean()),
        "frames_with_tokens": float((survivors > 0).float().mean()),
        "tokens_per_such_frame": float(survivors[survivors > 0].float().mean()),
        "threads": args.threads,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
        "command": " ".join(["python", *sys.argv]),
    }
    for name, value in setting.items():
        print(f"{name:>22}: {value:.3f}" if isinstance(value, float) else f"{name:>22}: {value}")
    repeats = 5 if args.quick else 25
    rows = [*beam_rows(log_probs, repeats), *align_rows(log_probs, tokens, repeats), *greedy_rows(log_probs, repeats)]
    print(f"\n{'task':<16}{'what':<28}{'ms per utterance':>18}{'relative':>10}{'log p of best':>15}")
    for row in rows:
        best = f"{row['log_prob_of_best']:.3f}" if "log_prob_of_best" in row else ""
        print(f"{row['task']:<16}{row['what']:<28}{row['ms_per_utterance']:>18.3f}{row['relative']:>10.2f}{best:>15}")
    if args.json is not None:
        args.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

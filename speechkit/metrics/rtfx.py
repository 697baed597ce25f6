"""Speed of recognition: RTFx, seconds of audio recognised in one second.

RTFx = sum(audio_s) / sum(decode_s) over all utterances: summed first, divided once (higher is better; RTF is its inverse).

What is timed. `decode_s` of a row is wall-clock time from samples in host memory to text: features, transfer to the device,
model, search, text decoding, with the device synchronised before the clock is read. Reading and resampling files, loading the
model and the warm-up batches are not in it. The time of a batch is shared out over its rows in proportion to their `audio_s`.
Figures are comparable only between runs that time the same parts on the same device; so decoding writes a `RunInfo` beside
the hypotheses (`hyps.jsonl.meta.json`) that states the parts, and the report repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

TIMED_PARTS = ("features", "transfer", "model", "search", "text")
UNTIMED_PARTS = ("load", "warmup", "read", "resample")
BAND_EDGES_S = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """How the times in a hypotheses file were taken; the JSON of `<hyps>.meta.json` has just these fields.

    Attributes:
        device: device in words, such as "cpu (AMD EPYC 7763)" or "cuda:0 (NVIDIA H100 80GB HBM3)".
        dtype: number format of the model, such as "float32" or "bfloat16".
        threads: CPU threads that torch used.
        batch_size: utterances in a batch; None when batches are sized by `batch_seconds`.
        batch_seconds: padded seconds in a batch; None when batches are sized by `batch_size`.
        warmup_batches: batches run before the clock started.
        timed: parts that `decode_s` covers.
        not_timed: parts that it leaves out.
        wall_s: wall-clock seconds of the whole decoding run, everything included; None when not measured.
        decode: name and options of the search.
        checkpoint: what was decoded with.
        versions: package name to version (python, torch, speechkit, ...).
        command: the command line.
    """

    device: str
    dtype: str
    threads: int
    batch_size: int | None = None
    batch_seconds: float | None = None
    warmup_batches: int = 0
    timed: Sequence[str] = TIMED_PARTS
    not_timed: Sequence[str] = UNTIMED_PARTS
    wall_s: float | None = None
    decode: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True, slots=True)
class Band:
    """Sums over the utterances whose audio lasts from `low` to below `high` seconds; `high` None has no upper bound."""

    low: float
    high: float | None
    num_utterances: int
    audio_s: float
    decode_s: float

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second of decoding; infinite when no time was measured."""
        return self.audio_s / self.decode_s if self.decode_s > 0 else float("inf")

    @property
    def label(self) -> str:
        """The range of durations, such as "2-5 s"."""
        return f"{self.low:g}-{self.high:g} s" if self.high is not None else f"{self.low:g}+ s"


@dataclass(frozen=True, slots=True)
class RtfxReport:
    """Speed over a set of utterances, and over its duration bands (those that hold any)."""

    overall: Band
    bands: tuple[Band, ...]


def measure_rtfx(rows: Sequence[Mapping[str, Any]], *, edges_s: Sequence[float] = BAND_EDGES_S) -> RtfxReport:
    """Sums up the times of hypotheses.

    Args:
        rows: each with `audio_s` and `decode_s` in seconds.
        edges_s: lower bounds of the duration bands in seconds, ascending from 0.

    Raises:
        ValueError: there is no row, the bands are not ascending from 0, or all the times are zero.
    """
    if not rows:
        raise ValueError("rtfx: there is no utterance")
    if not edges_s or edges_s[0] != 0 or any(b <= a for a, b in pairwise(edges_s)):
        raise ValueError(f"edges_s: {list(edges_s)} must ascend from 0")
    overall = _sum_band(rows, 0.0, None)
    if overall.decode_s <= 0:
        raise ValueError("rtfx: decode_s is 0 in every row; decode with timing on")
    uppers: list[float | None] = [*edges_s[1:], None]
    bands = (_sum_band(rows, low, high) for low, high in zip(edges_s, uppers))
    return RtfxReport(overall=overall, bands=tuple(band for band in bands if band.num_utterances))


def run_info_path(hyps: str | Path) -> Path:
    """Where the RunInfo of a hypotheses file lies: its name with `.meta.json` appended."""
    hyps = Path(hyps)
    return hyps.with_name(hyps.name + ".meta.json")


def write_run_info(hyps: str | Path, info: RunInfo) -> Path:
    """Writes the RunInfo of a hypotheses file beside it and returns the path."""
    path = run_info_path(hyps)
    path.write_text(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_run_info(hyps: str | Path) -> RunInfo | None:
    """Reads the RunInfo of a hypotheses file; None when there is none.

    Raises:
        ValueError: the file is there but is not a RunInfo.
    """
    path = run_info_path(hyps)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return RunInfo(**values)
    except (ValueError, TypeError) as error:
        names = ", ".join(f.name for f in fields(RunInfo))
        raise ValueError(f"{path}: not a run description ({error}); its fields are: {names}") from error


def _sum_band(rows: Sequence[Mapping[str, Any]], low: float, high: float | None) -> Band:
    inside = [row for row in rows if low <= row["audio_s"] and (high is None or row["audio_s"] < high)]
    return Band(
        low=low,
        high=high,
        num_utterances=len(inside),
        audio_s=float(sum(row["audio_s"] for row in inside)),
        decode_s=float(sum(row["decode_s"] for row in inside)),
    )

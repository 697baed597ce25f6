"""Long recordings in one call against the same speech utterance by utterance: errors, agreement, speed, memory.

    python scripts/score_longform.py MODEL longform.jsonl [--id ID] [--normalizer basic] [--batch-size 8] [--json FILE]

Each row of longform.jsonl has `id` and `segments`, consecutive clips with `audio_filepath` (relative to the file) and
`text`; joined they make the long recording. It is transcribed in one call, from a file; then each clip on its own.
`between` counts the words in which the two transcripts differ; at the edges of clips they may. Peak memory is that of the
process; `before` is what it held when the model was loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechkit.audio.io import load_audio, save_audio
from speechkit.metrics.wer import count_errors
from speechkit.pretrained import load
from speechkit.recognizer import Recognizer
from speechkit.text.normalize import get_normalizer


@dataclass(frozen=True)
class LongformResult:
    """Result of one recording; rates in per cent, memory in megabytes."""

    id: str
    audio_s: float
    num_clips: int
    wer_one_call: float
    wer_clips: float
    between: float
    one_call_s: float
    clips_s: float
    before_mb: float
    peak_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="shipped name or pretrained folder")
    parser.add_argument("longform", type=Path, help="longform.jsonl")
    parser.add_argument("--id", help="only this recording")
    parser.add_argument("--normalizer", default="basic", help="of texts before they are compared")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    args = parser.parse_args(argv)
    try:
        recordings = [json.loads(line) for line in args.longform.read_text(encoding="utf-8").splitlines() if line.strip()]
        chosen = [recording for recording in recordings if args.id in (None, recording["id"])]
        if not chosen:
            raise ValueError(f"--id {args.id}: {args.longform} has {', '.join(recording['id'] for recording in recordings)}")
        recognizer = load(args.model)
        results = [
            measure(recognizer, recording, args.longform.parent, normalizer=args.normalizer, batch_size=args.batch_size)
            for recording in chosen
        ]
        if args.json:
            Path(args.json).write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, KeyError) as error:
        print(f"score_longform: {error!r}" if isinstance(error, KeyError) else f"score_longform: {error}", file=sys.stderr)
        return 2
    for result in results:
        print(
            f"{result.id}: {result.audio_s / 60:.1f} min, {result.num_clips} clips\n"
            f"  WER in one call    {result.wer_one_call:6.2f} %   {result.one_call_s:6.1f} s\n"
            f"  WER clip by clip   {result.wer_clips:6.2f} %   {result.clips_s:6.1f} s\n"
            f"  between            {result.between:6.2f} %\n"
            f"  peak memory        {result.peak_mb:6.0f} MB  (before: {result.before_mb:.0f} MB)"
        )
    return 0


def measure(recognizer: Recognizer, recording: dict[str, Any], root: Path, *, normalizer: str, batch_size: int) -> LongformResult:
    """Transcribes one recording both ways.

    Args:
        recognizer: the model.
        recording: a row of longform.jsonl.
        root: what its paths are relative to.
        normalizer: of texts before they are compared.
        batch_size: windows, or clips, decoded together.
    """
    normalize = get_normalizer(normalizer)
    clips = [root / segment["audio_filepath"] for segment in recording["segments"]]
    reference = normalize(" ".join(segment["text"] for segment in recording["segments"]))
    with tempfile.TemporaryDirectory() as directory:
        long = Path(directory) / "long.wav"
        waves = [load_audio(clip, sample_rate=recognizer.sample_rate)[0] for clip in clips]
        save_audio(long, np.concatenate(waves), recognizer.sample_rate)
        audio_s = sum(map(len, waves)) / recognizer.sample_rate
        del waves
        before_mb = _peak_mb()
        started = time.perf_counter()
        [whole] = recognizer.transcribe(str(long), batch_size=batch_size)
        one_call_s = time.perf_counter() - started
        peak_mb = _peak_mb()
    started = time.perf_counter()
    parts = recognizer.transcribe([str(clip) for clip in clips], batch_size=batch_size)
    clips_s = time.perf_counter() - started
    joined = normalize(" ".join(part.text for part in parts))
    one_call = normalize(whole.text)
    return LongformResult(
        id=recording["id"],
        audio_s=round(audio_s, 1),
        num_clips=len(clips),
        wer_one_call=round(100 * count_errors(reference, one_call).rate, 2),
        wer_clips=round(100 * count_errors(reference, joined).rate, 2),
        between=round(100 * count_errors(joined, one_call).rate, 2),
        one_call_s=round(one_call_s, 2),
        clips_s=round(clips_s, 2),
        before_mb=round(before_mb, 1),
        peak_mb=round(peak_mb, 1),
    )


def _peak_mb() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    raise SystemExit(main())

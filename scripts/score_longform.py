"""Long recordings in one call against the same speech segment by segment: errors, agreement, speed, memory.

    python scripts/score_longform.py MODEL longform.jsonl [--id ID] [--normalizer basic] [--batch-size 8] [--json FILE]

Each row of longform.jsonl has `id` and `segments`, consecutive clips with `audio_filepath` (relative to the file) and
`text`; joined they make the long recording. It is transcribed in one call, from a file; then each clip on its own, cut
out of the recording on whole output frames of the model, for most models read the same speech otherwise 10 ms further on.
`between` counts the words in which the two transcripts differ; `away` those of them that lie more than `--edge` seconds
away from every place where either of the two was cut, in per cent of the words that do. Peak memory is that of the process;
`before` is what it held when the model was loaded.
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
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from speechkit.audio.io import load_audio, save_audio
from speechkit.metrics.wer import count_errors
from speechkit.pretrained import load_recognizer
from speechkit.recognizer import Recognizer, join_hypotheses
from speechkit.text.normalize import get_normalizer
from speechkit.types import Seconds, Word


@dataclass(frozen=True)
class LongformResult:
    """Result of one recording; rates in per cent, memory in megabytes."""

    id: str
    audio_s: float
    num_clips: int
    wer_one_call: float
    wer_clips: float
    between: float
    away: float
    words_away: int
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
    parser.add_argument("--edge", type=float, default=1.0, help="seconds from a cut within which words may differ")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    args = parser.parse_args(argv)
    try:
        recordings = [json.loads(line) for line in args.longform.read_text(encoding="utf-8").splitlines() if line.strip()]
        chosen = [recording for recording in recordings if args.id in (None, recording["id"])]
        if not chosen:
            raise ValueError(f"--id {args.id}: {args.longform} has {', '.join(recording['id'] for recording in recordings)}")
        recognizer = load_recognizer(args.model)
        results = [
            measure(
                recognizer,
                recording,
                args.longform.parent,
                normalizer=args.normalizer,
                batch_size=args.batch_size,
                edge=args.edge,
            )
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
            f"  away from edges    {result.away:6.2f} %   of {result.words_away} words\n"
            f"  peak memory        {result.peak_mb:6.0f} MB  (before: {result.before_mb:.0f} MB)"
        )
    return 0


def measure(
    recognizer: Recognizer,
    recording: dict[str, Any],
    root: Path,
    *,
    normalizer: str,
    batch_size: int,
    edge: Seconds = 1.0,
) -> LongformResult:
    """Transcribes one recording both ways.

    Args:
        recognizer: the model.
        recording: a row of longform.jsonl.
        root: what its paths are relative to.
        normalizer: of texts before they are compared.
        batch_size: windows, or clips, decoded together.
        edge: words so near to a cut may differ, seconds.
    """
    normalize, rate = get_normalizer(normalizer), recognizer.sample_rate
    waves = [load_audio(root / segment["audio_filepath"], sample_rate=rate)[0] for segment in recording["segments"]]
    reference = normalize(" ".join(segment["text"] for segment in recording["segments"]))
    long_N = np.concatenate(waves)
    stride = round(recognizer.features.frame_shift * rate) * recognizer.model.subsampling_factor
    ends = np.cumsum([len(wave_N) for wave_N in waves])
    cuts = [0, *(int(end) // stride * stride for end in ends[:-1]), len(long_N)]
    del waves
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "long.wav"
        save_audio(path, long_N, rate)
        before_mb = _peak_mb()
        started = time.perf_counter()
        [whole] = recognizer.transcribe(str(path), batch_size=batch_size, timestamps="word")
        one_call_s = time.perf_counter() - started
        peak_mb = _peak_mb()
        edges = [time_s for region in recognizer.speech_regions(str(path)) for time_s in region]
    started = time.perf_counter()
    parts = recognizer.transcribe([long_N[begin:end] for begin, end in pairwise(cuts)], batch_size=batch_size, timestamps="word")
    clips_s = time.perf_counter() - started
    clips = join_hypotheses([(cut / rate, part) for cut, part in zip(cuts, parts)], audio_s=len(long_N) / rate)
    edges += [cut / rate for cut in cuts]
    differing, words_away = _differences(clips.words, whole.words, edges, edge)
    texts = normalize(clips.text), normalize(whole.text)
    return LongformResult(
        id=recording["id"],
        audio_s=round(len(long_N) / rate, 1),
        num_clips=len(parts),
        wer_one_call=round(100 * count_errors(reference, texts[1]).rate, 2),
        wer_clips=round(100 * count_errors(reference, texts[0]).rate, 2),
        between=round(100 * count_errors(*texts).rate, 2),
        away=round(100 * differing / max(words_away, 1), 2),
        words_away=words_away,
        one_call_s=round(one_call_s, 2),
        clips_s=round(clips_s, 2),
        before_mb=round(before_mb, 1),
        peak_mb=round(peak_mb, 1),
    )


def _differences(ours: Sequence[Word], theirs: Sequence[Word], edges: Sequence[Seconds], edge: Seconds) -> tuple[int, int]:
    """Words away from all edges in which two transcripts differ, and how many words of the first are there at all."""

    def is_away(word: Word) -> bool:
        return all(max(word.start - time_s, time_s - word.end) > edge for time_s in edges)

    differing = 0
    matcher = SequenceMatcher(a=[word.text for word in ours], b=[word.text for word in theirs], autojunk=False)
    for operation, i, j, k, m in matcher.get_opcodes():
        words = [*ours[i:j], *theirs[k:m]]
        if operation != "equal" and all(map(is_away, words)):
            differing += max(j - i, m - k)
    return differing, sum(map(is_away, ours))


def _peak_mb() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    raise SystemExit(main())

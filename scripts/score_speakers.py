"""Equal error rate of a speaker encoder: is a pair of utterances of one speaker, or of two?

    python scripts/score_speakers.py exp/demo_speaker/pretrained data/demo/test.jsonl
    python scripts/score_speakers.py exp/demo_speaker/pretrained data/demo/test.jsonl --json eer.json

All pairs of the manifest's utterances count, each once; give speakers that the encoder was not trained on. Definitions are in
speechkit/metrics/speaker.py. Exit status: 0, or 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

import speechkit
from speechkit.data.dataset import SpeechDataset
from speechkit.data.manifest import read_manifest
from speechkit.metrics.speaker import equal_error_rate, score_pairs
from speechkit.pretrained import load_speaker_encoder
from speechkit.speaker_encoder import SpeakerEncoder

_AT_ONCE = 16  # utterances


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        utterances = [*read_manifest(args.manifest)]
        nameless = next((utterance.id for utterance in utterances if not utterance.speaker), None)
        if nameless is not None:
            raise ValueError(f"{args.manifest}: utterance {nameless!r} has no speaker; give every row the field speaker")
        encoder = load_speaker_encoder(args.model, device=args.device)
        dataset = SpeechDataset(utterances=utterances, sample_rate=encoder.sample_rate)
        speakers = [utterance.speaker for utterance in utterances]
        found = equal_error_rate(*score_pairs(embed_all(encoder, dataset), speakers))
        report = {
            "model": str(args.model),
            "manifest": str(args.manifest),
            "num_utterances": len(utterances),
            "num_speakers": len(set(speakers)),
            **asdict(found),
            "versions": {"speechkit": speechkit.__version__},
        }
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"score_speakers: {error}", file=sys.stderr)
        return 2
    print(f"{args.manifest}: {len(utterances)} utterances of {report['num_speakers']} speakers")
    pairs = f"{found.num_same:,} pairs of one speaker and {found.num_different:,} of two"
    print(f"  equal error rate {100 * found.rate:.1f} %, at a cosine of {found.threshold:.3f}; {pairs}")
    return 0


def embed_all(encoder: SpeakerEncoder, dataset: SpeechDataset) -> np.ndarray:
    """Embeddings of all utterances, float32, shape (U, D)."""
    parts = [np.zeros((0, encoder.embedding_dim), np.float32)]
    for first in tqdm(range(0, len(dataset), _AT_ONCE), unit="batch", disable=None, leave=False):
        examples = (dataset[i] for i in range(first, min(first + _AT_ONCE, len(dataset))))
        parts.append(encoder.embed([example.wave_N for example in examples if example is not None], batch_size=_AT_ONCE))
    return np.concatenate(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score_speakers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="pretrained folder of a speaker encoder")
    parser.add_argument("manifest", help="JSONL manifest whose rows name their speakers")
    parser.add_argument("--device", help="cpu, cuda, ...; the GPU when there is one")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())

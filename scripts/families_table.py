"""One table of trained recognisers: error rates, length errors, decoder calls and speed, measured alike in one run.

    python scripts/families_table.py --manifest test.jsonl --output table.md --threads 2 \\
        CTC=exp/so_ctc/pretrained \\
        "AED joint=exp/so_aed/pretrained:aed_joint" \\
        "CASS-NAT, 4 paths=exp/so_cassnat/pretrained:cassnat_esa:num_samples=4"

A row is NAME=FOLDER[:DECODE[:OPTION=VALUE...]]. FOLDER is a pretrained folder or the name of a shipped model; DECODE a
configuration of conf/decode, the model's own when it is left out; further options of it follow, each after a colon, with
values as in YAML (`hotwords=[a, b]`). NAME heads the row.

What the columns say. WER and CER: counts summed over the manifest, divided once, with bootstrap intervals; adults (age 18
and more) and children apart where the manifest gives an age. Length errors: share of hypotheses that have another number
of tokens than the reference, as the model's own normaliser and tokenizer make them. Calls: passes of the model's decoder
over one utterance, decoded alone, on average; 0 for families without a decoder. RTFx: seconds of audio recognised in one
second, from samples to text, features included, files already read, after a warm-up: for batches of 16 over the whole
manifest, alone over `--timed` utterances spread evenly over all lengths.

Writes the table as Markdown and, beside it, all figures as JSON. Rows of an earlier run that are in that JSON stay in the
table, unless their name is given again; each tells when and how it was measured. Exit status: 0, or 2 for input that cannot
be used.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from result_table import (
    ROW,
    Row,
    configured,
    earlier_rows,
    error_rate,
    markdown,
    parse_row,
    percent,
    with_interval,
    write_table,
)
from torch import nn
from tqdm import tqdm

from speechkit.data.collate import collate_asr
from speechkit.data.dataset import SpeechDataset
from speechkit.data.manifest import read_manifest
from speechkit.metrics.wer import UNITS, Unit, count_errors_batch
from speechkit.pretrained import ASSETS, load, read_config
from speechkit.recognizer import Recognizer
from speechkit.search.decoder_calls import count_calls
from speechkit.text.normalize import NORMALIZER_NAMES, get_normalizer
from speechkit.types import Hypothesis, Utterance

ADULT_AGE = 18
BATCH_SIZE = 16
WARMUP_BATCHES = 2
RATES: dict[Unit, str] = {"word": "wer", "char": "cer"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    command = shlex.join(["python", "scripts/families_table.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        rows = [parse_row(text) for text in args.rows]
        utterances = read_manifest(args.manifest)[: args.limit]
        if not utterances:
            raise ValueError(f"{args.manifest} holds no utterance")
        torch.set_num_threads(args.threads)
        output = Path(args.output)
        figures = earlier_rows(output.with_suffix(".json"))
        for row in rows:
            measured = measure(row, utterances, num_timed=args.timed, normalizer=args.normalizer)
            figures[row.name] = measured | {"command": command}
            # row by row: a run that breaks off keeps what it measured
            write_table(output, figures, table(figures), manifest=args.manifest)
    except (ValueError, ImportError, OSError) as error:
        print(f"families_table: {error}", file=sys.stderr)
        return 2
    print(table(figures))
    return 0


def prepare(row: Row) -> Recognizer:
    """The row's recogniser with its decode options.

    Raises:
        ValueError: there is no such configuration, it is another family's, or an option does not fit or is missing.
    """
    recognizer: Recognizer = load(row.folder, device="cpu")
    recognizer.options = configured(row, infer=recognizer.infer, options=recognizer.options)
    return recognizer


def measure(row: Row, utterances: Sequence[Utterance], *, num_timed: int, normalizer: str) -> dict[str, Any]:
    """All figures of a row, ready for JSON; rates are fractions."""
    recognizer = prepare(row)
    dataset = SpeechDataset(utterances=utterances, sample_rate=recognizer.sample_rate)
    order = sorted(range(len(utterances)), key=lambda i: -float(dataset.durations[i]))
    batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    together, batch_speed, _ = decode(recognizer, dataset, batches, title=f"{row.name}, batches of {BATCH_SIZE}")
    step = max(1, len(order) // num_timed)
    singles = [[i] for i in order[step // 2 :: step][:num_timed]]
    alone, single_speed, num_calls = decode(recognizer, dataset, singles, title=f"{row.name}, one by one")
    different = sum(alone[i].tokens != together[i].tokens for i in alone)
    if different:
        message = f"{different} of {len(alone)} transcripts differ between batches of 1 and of {BATCH_SIZE}"
        print(f"{row.name}: {message}", file=sys.stderr)
    hypotheses = [together[i] for i in range(len(utterances))]
    return {
        "name": row.name,
        "folder": row.folder,
        "decode": row.decode,
        "options": row.options,
        "num_utterances": len(utterances),
        "num_parameters": recognizer.num_parameters(),
        **score(utterances, hypotheses, normalizer=normalizer),
        "length_error_rate": length_error_rate(row, recognizer, utterances, hypotheses),
        "decoder_calls": num_calls / len(alone),
        "rtfx": {"1": single_speed, str(BATCH_SIZE): batch_speed},
        "num_timed_alone": len(alone),
        "num_different_alone": different,
        "normalizer": normalizer,
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def decode(
    recognizer: Recognizer, dataset: SpeechDataset, batches: Sequence[Sequence[int]], *, title: str
) -> tuple[dict[int, Hypothesis], float, int]:
    """Hypotheses by utterance, RTFx, and calls of the model's decoder; the warm-up counts for neither."""
    found: dict[int, Hypothesis] = {}
    audio_s, decode_s, num_calls = 0.0, 0.0, 0
    decoder = getattr(recognizer.model, "decoder", None) or nn.Identity()
    for number, indices in enumerate(tqdm(batches, desc=title, disable=not sys.stderr.isatty(), leave=False)):
        batch = collate_asr([dataset[i] for i in indices])
        if number < WARMUP_BATCHES:
            recognizer.decode_batch(batch)
        with count_calls(decoder) as calls:
            hypotheses, seconds = recognizer.decode_batch(batch)
        found |= zip(indices, hypotheses)
        audio_s += float(batch.wave_lens_B.sum()) / recognizer.sample_rate
        decode_s, num_calls = decode_s + seconds, num_calls + calls.num_calls
    return found, audio_s / decode_s, num_calls


def score(utterances: Sequence[Utterance], hypotheses: Sequence[Hypothesis], *, normalizer: str) -> dict[str, Any]:
    """Error rates with intervals of all, and of adults and children where ages are given."""
    normalize = get_normalizer(normalizer)
    refs, hyps = [normalize(u.text) for u in utterances], [normalize(h.text) for h in hypotheses]
    counts = {unit: count_errors_batch(refs, hyps, unit) for unit in UNITS}
    ages = [u.extra.get("age") for u in utterances]
    groups = {"all": list(range(len(utterances)))}
    if any(isinstance(age, int | float) for age in ages):
        for name, is_adult in (("adults", True), ("children", False)):
            groups[name] = [i for i, age in enumerate(ages) if isinstance(age, int | float) and (age >= ADULT_AGE) == is_adult]
    return {
        name: {RATES[unit]: error_rate([counts[unit][i] for i in members]) for unit in UNITS} | {"num_utterances": len(members)}
        for name, members in groups.items()
        if members
    }


def length_error_rate(
    row: Row, recognizer: Recognizer, utterances: Sequence[Utterance], hypotheses: Sequence[Hypothesis]
) -> float:
    """Share of hypotheses with another number of tokens than the reference."""
    folder = Path(row.folder) if Path(row.folder).is_dir() else ASSETS / row.folder
    normalize = get_normalizer(read_config(folder).get("normalizer", "none"))
    lengths = [len(recognizer.tokenizer.encode(normalize(utterance.text))) for utterance in utterances]
    return sum(len(each.tokens) != length for each, length in zip(hypotheses, lengths, strict=True)) / len(utterances)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    split = any("adults" in row for row in figures.values())
    head = ["row", "parameters", "WER % (95 %)", "CER % (95 %)"]
    head += ["adults WER / CER %", "children WER / CER %"] if split else []
    head += ["length errors %", "decoder calls", "RTFx batch 1", f"RTFx batch {BATCH_SIZE}"]
    lines = [head]
    for row in figures.values():
        groups = [_both(row.get(group)) for group in ("adults", "children")] if split else []
        speeds = [f"{row['rtfx'][size]:.1f}" for size in ("1", str(BATCH_SIZE))]
        lines.append(
            [
                row["name"],
                f"{row['num_parameters'] / 1e6:.2f}M",
                *(with_interval(row["all"][rate]) for rate in RATES.values()),
                *groups,
                percent(row["length_error_rate"]),
                f"{row['decoder_calls']:.1f}",
                *speeds,
            ]
        )
    return markdown(lines)


def _both(group: dict[str, Any] | None) -> str:
    return "" if group is None else " / ".join(percent(group[rate]["rate"]) for rate in RATES.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="families_table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar=ROW)
    parser.add_argument("--manifest", required=True, help="what to decode")
    parser.add_argument("--output", required=True, metavar="TABLE.md", help="Markdown table; TABLE.json beside it")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    parser.add_argument("--timed", type=int, default=100, help="utterances decoded one by one (default: 100)")
    parser.add_argument("--limit", type=int, help="decode the first so many utterances only, to try things out")
    parser.add_argument(
        "--normalizer", default="none", choices=NORMALIZER_NAMES, help="applied to references and hypotheses (default: none)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

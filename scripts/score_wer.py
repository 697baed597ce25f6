"""Word and character error rates of hypotheses files.

    python scripts/score_wer.py hyps.jsonl
    python scripts/score_wer.py hyps.jsonl --normalizer whisper_en --by speaker --by 'age>=18' --worst 10 --json wer.json
    python scripts/score_wer.py baseline.jsonl better.jsonl          # with the difference and its interval
    python scripts/score_wer.py hyps.jsonl --unit word --fail-above 5.0   # for CI: exit status 1 above 5 %

Counts are summed over the corpus and divided once. Texts are scored as they are in the file unless --normalizer names a
normaliser. Exit status: 0, 1 when --fail-above is exceeded, 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import speechkit
from speechkit.metrics.hyps import read_hyps
from speechkit.metrics.wer import (
    UNITS,
    ConfidenceInterval,
    ErrorCounts,
    PairedDifference,
    Unit,
    align_texts,
    bootstrap_interval,
    count_errors_batch,
    format_alignment,
    paired_bootstrap,
    sum_counts,
)
from speechkit.text.normalize import NORMALIZER_NAMES, Normalizer, get_normalizer

_NAMES: dict[Unit, str] = {"word": "WER", "char": "CER"}
_SPLIT = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|==|>|<)\s*(-?\d+(?:\.\d+)?)\s*")
_SPLITS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    ">=": (operator.ge, "<"),
    "<=": (operator.le, ">"),
    "==": (operator.eq, "!="),
    ">": (operator.gt, "<="),
    "<": (operator.lt, ">="),
}
_NO_VALUE = "(none)"


@dataclass(frozen=True)
class Options:
    """What to score and how."""

    normalizer: Normalizer
    units: tuple[Unit, ...]
    by: tuple[str, ...]
    num_worst: int
    max_groups: int
    bootstrap_by: str | None
    num_samples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Scored:
    """A hypotheses file with its normalised texts and the counts of every utterance."""

    path: Path
    rows: list[dict[str, Any]]
    refs: list[str]
    hyps: list[str]
    counts: dict[Unit, list[ErrorCounts]]

    def total(self, unit: Unit) -> ErrorCounts:
        return sum_counts(self.counts[unit])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        options = _options(args)
        files = [score_file(Path(path), options) for path in args.hyps]
        differences = compare(files, options)
        reports = [report(file, options) for file in files]
        if args.json:
            comparison = [_comparison_json(files, *item) for item in differences]
            text = json.dumps({"files": reports, "comparison": comparison}, indent=2, ensure_ascii=False)
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    except (ValueError, ImportError, OSError) as error:
        print(f"score_wer: {error}", file=sys.stderr)
        return 2
    for file, result in zip(files, reports):
        _print_report(file, result, options)
    if differences:
        _print_comparison(files, differences)
    return _check_limit(files, options.units[0], args.fail_above)


def score_file(path: Path, options: Options) -> Scored:
    """Reads a file and counts the errors of every utterance.

    Raises:
        HypsError: the file cannot be used.
    """
    rows = read_hyps(path)
    refs = [options.normalizer(row["ref"]) for row in rows]
    hyps = [options.normalizer(row["hyp"]) for row in rows]
    counts = {unit: count_errors_batch(refs, hyps, unit) for unit in options.units}
    return Scored(path, rows, refs, hyps, counts)


def group_values(rows: Sequence[Mapping[str, Any]], by: str) -> list[list[str]]:
    """The groups that each row belongs to: one, or one per item where the field is a list of tags.

    Args:
        rows: rows of a hypotheses file.
        by: a field, or a numeric split such as "age>=18".

    Raises:
        ValueError: no row has the field.
    """
    split = _SPLIT.fullmatch(by)
    name = split[1] if split else by
    if not any(name in row for row in rows):
        known = ", ".join(sorted({key for row in rows for key in row}))
        raise ValueError(f"--by: no row has the field {name!r}; the fields are: {known}")
    values = [row.get(name) for row in rows]
    if split:
        holds, opposite = _SPLITS[split[2]]
        names = (f"{name}{split[2]}{split[3]}", f"{name}{opposite}{split[3]}")
        numbers = [_number(value) for value in values]
        return [[_NO_VALUE if x is None else names[0 if holds(x, float(split[3])) else 1]] for x in numbers]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return [sorted({_NO_VALUE if item in (None, "") else str(item) for item in items}) or [_NO_VALUE] for items in lists]


def report(file: Scored, options: Options) -> dict[str, Any]:
    """All results of one file, ready for JSON; rates are fractions."""
    bootstrap = _bootstrap_options(file, options)
    result: dict[str, Any] = {
        "path": str(file.path),
        "num_utterances": len(file.rows),
        "num_empty_refs": sum(not ref.strip() for ref in file.refs),
        "normalizer": options.normalizer.id,
        "versions": {
            "speechkit": speechkit.__version__,
            "jiwer": version("jiwer"),
            "python": platform.python_version(),
        },
    }
    for unit in options.units:
        interval = bootstrap_interval(file.counts[unit], **bootstrap)
        result[_NAMES[unit].lower()] = _finite(file.total(unit).rate)
        result[unit] = {
            **_counts_json(file.total(unit)),
            "interval": _interval_json(interval, options),
            "utterance_error_rate": sum(c.errors > 0 for c in file.counts[unit]) / len(file.rows),
        }
    result["groups"] = {by: group_table(file, by, options.units) for by in options.by}
    result["worst"] = worst_utterances(file, options.units[0], options.num_worst)
    return result


def group_table(file: Scored, by: str, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """Counts of each group, the highest rate of the first unit first."""
    members: dict[str, list[int]] = {}
    for i, names in enumerate(group_values(file.rows, by)):
        for name in names:
            members.setdefault(name, []).append(i)
    sums = {name: {unit: sum_counts(file.counts[unit][i] for i in rows) for unit in units} for name, rows in members.items()}
    order = sorted(members, key=lambda name: (-sums[name][units[0]].rate, name))
    return [
        {"group": name, "num_utterances": len(members[name])} | {unit: _counts_json(sums[name][unit]) for unit in units}
        for name in order
    ]


def worst_utterances(file: Scored, unit: Unit, number: int) -> list[dict[str, Any]]:
    """The utterances with the most errors (of equals, the higher rate first), aligned."""
    counts = file.counts[unit]
    order = sorted(range(len(counts)), key=lambda i: (-counts[i].errors, -counts[i].rate, i))
    worst = []
    for i in order[:number]:
        if counts[i].errors == 0:
            break
        pairs = align_texts(file.refs[i], file.hyps[i], unit)
        worst.append(
            {
                "id": file.rows[i]["id"],
                "unit": unit,
                **_counts_json(counts[i]),
                "ref": file.refs[i],
                "hyp": file.hyps[i],
                "alignment": [asdict(pair) for pair in pairs],
                "text": format_alignment(pairs),
            }
        )
    return worst


def compare(files: Sequence[Scored], options: Options) -> list[tuple[Unit, int, PairedDifference]]:
    """Paired bootstrap of each further file against the first: (unit, position of the file, difference).

    Raises:
        ValueError: the files do not hold the same utterances with the same references.
    """
    first = files[0]
    order = {row["id"]: i for i, row in enumerate(first.rows)}
    results: list[tuple[Unit, int, PairedDifference]] = []
    for k, other in enumerate(files[1:], start=1):
        places = {row["id"]: i for i, row in enumerate(other.rows)}
        if places.keys() != order.keys():
            example = min(places.keys() ^ order.keys())
            raise ValueError(f"{other.path} and {first.path} hold different utterances, such as {example!r}")
        aligned = [places[name] for name in order]
        for i, j in enumerate(aligned):
            if first.refs[i] != other.refs[j]:
                raise ValueError(f"{other.path} and {first.path} differ in the reference of {other.rows[j]['id']!r}")
        for unit in options.units:
            counts = [other.counts[unit][j] for j in aligned]
            difference = paired_bootstrap(first.counts[unit], counts, **_bootstrap_options(first, options))
            results.append((unit, k, difference))
    return results


def _bootstrap_options(file: Scored, options: Options) -> dict[str, Any]:
    groups = None
    if options.bootstrap_by:
        groups = ["\0".join(names) for names in group_values(file.rows, options.bootstrap_by)]
    return {
        "groups": groups,
        "num_samples": options.num_samples,
        "confidence": options.confidence,
        "seed": options.seed,
    }


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _counts_json(counts: ErrorCounts) -> dict[str, Any]:
    return {
        "rate": _finite(counts.rate),
        "errors": counts.errors,
        **asdict(counts),
        "ref_length": counts.ref_length,
        "hyp_length": counts.hyp_length,
    }


def _interval_json(interval: ConfidenceInterval, options: Options) -> dict[str, Any]:
    bounds = {"low": _finite(interval.low), "high": _finite(interval.high)}
    return {**asdict(interval), **bounds, "resampled": options.bootstrap_by or "utterance", "seed": options.seed}


def _comparison_json(files: Sequence[Scored], unit: Unit, k: int, paired: PairedDifference) -> dict[str, Any]:
    return {
        "baseline": str(files[0].path),
        "path": str(files[k].path),
        "unit": unit,
        "difference": _finite(paired.difference),
        "low": _finite(paired.interval.low),
        "high": _finite(paired.interval.high),
        "confidence": paired.interval.confidence,
        "improvement": paired.improvement,
        "significant": paired.significant,
    }


def _print_report(file: Scored, result: dict[str, Any], options: Options) -> None:
    versions = result["versions"]
    print(f"{file.path}: {len(file.rows)} utterances, normalizer {result['normalizer']}, jiwer {versions['jiwer']}")
    if result["num_empty_refs"]:
        print(f"  {result['num_empty_refs']} empty references: what was recognised there counts as insertions")
    level = f"{100 * options.confidence:g}% interval"
    rows = [["", "rate %", level, "errors", "sub", "del", "ins", "reference", "wrong utts %"]]
    for unit in options.units:
        part = result[unit]
        interval = f"[{_percent(part['interval']['low'])}, {_percent(part['interval']['high'])}]"
        wrong = _percent(part["utterance_error_rate"])
        rows.append([_NAMES[unit], *_cells(part, interval), f"{part['ref_length']} {unit}s", wrong])
    _print_table(rows)
    resampled = options.bootstrap_by or "utterance"
    print(f"  (bootstrap over {resampled}, {options.num_samples} samples, seed {options.seed})")
    for by, groups in result["groups"].items():
        print(f"\nby {by}, highest {_NAMES[options.units[0]]} first")
        _print_table(_group_rows(groups, options))
        if len(groups) > options.max_groups:
            print(f"  ... {len(groups) - options.max_groups} more (--max-groups, or --json for all)")
    if result["worst"]:
        print("\nmost errors")
    for row in result["worst"]:
        print(f"{row['id']}: {row['errors']} errors, {_percent(row['rate'])} %\n{row['text']}")
    print()


def _group_rows(groups: Sequence[Mapping[str, Any]], options: Options) -> list[list[str]]:
    head = ["group", "utts"]
    for unit in options.units:
        head += [f"{_NAMES[unit]} %", "errors", "sub", "del", "ins"]
    rows = [head]
    for group in groups[: options.max_groups]:
        cells = [_cells(group[unit]) for unit in options.units]
        rows.append([group["group"], str(group["num_utterances"]), *(cell for part in cells for cell in part)])
    return rows


def _cells(part: Mapping[str, Any], *after_rate: str) -> list[str]:
    counts = (str(part[name]) for name in ("errors", "substitutions", "deletions", "insertions"))
    return [_percent(part["rate"]), *after_rate, *counts]


def _print_comparison(files: Sequence[Scored], differences: Sequence[tuple[Unit, int, PairedDifference]]) -> None:
    print(f"against {files[0].path} (paired bootstrap; negative differences are improvements)")
    rows = [["", "unit", "rate %", "difference", "interval", "P(better)", "significant"]]
    for unit, k, paired in differences:
        interval = f"[{100 * paired.interval.low:+.2f}, {100 * paired.interval.high:+.2f}]"
        rate = _percent(files[k].total(unit).rate)
        verdict = "yes" if paired.significant else "no"
        difference = f"{100 * paired.difference:+.2f}"
        rows.append([str(files[k].path), _NAMES[unit], rate, difference, interval, f"{paired.improvement:.3f}", verdict])
    _print_table(rows)


def _percent(rate: float | None) -> str:
    return f"{100 * rate:.2f}" if rate is not None and math.isfinite(rate) else "inf"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print("  " + "  ".join(cells).rstrip())


def _check_limit(files: Sequence[Scored], unit: Unit, limit: float | None) -> int:
    status = 0
    for file in files:
        rate = 100 * file.total(unit).rate
        if limit is not None and rate > limit:
            print(f"score_wer: {file.path}: {_NAMES[unit]} {rate:.2f} % is above {limit:g} %", file=sys.stderr)
            status = 1
    return status


def _options(args: argparse.Namespace) -> Options:
    if args.worst < 0 or args.max_groups < 1:
        raise ValueError("--worst must not be negative and --max-groups must be positive")
    return Options(
        normalizer=get_normalizer(args.normalizer),
        units=UNITS if args.unit == "both" else (args.unit,),
        by=tuple(args.by),
        num_worst=args.worst,
        max_groups=args.max_groups,
        bootstrap_by=args.bootstrap_by,
        num_samples=args.bootstrap_samples,
        confidence=args.confidence,
        seed=args.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score_wer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("hyps", nargs="+", help="hyps.jsonl; several files are compared with the first")
    add("--json", metavar="FILE", help="write all results as JSON (rates as fractions)")
    add("--normalizer", default="none", metavar="NAME", help=f"one of: {', '.join(NORMALIZER_NAMES)} (default: none)")
    add("--unit", choices=(*UNITS, "both"), default="both", help="what to count (default: both)")
    add("--by", action="append", default=[], metavar="FIELD", help="table by a field or split, such as 'age>=18'; repeat")
    add("--max-groups", type=int, default=20, metavar="N", help="rows printed of each such table (default: 20)")
    add("--worst", type=int, default=5, metavar="N", help="utterances shown aligned (default: 5)")
    add("--bootstrap-by", metavar="FIELD", help="resample groups, such as speaker, instead of utterances")
    add("--bootstrap-samples", type=int, default=1000, metavar="N", help="default: 1000")
    add("--confidence", type=float, default=0.95, metavar="P", help="of the intervals (default: 0.95)")
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    add("--fail-above", type=float, metavar="X", help="exit status 1 if the rate (of words, with both) is above X per cent")
    return parser


if __name__ == "__main__":
    sys.exit(main())

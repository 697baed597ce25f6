"""What the scripts share that measure trained models side by side: rows on the command line, and figures kept between runs."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from speechkit.data.manifest import atomic_file
from speechkit.families import decode_config
from speechkit.metrics.wer import ErrorCounts, bootstrap_interval, sum_counts
from speechkit.pretrained import instantiate

ROW = "NAME=FOLDER[:DECODE[:OPTION=VALUE...]]"


@dataclass(frozen=True)
class Row:
    """What a row of the table is made of: its name, a model, and how to decode it."""

    name: str
    folder: str
    decode: str
    options: dict[str, Any]


def parse_row(text: str) -> Row:
    """A row from the command line.

    Raises:
        ValueError: the text is not NAME=FOLDER[:DECODE[:OPTION=VALUE...]].
    """
    name, equals, rest = text.partition("=")
    folder, *parts = rest.split(":")
    decode, settings = (parts[0], parts[1:]) if parts else ("", [])
    if not (name.strip() and equals and folder):
        raise ValueError(f"row {text!r} is not {ROW}")
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (decode and equals and key.isidentifier()):
            raise ValueError(f"row {text!r}: {setting!r} is not OPTION=VALUE after the name of a decoding configuration")
        options[key] = yaml.safe_load(value)
    return Row(name.strip(), folder, decode, options)


def configured(row: Row, *, infer: Any, options: Any) -> Any:
    """Decode options of a row, for a model with this `infer`; the model's own where the row names none.

    Raises:
        ValueError: there is no such configuration, it is another family's, or an option does not fit or is missing.
    """
    if not row.decode:
        return options
    config = decode_config(row.decode)
    config["options"] |= row.options
    missing = [name for name, value in config["options"].items() if value == "???"]
    if missing:
        raise ValueError(f"row {row.name!r}: decode={row.decode} needs {missing[0]}; add :{missing[0]}=VALUE")
    found = instantiate(config, where=f"row {row.name!r}: decode={row.decode}")
    if found.func is not infer:
        raise ValueError(
            f"row {row.name!r}: decode={row.decode} is for {found.func.__module__}, the model needs {infer.__module__}"
        )
    return found.keywords["options"]


def earlier_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run by name, each with the manifest that it was measured on."""
    if not path.is_file():
        return {}
    results = json.loads(path.read_text(encoding="utf-8"))
    return {row["name"]: {"manifest": results["manifest"], **row} for row in results["rows"]}


def comparable_rows(
    earlier: Mapping[str, dict[str, Any]], path: Path, *, again: Collection[str], conditions: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Those of the earlier rows in `path` that may stand beside rows measured under these conditions.

    Args:
        earlier: rows by name.
        path: where they are from, for the error.
        again: names of rows that are measured in this run; where their conditions differ they make way.
        conditions: what all rows of a table have in common, by the name of the figure; "manifest" is a path.

    Raises:
        ValueError: the conditions of another row differ.
    """
    alike = {}
    for name, row in earlier.items():
        differs = [key for key, value in conditions.items() if _condition(key, row.get(key)) != _condition(key, value)]
        if not differs:
            alike[name] = row
        elif name not in again:
            [key, *_] = differs
            raise ValueError(
                f"{path} holds row {name!r}, measured with {key} {row.get(key)!r}, and this run has {conditions[key]!r}: give"
                " another --output, or measure all rows anew"
            )
    return alike


def _condition(key: str, value: Any) -> Any:
    return Path(value).resolve() if key == "manifest" and isinstance(value, str) else value


def write_table(output: Path, figures: dict[str, dict[str, Any]], table: str, *, manifest: str) -> None:
    """Writes TABLE.md and all figures beside it as JSON, rows of no manifest as of this one; each file whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    results = {"manifest": manifest, "rows": [{"manifest": manifest, **row} for row in figures.values()]}
    for path, text in (
        (output.with_suffix(".json"), json.dumps(results, indent=2, ensure_ascii=False)),
        (output, table),
    ):
        with atomic_file(path) as file:
            file.write(f"{text}\n".encode())


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of which the first line is the head."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def error_rate(counts: Sequence[ErrorCounts]) -> dict[str, float | None]:
    """Rate with a bootstrap interval; None for what is not defined."""
    interval = bootstrap_interval(counts)
    values = {"rate": sum_counts(counts).rate, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def percent(rate: float | None) -> str:
    """A fraction in percent."""
    return "-" if rate is None else f"{100 * rate:.1f}"


def with_interval(rate: dict[str, float | None]) -> str:
    """A rate of `error_rate` for the table."""
    return f"{percent(rate['rate'])} ({percent(rate['low'])}-{percent(rate['high'])})"

"""Reading `hyps.jsonl`, the file between decoding and scoring: one JSON object per utterance.

Fields: `id`, `ref`, `hyp` (raw texts; normalisation happens when scoring), `score`, `audio_s`, `decode_s` (seconds),
`speaker`, `lang`, and whatever else decoding passed through from the manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class HypsError(ValueError):
    """A hypotheses file that cannot be used; the message is one line naming the place and the remedy."""


def read_hyps(path: str | Path, *, texts: Sequence[str] = ("ref", "hyp"), seconds: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Reads and checks a hypotheses file.

    Args:
        path: JSON Lines file; blank lines are allowed.
        texts: fields that each row must have as a string.
        seconds: fields that each row must have as a number, finite and not negative.

    Returns:
        The rows in the order of the file, at least one.

    Raises:
        HypsError: the file is missing or empty, or a row is not usable (the message begins with path:line).
    """
    path = Path(path)
    if not path.is_file():
        problem = "not a regular file" if path.exists() else "no such file"
        raise HypsError(f"{path}: {problem}; give the hyps.jsonl that recipes/decode.py wrote")
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _parse_row(line, f"{path}:{number}", texts=("id", *texts), seconds=seconds)
            if row["id"] in seen:
                raise HypsError(f"{path}:{number}: id {row['id']!r} was on line {seen[row['id']]} already; keep one")
            seen[row["id"]] = number
            rows.append(row)
    if not rows:
        raise HypsError(f"{path}: empty file; decoding wrote no utterance")
    return rows


def _parse_row(line: bytes, place: str, *, texts: Sequence[str], seconds: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise HypsError(f"{place}: not JSON ({reason}); each line must be one object") from None
    if not isinstance(row, dict):
        raise HypsError(f"{place}: a {type(row).__name__}, not an object; each line must be one object with an id")
    for name in texts:
        if not isinstance(row.get(name), str):
            problem = f"is {row[name]!r}, not a string" if name in row else "is missing"
            raise HypsError(f"{place}: field {name!r} {problem}")
    for name in seconds:
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            problem = f"is {value!r}, not a number of seconds" if name in row else "is missing"
            raise HypsError(f"{place}: field {name!r} {problem}")
    return row

"""Rows that could not be used: collected with their reasons, told in a summary, written to a file; or raised at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from speechkit.data.manifest import ManifestError, OnError, atomic_file, dump_row

_SHOWN = 5


class Reject(NamedTuple):
    """One row left out: where it came from ("file:line", or a file), its id as far as known, and the reason."""

    where: str
    id: str
    reason: str


class Rejects:
    """Collects rows left out.

    Args:
        on_error: "raise" makes `add` raise instead; "skip" collects.
    """

    def __init__(self, on_error: OnError = "skip") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: must be 'raise' or 'skip'")
        self.on_error: OnError = on_error
        self.entries: list[Reject] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, where: str, id: str, reason: object) -> None:
        """Tell of a row that cannot be used.

        Raises:
            ManifestError: `on_error` is "raise".
        """
        message = str(reason)
        if self.on_error == "raise":
            raise ManifestError(message if not where or message.startswith(where) else f"{where}: {message}")
        self.entries.append(Reject(where, id, message))

    def summary(self) -> str:
        """The number of rows and the first of them; empty when there are none."""
        if not self.entries:
            return ""
        lines = [f"left out {len(self.entries)} rows:"]
        for entry in self.entries[:_SHOWN]:
            repeated = not entry.where or entry.reason.startswith(entry.where)
            lines.append(f"  {entry.reason}" if repeated else f"  {entry.where}: {entry.reason}")
        if len(self.entries) > _SHOWN:
            lines.append(f"  ... and {len(self.entries) - _SHOWN} more")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write one JSON object per row: where, id, reason."""
        with atomic_file(path) as out:
            for entry in self.entries:
                row: dict[str, Any] = entry._asdict()
                out.write(dump_row(row))


def rejects_path(path: str | os.PathLike[str]) -> Path:
    """Where the rows left out of manifest `path` are told: out.jsonl[.gz] -> out.rejects.jsonl."""
    file = Path(path)
    return file.with_name(file.name.removesuffix(".gz").removesuffix(".jsonl") + ".rejects.jsonl")

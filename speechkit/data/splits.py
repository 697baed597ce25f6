"""What preparing a corpus leaves behind: one manifest per split, and a report of what went in and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from speechkit.data.manifest import write_manifest
from speechkit.types import Seconds, Utterance

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class SplitSize:
    """Utterances and seconds of audio of one split."""

    utterances: int
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class PreparedCorpus:
    """The manifests written and their sizes; `str()` gives a short table.

    Attributes:
        name: the corpus.
        directory: holds `<split>.jsonl` for each split.
        splits: size of each split.
        left_out: rows of the source that are in no manifest, each with its reason.
    """

    name: str
    directory: Path
    splits: Mapping[str, SplitSize]
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.directory}"]
        for split, size in self.splits.items():
            lines.append(f"  {split + '.jsonl':24s} {size.utterances:8d} utterances {size.seconds / 3600:9.2f} h")
        lines.append(f"  left out: {len(self.left_out)}")
        lines.extend(f"    {reason}" for reason in self.left_out[:_SHOWN])
        if len(self.left_out) > _SHOWN:
            lines.append(f"    and {len(self.left_out) - _SHOWN} more (`left_out` of the result)")
        return "\n".join(lines)


def write_splits(
    name: str,
    out: Path,
    splits: Mapping[str, Iterable[Utterance]],
    left_out: Iterable[str] = (),
) -> PreparedCorpus:
    """Write `<out>/<split>.jsonl` for every split.

    Args:
        name: the corpus, for the report and the errors.
        out: directory to write to; made if need be.
        splits: utterances by split.
        left_out: one line for each row that is in no split, with its reason.

    Raises:
        ValueError: no split holds an utterance, or an id occurs twice in a split.
    """
    left_out = tuple(left_out)
    held = {split: list(utterances) for split, utterances in splits.items()}
    if not any(held.values()):
        reasons = "; ".join(left_out[:_SHOWN]) or "the source holds no utterance in the expected layout"
        raise ValueError(f"{name}: nothing to write to {out}: {reasons}")
    for split, utterances in held.items():
        seen: set[str] = set()
        for utterance in utterances:
            if utterance.id in seen:
                raise ValueError(f"{name}: id {utterance.id!r} occurs twice in {split}: make the file names unique")
            seen.add(utterance.id)
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, utterances in held.items():
        write_manifest(out / f"{split}.jsonl", utterances)
        sizes[split] = SplitSize(len(utterances), sum(utterance.duration for utterance in utterances))
    return PreparedCorpus(name, out, sizes, left_out)

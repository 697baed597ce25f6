"""What preparing a corpus leaves behind: one manifest per split, and a report of what went in and what was left out.

Also the ways to get there: splits by speaker or another group, and data that is in manifests already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from speechkit.data.manifest import MANIFEST_NAME, read_manifest, write_manifest
from speechkit.data.rejects import Rejects
from speechkit.types import Seconds, Utterance

REJECTS_NAME = "rejects.jsonl"
SPLITS = ("train", "dev", "test")


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
        rejects: rows of the source that are in no manifest, with reasons; rejects.jsonl tells them all.
    """

    name: str
    directory: Path
    splits: Mapping[str, SplitSize]
    rejects: Rejects

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.directory}"]
        for split, size in self.splits.items():
            lines.append(f"  {split + '.jsonl':24s} {size.utterances:8d} utterances {size.seconds / 3600:9.2f} h")
        if self.rejects:
            lines += [self.rejects.summary(), f"all of them with reasons: {self.directory / REJECTS_NAME}"]
        return "\n".join(lines)


def write_splits(
    name: str, out: Path, splits: Mapping[str, Iterable[Utterance]], *, rejects: Rejects | None = None
) -> PreparedCorpus:
    """Write `<out>/<split>.jsonl` for every split, and `<out>/rejects.jsonl` when rows were left out.

    Args:
        name: the corpus, for the report and the errors.
        out: directory to write to; made if need be.
        splits: utterances by split; an id that occurs again in its split is rejected.
        rejects: what the readers left out; without it a row that cannot be used raises.

    Raises:
        ValueError: no split holds an utterance.
        ManifestError: a row cannot be used and `rejects` does not collect.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    held = {split: _distinct(utterances, split, rejects) for split, utterances in splits.items()}
    if not any(held.values()):
        reason = rejects.summary() or "the source holds nothing in the expected layout"
        raise ValueError(f"{name}: there is nothing to write to {out}: {reason}")
    out.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, utterances in held.items():
        write_manifest(out / f"{split}.jsonl", utterances)
        sizes[split] = SplitSize(len(utterances), sum(utterance.duration for utterance in utterances))
    (out / REJECTS_NAME).unlink(missing_ok=True)
    if rejects:
        rejects.write(out / REJECTS_NAME)
    return PreparedCorpus(name, out, sizes, rejects)


def _distinct(utterances: Iterable[Utterance], split: str, rejects: Rejects) -> list[Utterance]:
    kept: dict[str, Utterance] = {}
    for utterance in utterances:
        if utterance.id in kept:
            rejects.add(str(utterance.audio_path), utterance.id, f"its id was there before in {split}; make ids unique")
        else:
            kept[utterance.id] = utterance
    return list(kept.values())


def read_splits(src: Path) -> dict[str, list[Utterance]] | None:
    """Splits of a directory that holds manifests already (`<split>/manifest.jsonl` or `<split>.jsonl`), or None.

    Raises:
        ManifestError: such a manifest cannot be read.
    """
    found = {}
    for split in SPLITS:
        for path in (src / split / MANIFEST_NAME, src / f"{split}.jsonl"):
            if path.is_file() and split not in found:
                found[split] = read_manifest(path)
    return found or None


def find_root(src: Path, marker: str, name: str) -> Path:
    """The directory that holds `marker`: `src` or one directly below it.

    Raises:
        FileNotFoundError: there is none.
    """
    below = sorted(path for path in src.iterdir() if path.is_dir()) if src.is_dir() else []
    for directory in (src, *below):
        if (directory / marker).exists():
            return directory
    raise FileNotFoundError(
        f"{src}: holds no {marker}, so it is not the {name} corpus; give its directory, or fetch it with "
        f"`speechkit download {name} DIRECTORY`"
    )


def split_by_group(
    utterances: Iterable[Utterance],
    *,
    group: Callable[[Utterance], str],
    fractions: Mapping[str, float],
    seed: int = 0,
) -> dict[str, list[Utterance]]:
    """Split so that no group (a speaker, say) is in two splits.

    The groups are put in an order by a hash of seed and name, and each split takes groups until it has its share of the
    audio; "train" gets the rest. The order of the utterances stays.

    Args:
        utterances: what to split.
        group: name of an utterance's group.
        fractions: share of the audio for each further split; splits of share 0 are left out.
        seed: of the order.

    Raises:
        ValueError: the fractions are no shares, or there are too few groups.
    """
    wanted = {split: fraction for split, fraction in fractions.items() if fraction}
    if any(fraction < 0 for fraction in wanted.values()) or sum(wanted.values()) >= 1:
        raise ValueError(f"fractions={dict(fractions)}: give shares from 0 to 1 that leave something for train")
    rows = list(utterances)
    seconds: dict[str, Seconds] = {}
    for row in rows:
        seconds[group(row)] = seconds.get(group(row), 0.0) + row.duration
    if len(seconds) <= len(wanted):
        raise ValueError(f"{len(seconds)} groups cannot fill {len(wanted) + 1} splits: lower the number of splits")
    order = sorted(seconds, key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())
    total = sum(seconds.values())
    split_of: dict[str, str] = {}
    for index, (split, fraction) in enumerate(wanted.items()):
        left = len(wanted) - index  # groups that the splits to come and train need at least
        taken = 0.0
        while len(order) > left and (not taken or taken + seconds[order[0]] / 2 < fraction * total):
            name = order.pop(0)
            split_of[name] = split
            taken += seconds[name]
    splits: dict[str, list[Utterance]] = {split: [] for split in ("train", *wanted)}
    for row in rows:
        splits[split_of.get(group(row), "train")].append(row)
    return splits

"""Rows of a manifest that are to be spoken: their files, the languages that the model knows, and batches."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

from speechkit.text.verbalize import base_language
from speechkit.types import Utterance

_SHOWN = 5


def output_paths(utterances: Sequence[Utterance], folder: Path, *, suffix: str, manifest: str | Path) -> list[Path]:
    """The file of each utterance, <folder>/<id><suffix>: all different, inside the folder, and none a recording of the manifest.

    Ids may hold "/"; nothing is made on disk.

    Args:
        utterances: rows of a manifest.
        folder: where files are to be written.
        suffix: of the files, such as ".wav".
        manifest: where the rows are from, for errors.

    Raises:
        ValueError: an id is absolute, leads out of the folder, comes twice, or names a recording of the manifest; the message
            names manifest, row and id.
    """
    sources = {each.audio_path.resolve() for each in utterances}
    rows: dict[Path, int] = {}
    for number, utterance in enumerate(utterances, start=1):
        where, own = f"{manifest}, row {number}: id {utterance.id!r}", Path(utterance.id)
        if own.anchor or ".." in own.parts or "\0" in utterance.id:
            raise ValueError(f"{where} cannot name a file in {folder}: give an id without a root, '..' and null characters")
        path = folder / f"{utterance.id}{suffix}"
        if path in rows:
            raise ValueError(f"{where} has the file of row {rows[path]}, {path}: give each row its own id")
        if path.resolve() in sources:
            raise ValueError(f"{where} would overwrite {path}, a recording of the manifest: choose another output")
        rows[path] = number
    return list(rows)


def known_languages(utterances: Sequence[Utterance], languages: Sequence[str]) -> list[str]:
    """The language to ask of a model for each utterance: its own code where the model knows it, with or without a region.

    Args:
        utterances: rows of a manifest.
        languages: codes that the model knows; those of a model without languages are empty.

    Returns:
        Codes as the rows have them; "" for the model's own language, which rows without a code are spoken in, and those in a
        language that the model does not know. A warning tells of these once.
    """
    known = {base_language(language) for language in languages if language}
    found = [each.lang if base_language(each.lang) in known else "" for each in utterances]
    unknown = [each for each, language in zip(utterances, found, strict=True) if each.lang and not language]
    if known and unknown:
        codes = sorted({each.lang for each in unknown})
        named = ", ".join(map(repr, codes[:_SHOWN])) + (", ..." if len(codes) > _SHOWN else "")
        warnings.warn(
            f"{len(unknown)} rows, the first of id {unknown[0].id!r}, are in languages that the model does not know ({named}) and"
            f" spoken in its own; it knows {', '.join(map(repr, languages))}",
            stacklevel=2,
        )
    return found


def plan_batches(texts: Sequence[str], languages: Sequence[str], *, batch_size: int) -> list[list[int]]:
    """Numbers of the rows that are spoken together: of one language each, and of similar length."""
    order = sorted(range(len(texts)), key=lambda i: (languages[i], len(texts[i])))
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda i: languages[i])]
    return [group[first : first + batch_size] for group in groups for first in range(0, len(group), batch_size)]

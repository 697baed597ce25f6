"""Common Voice: read sentences of volunteers in many languages (Ardila et al., LREC 2020; CC0)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from speechkit.data.readers_tables import read_csv
from speechkit.data.rejects import Rejects
from speechkit.data.splits import SPLITS, PreparedCorpus, find_root, write_splits

PAGE = "https://commonvoice.mozilla.org/datasets"


def download_common_voice(dest: Path) -> NoReturn:
    """Explain how to get it: the terms have to be accepted by a person.

    Args:
        dest: where it should go.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"Common Voice cannot be downloaded by a program: accept its terms at {PAGE}, unpack the archive of a language "
        f"into {dest}, then run `speechkit prepare common_voice {dest}/cv-corpus-<version>/<language> OUT`"
    )


def prepare_common_voice(
    src: Path, out: Path, *, splits: Sequence[str] = SPLITS, num_workers: int | None = None
) -> PreparedCorpus:
    """Write `<split>.jsonl` for the tables of one language.

    Args:
        src: directory of a language, with train.tsv and clips/, or the one above it.
        out: where the manifests go.
        splits: names of tables: "train", "dev", "test", "validated", "other", "invalidated".
        num_workers: threads that look at audio.

    Raises:
        FileNotFoundError: a table is not there.
    """
    splits = [splits] if isinstance(splits, str) else splits
    root = find_root(src, f"{splits[0]}.tsv", "common_voice")
    rejects = Rejects()
    rows = {}
    for split in splits:
        table = root / f"{split}.tsv"
        if not table.is_file():
            raise FileNotFoundError(f"{table}: is not there; name the tables to take with splits")
        read = read_csv(table, quoted=False, audio_root=root / "clips", rejects=rejects, num_workers=num_workers)
        rows[split] = [replace(row, id=row.audio_path.stem) for row in read]
    return write_splits("common_voice", out, rows, rejects=rejects)

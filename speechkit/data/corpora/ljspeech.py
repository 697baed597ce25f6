"""LJSpeech-1.1: 24 h of one female reader (Keith Ito, keithito.com/LJ-Speech-Dataset, public domain).

Split: of the clips in the order of their names the last 250 are test, the 250 before them dev, all others train, as in
ESPnet and ParallelWaveGAN. Data that is in manifests already keeps its own splits.
"""

from __future__ import annotations

from pathlib import Path

from speechkit.data.download import fetch_archive
from speechkit.data.readers_tables import read_ljspeech
from speechkit.data.rejects import Rejects
from speechkit.data.splits import PreparedCorpus, find_root, read_splits, write_splits

URL = "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2"
SHA256 = "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"


def download_ljspeech(dest: Path, *, url: str = URL, sha256: str | None = SHA256, keep: bool = False) -> Path:
    """Download and unpack LJSpeech (2.7 GB).

    Args:
        dest: where to unpack.
        url: address of the archive; a mirror's, if need be.
        sha256: its digest; None checks nothing.
        keep: keep the archive.

    Returns:
        Directory for `prepare_ljspeech`.

    Raises:
        OSError: the download failed.
    """
    return fetch_archive(url, dest, sha256=sha256, keep=keep) / "LJSpeech-1.1"


def prepare_ljspeech(
    src: Path, out: Path, *, num_dev: int = 250, num_test: int = 250, num_workers: int | None = None
) -> PreparedCorpus:
    """Write train.jsonl, dev.jsonl and test.jsonl.

    Args:
        src: directory with metadata.csv and wavs/ (or the one above it), or with manifests by split.
        out: where the manifests go.
        num_dev: clips of dev; not used with manifests.
        num_test: clips of test; not used with manifests.
        num_workers: threads that look at audio.

    Raises:
        FileNotFoundError: the source is not LJSpeech.
        ValueError: the splits ask for more clips than there are.
    """
    ready = read_splits(src)
    if ready is not None:
        return write_splits("ljspeech", out, ready)
    root = find_root(src, "metadata.csv", "ljspeech")
    rejects = Rejects()
    rows = sorted(read_ljspeech(root, rejects=rejects, num_workers=num_workers), key=lambda row: row.id)
    if min(num_dev, num_test) < 0 or num_dev + num_test >= len(rows):
        raise ValueError(f"num_dev={num_dev}, num_test={num_test}: {len(rows)} clips must leave some for train")
    train, dev = len(rows) - num_dev - num_test, len(rows) - num_test
    splits = {"train": rows[:train], "dev": rows[train:dev], "test": rows[dev:]}
    return write_splits("ljspeech", out, splits, rejects=rejects)

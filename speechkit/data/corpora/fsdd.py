"""Free Spoken Digit Dataset: isolated English digits at 8 kHz (Zohar Jackson et al., CC BY-SA 4.0).

Split: recordings 0 to 4 of each digit and speaker are the official test set; 45 to 49 are dev, all others train.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from speechkit.data.download import fetch_archive
from speechkit.data.reader_core import Draft, with_durations
from speechkit.data.rejects import Rejects
from speechkit.data.splits import SPLITS, PreparedCorpus, find_root, read_splits, write_splits
from speechkit.types import Utterance

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_RECORDINGS = range(5)
DEV_RECORDINGS = range(45, 50)
_NAME = re.compile(r"(\d)_([A-Za-z]+)_(\d+)")


def download_fsdd(dest: Path, *, url: str = URL, keep: bool = False) -> Path:
    """Download and unpack the dataset (10 MB). Its host makes the archive anew at times, so there is no checksum.

    Args:
        dest: where to unpack.
        url: address of the archive.
        keep: keep the archive.

    Returns:
        Directory for `prepare_fsdd`.

    Raises:
        OSError: the download failed.
    """
    return find_root(fetch_archive(url, dest, keep=keep), "recordings", "fsdd")


def prepare_fsdd(src: Path, out: Path, *, num_workers: int | None = None) -> PreparedCorpus:
    """Write train.jsonl, dev.jsonl and test.jsonl.

    Args:
        src: directory with recordings/ (or the one above it), or with manifests by split.
        out: where the manifests go.
        num_workers: threads that look at audio.

    Raises:
        FileNotFoundError: the source is not this dataset.
    """
    ready = read_splits(src)
    if ready is not None:
        return write_splits("fsdd", out, ready)
    rejects = Rejects()
    root = find_root(src, "recordings", "fsdd").absolute()
    splits: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    for row in with_durations(_drafts(root / "recordings", rejects), rejects, num_workers):
        recording = int(row.id.rsplit("_", 1)[1])
        split = "test" if recording in TEST_RECORDINGS else "dev" if recording in DEV_RECORDINGS else "train"
        splits[split].append(row)
    return write_splits("fsdd", out, splits, rejects=rejects)


def _drafts(directory: Path, rejects: Rejects) -> Iterator[Draft]:
    for path in sorted(directory.glob("*.wav")):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            rejects.add(str(path), path.stem, "its name is not <digit>_<speaker>_<recording>.wav")
            continue
        digit, speaker, _ = match.groups()
        yield Draft(str(path), Utterance(path.stem, path, math.nan, text=DIGITS[int(digit)], speaker=speaker, lang="en"))

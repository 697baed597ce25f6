"""speechocean762: English read by Mandarin speakers, half of them children (Zhang et al., Interspeech 2021; openslr.org/101).

Split: train and test are the official ones; dev takes whole speakers out of train. The corpus was made for scoring
pronunciation and is not filtered for it: report adults and children (field `age`) apart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from speechkit.data.download import fetch_archive
from speechkit.data.manifest import iter_lines
from speechkit.data.readers_kaldi import read_kaldi
from speechkit.data.rejects import Rejects
from speechkit.data.splits import PreparedCorpus, find_root, read_splits, split_by_group, write_splits
from speechkit.types import Utterance

URL = "https://www.openslr.org/resources/101/speechocean762.tar.gz"


def download_speechocean762(dest: Path, *, url: str = URL, md5: str | None = None, keep: bool = False) -> Path:
    """Download and unpack the corpus (520 MB). Its source publishes no checksum.

    Args:
        dest: where to unpack.
        url: address of the archive; a mirror's, if need be.
        md5: a digest of your own to check against.
        keep: keep the archive.

    Returns:
        Directory for `prepare_speechocean762`.

    Raises:
        OSError: the download failed.
    """
    return fetch_archive(url, dest, md5=md5, keep=keep) / "speechocean762"


def prepare_speechocean762(
    src: Path,
    out: Path,
    *,
    dev_fraction: float = 0.1,
    seed: int = 0,
    lowercase: bool = True,
    num_workers: int | None = None,
) -> PreparedCorpus:
    """Write train.jsonl, dev.jsonl and test.jsonl.

    Args:
        src: directory with WAVE/, train/ and test/ (or the one above it), or with manifests by split.
        out: where the manifests go.
        dev_fraction: share of the official training audio for dev; not used with manifests.
        seed: of the choice of dev speakers; not used with manifests.
        lowercase: turn the capitals of the transcripts into small letters; not used with manifests.
        num_workers: threads that look at audio.

    Raises:
        FileNotFoundError: the source is not this corpus.
    """
    ready = read_splits(src)
    if ready is not None:
        return write_splits("speechocean762", out, ready)
    root = find_root(src, "train/wav.scp", "speechocean762")
    rejects = Rejects()
    official = {}
    for split in ("train", "test"):
        ages = _ages(root / split / "spk2age", rejects)
        read = read_kaldi(root / split, audio_root=root, lang="en", rejects=rejects, num_workers=num_workers)
        official[split] = [_described(row, ages, lowercase) for row in read]
    splits = split_by_group(official["train"], group=lambda row: row.speaker, fractions={"dev": dev_fraction}, seed=seed)
    return write_splits("speechocean762", out, {**splits, "test": official["test"]}, rejects=rejects)


def _described(row: Utterance, ages: dict[str, int], lowercase: bool) -> Utterance:
    extra: dict[str, Any] = {**row.extra, "l1": "zh"}
    if row.speaker in ages:
        extra["age"] = ages[row.speaker]
    return replace(row, text=row.text.lower() if lowercase else row.text, extra=extra)


def _ages(path: Path, rejects: Rejects) -> dict[str, int]:
    ages = {}
    for line in iter_lines(path) if path.is_file() else ():
        fields = line.data.decode("utf-8", "replace").split()
        if len(fields) == 2 and fields[1].isdigit():
            ages[fields[0]] = int(fields[1])
        else:
            rejects.add(f"{path}:{line.number}", fields[0], "is not 'speaker age'; the speaker goes without age")
    return ages

"""AISHELL-1: 178 h of read Mandarin (Bu et al., O-COCOSDA 2017; openslr.org/33, Apache 2.0)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from speechkit.data.download import extract_archive, fetch_archive
from speechkit.data.manifest import iter_lines
from speechkit.data.reader_core import Draft, with_durations
from speechkit.data.rejects import Rejects
from speechkit.data.splits import SPLITS, PreparedCorpus, find_root, write_splits
from speechkit.types import Utterance

URL = "https://www.openslr.org/resources/33/data_aishell.tgz"
MD5 = "2f494334227864a8a8fec932999db9d8"
TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"


def download_aishell1(dest: Path, *, url: str = URL, md5: str | None = MD5, keep: bool = False) -> Path:
    """Download and unpack AISHELL-1 (15 GB), the archives of the speakers inside it too.

    Args:
        dest: where to unpack.
        url: address of the archive; a mirror's, if need be.
        md5: its digest; None checks nothing.
        keep: keep the archives.

    Returns:
        Directory for `prepare_aishell1`.

    Raises:
        OSError: the download failed.
    """
    root = fetch_archive(url, dest, md5=md5, keep=keep) / "data_aishell"
    for archive in sorted((root / "wav").glob("*.tar.gz")):
        extract_archive(archive, root / "wav")
        if not keep:
            archive.unlink()
    return root


def prepare_aishell1(src: Path, out: Path, *, keep_spaces: bool = False, num_workers: int | None = None) -> PreparedCorpus:
    """Write train.jsonl, dev.jsonl and test.jsonl, the official splits.

    Args:
        src: the directory data_aishell, or the one above it.
        out: where the manifests go.
        keep_spaces: keep the blanks that part the words in the transcripts.
        num_workers: threads that look at audio.

    Raises:
        FileNotFoundError: the source is not AISHELL-1.
    """
    root = find_root(src, TRANSCRIPT, "aishell1").absolute()
    texts: dict[str, str] = {}
    for line in iter_lines(root / TRANSCRIPT):
        name, _, text = line.data.decode("utf-8").strip().partition(" ")
        texts[name] = " ".join(text.split()) if keep_spaces else "".join(text.split())
    rejects = Rejects()
    splits = {
        split: list(with_durations(_drafts(root / "wav" / split, texts, rejects), rejects, num_workers)) for split in SPLITS
    }
    found = {row.id for rows in splits.values() for row in rows} | {reject.id for reject in rejects.entries}
    for name in sorted(texts.keys() - found):
        rejects.add(str(root / TRANSCRIPT), name, f"there is no audio {name}.wav; unpack wav/*.tar.gz")
    return write_splits("aishell1", out, splits, rejects=rejects)


def _drafts(directory: Path, texts: dict[str, str], rejects: Rejects) -> Iterator[Draft]:
    for path in sorted(directory.glob("*/*.wav")):
        if texts.get(path.stem):
            speaker = path.parent.name
            yield Draft(str(path), Utterance(path.stem, path, math.nan, text=texts[path.stem], speaker=speaker, lang="zh"))
        else:
            rejects.add(str(path), path.stem, "has no transcript (true of some hundred files of the corpus)")

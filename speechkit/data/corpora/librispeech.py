"""LibriSpeech: 960 h of read English books (Panayotov et al., ICASSP 2015; openslr.org/12, CC BY 4.0)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from speechkit.data.download import fetch_archive
from speechkit.data.readers_folder import read_folder
from speechkit.data.rejects import Rejects
from speechkit.data.splits import PreparedCorpus, write_splits
from speechkit.types import Utterance

URL = "https://www.openslr.org/resources/12"
MD5 = {
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
}


def download_librispeech(dest: Path, *, subsets: Sequence[str] = tuple(MD5), url: str = URL, keep: bool = False) -> Path:
    """Download and unpack subsets of LibriSpeech (60 GB for all).

    Args:
        dest: where to unpack.
        subsets: names such as "train-clean-100".
        url: directory of the archives; a mirror's, if need be.
        keep: keep the archives.

    Returns:
        Directory for `prepare_librispeech`.

    Raises:
        ValueError: a subset is unknown.
        OSError: a download failed.
    """
    for subset in _known(subsets):
        fetch_archive(f"{url}/{subset}.tar.gz", dest, md5=MD5[subset], keep=keep)
    return dest / "LibriSpeech"


def prepare_librispeech(
    src: Path,
    out: Path,
    *,
    subsets: Sequence[str] | None = None,
    lowercase: bool = True,
    num_workers: int | None = None,
) -> PreparedCorpus:
    """Write `<subset>.jsonl` for each subset.

    Args:
        src: the directory LibriSpeech, or the one above it.
        out: where the manifests go.
        subsets: which to take; None takes those that are there.
        lowercase: turn the capitals of the transcripts into small letters.
        num_workers: threads that look at audio.

    Raises:
        ValueError: a subset is unknown.
        FileNotFoundError: a subset is not there.
    """
    root = src / "LibriSpeech" if (src / "LibriSpeech").is_dir() else src
    if subsets is None:
        subsets = [subset for subset in MD5 if (root / subset).is_dir()]
        if not subsets:
            raise FileNotFoundError(f"{src}: holds none of {', '.join(MD5)}; give the directory LibriSpeech")
    genders = _genders(root / "SPEAKERS.TXT")
    rejects = Rejects()
    splits: dict[str, list[Utterance]] = {}
    for subset in _known(subsets):
        if not (root / subset).is_dir():
            raise FileNotFoundError(f"{root / subset}: is not there; leave it out of subsets, or download it")
        rows = read_folder(root / subset, lang="en", rejects=rejects, num_workers=num_workers)
        splits[subset] = [
            replace(
                row,
                text=row.text.lower() if lowercase else row.text,
                extra={"gender": genders[row.speaker]} if row.speaker in genders else {},
            )
            for row in rows
        ]
    return write_splits("librispeech", out, splits, rejects=rejects)


def _known(subsets: Sequence[str]) -> Sequence[str]:
    for subset in subsets:
        if subset not in MD5:
            raise ValueError(f"subsets: {subset!r} is not among {', '.join(MD5)}")
    return subsets


def _genders(path: Path) -> dict[str, str]:
    """Speaker -> "f" or "m", from lines such as "14   | F | train-clean-360  | 25.03 | Name"."""
    if not path.is_file():
        return {}
    rows = [line.split("|") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(";")]
    return {row[0].strip(): row[1].strip().lower() for row in rows if len(row) > 2}

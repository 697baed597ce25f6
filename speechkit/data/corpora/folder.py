"""A folder of your own: audio with transcripts beside it, split into train, dev and test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from speechkit.data.readers_folder import read_folder
from speechkit.data.rejects import Rejects
from speechkit.data.splits import PreparedCorpus, split_by_group, write_splits
from speechkit.types import Utterance


def prepare_folder(
    src: Path,
    out: Path,
    *,
    dev_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    by: str = "auto",
    text_suffix: str = ".txt",
    lang: str = "",
    num_workers: int | None = None,
) -> PreparedCorpus:
    """Write train.jsonl, dev.jsonl and test.jsonl.

    Transcripts are `name.txt` beside `name.wav`, or LibriSpeech-like `*.trans.txt`, see `read_folder`.

    Args:
        src: the folder.
        out: where the manifests go.
        dev_fraction: share of the audio for dev; 0 for none.
        test_fraction: share of the audio for test; 0 for none.
        seed: of the choice.
        by: "speaker" keeps all files of one folder directly below `src` in one split and takes its name as the speaker;
            "utterance" splits file by file; "auto" goes by speaker when `src` has more such folders than splits and no
            audio of its own.
        text_suffix: suffix of the transcripts.
        lang: language of all utterances.
        num_workers: threads that look at audio.

    Raises:
        ValueError: `by` or a fraction is wrong, or there are too few speakers or files.
        ManifestError: the folder holds no audio.
    """
    if by not in ("auto", "speaker", "utterance"):
        raise ValueError(f"by={by!r}: choose auto, speaker or utterance")
    root = src.absolute()
    rejects = Rejects()
    rows = list(read_folder(root, text_suffix=text_suffix, lang=lang, rejects=rejects, num_workers=num_workers))
    folders = [row.audio_path.relative_to(root).parts[0] if row.audio_path.parent != root else "" for row in rows]
    fractions = {"dev": dev_fraction, "test": test_fraction}
    num_splits = 1 + sum(fraction > 0 for fraction in fractions.values())
    if by == "speaker" and "" in folders:
        first = rows[folders.index("")].audio_path
        raise ValueError(f"by='speaker': {first} is in no folder of its own below {src}: move it, or split by utterance")
    if by == "speaker" or (by == "auto" and "" not in folders and len(set(folders)) > num_splits):
        rows = [row if row.speaker else replace(row, speaker=folder) for row, folder in zip(rows, folders)]
        folder_of = dict(zip((row.id for row in rows), folders))
        splits = split_by_group(rows, group=lambda row: folder_of[row.id], fractions=fractions, seed=seed)
    else:
        splits = split_by_group(rows, group=_own_id, fractions=fractions, seed=seed)
    return write_splits("folder", out, splits, rejects=rejects)


def _own_id(row: Utterance) -> str:
    return row.id

"""Reader of Kaldi data directories (kaldi-asr.org, "Data preparation")."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from speechkit.data.manifest import ManifestError, iter_lines
from speechkit.data.reader_core import Draft, PathLike, existing, parse_seconds, resolve_audio, with_durations
from speechkit.data.rejects import Rejects
from speechkit.types import Seconds, Utterance


class _Entry(NamedTuple):
    where: str
    value: str


def read_kaldi(
    source: PathLike,
    *,
    audio_root: PathLike | None = None,
    lang: str = "",
    rejects: Rejects | None = None,
    num_workers: int | None = None,
) -> Iterator[Utterance]:
    """Read a Kaldi data directory: wav.scp, and segments, text, utt2spk, utt2lang, utt2dur, reco2dur, spk2gender if there.

    Args:
        source: the directory.
        audio_root: where relative paths in wav.scp start.
        lang: language of utterances that utt2lang does not name.
        rejects: collects the rows that cannot be used; without it they raise.
        num_workers: threads that look at audio; None takes two per core.

    Raises:
        ManifestError: the directory lacks wav.scp, or a row is bad and there is no `rejects`. Pipes in wav.scp
            (commands ending in "|") and Kaldi archives are refused.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    directory = existing(source, "a Kaldi data directory (with wav.scp)", directory=True)
    existing(directory / "wav.scp", "a directory with wav.scp", directory=False)
    return with_durations(_drafts(directory, audio_root, lang, rejects), rejects, num_workers)


def _table(path: Path, rejects: Rejects, *, need_value: bool = True) -> dict[str, _Entry]:
    """A file of "key value" lines."""
    table: dict[str, _Entry] = {}
    for line in iter_lines(path) if path.is_file() else ():
        where = f"{path}:{line.number}"
        try:
            parts = line.data.decode("utf-8").split(maxsplit=1)
        except UnicodeDecodeError as error:
            rejects.add(where, "", f"not UTF-8 ({error.reason}); save it as UTF-8")
            continue
        if need_value and len(parts) < 2:
            rejects.add(where, parts[0], "only one field; write 'key value'")
        elif parts[0] in table:
            rejects.add(where, parts[0], f"key {parts[0]} was given before ({table[parts[0]].where}); keep one of them")
        else:
            table[parts[0]] = _Entry(where, parts[1].strip() if len(parts) > 1 else "")
    return table


def _drafts(directory: Path, audio_root: PathLike | None, lang: str, rejects: Rejects) -> Iterator[Draft]:
    recordings = _table(directory / "wav.scp", rejects)
    texts = _table(directory / "text", rejects, need_value=False)
    need_text = (directory / "text").is_file()
    names = ("utt2spk", "utt2lang", "utt2dur", "reco2dur", "spk2gender")
    tables = {name: _table(directory / name, rejects) for name in names}
    nothing = _Entry("", "")
    segments_file = directory / "segments"
    segments = _table(segments_file, rejects) if segments_file.is_file() else None
    for utt, entry in (recordings if segments is None else segments).items():
        try:
            reco, start, end = (utt, 0.0, None) if segments is None else _segment(entry)
            if reco not in recordings:
                raise ManifestError(f"{entry.where}: recording {reco} is not in wav.scp; add it, or leave the line out")
            path = _audio_path(recordings[reco])
            if need_text and utt not in texts:
                raise ManifestError(f"{entry.where}: utterance {utt} is not in the file text; add it there")
            known = tables["utt2dur"].get(utt) or (tables["reco2dur"].get(reco) if segments is None else None)
            duration = math.nan if known is None else parse_seconds(known.value, known.where)
            reco_length = tables["reco2dur"].get(reco)
            if end is None and segments is not None and reco_length is not None:
                end = parse_seconds(reco_length.value, reco_length.where)
            if end is not None:
                duration = round(end - start, 6)
        except ManifestError as error:
            rejects.add(entry.where, utt, error)
            continue
        speaker = tables["utt2spk"].get(utt, nothing).value
        gender = tables["spk2gender"].get(speaker, nothing).value
        utterance = Utterance(
            id=utt,
            audio_path=resolve_audio(path, audio_root, directory),
            duration=duration,
            start=start,
            text=texts.get(utt, nothing).value,
            speaker=speaker,
            lang=tables["utt2lang"].get(utt, nothing).value or lang,
            extra={"gender": gender} if gender else {},
        )
        yield Draft(entry.where, utterance)
    for utt in texts.keys() - (recordings if segments is None else segments).keys():
        rejects.add(texts[utt].where, utt, f"utterance {utt} has no audio in {'segments' if segments else 'wav.scp'}")


def _audio_path(entry: _Entry) -> str:
    path = entry.value
    if path.endswith("|"):
        raise ManifestError(
            f"{entry.where}: {path!r:.80} is a command, and commands are not run; write its output to a file "
            "(for example with sph2pipe or ffmpeg) and name that"
        )
    if path == "-" or re.search(r"\.ark:\d+$", path):
        raise ManifestError(f"{entry.where}: {path!r:.80} is no audio file; export it with wav-copy and name the file")
    return path


def _segment(entry: _Entry) -> tuple[str, Seconds, Seconds | None]:
    parts = entry.value.split()
    try:
        reco, start, end = parts[0], float(parts[1]), float(parts[2])
    except (IndexError, ValueError) as error:
        raise ManifestError(f"{entry.where}: must be 'utterance recording start end'") from error
    if not 0 <= start < math.inf or not (end == -1 or start < end < math.inf):
        raise ManifestError(f"{entry.where}: start {start:g} and end {end:g} are no stretch of time; correct the times")
    return reco, start, None if end == -1 else end

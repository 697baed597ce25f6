"""Reader of a folder of audio with transcripts beside it: same-name text files, or LibriSpeech's *.trans.txt."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from speechkit.data.manifest import ManifestError, iter_lines
from speechkit.data.reader_core import AUDIO_SUFFIXES, Draft, PathLike, existing, find_audio, with_durations
from speechkit.data.rejects import Rejects
from speechkit.types import Utterance

_LIST_SUFFIX = ".trans.txt"
_NO_TRANSCRIPTS = ("readme", "license", "licence", "copying", "changelog", "speakers", "chapters", "books")
_LIBRISPEECH_ID = re.compile(r"(\d+)-\d+-\d+")


def read_folder(
    source: PathLike,
    *,
    text_suffix: str = ".txt",
    need_text: bool = True,
    speaker_from_folder: bool = False,
    lang: str = "",
    rejects: Rejects | None = None,
    num_workers: int | None = None,
) -> Iterator[Utterance]:
    """Read all audio below a folder, in the order of the paths.

    A folder with `*.trans.txt` files (lines of `id text`, audio `id.flac` or another suffix beside it) is read by them;
    elsewhere the transcript of `name.wav` is in `name.txt`. Ids are the paths below the folder without suffix, "/"
    replaced by "-"; in lists they are the ids given.

    Args:
        source: the folder.
        text_suffix: suffix of the transcripts.
        need_text: audio without transcript is an error; else its text is empty.
        speaker_from_folder: the name of the folder that holds the audio is the speaker.
        lang: language of all utterances.
        rejects: collects what cannot be used; without it that raises.
        num_workers: threads that look at audio; None takes two per core.

    Raises:
        ManifestError: the folder holds no audio, or something cannot be used and there is no `rejects`.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    root = existing(source, "a folder of audio files", directory=True)

    def drafts() -> Iterator[Draft]:
        found = False
        for directory, names in _walk(root):
            lists = [name for name in names if name.endswith(_LIST_SUFFIX)]
            for name in lists:
                found = True
                yield from _listed(directory / name, lang, rejects)
            if not lists:
                paired = _paired(root, directory, names, text_suffix, need_text, speaker_from_folder, lang, rejects)
                for draft in paired:
                    found = True
                    yield draft
        if not found and not rejects:
            known = " ".join(AUDIO_SUFFIXES)
            raise ManifestError(f"{root}: holds no audio files ({known}); give the folder that has them")

    return with_durations(drafts(), rejects, num_workers)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Directories below the root with their file names, sorted; links are followed, but no directory is read twice."""
    seen: set[tuple[int, int]] = set()
    for directory, subdirectories, names in os.walk(root, followlinks=True):
        status = os.stat(directory)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subdirectories.sort()
        yield Path(directory).absolute(), sorted(name for name in names if not name.startswith("."))


def _listed(file: Path, lang: str, rejects: Rejects) -> Iterator[Draft]:
    for line in iter_lines(file):
        where = f"{file}:{line.number}"
        try:
            name, _, text = line.data.decode("utf-8").strip().partition(" ")
        except UnicodeDecodeError as error:
            rejects.add(where, "", f"not UTF-8 ({error.reason}); save it as UTF-8")
            continue
        path = find_audio(file.parent, name) if re.fullmatch(r"[^/\\\0]+", name) else None
        if path is None:
            rejects.add(where, name, f"no audio file {name!r:.80} in {file.parent}; add it, or remove the line")
            continue
        match = _LIBRISPEECH_ID.fullmatch(name)
        speaker = match[1] if match else ""
        yield Draft(where, Utterance(name, path, math.nan, text=text.strip(), speaker=speaker, lang=lang))


def _paired(
    root: Path,
    directory: Path,
    names: list[str],
    text_suffix: str,
    need_text: bool,
    speaker_from_folder: bool,
    lang: str,
    rejects: Rejects,
) -> Iterator[Draft]:
    audio = [name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES]
    texts = {name.removesuffix(text_suffix): name for name in names if name.endswith(text_suffix)}
    texts = {stem: name for stem, name in texts.items() if stem.lower() not in _NO_TRANSCRIPTS}
    used: set[str] = set()
    for name in audio:
        path = directory / name
        stem = Path(name).stem
        relative = path.relative_to(root.absolute()).with_suffix("").as_posix()
        text = ""
        if stem in texts:
            used.add(stem)
            try:
                text = " ".join((directory / texts[stem]).read_text(encoding="utf-8-sig").split())
            except (OSError, UnicodeDecodeError) as error:
                rejects.add(str(directory / texts[stem]), stem, f"cannot be read ({error}); save it as UTF-8 text")
                continue
        elif need_text:
            rejects.add(str(path), stem, f"has no transcript {stem}{text_suffix}; write one, or give need_text=False")
            continue
        speaker = directory.name if speaker_from_folder else ""
        id = relative.replace("/", "-")
        yield Draft(str(path), Utterance(id, path, math.nan, text=text, speaker=speaker, lang=lang))
    for stem in sorted(texts.keys() - used) if audio else ():
        rejects.add(str(directory / texts[stem]), stem, "there is no audio of this name; add it, or remove the transcript")

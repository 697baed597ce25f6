"""Preparation: utterances of any source to a manifest, with the audio transcoded where asked.

Transcoding runs in helper processes and can be taken up again: files are named by their source, stretch and target
form, appear only when complete, and are not made twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from speechkit.audio.io import audio_info, load_audio, save_audio
from speechkit.data.manifest import MANIFEST_NAME, manifest_writer
from speechkit.data.parallel import IsolatedWorkers, WorkerDied, available_cpus, ordered_map, progress_bar
from speechkit.data.reader_core import safe_stem
from speechkit.data.rejects import Rejects, rejects_path
from speechkit.data.shards import audio_source
from speechkit.types import Seconds, Utterance

AudioFormat = Literal["flac", "wav", "ogg", "opus", "mp3"]
_CODING = {"flac": "FLAC/", "wav": "WAV/", "ogg": "OGG/VORBIS", "opus": "OGG/OPUS", "mp3": "MP3/"}


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What was prepared.

    Attributes:
        path: the manifest.
        num_utterances: its rows.
        seconds: their total duration.
        num_transcoded: audio files written.
        num_reused: audio files that an earlier run had written.
        rejects: what was left out, with reasons.
        rejects_path: the file that tells them; None when nothing was left out.
    """

    path: Path
    num_utterances: int
    seconds: Seconds
    num_transcoded: int
    num_reused: int
    rejects: Rejects
    rejects_path: Path | None

    @property
    def ok(self) -> bool:
        """Whether there are rows and none was left out."""
        return self.num_utterances > 0 and not self.rejects

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Several lines of text: counts, hours, what was left out and where that is told."""
        lines = [f"{self.path}: {self.num_utterances} utterances, {self.seconds / 3600:.2f} h"]
        if self.num_transcoded or self.num_reused:
            lines.append(f"audio files written: {self.num_transcoded}, there already: {self.num_reused}")
        if self.rejects:
            lines += [self.rejects.summary(), f"all of them with reasons: {self.rejects_path}"]
        return "\n".join(lines)


def manifest_path(out: str | os.PathLike[str]) -> Path:
    """The manifest meant by `out`: itself, or manifest.jsonl in it when it is no name of a manifest."""
    path = Path(out)
    if path.is_dir() or not path.name.endswith((".jsonl", ".jsonl.gz", ".json")):
        return path / MANIFEST_NAME
    return path


def audio_directory(manifest: Path) -> Path:
    """Where the audio made for a manifest goes."""
    return manifest.with_name(manifest.name.split(".")[0] + "_audio")


def prepare_manifest(
    utterances: Iterable[Utterance],
    out_path: str | os.PathLike[str],
    *,
    sample_rate: int | None = None,
    audio_format: AudioFormat | None = None,
    audio_dir: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    rejects: Rejects | None = None,
) -> PrepareReport:
    """Write a manifest, transcoding the audio where asked; tells what was left out, and why, beside it.

    Args:
        utterances: what to write, usually from a reader.
        out_path: the manifest (.jsonl or .jsonl.gz), or a directory for manifest.jsonl.
        sample_rate: audio of another rate is resampled to this one, in Hz; None keeps each file's own.
        audio_format: audio of another format is written in this one, mono, each utterance as a file of its own. "flac"
            when only `sample_rate` is given; without either the audio stays where it is.
        audio_dir: where transcoded audio goes; `<manifest name>_audio` beside the manifest by default.
        num_workers: helper processes that transcode; None takes one per core, 0 works in this process.
        rejects: what the reader left out; rows left out here join it. Without it a row that cannot be used raises.

    Raises:
        ValueError: an option is wrong.
        ManifestError: a row cannot be used and `rejects` does not collect.
    """
    if sample_rate is not None and sample_rate < 1:
        raise ValueError(f"sample_rate={sample_rate}: must be > 0 Hz")
    if audio_format is not None and audio_format not in _CODING:
        raise ValueError(f"audio_format={audio_format!r}: must be one of {', '.join(_CODING)}")
    path = manifest_path(out_path)
    rejects = rejects if rejects is not None else Rejects("raise")
    rows = _distinct(progress_bar(utterances, description="prepare"), rejects)
    if sample_rate is None and audio_format is None:
        converted: Iterable[_Converted] = (_Converted(row, "kept") for row in rows)
    else:
        directory = (Path(audio_dir) if audio_dir is not None else audio_directory(path)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        converted = _convert_all(rows, directory, audio_format or "flac", sample_rate, num_workers, rejects)
    count, seconds, made = 0, 0.0, {"kept": 0, "written": 0, "reused": 0}
    with manifest_writer(path) as write:
        for utterance, state in converted:
            write(utterance)
            count += 1
            seconds += utterance.duration
            made[state] += 1
    told = rejects_path(path)
    told.unlink(missing_ok=True)
    if rejects:
        rejects.write(told)
    return PrepareReport(path, count, seconds, made["written"], made["reused"], rejects, told if rejects else None)


def _distinct(utterances: Iterable[Utterance], rejects: Rejects) -> Iterator[Utterance]:
    """The utterances whose id is new and whose duration is above 0."""
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen:
            rejects.add(str(utterance.audio_path), utterance.id, f"id {utterance.id!r} was there before; make ids unique")
        elif not utterance.duration > 0:
            rejects.add(str(utterance.audio_path), utterance.id, f"duration {utterance.duration} s; leave it out")
        else:
            seen.add(utterance.id)
            yield utterance


class _Converted(NamedTuple):
    utterance: Utterance
    state: Literal["kept", "written", "reused"]


def _convert_all(
    utterances: Iterable[Utterance],
    directory: Path,
    audio_format: str,
    sample_rate: int | None,
    num_workers: int | None,
    rejects: Rejects,
) -> Iterator[_Converted]:
    work = partial(_convert, directory=directory, audio_format=audio_format, sample_rate=sample_rate)
    with IsolatedWorkers(available_cpus() if num_workers is None else num_workers) as pool:

        def call(utterance: Utterance) -> _Converted | str:
            try:
                return pool.call(work, utterance)
            except (ValueError, OSError, WorkerDied) as error:
                return str(error)

        for utterance, result in ordered_map(call, utterances, pool.num_workers):
            if isinstance(result, str):
                rejects.add(str(utterance.audio_path), utterance.id, result)
            else:
                yield result


def _convert(utterance: Utterance, *, directory: Path, audio_format: str, sample_rate: int | None) -> _Converted:
    """Bring one utterance's audio into the form asked for."""
    source = audio_source(utterance)
    info = audio_info(source)
    in_file = isinstance(source, Path)
    if in_file and info.format.startswith(_CODING[audio_format]) and sample_rate in (None, info.sample_rate):
        return _Converted(utterance, "kept")
    status = utterance.audio_path.stat()
    stretch = (utterance.audio_path, utterance.start, utterance.duration, utterance.extra.get("tar_offset"))
    stem = safe_stem(utterance.id, *stretch, sample_rate, status.st_size, status.st_mtime_ns)
    target = directory / f"{stem}.{audio_format}"
    state: Literal["written", "reused"] = "reused" if target.is_file() else "written"
    if state == "written":
        wave_N, rate = load_audio(source, sample_rate=sample_rate, start=utterance.start, duration=utterance.duration)
        temporary = target.with_name(f".{stem}.{os.getpid()}.{audio_format}")
        try:
            save_audio(temporary, wave_N, rate)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        duration = len(wave_N) / rate
    else:
        duration = audio_info(target).duration
    extra = {name: value for name, value in utterance.extra.items() if not name.startswith("tar_")}
    return _Converted(replace(utterance, audio_path=target, start=0.0, duration=duration, extra=extra), state)

"""Readers of other libraries' data: lhotse cuts and Hugging Face datasets (extra "data")."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechkit.audio.io import save_audio
from speechkit.data.manifest import ManifestError, atomic_file, iter_lines, parse_row
from speechkit.data.reader_core import Draft, PathLike, extra_fields, resolve_audio, safe_stem, with_durations
from speechkit.data.readers_tables import COLUMN_NAMES
from speechkit.data.rejects import Rejects
from speechkit.types import Utterance

_MAGIC = ((b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"\xff\xfb", ".mp3"))


# ---- lhotse ----


def read_lhotse(
    source: PathLike | Iterable[Any],
    *,
    audio_dir: PathLike | None = None,
    audio_root: PathLike | None = None,
    lang: str = "",
    rejects: Rejects | None = None,
) -> Iterator[Utterance]:
    """Read lhotse cuts. Plain cuts of audio files in JSONL need no lhotse.

    A cut with one supervision (or none) becomes one utterance of the cut's extent; one with several becomes one for each.

    Args:
        source: cuts.jsonl[.gz], another form that `CutSet.from_file` reads, a directory of Shar, or an iterable of cuts.
        audio_dir: where the audio of cuts that are no stretch of a one-channel file (mixed, augmented, in archives or
            memory, one channel of several) is written as FLAC; without it such cuts cannot be used.
        audio_root: where relative audio paths start.
        lang: language of supervisions without one.
        rejects: collects the cuts that cannot be used; without it they raise.

    Raises:
        ManifestError: the source cannot be read, or a cut cannot be used and there is no `rejects`.
        ImportError: lhotse is needed and missing.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    source_dir = Path(source).parent if isinstance(source, (str, os.PathLike)) else Path()
    for where, cut in _cuts(source, rejects):
        try:
            yield from _cut_utterances(where, cut, audio_dir, audio_root, source_dir, lang)
        except (ManifestError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, ManifestError) else f"not a lhotse cut ({error!r}); write it anew"
            rejects.add(where, str(cut.get("id", "")), reason)


def _lhotse() -> Any:
    try:
        import lhotse
    except ImportError as error:
        raise ImportError('these cuts need lhotse; pip install "speechkit[data]"') from error
    return lhotse


def _cuts(source: PathLike | Iterable[Any], rejects: Rejects) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, cut as a dict)."""
    if not isinstance(source, (str, os.PathLike)):
        for number, cut in enumerate(source):
            yield f"cut {number}", cut if isinstance(cut, dict) else cut.to_dict()
        return
    path = Path(source)
    if path.name.endswith((".jsonl", ".jsonl.gz")) and path.is_file():
        for line in iter_lines(path):
            where = f"{path}:{line.number}"
            try:
                yield where, parse_row(line.data, where)
            except ManifestError as error:
                rejects.add(where, "", error)
        return
    if not path.exists():
        raise ManifestError(f"{path}: no such file or directory; give cuts.jsonl[.gz] or a directory of Shar")
    cut_set = _lhotse().CutSet
    cuts = cut_set.from_shar(in_dir=path) if path.is_dir() else cut_set.from_file(path)
    for number, cut in enumerate(cuts):
        # Cuts from Shar hold their audio in memory, which to_dict keeps.
        yield f"{path}: cut {number}", cut.to_dict()


def _is_file_stretch(cut: Mapping[str, Any]) -> bool:
    """Whether the cut is a stretch of a one-channel audio file, as it is."""
    recording = cut.get("recording")
    if cut.get("type", "MonoCut") != "MonoCut" or not isinstance(recording, dict) or recording.get("transforms"):
        return False
    sources = recording["sources"]
    channels = recording.get("channel_ids") or sources[0]["channels"]
    return len(sources) == 1 and sources[0]["type"] == "file" and len(channels) == 1


def _cut_utterances(
    where: str,
    cut: dict[str, Any],
    audio_dir: PathLike | None,
    audio_root: PathLike | None,
    source_dir: Path,
    lang: str,
) -> Iterator[Utterance]:
    name, length = str(cut["id"]), cut.get("duration")
    supervisions = list(cut.get("supervisions") or ())
    if _is_file_stretch(cut):
        path = resolve_audio(str(cut["recording"]["sources"][0]["source"]), audio_root, source_dir)
        start = float(cut.get("start", 0.0))
    elif audio_dir is None:
        kind = cut.get("type", "cut without recording")
        raise ManifestError(f"{where}: {kind} {name} is no stretch of a one-channel file; give audio_dir to write it to")
    else:
        path, length, supervisions = _materialise(where, name, cut, Path(audio_dir))
        start = 0.0
    if not isinstance(length, (int, float)) or not length > 0:
        raise ManifestError(f"{where}: duration {length!r} of cut {name} is not above 0; correct it")
    custom = dict(cut.get("custom") or {})
    several = len(supervisions) > 1
    for supervision in supervisions or [{}]:
        begin = min(max(0.0, float(supervision.get("start", 0.0))), length) if several else 0.0
        end = min(length, float(supervision["start"]) + float(supervision["duration"])) if several else length
        if end <= begin:
            raise ManifestError(f"{where}: supervision {supervision.get('id')} lies outside cut {name}; trim it away")
        own = {key: supervision[key] for key in ("gender",) if supervision.get(key)}
        yield Utterance(
            id=str(supervision["id"]) if several else name,
            audio_path=path,
            duration=round(end - begin, 6),
            start=round(start + begin, 6),
            text=supervision.get("text") or "",
            speaker=str(supervision.get("speaker") or ""),
            lang=supervision.get("language") or lang,
            extra=extra_fields({**custom, **(supervision.get("custom") or {}), **own}),
        )


def _materialise(where: str, name: str, cut: dict[str, Any], audio_dir: Path) -> tuple[Path, float, list[Any]]:
    """Write a cut's audio; gives its file, duration and supervisions."""
    _lhotse()
    from lhotse.serialization import deserialize_item

    try:
        whole = deserialize_item(dict(cut))
        samples = whole.load_audio()
    except Exception as error:
        raise ManifestError(f"{where}: the audio of cut {name} cannot be made ({error!r:.200}); leave it out") from error
    if samples is None:
        raise ManifestError(f"{where}: cut {name} has no audio; give cuts with recordings")
    wave_N = np.atleast_2d(np.asarray(samples, dtype=np.float32)).mean(axis=0)
    audio_dir.mkdir(parents=True, exist_ok=True)
    path = (audio_dir / f"{safe_stem(name, where)}.flac").absolute()
    save_audio(path, wave_N, whole.sampling_rate)
    return path, len(wave_N) / whole.sampling_rate, [entry.to_dict() for entry in whole.supervisions]


# ---- Hugging Face ----


def read_huggingface(
    source: Any,
    *,
    audio_dir: PathLike,
    split: str | None = None,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    lang: str = "",
    rejects: Rejects | None = None,
    num_workers: int | None = None,
) -> Iterator[Utterance]:
    """Read a Hugging Face dataset; audio that is no file of its own is written to `audio_dir`.

    Args:
        source: a Dataset (or any iterable of rows), a directory of `save_to_disk`, a Parquet file, or a name on the Hub.
        audio_dir: where audio bytes (as they are) and arrays (as FLAC) are written.
        split: which split, where there are several.
        name: which configuration of a dataset on the Hub.
        columns: which column is "audio", "text", "id", "duration", "offset", "end", "speaker" or "lang", where it has
            none of the usual names. Other columns that JSON can hold are kept as extra fields.
        lang: language of rows without one.
        rejects: collects the rows that cannot be used; without it they raise.
        num_workers: threads that look at audio; None takes two per core.

    Raises:
        ManifestError: the dataset cannot be read or has no column of audio, or a row is bad and there is no `rejects`.
        ImportError: datasets is needed and missing.
    """
    rejects = rejects if rejects is not None else Rejects("raise")
    if unknown := set(columns or ()) - set(COLUMN_NAMES):
        raise ManifestError(f"columns={sorted(unknown)}: not among {', '.join(COLUMN_NAMES)}")
    label = str(source) if isinstance(source, (str, os.PathLike)) else "dataset"
    if isinstance(source, (str, os.PathLike)):
        source = _load_dataset(os.fspath(source), split, name)
    if isinstance(source, Mapping):
        if split is None or split not in source:
            raise ManifestError(f"{label}: split={split!r}; choose one of {', '.join(map(str, source))}")
        source = source[split]
    rows = _undecoded(source, (columns or {}).get("audio"))
    drafts = _dataset_drafts(label, rows, Path(audio_dir), columns or {}, lang, rejects)
    return with_durations(drafts, rejects, num_workers)


def _load_dataset(path: str, split: str | None, name: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Hugging Face datasets need a package; pip install "speechkit[data]"') from error
    try:
        if Path(path).is_dir() and any((Path(path) / file).exists() for file in ("state.json", "dataset_dict.json")):
            return datasets.load_from_disk(path)
        if path.endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files=path, split="train")
        return datasets.load_dataset(path, name=name, split=split)
    except Exception as error:  # the library raises many kinds
        raise ManifestError(f"{path}: the dataset cannot be loaded ({error!r:.300}); check name and split") from error


def _undecoded(dataset: Any, audio: str | None) -> Any:
    """The dataset with its audio as stored bytes, so that no decoder of the library is needed."""
    features = getattr(dataset, "features", None) or {}
    for column, feature in features.items():
        if type(feature).__name__ == "Audio" and audio in (None, column):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def _dataset_drafts(
    label: str, rows: Iterable[Any], audio_dir: Path, asked: Mapping[str, str], lang: str, rejects: Rejects
) -> Iterator[Draft]:
    left_out: set[str] = set()
    columns: dict[str, str] = {}
    for number, row in enumerate(rows):
        where = f"{label}: row {number}"
        if not columns:
            columns = {ours: key for ours, names in COLUMN_NAMES.items() for key in reversed(names) if key in row} | dict(asked)
            columns.update({"audio": "audio"} if "audio" in row and "audio" not in asked else {})
            if columns.get("audio") not in row:
                raise ManifestError(f"{label}: no column of audio among {list(row)}; name it with columns={{'audio': ...}}")
        try:
            values = {ours: row.get(key) for ours, key in columns.items()}
            start = float(values.get("offset") or 0.0)
            end, duration = values.get("end"), values.get("duration")
            length = float(duration) if duration is not None else math.nan if end is None else float(end) - start
            id = str(values["id"]) if values.get("id") not in (None, "") else f"{number:08d}"
            if not (math.isnan(length) or 0 < length < math.inf) or not 0 <= start < math.inf:
                raise ManifestError(f"{where}: offset {start} and duration {length} are no stretch of time; correct them")
            utterance = Utterance(
                id=id,
                audio_path=_store(where, values["audio"], audio_dir, safe_stem(id, number)),
                duration=length,
                start=start,
                text=str(values.get("text") or ""),
                speaker=str(values.get("speaker") if values.get("speaker") is not None else ""),
                lang=str(values.get("lang") or lang),
                extra=_plain_fields({key: row[key] for key in row if key not in columns.values()}, left_out),
            )
        except (ManifestError, TypeError, ValueError) as error:
            rejects.add(where, str(row.get(columns.get("id", ""), "")), error)
            continue
        yield Draft(where, utterance)
    if left_out:
        warnings.warn(f"{label}: columns {sorted(left_out)} hold what JSON cannot; they were left out", stacklevel=2)


def _plain_fields(fields: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
    kept = {}
    for key, value in fields.items():
        if value is None:
            continue
        try:
            json.dumps(value, allow_nan=False)
            kept[key] = value
        except (TypeError, ValueError):
            left_out.add(key)
    return extra_fields(kept)


def _store(where: str, audio: Any, audio_dir: Path, stem: str) -> Path:
    """The file of one row's audio, written when it is none yet."""
    if isinstance(audio, (str, os.PathLike)):
        audio = {"path": os.fspath(audio)}
    if not isinstance(audio, Mapping):
        raise ManifestError(f"{where}: audio is {type(audio).__name__}; needed are bytes, an array or a path")
    path, data, array = audio.get("path"), audio.get("bytes"), audio.get("array")
    if data is None and array is None:
        if not path or not Path(path).is_file():
            raise ManifestError(f"{where}: audio has neither bytes nor a file (path {path!r:.200}); fetch the file")
        return Path(path).absolute()
    audio_dir.mkdir(parents=True, exist_ok=True)
    if data is None:
        target = (audio_dir / f"{stem}.flac").absolute()
        wave = np.asarray(array, dtype=np.float32)
        save_audio(target, wave.T if wave.ndim == 2 and wave.shape[0] < wave.shape[1] else wave, audio["sampling_rate"])
        return target
    suffix = next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), Path(path or "").suffix or ".audio")
    target = (audio_dir / f"{stem}{suffix}").absolute()
    if not (target.is_file() and target.stat().st_size == len(data)):
        with atomic_file(target) as out:
            out.write(data)
    return target

"""Speak a manifest: `speechkit synthesize-corpus checkpoint=<folder> manifest=<jsonl> output=<folder> [key=value ...]`.

Writes audio/<id>.wav and synthesis.jsonl with one row per utterance: id, text, audio_filepath, duration, speaker, lang,
phonemes with their times where the family has them, audio_s and decode_s; ref (what a recogniser should read, the
transcript) and hyp where one is given; ref_audio where the manifest's recording is there: its file, or recordings/<id>.wav
where it is part of a longer one. So the file is a manifest for training (distillation), and what scripts/score_wer.py,
scripts/rtfx.py and scripts/score_tts.py read. `synthesis.jsonl.meta.json` says what was timed and how.

Until all is spoken, rows are in `synthesis.jsonl.part`, batch by batch, and stay there when something comes between.
Rows are spoken by their own speaker and in their own language where the model knows them; batches are of one language each.
An id names files: it may hold "/", and must not lead out of the output folder or come twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from speechkit.audio.io import SPEECH_SUFFIXES, audio_info, load_audio, save_audio, speech_subtype
from speechkit.data.dataset import field_text
from speechkit.data.manifest import atomic_file, read_manifest
from speechkit.data.parallel import progress_bar
from speechkit.data.to_speak import known_languages, output_paths, plan_batches
from speechkit.metrics.rtfx import RunInfo, write_run_info
from speechkit.plots import plot_synthesis
from speechkit.pretrained import load_synthesizer
from speechkit.readers import Reader, load_reader
from speechkit.synthesizer import Synthesizer
from speechkit.training.run import one_line_errors, set_threads
from speechkit.types import Seconds, Synthesis, Utterance

WHOLE_SECONDS: Seconds = 0.02  # a file that is not this much longer than its utterance holds nothing else


@hydra.main(version_base="1.3", config_path="../conf", config_name="synthesize")
def main(cfg: DictConfig) -> None:
    """Entry point; the work is in `synthesize`."""
    with one_line_errors():
        synthesize(cfg)


def synthesize(cfg: DictConfig) -> None:
    """Speaks what the configuration names and writes audio, rows and what was timed."""
    started = time.perf_counter()
    if f".{cfg.audio_format}" not in SPEECH_SUFFIXES:
        raise ValueError(f"audio_format={cfg.audio_format!r}: choose one of {', '.join(SPEECH_SUFFIXES).replace('.', '')}")
    set_threads(cfg.threads)
    synthesizer = load_synthesizer(cfg.checkpoint, device=cfg.device, dtype=cfg.dtype, vocoder=cfg.vocoder)
    if cfg.get("decode") is not None:
        synthesizer.options = decode_options(cfg.decode, synthesizer)
    reader = None if cfg.recognizer is None else load_reader(cfg.recognizer, device=cfg.device)
    utterances = read_manifest(cfg.manifest)[: cfg.limit]
    texts = [u.text if cfg.text_field == "text" else field_text(u, cfg.text_field) for u in utterances]
    if not any(texts):
        raise ValueError(f"manifest={cfg.manifest} holds no text in field {cfg.text_field!r}")
    output = Path(cfg.output)
    audio = output_paths(utterances, output / "audio", suffix=f".{cfg.audio_format}", manifest=cfg.manifest)
    parts = output_paths(utterances, output / "recordings", suffix=".wav", manifest=cfg.manifest)
    (output / "audio").mkdir(parents=True, exist_ok=True)
    recordings = [recording(each, path, output) for each, path in zip(utterances, parts, strict=True)]
    rows: dict[int, dict[str, Any]] = {}
    languages = known_languages(utterances, synthesizer.languages)
    batches = plan_batches(texts, languages, batch_size=cfg.batch_size)
    with kept_rows(output / "synthesis.jsonl.part", total=len(utterances)) as keep:
        for number, indices in enumerate(progress_bar(batches, description="synthesis", total=len(batches), unit="batch")):
            chosen = [utterances[i] for i in indices]
            for warming in (True, False) if number < cfg.warmup_batches else (False,):
                made, seconds = speak(synthesizer, chosen, [texts[i] for i in indices], languages[indices[0]], cfg)
                assert made or warming
            total = sum(len(each.wave) for each in made)
            for index, utterance, speech in zip(indices, chosen, made, strict=True):
                path = audio[index]
                path.parent.mkdir(parents=True, exist_ok=True)
                save_audio(path, speech.wave, speech.sample_rate, subtype=speech_subtype(path, speech.sample_rate))
                if index < cfg.plots and speech.mel is not None and len(speech.mel):
                    plot_synthesis(speech, synthesizer.mel, path.with_suffix(".png"))
                share = len(speech.wave) / total if total else 1 / len(made)
                rows[index] = row(utterance, speech, path.relative_to(output), recordings[index], decode_s=seconds * share)
            keep([rows[index] for index in indices])
        ordered = [rows[index] for index in range(len(utterances))]
        if reader is not None:
            read_back(ordered, output, reader)
        write_rows(ordered, output / "synthesis.jsonl")
    write_run_info(output / "synthesis.jsonl", run_info(cfg, synthesizer, wall_s=time.perf_counter() - started))
    audio_s, decode_s = (sum(each[key] for each in ordered) for key in ("audio_s", "decode_s"))
    print(f"{output}: {len(ordered)} utterances, {audio_s / 60:.1f} min in {decode_s:.1f} s, RTFx {audio_s / decode_s:.1f}")


def decode_options(decode: DictConfig, synthesizer: Synthesizer) -> Any:
    """What `decode=` chooses.

    Raises:
        ValueError: it is for models of another family.
    """
    found = instantiate(decode)
    if found.func is not synthesizer.infer:
        needs = synthesizer.infer.__module__
        raise ValueError(f"decode= is for {found.func.__module__}, the model needs {needs}: choose one of its own, or null")
    return found.keywords["options"]


def recording(utterance: Utterance, path: Path, output: Path) -> str | None:
    """The file that holds the recording of an utterance and nothing else, relative to the output or absolute; None without one.

    Of a longer file the utterance is written to `path`, a file in the output.

    Raises:
        AudioError: the recording cannot be read.
    """
    if not utterance.audio_path.is_file():
        return None
    rest = audio_info(utterance.audio_path).duration - utterance.start - utterance.duration
    if not utterance.start and not rest > WHOLE_SECONDS:
        return str(utterance.audio_path.resolve())
    path.parent.mkdir(parents=True, exist_ok=True)
    wave_N, rate = load_audio(utterance.audio_path, start=utterance.start, duration=utterance.duration)
    save_audio(path, wave_N, rate, subtype="PCM_16")
    return str(path.relative_to(output))


@contextlib.contextmanager
def kept_rows(path: Path, *, total: int) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """A file for the rows of finished batches: it goes at the end, and stays when something comes between."""
    count = 0
    with path.open("wb") as file:

        def keep(rows: Sequence[Mapping[str, Any]]) -> None:
            nonlocal count
            file.write(b"".join(json_line(each) for each in rows))
            file.flush()
            count += len(rows)

        try:
            yield keep
        except BaseException:
            print(f"{path}: kept the {count} of {total} utterances that were spoken, with their audio", file=sys.stderr)
            raise
    path.unlink()


def speak(
    synthesizer: Synthesizer, utterances: Sequence[Utterance], texts: Sequence[str], language: str, cfg: DictConfig
) -> tuple[list[Synthesis], float]:
    """Speech of a batch in one language ("" for the model's own), and the seconds it took."""
    speakers = [each.speaker if each.speaker in synthesizer.speakers else None for each in utterances]
    begin = time.perf_counter()
    made = synthesizer.synthesize(
        texts,
        speaker=speakers,
        language=language or None,
        speed=cfg.speed,
        pitch=cfg.pitch,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
    )
    if synthesizer.device.type == "cuda":
        torch.cuda.synchronize()
    return made, time.perf_counter() - begin


def row(utterance: Utterance, made: Synthesis, audio: Path, ref_audio: str | None, *, decode_s: float) -> dict[str, Any]:
    """One line of synthesis.jsonl."""
    audio_s = len(made.wave) / made.sample_rate
    own: dict[str, Any] = {
        "id": utterance.id,
        "audio_filepath": str(audio),
        "duration": round(audio_s, 4),
        "text": utterance.text,
        "ref": utterance.text,
        "speaker": utterance.speaker,
        "lang": utterance.lang,
        "audio": str(audio),
        "audio_s": round(audio_s, 4),
        "decode_s": round(decode_s, 6),
        "spoken": made.text,
        "phonemes": [[phone.symbol, round(phone.start, 4), round(phone.end, 4)] for phone in made.alignment],
    }
    if ref_audio is not None:
        own["ref_audio"] = ref_audio
    return {**{key: value for key, value in utterance.extra.items() if key not in (*own, "words")}, **own}


def read_back(rows: Sequence[dict[str, Any]], output: Path, reader: Reader) -> None:
    """Adds to each row what a recogniser reads."""
    heard = reader([output / each["audio"] for each in rows])
    for each, text in zip(rows, heard, strict=True):
        each["hyp"] = text


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes all rows, or none."""
    with atomic_file(path) as file:
        for each in rows:
            file.write(json_line(each))


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as it is written."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def run_info(cfg: DictConfig, synthesizer: Synthesizer, *, wall_s: float) -> RunInfo:
    """How the times were taken."""
    options = {field.name: getattr(synthesizer.options, field.name) for field in dataclasses.fields(synthesizer.options)}
    settings = {"infer": f"{synthesizer.infer.__module__}.infer", **options, "vocoder": type(synthesizer.vocoder).__name__}
    name = torch.cuda.get_device_name(synthesizer.device) if synthesizer.device.type == "cuda" else platform.processor()
    return RunInfo(
        device=f"{synthesizer.device} ({name or platform.machine()})",
        dtype=cfg.dtype,
        threads=torch.get_num_threads(),
        batch_size=cfg.batch_size,
        warmup_batches=cfg.warmup_batches,
        timed=("text", "model", "transfer", "vocoder"),
        not_timed=("load", "warmup", "write"),
        wall_s=round(wall_s, 3),
        decode={key: value if isinstance(value, str | int | float | None) else str(value) for key, value in settings.items()},
        checkpoint=str(cfg.checkpoint),
        versions={"python": platform.python_version(), "torch": torch.__version__, "speechkit": version("speechkit")},
        command=shlex.join(["speechkit", "synthesize-corpus", *HydraConfig.get().overrides.task]),
    )


if __name__ == "__main__":
    main()

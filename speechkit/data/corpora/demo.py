"""The demo corpus: speech made on the spot by espeak-ng from a closed grammar; nothing to download.

Many voice variants, speeds and pitches speak sentences of demo_grammar.txt. The splits share neither a voice variant
(demo_voices.json) nor a sentence. Each row holds phonemes and words with their times and the sentence in the other
languages. All samples follow from the arguments: the same for any number of worker processes.

Shape legend: N samples.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechkit.audio.io import resample
from speechkit.data.corpora.demo_text import GRAMMAR_PATH, LANGUAGES, Sentence, sentences, spoken_form
from speechkit.data.manifest import read_manifest
from speechkit.data.parallel import available_cpus, progress_bar
from speechkit.data.splits import SPLITS, PreparedCorpus, write_splits
from speechkit.text import espeak
from speechkit.text.espeak import SpokenUtterance, TimedSymbol, speak
from speechkit.types import Seconds, Utterance

VOICES_PATH = Path(__file__).with_name("demo_voices.json")

SETTINGS_NAME = "demo.json"
_PEAK_DB = (-12.0, -2.0)  # peak level in dB of full scale
_MARGIN = (0.08, 0.30)  # silence before and after the speech, in seconds


@dataclass(frozen=True, slots=True)
class DemoJob:
    """All that one utterance is made from."""

    id: str
    path: Path
    language: str
    voice: str
    variant: str
    speed: int
    pitch: int
    pitch_range: int
    lead: Seconds
    tail: Seconds
    peak_db: float
    snr_db: tuple[float, float] | None
    noise_seed: tuple[int, ...]
    sample_rate: int
    sentence: Sentence


@cache
def voice_table() -> dict[str, Any]:
    """Contents of demo_voices.json."""
    return json.loads(VOICES_PATH.read_text(encoding="utf-8"))


def voice_pool(split: str, *, pool: str = "clear") -> list[str]:
    """Voice variants of a split; those of different splits are disjoint, but for "single".

    Args:
        split: "train", "dev" or "test".
        pool: "clear" for plain voices, "wide" for these and whispers, croaks and robots, "single" for the one voice that
            synthesis is trained on.
    """
    if pool not in ("clear", "wide", "single"):
        raise ValueError(f"voices={pool!r} is no voice pool: choose clear, wide or single")
    table = voice_table()
    if pool == "single":
        return table["single"][split]
    return table["clear"][split] + (table["wide"][split] if pool == "wide" else [])


def prepare_demo(
    out: str | Path,
    *,
    languages: Sequence[str] = ("en",),
    num_train: int = 2000,
    num_dev: int = 200,
    num_test: int = 400,
    num_text: int = 20000,
    seed: int = 0,
    voices: str = "clear",
    speed: tuple[int, int] = (140, 200),
    pitch: tuple[int, int] = (35, 65),
    noise_snr_db: tuple[float, float] | None = None,
    sample_rate: int = 16000,
    audio_format: str = "flac",
    num_workers: int | None = None,
) -> PreparedCorpus:
    """Generate the demo corpus; a directory that already holds it with the same settings is left as it is.

    Args:
        out: directory for `<split>.jsonl`, `text_<language>.txt` and `audio/<split>/`.
        languages: of "en", "de", "fr", "es"; each gets the number of utterances below.
        num_train: training utterances per language.
        num_dev: development utterances per language.
        num_test: test utterances per language.
        num_text: sentences of `text_<language>.txt`, one per line, for language models: those of training and more of
            their kind, none of dev and test.
        seed: of all choices; another seed gives other sentences and other pairings with voices.
        voices: "clear", "wide" or "single", see `voice_pool`; "single" takes the first accent of each language alone.
        speed: range of words per minute.
        pitch: range of base pitches, 0 to 99.
        noise_snr_db: range of signal-to-noise ratios of added white noise in dB; None adds none.
        sample_rate: of the files, in Hz.
        audio_format: "flac" or "wav", 16 bit.
        num_workers: processes; None takes one per core. The result does not depend on it.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: an argument is out of range.
    """
    out = Path(out)
    languages = [languages] if isinstance(languages, str) else list(languages)
    sizes = {"train": num_train, "dev": num_dev, "test": num_test}
    _check(languages, {**sizes, "text": num_text}, voices, audio_format)
    settings: dict[str, Any] = {
        "languages": languages, **sizes, "num_text": num_text, "seed": seed, "voices": voices, "speed": list(speed),
        "pitch": list(pitch),
        "noise_snr_db": None if noise_snr_db is None else list(noise_snr_db), "sample_rate": sample_rate,
        "audio_format": audio_format, "sources": _fingerprint(),
    }  # fmt: skip
    if _is_prepared(out, settings):
        return write_splits("demo", out, {split: read_manifest(out / f"{split}.jsonl") for split in SPLITS})
    jobs = {
        split: [job for language in languages for job in _plan(out, split, language, sizes[split], seed=seed, settings=settings)]
        for split in SPLITS
    }
    for split in SPLITS:
        (out / "audio" / split).mkdir(parents=True, exist_ok=True)
    total = sum(len(planned) for planned in jobs.values())
    spoken = _speak_all([job for planned in jobs.values() for job in planned], num_workers)
    made = iter(progress_bar(spoken, description="demo corpus", total=total))
    report = write_splits("demo", out, {split: list(islice(made, len(jobs[split]))) for split in SPLITS})
    texts = list(islice(sentences(_text_rng(seed, "train"), "train"), num_text))
    for language in languages:
        lines = "".join(f"{spoken_form(sentence.written[language])}\n" for sentence in texts)
        (out / f"text_{language}.txt").write_text(lines, encoding="utf-8")
    (out / SETTINGS_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return report


def _check(languages: list[str], sizes: dict[str, int], voices: str, audio_format: str) -> None:
    for language in languages:
        if language not in LANGUAGES:
            raise ValueError(f"languages: {language!r} is not among {', '.join(LANGUAGES)}")
    if not languages or len(set(languages)) < len(languages):
        raise ValueError(f"languages={languages}: name one or more, each once")
    for split, size in sizes.items():
        if size < 0:
            raise ValueError(f"num_{split}={size}: give 0 or more")
    if audio_format not in ("flac", "wav"):
        raise ValueError(f"audio_format={audio_format!r}: choose flac or wav")
    voice_pool("train", pool=voices)


def _fingerprint() -> str:
    """Hash of the grammar, the voice pools and the code that speaks them."""
    digest = hashlib.sha256()
    for path in (GRAMMAR_PATH, VOICES_PATH, GRAMMAR_PATH.with_name("demo_text.py"), Path(__file__), Path(espeak.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_prepared(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds the corpus of these settings; else the note of what it holds is taken away."""
    path = out / SETTINGS_NAME
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == settings
    except (OSError, ValueError):
        same = False
    names = [*(f"{split}.jsonl" for split in SPLITS), *(f"text_{language}.txt" for language in settings["languages"])]
    if same and all((out / name).is_file() for name in names):
        return True
    path.unlink(missing_ok=True)
    return False


def _plan(out: Path, split: str, language: str, size: int, *, seed: int, settings: dict[str, Any]) -> Iterator[DemoJob]:
    """Jobs of one split and language: sentences and voices in turn, everything else drawn."""
    key = (seed, SPLITS.index(split), LANGUAGES.index(language))
    rng = np.random.default_rng(key)
    table = voice_table()
    accents = table["languages"][language][: 1 if settings["voices"] == "single" else None]
    speakers = [(voice, variant) for voice in accents for variant in voice_pool(split, pool=settings["voices"])]
    deck: list[int] = []
    for index, sentence in enumerate(islice(sentences(_text_rng(seed, split), split), size)):
        deck = deck or [int(card) for card in rng.permutation(len(speakers))]
        voice, variant = speakers[deck.pop()]
        speed, pitch = (int(rng.integers(low, high + 1)) for low, high in (settings["speed"], settings["pitch"]))
        lead, tail = (round(float(margin), 3) for margin in rng.uniform(*_MARGIN, size=2))
        name = f"demo_{language}_{split}_{index:06d}"
        yield DemoJob(
            id=name,
            path=out / "audio" / split / f"{name}.{settings['audio_format']}",
            language=language,
            voice=voice,
            variant=variant,
            speed=speed,
            pitch=pitch,
            pitch_range=int(rng.integers(35, 66)),
            lead=lead,
            tail=tail,
            peak_db=float(rng.uniform(*_PEAK_DB)),
            snr_db=settings["noise_snr_db"],
            noise_seed=(*key, index),
            sample_rate=settings["sample_rate"],
            sentence=sentence,
        )


def _text_rng(seed: int, split: str) -> np.random.Generator:
    """Draws the sentences of a split: the same meanings in every language."""
    return np.random.default_rng((seed, SPLITS.index(split)))


def _speak_all(jobs: list[DemoJob], num_workers: int | None) -> Iterator[Utterance]:
    """Utterances in the order of the jobs."""
    workers = min(available_cpus() if num_workers is None else num_workers, len(jobs) // 50)
    if workers <= 1:
        yield from map(_speak_job, jobs)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(workers) as pool:
        yield from pool.imap(_speak_job, jobs, chunksize=25)


def _speak_job(job: DemoJob) -> Utterance:
    """Speak and write one utterance."""
    written = job.sentence.written[job.language]
    spoken = speak(written, voice=job.voice, variant=job.variant, speed=job.speed, pitch=job.pitch, pitch_range=job.pitch_range)
    wave_N = _finish(spoken, job)
    coded = io.BytesIO()  # straight to the path, libsndfile would wait for the disk after every file
    soundfile.write(coded, wave_N, job.sample_rate, format=job.path.suffix[1:].upper(), subtype="PCM_16")
    job.path.write_bytes(coded.getvalue())
    return Utterance(
        id=job.id,
        audio_path=job.path.resolve(),
        duration=round(len(wave_N) / job.sample_rate, 4),
        text=spoken_form(written),
        speaker=f"{job.voice}_{job.variant}",
        lang=job.language,
        extra={
            "gender": "f" if job.variant in voice_table()["female"] else "m",
            "text_raw": written,
            "translations": {other: text for other, text in job.sentence.written.items() if other != job.language},
            "words": _shifted(spoken.words, job.lead),
            "phonemes": _shifted(spoken.phonemes, job.lead),
            "speed_wpm": job.speed,
            "pitch": job.pitch,
        },
    )


def _finish(spoken: SpokenUtterance, job: DemoJob) -> np.ndarray:
    """Resample, add silence around it, set the level, add noise."""
    speech_N = resample(spoken.wave, spoken.sample_rate, job.sample_rate)
    peak = float(np.abs(speech_N).max())
    assert peak > 0, f"{job.id}: the voice {job.variant} said nothing"
    speech_N = speech_N * np.float32(10 ** (job.peak_db / 20) / peak)
    lead, tail = (round(margin * job.sample_rate) for margin in (job.lead, job.tail))
    wave_N = np.pad(speech_N, (lead, tail))
    if job.snr_db is not None:
        rng = np.random.default_rng(job.noise_seed)
        power = float(np.mean(np.square(speech_N, dtype=np.float64))) / 10 ** (rng.uniform(*job.snr_db) / 10)
        wave_N = np.clip(wave_N + np.sqrt(power) * rng.standard_normal(len(wave_N)), -1.0, 1.0).astype(np.float32)
    return wave_N


def _shifted(symbols: Sequence[TimedSymbol], lead: Seconds) -> list[list[Any]]:
    return [[symbol, round(start + lead, 4), round(end + lead, 4)] for symbol, start, end in symbols]

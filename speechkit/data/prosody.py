"""Pitch and energy of a corpus, computed once and kept in memory-mapped columns that every run on it shares.

A directory holds `f0.f32` and `energy.f32` (all frames of all utterances, one after another), `offsets.i64` (first frame
of each utterance, and the end) and `prosody.json`, written last: what it was computed of, and the moments that normalise it.

Shape legend: T frames, N samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechkit.audio.io import Channel
from speechkit.audio.pitch import Moments, energy, f0, interpolate_log_f0, moments
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.data.manifest import atomic_file
from speechkit.data.parallel import available_cpus, ordered_map, progress_bar
from speechkit.types import Utterance

_VERSION = 1
_META, _F0, _ENERGY, _OFFSETS = "prosody.json", "f0.f32", "energy.f32", "offsets.i64"
_ENERGY_FLOOR = 1e-3  # before the logarithm: far below any breath


class ProsodyStats(NamedTuple):
    """What pitch and energy are normalised by.

    Attributes:
        log_f0_mean: mean of log(Hz) over voiced frames, by speaker.
        log_f0_std: deviation from the speaker's own mean, over all speakers.
        log_energy_mean: mean of the log energy over all frames.
        log_energy_std: its deviation.
    """

    log_f0_mean: dict[str, float]
    log_f0_std: float
    log_energy_mean: float
    log_energy_std: float


class Prosody(NamedTuple):
    """Normalised pitch and energy of one utterance, float32, shapes (T,)."""

    pitch_T: np.ndarray
    energy_T: np.ndarray


class ProsodyIndex:
    """Pitch and energy of a list of utterances, by their place in it.

    Args:
        directory: where `compile_prosody` wrote.
        stats: to normalise by; None for the list's own.

    Attributes:
        stats: what values are normalised by.
        silent: ids of utterances without any voiced frame.
    """

    def __init__(self, directory: Path, *, stats: ProsodyStats | None = None) -> None:
        self.directory = directory
        meta = json.loads((directory / _META).read_text(encoding="utf-8"))
        self.own_stats = ProsodyStats(**meta["stats"])
        self.stats = stats or self.own_stats
        self.silent: list[str] = meta["silent"]
        self._columns: tuple[np.ndarray, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": None}

    def __call__(self, i: int, speaker: str) -> Prosody:
        """Prosody of utterance `i`, normalised; one without any voice has its speaker's mean pitch."""
        if self._columns is None:
            offsets = np.fromfile(self.directory / _OFFSETS, "<i8")
            shape = (int(offsets[-1]),)
            maps = [np.memmap(self.directory / name, "<f4", "r", shape=shape) if shape[0] else np.zeros(0, np.float32)
                    for name in (_F0, _ENERGY)]  # fmt: skip
            self._columns = (offsets, *maps)
        offsets, f0_N, energy_N = self._columns
        own = slice(int(offsets[i]), int(offsets[i + 1]))
        stats = self.stats
        usual = sum(stats.log_f0_mean.values()) / max(len(stats.log_f0_mean), 1)
        mean = stats.log_f0_mean.get(speaker, usual)
        pitch_T = (interpolate_log_f0(f0_N[own], fill_hz=math.exp(mean)) - mean) / stats.log_f0_std
        log_energy_T = np.log(np.maximum(energy_N[own], _ENERGY_FLOOR))
        energy_T = (log_energy_T - stats.log_energy_mean) / stats.log_energy_std
        return Prosody(pitch_T.astype(np.float32), energy_T.astype(np.float32))


def compile_prosody(
    utterances: Sequence[Utterance],
    read: Callable[[int], np.ndarray | None],
    cache_dir: str | os.PathLike[str],
    *,
    mel: MelSpectrogram,
    f_min: float = 65.0,
    f_max: float = 600.0,
    channel: Channel = "mean",
    stats: ProsodyStats | None = None,
) -> ProsodyIndex:
    """Computes pitch and energy of a list of utterances, or finds what an earlier call left.

    Args:
        utterances: what is read; the index is known by their ids, places in their files and speakers.
        read: waveform of utterance `i` at `mel.sample_rate`, or None where it cannot be read.
        cache_dir: gets a directory named by a hash of all that the result depends on.
        mel: whose frames the values belong to.
        f_min: lowest pitch of the voices, Hz.
        f_max: highest pitch of the voices, Hz.
        channel: which one `read` takes.
        stats: to normalise by, of the training data; None for the list's own.

    Raises:
        ValueError: no utterance has a voiced frame.
    """
    directory = Path(cache_dir) / f"prosody-{_fingerprint(utterances, mel, (f_min, f_max, channel))}"
    if not (directory / _META).is_file():
        directory.mkdir(parents=True, exist_ok=True)
        _compile(utterances, read, directory, mel=mel, f_min=f_min, f_max=f_max)
    return ProsodyIndex(directory, stats=stats)


def _fingerprint(utterances: Sequence[Utterance], mel: MelSpectrogram, settings: tuple[Any, ...]) -> str:
    frames = (mel.sample_rate, mel.hop_length, mel.n_fft, mel.win_length, mel.padding)
    digest = hashlib.sha256(json.dumps([_VERSION, settings, frames]).encode())
    for utterance in utterances:
        source = utterance.audio_path
        changed = source.stat().st_mtime_ns if source.is_file() else 0
        row = (utterance.id, str(source), changed, utterance.start, utterance.duration, utterance.speaker)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def _compile(
    utterances: Sequence[Utterance],
    read: Callable[[int], np.ndarray | None],
    directory: Path,
    *,
    mel: MelSpectrogram,
    f_min: float,
    f_max: float,
) -> None:
    def track(i: int) -> tuple[np.ndarray, np.ndarray]:
        wave_N = read(i)
        wave_N = np.zeros(0, np.float32) if wave_N is None else wave_N
        frames: dict[str, Any] = {"hop_length": mel.hop_length, "padding": mel.padding}
        found = f0(wave_N, mel.sample_rate, f_min=f_min, f_max=f_max, **frames)
        return found.f0_T, energy(wave_N, n_fft=mel.n_fft, win_length=mel.win_length, **frames)

    tracked: Iterable[Any] = ordered_map(track, range(len(utterances)), num_threads=available_cpus())
    offsets, voiced, silent, energies = [0], dict[str, Moments](), [], Moments()
    with atomic_file(directory / _F0) as f0_file, atomic_file(directory / _ENERGY) as energy_file:
        for i, (f0_T, energy_T) in progress_bar(tracked, description="pitch", total=len(utterances)):
            speaker = utterances[i].speaker
            voiced[speaker] = voiced.get(speaker, Moments()) + moments(np.log(f0_T[f0_T > 0]))
            energies += moments(np.log(np.maximum(energy_T, _ENERGY_FLOOR)))
            if not (f0_T > 0).any():
                silent.append(utterances[i].id)
            f0_file.write(f0_T.astype("<f4").tobytes())
            energy_file.write(energy_T.astype("<f4").tobytes())
            offsets.append(offsets[-1] + len(f0_T))
    count = sum(one.count for one in voiced.values())
    if not count:
        raise ValueError(f"none of {len(utterances)} utterances has a voiced frame: is this speech? run `speechkit validate`")
    pooled = math.sqrt(sum(one.deviations for one in voiced.values()) / count)
    stats = ProsodyStats(
        log_f0_mean={speaker: one.mean for speaker, one in voiced.items() if one.count},
        log_f0_std=pooled or 1.0,
        log_energy_mean=energies.mean,
        log_energy_std=energies.std or 1.0,
    )
    with atomic_file(directory / _OFFSETS) as file:
        file.write(np.asarray(offsets, "<i8").tobytes())
    with atomic_file(directory / _META) as file:
        file.write(json.dumps({"version": _VERSION, "stats": stats._asdict(), "silent": silent}, indent=1).encode())

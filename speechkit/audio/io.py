"""Reading and writing audio files: any container, rate, channel count and length, in bounded memory.

Files are recognised by content, never by their extension. libsndfile (through soundfile) reads WAV, FLAC, Ogg Vorbis,
Opus, MP3, AIFF and its other formats; PyAV (extra "av") reads M4A, MP4, WebM, Matroska, WMA, AAC and AMR. Everything is
decoded block by block, downmixed at once and resampled with a stateful soxr stream, so a header that promises ten hours
costs nothing, and `iter_audio` and `load_audio` give the same samples bit for bit.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from speechkit.audio.decoders import (
    BLOCK_VALUES,
    MAX_SAMPLE_RATE,
    AudioError,
    AudioSource,
    Decoder,
    one_line,
    open_decoder,
)
from speechkit.types import Seconds

__all__ = [
    "SPEECH_SUFFIXES",
    "AudioError",
    "AudioInfo",
    "AudioSource",
    "Channel",
    "audio_info",
    "iter_audio",
    "load_audio",
    "resample",
    "save_audio",
    "speech_subtype",
]

Channel = Literal["mean"] | int
SPEECH_SUFFIXES = (".wav", ".flac", ".ogg")
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        duration: length in seconds.
        sample_rate: samples per second.
        num_channels: number of channels.
        num_samples: samples in each channel.
        format: container and coding, as "WAV/PCM_16" or "OGG/OPUS".
    """

    duration: Seconds
    sample_rate: int
    num_channels: int
    num_samples: int
    format: str


def load_audio(
    source: AudioSource,
    *,
    sample_rate: int | None = None,
    channel: Channel = "mean",
    start: Seconds = 0.0,
    duration: Seconds | None = None,
) -> tuple[np.ndarray, int]:
    """Reads audio as one float32 channel.

    Args:
        source: a path, the bytes of a file, or a binary file object (read from its beginning).
        sample_rate: rate of the result in Hz; None keeps the file's own.
        channel: "mean" averages the channels, an int takes that one (0 is the first).
        start: where to begin, in seconds.
        duration: seconds to read; None reads to the end. Less is returned where the file ends earlier.

    Returns:
        Samples in [-1, 1] for integer formats, float32, shape (N,) with N > 0, and their sample rate.

    Raises:
        AudioError: the source is missing, not audio, damaged, empty, holds NaN or infinite samples, lacks the channel,
            or ends before `start`.
        ValueError: `start`, `duration`, `sample_rate` or `channel` is not a sensible value.
    """
    _check_request(sample_rate=sample_rate, channel=channel, start=start, duration=duration)
    with open_decoder(source) as decoder:
        rate = sample_rate or decoder.sample_rate
        blocks = list(_resampled(_mono_blocks(decoder, channel, start, duration), decoder.sample_rate, rate))
        name = decoder.name
    wave_N = blocks[0] if len(blocks) == 1 else np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if wave_N.size == 0:
        raise AudioError(f"{name}: too short for a single sample at {rate} Hz; leave it out")
    return wave_N, rate


def iter_audio(
    source: AudioSource,
    *,
    block_seconds: Seconds = 30.0,
    sample_rate: int | None = None,
    channel: Channel = "mean",
    start: Seconds = 0.0,
    duration: Seconds | None = None,
) -> Iterator[np.ndarray]:
    """Streams audio in blocks; memory does not grow with the length of the file.

    The blocks put end to end are what `load_audio` returns for the same arguments.

    Args:
        source: as in `load_audio`.
        block_seconds: length of every block but the last, in seconds.
        sample_rate: rate of the result in Hz; None keeps the file's own (`audio_info` tells it).
        channel: as in `load_audio`.
        start: as in `load_audio`.
        duration: as in `load_audio`.

    Yields:
        float32 blocks, shape (round(block_seconds * rate),), the last one shorter but not empty.

    Raises:
        AudioError: as in `load_audio`.
        ValueError: as in `load_audio`, or `block_seconds` is not above 0.
    """
    _check_request(sample_rate=sample_rate, channel=channel, start=start, duration=duration)
    if not block_seconds > 0:
        raise ValueError(f"block_seconds={block_seconds}: must be above 0")
    return _iter_audio(source, block_seconds, sample_rate, channel, start, duration)


def audio_info(source: AudioSource) -> AudioInfo:
    """Reads the header of an audio file (and the file itself only where the header does not tell the length).

    Args:
        source: as in `load_audio`.

    Returns:
        What the header says; a damaged file may hold less.

    Raises:
        AudioError: the source is missing or not audio.
    """
    with open_decoder(source) as decoder:
        num_samples = decoder.num_samples
        if num_samples is None:
            num_samples = sum(len(block_NC) for block_NC in decoder.blocks(0, None))
        return AudioInfo(
            duration=num_samples / decoder.sample_rate,
            sample_rate=decoder.sample_rate,
            num_channels=decoder.num_channels,
            num_samples=num_samples,
            format=decoder.format,
        )


def resample(wave_N: np.ndarray, orig: int, new: int) -> np.ndarray:
    """Resamples with soxr's HQ quality.

    Args:
        wave_N: samples, shape (N,).
        orig: their rate in Hz.
        new: the wanted rate in Hz.

    Returns:
        float32 samples, shape (N * new / orig,) to the nearest integer; the input itself where nothing changes.

    Raises:
        ValueError: a rate is not positive.
    """
    if orig <= 0 or new <= 0:
        raise ValueError(f"orig={orig}, new={new}: sample rates must be above 0")
    wave_N = np.asarray(wave_N, dtype=np.float32)
    if orig == new or wave_N.size == 0:
        return wave_N
    return np.asarray(soxr.resample(wave_N, orig, new, quality="HQ"))


def save_audio(path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int, *, subtype: str | None = None) -> None:
    """Writes audio; the extension chooses the format (.wav, .flac, .ogg, .opus, .mp3, .aiff ...).

    Args:
        path: file to write; an existing one is replaced.
        wave: samples in [-1, 1], shape (N,) or (N, C). Integer codings clip what lies outside.
        sample_rate: rate in Hz.
        subtype: libsndfile's name of the coding ("PCM_16", "FLOAT", "VORBIS" ...); None takes the usual one.

    Raises:
        ValueError: the samples are not finite or of a wrong shape, or the format is not known or cannot hold the rate.
    """
    path = Path(path)
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim not in (1, 2):
        raise ValueError(f"wave has shape {wave.shape}: give (N,) or (N, C)")
    if not np.isfinite(wave).all():
        raise ValueError(f"{path}: wave holds NaN or infinite samples; clean it before saving")
    suffix = path.suffix.lower().lstrip(".")
    container, default = {"opus": ("OGG", "OPUS"), "oga": ("OGG", "VORBIS")}.get(suffix, (suffix.upper(), None))
    if container not in soundfile.available_formats():
        known = "wav, flac, ogg, opus, mp3, aiff"
        raise ValueError(f"{path}: no audio format has the extension {path.suffix!r}; use one of {known}")
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    subtype = subtype or default
    try:
        with soundfile.SoundFile(path, "w", sample_rate, channels, subtype, format=container) as file:
            for begin in range(0, len(wave), BLOCK_VALUES // 8):  # libsndfile's Ogg encoders overflow on huge writes
                file.write(wave[begin : begin + BLOCK_VALUES // 8])
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot write {container} at {sample_rate} Hz ({one_line(error)})") from error


def speech_subtype(path: str | os.PathLike[str], sample_rate: int) -> str:
    """How a file of synthetic speech is coded: in 16 bits, or as Ogg Opus, and Vorbis at rates that Opus does not know.

    Args:
        path: of a file with one of `SPEECH_SUFFIXES`.
        sample_rate: rate in Hz.

    Returns:
        The `subtype` for `save_audio`.

    Raises:
        ValueError: the suffix is another.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SPEECH_SUFFIXES:
        raise ValueError(f"{path}: its suffix must be one of {', '.join(SPEECH_SUFFIXES)}")
    if suffix != ".ogg":
        return "PCM_16"
    return "OPUS" if sample_rate in _OPUS_RATES else "VORBIS"


# ---- request, downmix, resample ----


def _check_request(*, sample_rate: int | None, channel: Channel, start: Seconds, duration: Seconds | None) -> None:
    if sample_rate is not None and not 0 < sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"sample_rate={sample_rate}: must be above 0 and at most {MAX_SAMPLE_RATE} Hz")
    if channel != "mean" and (isinstance(channel, bool) or not isinstance(channel, int) or channel < 0):
        raise ValueError(f'channel={channel!r}: must be "mean" or the number of a channel, from 0')
    if not (start >= 0 and np.isfinite(start)):
        raise ValueError(f"start={start}: must be 0 or more seconds")
    if duration is not None and not (duration > 0 and np.isfinite(duration)):
        raise ValueError(f"duration={duration}: must be above 0 seconds, or None for all")


def _iter_audio(
    source: AudioSource,
    block_seconds: Seconds,
    sample_rate: int | None,
    channel: Channel,
    start: Seconds,
    duration: Seconds | None,
) -> Iterator[np.ndarray]:
    with open_decoder(source) as decoder:
        rate = sample_rate or decoder.sample_rate
        size = max(1, round(block_seconds * rate))
        pending: list[np.ndarray] = []
        held = 0
        for piece in _resampled(_mono_blocks(decoder, channel, start, duration), decoder.sample_rate, rate):
            pending.append(piece)
            held += len(piece)
            if held < size:
                continue
            joined = np.concatenate(pending)
            whole = held - held % size
            yield from (joined[i : i + size].copy() for i in range(0, whole, size))
            pending = [joined[whole:].copy()]
            held -= whole
        if held:
            yield np.concatenate(pending)


def _mono_blocks(decoder: Decoder, channel: Channel, start: Seconds, duration: Seconds | None) -> Iterator[np.ndarray]:
    """Yields the wanted stretch as mono blocks at the file's own rate, checked; at least one sample in all."""
    if channel != "mean" and channel >= decoder.num_channels:
        raise AudioError(
            f"{decoder.name}: channel={channel} does not exist, it has {decoder.num_channels} channel(s), from 0; "
            'choose one of them or "mean"'
        )
    first = round(start * decoder.sample_rate)
    count = None if duration is None else max(1, round(duration * decoder.sample_rate))
    seen = 0
    for block_NC in decoder.blocks(first, count):
        if not np.isfinite(block_NC).all():
            raise AudioError(f"{decoder.name}: holds NaN or infinite samples; export it again or leave it out")
        if channel != "mean":
            block_N = np.ascontiguousarray(block_NC[:, channel])
        else:
            block_N = block_NC[:, 0] if decoder.num_channels == 1 else block_NC.mean(axis=1, dtype=np.float32)
        seen += len(block_N)
        yield block_N
    if not seen:
        if first:
            raise AudioError(f"{decoder.name}: ends before start={start} s; correct the offset in the manifest")
        raise AudioError(f"{decoder.name}: holds no samples; leave it out")
    promised = decoder.num_samples
    if promised is not None and seen < min(promised - first, promised if count is None else count):
        warnings.warn(
            f"{decoder.name}: truncated: the header promises {promised / decoder.sample_rate:.2f} s, the file holds "
            f"{(first + seen) / decoder.sample_rate:.2f} s; what there is was used",
            RuntimeWarning,
            stacklevel=2,
        )


def _resampled(blocks: Iterator[np.ndarray], orig: int, new: int) -> Iterator[np.ndarray]:
    if orig == new:
        yield from blocks
        return
    stream = soxr.ResampleStream(orig, new, 1, dtype="float32", quality="HQ")
    for block_N in blocks:
        out = stream.resample_chunk(block_N)
        if len(out):
            yield out
    out = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    if len(out):
        yield out

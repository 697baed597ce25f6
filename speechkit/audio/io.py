"""Reading and writing audio files: any container, rate, channel count and length, in bounded memory.

Files are recognised by content, never by their extension. libsndfile (through soundfile) reads WAV, FLAC, Ogg Vorbis,
Opus, MP3, AIFF and its other formats; PyAV (extra "av") reads M4A, MP4, WebM, Matroska, WMA, AAC and AMR. Everything is
decoded block by block, downmixed at once and resampled with a stateful soxr stream, so a header that promises ten hours
costs nothing, and `iter_audio` and `load_audio` give the same samples bit for bit.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import soundfile
import soxr

from speechkit.types import Seconds

AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
Channel = Literal["mean"] | int

_BLOCK_VALUES = 1 << 19  # samples times channels decoded at once
_UNKNOWN_LENGTH = 1 << 60  # libsndfile's stand-in for "the header does not say"
# Decoders with memory give other samples right after a seek than in sequence. Starting this much earlier and throwing
# the surplus away makes them agree (Vorbis and PCM need none; Opus's predictors take seconds to converge).
_PRE_ROLL_SECONDS = {"OPUS": 10.0, "MPEG_LAYER_I": 1.0, "MPEG_LAYER_II": 1.0, "MPEG_LAYER_III": 1.0}
_MAX_SAMPLE_RATE = 1_000_000
_MAX_CHANNELS = 1024


class AudioError(ValueError):
    """Audio that cannot be read. The message is one line: the path, what is wrong with it, and what to do."""


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
    with _open(source) as decoder:
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
    with _open(source) as decoder:
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


def save_audio(
    path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int, *, subtype: str | None = None
) -> None:
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
            for begin in range(0, len(wave), _BLOCK_VALUES // 8):  # libsndfile's Ogg encoders overflow on huge writes
                file.write(wave[begin : begin + _BLOCK_VALUES // 8])
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot write {container} at {sample_rate} Hz ({_one_line(error)})") from error


# ---- request, downmix, resample ----


def _check_request(*, sample_rate: int | None, channel: Channel, start: Seconds, duration: Seconds | None) -> None:
    if sample_rate is not None and not 0 < sample_rate <= _MAX_SAMPLE_RATE:
        raise ValueError(f"sample_rate={sample_rate}: must be above 0 and at most {_MAX_SAMPLE_RATE} Hz")
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
    with _open(source) as decoder:
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


def _mono_blocks(
    decoder: _Decoder, channel: Channel, start: Seconds, duration: Seconds | None
) -> Iterator[np.ndarray]:
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


# ---- decoders ----


class _Decoder(Protocol):
    name: str
    sample_rate: int
    num_channels: int
    num_samples: int | None
    format: str

    def blocks(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        """Yields float32 blocks (n, C), n > 0, from sample `first` on, `count` samples or to the end."""
        ...


class _SndfileDecoder:
    """libsndfile through soundfile."""

    def __init__(self, name: str, file: soundfile.SoundFile) -> None:
        self.name = name
        self.sample_rate = file.samplerate
        self.num_channels = file.channels
        self.num_samples = file.frames if 0 <= file.frames < _UNKNOWN_LENGTH else None
        self.format = f"{file.format}/{file.subtype}"
        self._file = file

    def blocks(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        if self.num_samples is not None and first >= self.num_samples:
            return
        skip = first
        if first and self._file.seekable():
            pre_roll = round(_PRE_ROLL_SECONDS.get(self._file.subtype, 0.0) * self.sample_rate)
            position = max(0, first - pre_roll)
            if position:
                self._guard(self._file.seek, position)
            skip = first - position
        yield from _trim(self._decode(), skip, count)

    def _decode(self) -> Iterator[np.ndarray]:
        size = max(1, _BLOCK_VALUES // self.num_channels)
        if self.num_samples is not None:
            size = max(1, min(size, self.num_samples))
        while True:
            block_NC = self._guard(self._file.read, size, dtype="float32", always_2d=True)
            if len(block_NC) == 0:
                return
            yield block_NC

    def _guard(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (soundfile.SoundFileError, ValueError) as error:
            raise AudioError(
                f"{self.name}: damaged {self.format} data ({_one_line(error)}); restore the file or leave it out"
            ) from error


class _AvDecoder:
    """FFmpeg through PyAV; always decodes from the beginning, since AAC and WebM do not seek to the sample."""

    def __init__(self, name: str, container: Any, av: Any) -> None:
        streams = container.streams.audio
        if not streams:
            raise AudioError(f"{name}: holds no audio stream; give a file with sound")
        self._av, self._container, self._stream = av, container, streams[0]
        self._frames = self._decode_frames()
        self.name = name
        self._head = next(self._frames, None)
        codec = self._stream.codec_context
        self.sample_rate = self._head.sample_rate if self._head is not None else codec.sample_rate or 0
        self.num_channels = len((self._head or codec).layout.channels)
        if not (0 < self.sample_rate <= _MAX_SAMPLE_RATE and 0 < self.num_channels <= _MAX_CHANNELS):
            raise AudioError(f"{name}: holds no samples; leave it out")
        self.num_samples = None  # containers round their durations: only decoding tells
        self.format = f"{container.format.name.split(',')[0].upper()}/{codec.name.upper()}"

    def blocks(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        yield from _trim(self._decode(), first, count)

    def _decode_frames(self) -> Iterator[Any]:
        try:
            yield from self._container.decode(self._stream)
        except self._av.error.FFmpegError as error:
            raise AudioError(
                f"{self.name}: damaged audio data ({_one_line(error)}); restore the file or leave it out"
            ) from error

    def _decode(self) -> Iterator[np.ndarray]:
        if self._head is None:
            return
        to_float = self._av.AudioResampler(format="fltp", layout=self._head.layout, rate=self.sample_rate)
        frame: Any = self._head
        while frame is not None:
            for converted in to_float.resample(frame):
                yield np.ascontiguousarray(converted.to_ndarray().T)
            frame = next(self._frames, None)
        for converted in to_float.resample(None):
            yield np.ascontiguousarray(converted.to_ndarray().T)


def _trim(blocks: Iterator[np.ndarray], skip: int, count: int | None) -> Iterator[np.ndarray]:
    """Drops the first `skip` samples of a stream of blocks and ends it after `count` more."""
    for block_NC in blocks:
        if skip:
            dropped = min(skip, len(block_NC))
            skip -= dropped
            block_NC = block_NC[dropped:]
        if count is not None:
            block_NC = block_NC[:count]
            count -= len(block_NC)
        if len(block_NC):
            yield block_NC
        if count == 0:
            return


# ---- opening ----


@contextmanager
def _open(source: AudioSource) -> Iterator[_Decoder]:
    """Opens a source with the decoder that its content asks for."""
    with _open_binary(source) as (name, file):
        head = file.read(64)
        file.seek(0)
        if not head:
            raise AudioError(f"{name}: the file is empty; restore it or leave it out")
        container = _ffmpeg_format(head)
        if container:
            with _open_av(name, file, container) as decoder:
                yield decoder
            return
        with _open_sndfile(name, file) as decoder:
            yield decoder


@contextmanager
def _open_binary(source: AudioSource) -> Iterator[tuple[str, IO[bytes]]]:
    """Gives a name for messages and a seekable binary file positioned at 0."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield "<bytes>", io.BytesIO(source)
        return
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        try:
            mode = os.stat(source).st_mode  # noqa: PTH116 (a str may hold characters that Path would alter)
            if stat.S_ISDIR(mode):
                raise AudioError(f"{name}: is a directory; give an audio file")
            if not stat.S_ISREG(mode):
                raise AudioError(f"{name}: is not a regular file; read it yourself and pass the bytes")
            file = open(source, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError as error:
            raise AudioError(f"{name}: no such file; check the path") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or _one_line(error)
            raise AudioError(f"{name}: cannot be opened ({reason}); check the path and its permissions") from error
        with file:
            yield name, file
        return
    if not hasattr(source, "read"):
        raise ValueError(f"source is {type(source).__name__}: give a path, bytes or a binary file object")
    name = str(getattr(source, "name", "<file object>"))
    if not (hasattr(source, "seekable") and source.seekable()):
        data = source.read()
        yield name, io.BytesIO(data)
        return
    source.seek(0)
    yield name, source


@contextmanager
def _open_sndfile(name: str, file: IO[bytes]) -> Iterator[_Decoder]:
    # A descriptor of our own: libsndfile sees no extension (it would trust some) and reads without Python callbacks.
    target: Any = file
    if os.name == "posix" and isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO):
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        target = file.fileno()
    try:
        opened = soundfile.SoundFile(target, closefd=False)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise AudioError(
            f"{name}: not an audio file that can be read ({_one_line(error)}); convert it to WAV or FLAC, or leave it out"
        ) from error
    with opened:
        yield _SndfileDecoder(name, opened)


@contextmanager
def _open_av(name: str, file: IO[bytes], container: str) -> Iterator[_Decoder]:
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f'{name}: {container} audio needs PyAV; pip install "speechkit[av]", or convert the file to WAV or FLAC'
        ) from error
    try:
        opened = av.open(file, mode="r", format=container)
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError(
            f"{name}: damaged {container} file ({_one_line(error)}); restore it or leave it out"
        ) from error
    with opened:
        yield _AvDecoder(name, opened, av)


def _ffmpeg_format(head: bytes) -> str | None:
    """Names the FFmpeg demuxer for the containers that libsndfile does not read; None for all else.

    Only these are handed to FFmpeg, and with the demuxer fixed: left to guess, it would follow playlists.
    """
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"\x30\x26\xb2\x75":
        return "asf"
    if head[:5] == b"#!AMR":
        return "amr"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    return None


def _one_line(error: BaseException) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")

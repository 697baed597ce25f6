"""Decoders behind `speechkit.audio.io`: which library opens a source, and a stream of float32 blocks from it.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol

import numpy as np
import soundfile

AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

BLOCK_VALUES = 1 << 19  # samples times channels decoded at once
MAX_SAMPLE_RATE = 1_000_000
_MAX_CHANNELS = 1024
_UNKNOWN_LENGTH = 1 << 60  # libsndfile's stand-in for "the header does not say"
# Decoders with memory give other samples right after a seek than in sequence. Starting this much earlier and throwing
# the surplus away makes them agree (Vorbis and PCM need none; Opus's predictors take seconds to converge).
_PRE_ROLL_SECONDS = {"OPUS": 10.0, "MPEG_LAYER_I": 1.0, "MPEG_LAYER_II": 1.0, "MPEG_LAYER_III": 1.0}


class AudioError(ValueError):
    """Audio that cannot be read. The message is one line: the path, what is wrong with it, and what to do."""


class Decoder(Protocol):
    name: str
    sample_rate: int
    num_channels: int
    num_samples: int | None
    format: str

    def blocks(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        """Yields float32 blocks (n, C), n > 0, from sample `first` on, `count` samples or to the end."""
        ...


class _SequentialFile(soundfile.SoundFile):
    """A file that soundfile takes for a pipe: on others it seeks after every read, which resets lossy decoders."""

    def seekable(self) -> bool:
        return False


class _SndfileDecoder:
    """libsndfile through soundfile."""

    def __init__(self, name: str, file: _SequentialFile) -> None:
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
        if first and soundfile.SoundFile.seekable(self._file):
            pre_roll = round(_PRE_ROLL_SECONDS.get(self._file.subtype, 0.0) * self.sample_rate)
            position = max(0, first - pre_roll)
            if position:
                self._guard(self._file.seek, position)
            skip = first - position
        yield from _trim(self._decode(), skip, count)

    def _decode(self) -> Iterator[np.ndarray]:
        size = max(1, BLOCK_VALUES // self.num_channels)
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
                f"{self.name}: damaged {self.format} data ({one_line(error)}); restore the file or leave it out"
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
        if not (0 < self.sample_rate <= MAX_SAMPLE_RATE and 0 < self.num_channels <= _MAX_CHANNELS):
            raise AudioError(f"{name}: holds no samples; leave it out")
        self.num_samples: int | None = None  # containers round their durations: only decoding tells
        self.format = f"{container.format.name.split(',')[0].upper()}/{codec.name.upper()}"

    def blocks(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        yield from _trim(self._decode(), first, count)

    def _decode_frames(self) -> Iterator[Any]:
        try:
            yield from self._container.decode(self._stream)
        except self._av.error.FFmpegError as error:
            raise AudioError(f"{self.name}: damaged audio data ({one_line(error)}); restore the file or leave it out") from error

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
def open_decoder(source: AudioSource) -> Iterator[Decoder]:
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
            file = open(source, "rb") if stat.S_ISREG(mode) else None  # noqa: SIM115 (closed below)
        except FileNotFoundError as error:
            raise AudioError(f"{name}: no such file; check the path") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise AudioError(f"{name}: cannot be opened ({reason}); check the path and its permissions") from error
        if file is None:
            if stat.S_ISDIR(mode):
                raise AudioError(f"{name}: is a directory; give an audio file")
            raise AudioError(f"{name}: is not a regular file; read it yourself and pass the bytes")
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
def _open_sndfile(name: str, file: IO[bytes]) -> Iterator[Decoder]:
    # A descriptor of our own: libsndfile sees no extension (it would trust some) and reads without Python callbacks.
    target: Any = file
    if os.name == "posix" and isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO):
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        target = file.fileno()
    try:
        opened = _SequentialFile(target, closefd=False)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise AudioError(
            f"{name}: not an audio file that can be read ({one_line(error)}); convert it to WAV or FLAC, or leave it out"
        ) from error
    with opened:
        yield _SndfileDecoder(name, opened)


@contextmanager
def _open_av(name: str, file: IO[bytes], container: str) -> Iterator[Decoder]:
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f'{name}: {container} audio needs PyAV; pip install "speechkit[av]", or convert the file to WAV or FLAC'
        ) from error
    try:
        opened = av.open(file, mode="r", format=container)
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError(f"{name}: damaged {container} file ({one_line(error)}); restore it or leave it out") from error
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


def one_line(error: BaseException) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")

"""Sound files and streams that are written piece by piece, so that hours of speech need no memory.

Shape legend: N samples.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from speechkit.audio.decoders import one_line
from speechkit.audio.io import speech_subtype

_BLOCK = 1 << 16  # samples of a write: libsndfile's Ogg encoders overflow on huge ones
_UNKNOWN = 0xFFFFFFFF  # length of what is not known to end, as players take it


@contextmanager
def speech_file(path: Path, sample_rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a sound file that takes the place of `path` when the block ends without error.

    An interruption (Ctrl-C) leaves what was written until then, if anything, in `part_of(path)`; an error leaves nothing.

    Args:
        path: with a suffix of `speechkit.audio.io.SPEECH_SUFFIXES`, which chooses the format.
        sample_rate: rate in Hz.

    Yields:
        A function that writes samples in [-1, 1] of one channel, shape (N,).

    Raises:
        ValueError: the suffix is another.
        OSError: the file cannot be written.
    """
    subtype = speech_subtype(path, sample_rate)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    num_samples = 0
    try:
        with soundfile.SoundFile(temporary, "w", sample_rate, 1, subtype, format=path.suffix[1:].upper()) as file:

            def write(wave_N: np.ndarray) -> None:
                nonlocal num_samples
                num_samples += len(wave_N)
                for begin in range(0, len(wave_N), _BLOCK):
                    file.write(wave_N[begin : begin + _BLOCK])

            yield write
        temporary.replace(path)
    except soundfile.SoundFileError as error:
        raise OSError(f"{path}: cannot be written ({one_line(error)})") from error
    except (KeyboardInterrupt, GeneratorExit):  # the latter where a generator that writes is given up
        if num_samples:
            temporary.replace(part_of(path))
        raise
    finally:
        temporary.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where `speech_file` leaves what an interruption cut short: book.part.flac beside book.flac."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


@contextmanager
def wav_stream(file: IO[bytes], sample_rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes WAV of 16 bits to an open file, such as a pipe into a player; nothing if nothing is said.

    A pipe cannot be gone back in: its header tells of a length without end. In files it is corrected at the end of the block.

    Args:
        file: open for writing.
        sample_rate: rate in Hz.

    Yields:
        A function that writes samples in [-1, 1] of one channel, shape (N,), and flushes them.
    """
    begin = file.tell() if file.seekable() else None
    num_bytes = 0

    def write(wave_N: np.ndarray) -> None:
        nonlocal num_bytes
        if not len(wave_N):
            return
        coded = np.clip(np.rint(wave_N * 32767.0), -32768, 32767).astype("<i2").tobytes()
        file.write(coded if num_bytes else _wav_header(sample_rate, None) + coded)
        file.flush()
        num_bytes += len(coded)

    yield write
    if begin is not None and num_bytes:
        file.seek(begin)
        file.write(_wav_header(sample_rate, num_bytes))
        file.seek(0, os.SEEK_END)
        file.flush()


def _wav_header(sample_rate: int, num_bytes: int | None) -> bytes:
    """Header of samples of 16 bits, one channel; None where nobody knows how many bytes of them follow."""
    data = _UNKNOWN if num_bytes is None else min(num_bytes, _UNKNOWN)
    riff = min(36 + data, _UNKNOWN)
    form = (16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)  # bytes of this part, PCM, channels, and the widths of samples
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", *form, b"data", data)

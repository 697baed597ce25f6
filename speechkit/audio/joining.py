"""Pieces of synthesised speech, one after another.

Shape legend: N samples, T mel frames, F mel bins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.types import Seconds, Synthesis


def shifted(made: Synthesis, seconds: Seconds) -> Synthesis:
    """The same with times that many seconds later."""
    alignment = tuple(dataclasses.replace(p, start=p.start + seconds, end=p.end + seconds) for p in made.alignment)
    return dataclasses.replace(made, alignment=alignment)


def after_pause(made: Synthesis, num_frames: int, *, mel: MelSpectrogram) -> Synthesis:
    """The same after silence, which its first phone takes: texts begin with a boundary.

    Args:
        made: what is said then, with times from its own beginning.
        num_frames: mel frames of silence.
        mel: what they are.
    """
    if not num_frames:
        return made
    num_samples = num_frames * mel.hop_length
    moved = shifted(made, num_samples / mel.sample_rate).alignment
    floor = math.log(mel.log_floor) if mel.log_base == "e" else math.log10(mel.log_floor)
    silence_TF = np.full((num_frames, mel.output_dim), floor, np.float32)
    return dataclasses.replace(
        made,
        wave=np.concatenate((np.zeros(num_samples, np.float32), made.wave)),
        alignment=tuple(dataclasses.replace(phone, start=0.0) if i == 0 else phone for i, phone in enumerate(moved)),
        mel=None if made.mel is None else np.concatenate((silence_TF, made.mel)),
    )


def in_a_row(parts: Iterable[Synthesis]) -> Iterator[Synthesis]:
    """Pieces with times from their own beginning, with times from that of the first."""
    begin = 0
    for part in parts:
        yield shifted(part, begin / part.sample_rate)
        begin += len(part.wave)


def joined(parts: Sequence[Synthesis], *, text: str, mel: MelSpectrogram) -> Synthesis:
    """The pieces of a text as one.

    Args:
        parts: `in_a_row`; none for an empty waveform.
        text: what they say together.
        mel: what their frames are.
    """
    mels = [part.mel for part in parts if part.mel is not None]
    pitches = [part.pitch for part in parts if part.pitch is not None]
    return Synthesis(
        wave=np.concatenate([part.wave for part in parts]) if parts else np.zeros(0, np.float32),
        sample_rate=mel.sample_rate,
        alignment=tuple(phone for part in parts for phone in part.alignment),
        text=text,
        mel=np.concatenate(mels) if mels else np.zeros((0, mel.output_dim), np.float32),
        pitch=np.concatenate(pitches) if len(pitches) == len(parts) and parts else None,
    )

"""Pieces of synthesised speech, one after another.

Shape legend: N samples, T mel frames, F mel bins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.types import Seconds, Synthesis


def shifted(made: Synthesis, seconds: Seconds) -> Synthesis:
    """The same with times that many seconds later."""
    alignment = tuple(dataclasses.replace(p, start=p.start + seconds, end=p.end + seconds) for p in made.alignment)
    return dataclasses.replace(made, alignment=alignment)


def joined(parts: Sequence[Synthesis], *, text: str, mel: MelSpectrogram) -> Synthesis:
    """The pieces of a text as one.

    Args:
        parts: each with times from its own beginning; none for an empty waveform.
        text: what they say together.
        mel: what their frames are.
    """
    begins = np.cumsum([0, *(len(part.wave) for part in parts)]) / mel.sample_rate
    mels = [part.mel for part in parts if part.mel is not None]
    pitches = [part.pitch for part in parts if part.pitch is not None]
    return Synthesis(
        wave=np.concatenate([part.wave for part in parts]) if parts else np.zeros(0, np.float32),
        sample_rate=mel.sample_rate,
        alignment=tuple(phone for part, begin in zip(parts, begins.tolist()) for phone in shifted(part, begin).alignment),
        text=text,
        mel=np.concatenate(mels) if mels else np.zeros((0, mel.output_dim), np.float32),
        pitch=np.concatenate(pitches) if len(pitches) == len(parts) and parts else None,
    )

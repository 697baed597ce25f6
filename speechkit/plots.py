"""Pictures of synthesised speech: its mel spectrogram with the phones under it, and its pitch; of figures of many utterances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.types import Synthesis

_INCHES_PER_SECOND, _HEIGHT = 4.0, 3.6
_MAX_INCHES = 60.0


def plot_synthesis(made: Synthesis, mel: MelSpectrogram, path: str | Path) -> None:
    """Draws a synthesis to a picture; what it lacks (alignment, pitch) is left out.

    Args:
        made: what was synthesised, with its mel.
        mel: what the frames are.
        path: of the picture; its suffix tells the format, such as .png.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no frame to draw.
    """
    if made.mel is None or not len(made.mel):
        raise ValueError(f"text={made.text!r}: there is no frame to draw")
    seconds = len(made.mel) * mel.frame_shift
    figure = _figure(min(max(4.0, _INCHES_PER_SECOND * seconds), _MAX_INCHES))
    axes = figure.add_subplot()
    axes.imshow(made.mel.T, origin="lower", aspect="auto", extent=(0.0, seconds, 0.0, mel.output_dim), cmap="magma")
    axes.set(xlabel="seconds", ylabel="mel band", xlim=(0.0, seconds))
    axes.set_title(made.text[:120], parse_math=False)  # "$" is a dollar
    for phone in made.alignment:
        axes.axvline(phone.end, color="white", linewidth=0.4)
        if phone.end > phone.start:
            middle = (phone.start + phone.end) / 2
            place = (middle, mel.output_dim * 0.96)
            axes.annotate(phone.symbol, place, color="white", ha="center", va="top", fontsize=8, parse_math=False)
    if made.pitch is not None:
        steps = np.repeat(made.pitch, 2)
        times = np.array([time for phone in made.alignment for time in (phone.start, phone.end)])
        right = axes.twinx()
        right.plot(times, steps, color="cyan", linewidth=1.2)
        right.set(ylabel="F0, Hz", ylim=(0.0, max(400.0, float(made.pitch.max()) * 1.1)))
    figure.savefig(path, dpi=110)


def plot_distributions(values: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Draws histograms side by side, with their medians.

    Args:
        values: of each utterance, by the label of their axis; at least one everywhere.
        path: of the picture; its suffix tells the format, such as .png.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no value to draw.
    """
    for label, each in values.items():
        if not each:
            raise ValueError(f"{label}: there is no value to draw")
    figure = _figure(5.0 * len(values))
    for axes, (label, each) in zip(figure.subplots(1, len(values), squeeze=False)[0], values.items()):
        axes.hist(each, bins="auto" if len(each) > 1 else 1, color="tab:blue")
        median = float(np.median(each))
        axes.axvline(median, color="black", linewidth=1.0, label=f"median {median:.3g}")
        axes.set(xlabel=label, ylabel="utterances")
        axes.legend()
    figure.savefig(path, dpi=110)


def _figure(inches: float) -> Any:
    """An empty figure of some width that needs no screen."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "speechkit[tts]"') from error
    figure = Figure(figsize=(inches, _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    return figure

"""Pictures of synthesised speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.plots import plot_distributions, plot_synthesis
from speechkit.types import Synthesis, TimedPhone

MEL = MelSpectrogram.preset(16000)


@pytest.mark.parametrize("text", ["price $a_b_c$ is", r"$\nothing$ of {mathematics_", "5 $", ""])
def test_titles_are_text_and_not_mathematics(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = Synthesis(
        wave=np.zeros(1600, np.float32),
        sample_rate=16000,
        alignment=(TimedPhone("$a_b_c$", 0.0, 0.1),),
        text=text,
        mel=np.zeros((10, 80), np.float32),
        pitch=np.array([100.0]),
    )
    plot_synthesis(made, MEL, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_distributions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_distributions({"a": [1.0, 2.0, 2.5], "b": [0.0]}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="b: there is no value"):
        plot_distributions({"a": [1.0], "b": []}, tmp_path / "a.png")

"""Configurations of vocoders: they can be built on the mel they name, and have the sizes of their papers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.parametrize(
    ("name", "features", "millions"),
    [
        ("vocos_tiny", "mel16k", 1.65),
        ("vocos_base", "mel24k", 13.53),
        ("hifigan_v1", "mel22k", 13.94),
        ("hifigan_v2", "mel22k", 0.93),
        ("hifigan_v3", "mel22k", 1.46),
    ],
)
def test_vocoders_have_the_sizes_of_their_papers(name: str, features: str, millions: float) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", overrides=[f"model={name}", f"features={features}"])
    mel = instantiate(cfg.features)
    vocoder = instantiate(cfg.model, mel=mel, _convert_="all")
    assert vocoder.mel.fingerprint() == mel.fingerprint()
    assert sum(parameter.numel() for parameter in vocoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)

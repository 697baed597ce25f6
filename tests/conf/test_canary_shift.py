"""The configurations that move parameters from decoder to encoder have as many of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = ["model.encoder.dim=64", "model.encoder.ff_dim=256", "model.decoder_ff_dim=488"]


@pytest.mark.parametrize("overrides", [[], SMALL], ids=["256", "64"])
def test_layers_move_and_parameters_stay(overrides: list[str]) -> None:
    sizes = {}
    for name in ("canary_12_12", "canary_18_6", "canary_22_2"):
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            node = compose("train", overrides=[f"model={name}", "+model.vocab_size=1000", *overrides]).model
        with torch.device("meta"):
            model = instantiate(node)
        assert f"canary_{len(model.encoder.layers)}_{len(model.decoder.layers)}" == name
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    assert max(sizes.values()) < 1.003 * min(sizes.values()), sizes

"""Foreign weights of vocoders, renamed to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_VOCOS_NAMES = {
    r"backbone\.embed\.(weight|bias)": r"backbone.embed.\1",
    r"backbone\.norm\.(weight|bias)": r"backbone.embed_norm.\1",
    r"backbone\.convnext\.(\d+)\.dwconv\.(weight|bias)": r"backbone.blocks.\1.depthwise.\2",
    r"backbone\.convnext\.(\d+)\.norm\.(weight|bias)": r"backbone.blocks.\1.norm.\2",
    r"backbone\.convnext\.(\d+)\.pwconv1\.(weight|bias)": r"backbone.blocks.\1.up.\2",
    r"backbone\.convnext\.(\d+)\.pwconv2\.(weight|bias)": r"backbone.blocks.\1.down.\2",
    r"backbone\.convnext\.(\d+)\.gamma": r"backbone.blocks.\1.scale",
    r"backbone\.final_layer_norm\.(weight|bias)": r"backbone.norm.\1",
    r"head\.out\.(weight|bias)": r"head.out.\1",
}
_VOCOS_CONSTANTS = ("feature_extractor.mel_spec.", "head.istft.")  # windows and filters, which ours computes
_HIFIGAN_NAMES = {
    r"conv_pre": "conv_pre",
    r"conv_post": "conv_post",
    r"ups\.(\d+)": r"upsamplers.\1",
    r"resblocks\.(\d+)\.convs1\.(\d+)": r"blocks.\1.convs.",
    r"resblocks\.(\d+)\.convs2\.(\d+)": r"blocks.\1.convs.",
    r"resblocks\.(\d+)\.convs\.(\d+)": r"blocks.\1.convs.",
}
_PLACES = {"convs1": lambda n: 2 * n, "convs2": lambda n: 2 * n + 1, "convs": lambda n: n}  # of a block's convolutions


def vocos_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of the public `vocos` package to those of `VocosGenerator`.

    The generator that takes those of vocos-mel-24khz has the sizes of the paper, and its mel is
    `MelSpectrogram.preset(24000)`.

    Args:
        state_dict: of a `vocos.Vocos` for mels, or of the file pytorch_model.bin of one.

    Returns:
        Weights for `generator.load_state_dict`.

    Raises:
        ValueError: a name is not one of such a model, as those of the models for EnCodec tokens are not.
    """
    converted = {}
    for name, value in state_dict.items():
        if not name.startswith(_VOCOS_CONSTANTS):
            converted[_renamed(name, _VOCOS_NAMES, "vocos.Vocos for mels")] = value
    return converted


def hifigan_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of the public HiFi-GAN generator (jik876/hifi-gan) to those of `HifiGanGenerator`.

    Weights may be normalised (weight_g and weight_v, or torch's newer parametrizations) or plain, and plain ones are split into
    length and direction. V1 and V2 have blocks of `convs1` and `convs2` (num_convs=2), V3 of `convs` (num_convs=1).

    Args:
        state_dict: of the generator: the entry "generator" of a public checkpoint.

    Returns:
        Weights for `generator.load_state_dict`, before `Vocoder.fold_weight_norm`.

    Raises:
        ValueError: a name is not one of such a generator.
    """
    converted = {}
    for name, value in state_dict.items():
        module, _, leaf = (
            name.replace("parametrizations.weight.original0", "weight_g")
            .replace("parametrizations.weight.original1", "weight_v")
            .rpartition(".")
        )
        ours = _renamed(module, _HIFIGAN_NAMES, "a HiFi-GAN generator")
        if ours.endswith("."):
            kind, place = module.split(".")[-2:]
            ours += str(_PLACES[kind](int(place)))
        if leaf == "weight":
            length = torch.linalg.vector_norm(value.flatten(1), dim=1).view(-1, *[1] * (value.ndim - 1))
            converted[f"{ours}.parametrizations.weight.original0"] = length
        leaves = {"weight_g": "parametrizations.weight.original0", "bias": "bias"}
        converted[f"{ours}.{leaves.get(leaf, 'parametrizations.weight.original1')}"] = value
    return converted


def _renamed(name: str, patterns: Mapping[str, str], what: str) -> str:
    """Our name for one of theirs."""
    for pattern, ours in patterns.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    raise ValueError(f"{name!r} is not a weight of {what}; pass its state_dict()")

"""Foreign weights of Conformer encoders, renamed to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_TORCHAUDIO_NAMES = {
    "ffn1.sequential.0": "ff1.norm",
    "ffn1.sequential.1": "ff1.up",
    "ffn1.sequential.4": "ff1.down",
    "self_attn_layer_norm": "attention_norm",
    "self_attn.in_proj": "attention.qkv",
    "self_attn.out_proj": "attention.out",
    "conv_module.layer_norm": "conv.norm",
    "conv_module.sequential.0": "conv.gate",
    "conv_module.sequential.2": "conv.depthwise",
    "conv_module.sequential.3": "conv.conv_norm",
    "conv_module.sequential.5": "conv.out",
    "ffn2.sequential.0": "ff2.norm",
    "ffn2.sequential.1": "ff2.up",
    "ffn2.sequential.4": "ff2.down",
    "final_layer_norm": "norm",
}


def layers_from_torchaudio(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a `torchaudio.models.Conformer` to those of `ConformerEncoder.layers`.

    The encoder that takes them has position "none" and conv_norm "batch", since torchaudio's has no positions and
    normalises by batch statistics. torchaudio has no subsampling, so that ours stays as it is.

    Args:
        state_dict: weights of a `torchaudio.models.Conformer` without group norm and with the attention first.

    Returns:
        weights for `encoder.layers.load_state_dict`.

    Raises:
        ValueError: a name is not one of such a Conformer.
    """
    converted = {}
    for name, value in state_dict.items():
        layer, module, leaf = _split_name(name)
        if leaf == "num_batches_tracked":
            continue
        if module in ("conv_module.sequential.0", "conv_module.sequential.5") and leaf == "weight":
            value = value.squeeze(-1)  # convolutions over one frame are our linear layers
        converted[f"{layer}.{_TORCHAUDIO_NAMES[module]}.{leaf}"] = value
    return converted


def _split_name(name: str) -> tuple[str, str, str]:
    """Layer, module and parameter of one of torchaudio's names."""
    match = re.fullmatch(r"conformer_layers\.(\d+)\.(.+?)[._](weight|bias|running_mean|running_var|num_batches_tracked)", name)
    if match is None or match[2] not in _TORCHAUDIO_NAMES:
        raise ValueError(f"{name!r} is not a weight of torchaudio.models.Conformer; pass its state_dict()")
    return match[1], match[2], match[3]

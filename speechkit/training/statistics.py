"""What is measured of the training data once before training: normalisation, and codebooks of semantic tokens.

Shape legend: T frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.audio.cmvn import GlobalCmvn
from speechkit.models.codec.semantic import SemanticTokenizer
from speechkit.nn.mel_norm import MelNorm

MAX_UTTERANCES = 500  # an hour of speech: the statistics no longer change visibly


def fit_statistics(model: nn.Module, features: nn.Module, dataset: Any, device: torch.device) -> None:
    """Fits each `GlobalCmvn` of the features, and each `MelNorm` and `SemanticTokenizer` of the model, that has seen nothing yet.

    Args:
        model: what is trained.
        features: waveforms to features.
        dataset: training data, of examples or None for what cannot be read; utterances are taken evenly over all of it.
        device: where to compute.
    """

    def waves() -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(0, len(dataset), max(1, len(dataset) // MAX_UTTERANCES)):
            example = dataset[i]
            if example is not None:
                wave_1N = torch.from_numpy(example.wave_N).to(device).unsqueeze(0)
                yield wave_1N, torch.tensor([wave_1N.shape[1]], device=device)

    for part in (getattr(features, "cmvn", None), *model.modules()):
        if isinstance(part, GlobalCmvn | MelNorm) and int(part.count) == 0:
            part.fit(features(*each) for each in waves())
        elif isinstance(part, SemanticTokenizer) and int(part.num_fitted) == 0:
            part.fit(waves())

"""Cepstral mean and variance normalisation: per utterance, or with statistics of a corpus.

Source: Viikki and Laurila, "Cepstral domain segmental feature vector normalization for noise robust speech
recognition", Speech Communication 25 (1998).

Shape legend: B batch, T frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def valid_frames(feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
    """Mask of the frames that are not padding, bool, shape (B, T)."""
    return torch.arange(feats_BTF.shape[1], device=feats_BTF.device) < feat_lens_B[:, None]


class UtteranceCmvn(nn.Module):
    """Shifts each bin of each utterance to mean 0 and, by choice, scales it to variance 1.

    Statistics cover the valid frames alone and are summed in float64, so that padding and batch mates do not change
    them. An utterance of one frame, or a bin that never changes, becomes 0.
    """

    def __init__(self, *, normalize_variance: bool = True, epsilon: float = 1e-5) -> None:
        """Creates the normaliser.

        Args:
            normalize_variance: also divide by the standard deviation.
            epsilon: added to the standard deviation.
        """
        super().__init__()
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon}: must be above 0")
        self.normalize_variance = normalize_variance
        self.epsilon = epsilon

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
        """Normalises.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, shape (B,).

        Returns:
            Features of the same shape, 0 past each length.
        """
        wide = torch.float32 if feats_BTF.device.type == "mps" else torch.float64
        valid_BT1 = valid_frames(feats_BTF, feat_lens_B).unsqueeze(2)
        count_B1 = feat_lens_B.clamp(min=1)[:, None].to(wide)
        x_BTF = feats_BTF.masked_fill(~valid_BT1, 0.0)
        mean_BF = (x_BTF.sum(1, dtype=wide) / count_B1).to(x_BTF.dtype)
        x_BTF = (x_BTF - mean_BF[:, None]).masked_fill(~valid_BT1, 0.0)
        if not self.normalize_variance:
            return x_BTF
        var_BF = x_BTF.square().sum(1, dtype=wide) / count_B1
        return x_BTF / (var_BF.sqrt() + self.epsilon).to(x_BTF.dtype)[:, None]

    def settings(self) -> dict[str, Any]:
        """What the result depends on."""
        return {
            "type": "UtteranceCmvn",
            "normalize_variance": self.normalize_variance,
            "epsilon": self.epsilon,
        }


class GlobalCmvn(nn.Module):
    """Normalises every bin with a corpus's mean and standard deviation, which live in the state dict.

    Until `fit` is called or a state dict is loaded it changes nothing (mean 0, standard deviation 1, count 0).
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self, *, dim: int, normalize_variance: bool = True) -> None:
        """Creates the normaliser.

        Args:
            dim: number of bins F.
            normalize_variance: also divide by the standard deviation.
        """
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: must be at least 1")
        self.dim = dim
        self.normalize_variance = normalize_variance
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], *, min_std: float = 1e-3) -> GlobalCmvn:
        """Sets the statistics from features, accumulated in float64 (Chan's parallel update, so no cancellation).

        Args:
            batches: pairs (feats_BTF, feat_lens_B), as the feature modules return them.
            min_std: floor of the standard deviation, for bins that never change.

        Returns:
            The module itself.

        Raises:
            ValueError: there is no frame, or one that is not finite.
        """
        mean_F = torch.zeros(self.dim, dtype=torch.float64)
        square_F = torch.zeros(self.dim, dtype=torch.float64)
        count = 0
        for feats_BTF, feat_lens_B in batches:
            x_RF = feats_BTF[valid_frames(feats_BTF, feat_lens_B)].to("cpu", torch.float64)
            if len(x_RF) == 0:
                continue
            batch_mean_F = x_RF.mean(0)
            delta_F = batch_mean_F - mean_F
            total = count + len(x_RF)
            square_F += (x_RF - batch_mean_F).square().sum(0) + delta_F.square() * (count * len(x_RF) / total)
            mean_F += delta_F * (len(x_RF) / total)
            count = total
        if count == 0:
            raise ValueError("batches: held no frame; give at least one utterance")
        if not (mean_F.isfinite().all() and square_F.isfinite().all()):
            raise ValueError("batches: hold NaN or infinite features; remove the utterances they come from")
        self.mean.copy_(mean_F)
        self.std.copy_((square_F / count).sqrt().clamp(min=min_std))
        self.count.fill_(count)
        return self

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
        """Normalises.

        Args:
            feats_BTF: features, shape (B, T, F) with F = dim.
            feat_lens_B: valid frames of each row, shape (B,).

        Returns:
            Features of the same shape, 0 past each length.
        """
        x_BTF = feats_BTF - self.mean.to(feats_BTF.dtype)
        if self.normalize_variance:
            x_BTF = x_BTF / self.std.to(feats_BTF.dtype)
        return x_BTF.masked_fill(~valid_frames(feats_BTF, feat_lens_B).unsqueeze(2), 0.0)

    def settings(self) -> dict[str, Any]:
        """What the result depends on, besides the statistics, which travel in the state dict."""
        return {"type": "GlobalCmvn", "dim": self.dim, "normalize_variance": self.normalize_variance}


Cmvn = UtteranceCmvn | GlobalCmvn

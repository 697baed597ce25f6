"""Normalisation of log-mels by mean and deviation of a corpus, kept with the weights of a synthesiser.

Source: Mehta et al. 2024, "Matcha-TTS", section 4.1: one mean and one deviation over all bands.

Shape legend: B batch, T frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MelNorm(nn.Module):
    """Two numbers, measured once before training and saved with the weights; does nothing until then.

    Attributes:
        mean: of all log-mel values, fp32, scalar.
        std: their standard deviation, fp32, scalar.
        count: values that were measured, int64, scalar; 0 before.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit(self, mels: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measures a corpus, summed in fp64.

        Args:
            mels: batches of log-mels, shape (B, T, F), with the valid frames of each row, shape (B,).

        Raises:
            ValueError: there is no frame, or all values are equal, as of silent recordings.
        """
        total = squares = 0.0
        count = 0
        for mel_BTF, lens_B in mels:
            valid_BT = torch.arange(mel_BTF.shape[1], device=mel_BTF.device) < lens_B[:, None]
            values = mel_BTF[valid_BT].double()
            total, squares = total + float(values.sum()), squares + float(values.square().sum())
            count += values.numel()
        if not count:
            raise ValueError("mels hold no frame: give recordings that are not empty")
        mean = total / count
        variance = squares / count - mean * mean
        if variance <= 1e-8 * max(1.0, mean * mean):
            raise ValueError(f"all log-mel values are {mean:.3f}: the recordings are silent; run `speechkit validate` on them")
        self.mean.fill_(mean)
        self.std.fill_(variance**0.5)
        self.count.fill_(count)

    def normalize(self, mel_BTF: Tensor) -> Tensor:
        """Log-mels less the mean and divided by the deviation, any shape; padding does not stay 0."""
        return (mel_BTF - self.mean) / self.std

    def denormalize(self, x_BTF: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return x_BTF * self.std + self.mean

"""Batch normalisation over valid frames only.

Source: Ioffe and Szegedy 2015; the mask keeps padding, and so the way a batch was cut, out of the statistics.

Shape legend: B batch, T frames, D model.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class MaskedBatchNorm(nn.Module):
    """Batch norm over the last axis whose statistics come from valid frames alone.

    Under an initialised process group the statistics are those of all ranks together. Padded frames of the result are
    finite but mean nothing. A batch without a single valid frame leaves the running statistics as they are.

    Args:
        dim: D.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, *, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Normalises.

        Args:
            x_BTD: shape (B, T, D).
            valid_BT: valid frames, bool; None when all are.

        Returns:
            shape and dtype of the input.
        """
        if self.training:
            mean_D, var_D = self._batch_statistics(x_BTD.float(), valid_BT)
        else:
            mean_D, var_D = self.running_mean.float(), self.running_var.float()
        scale_D = self.weight.float() * torch.rsqrt(var_D + self.eps)
        shift_D = self.bias.float() - mean_D * scale_D
        return torch.addcmul(shift_D, x_BTD.float(), scale_D).to(x_BTD.dtype)

    def _batch_statistics(self, x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over valid frames; moves the running statistics."""
        x_ND = x_BTD.flatten(0, 1)
        valid_N1 = torch.ones_like(x_ND[:, :1]) if valid_BT is None else valid_BT.reshape(-1, 1).to(x_ND.dtype)
        sums = _sum_over_ranks(torch.cat(((x_ND * valid_N1).sum(0), valid_N1.sum(0))))
        total = sums[-1].clamp(min=1)
        mean_D = sums[:-1] / total
        var_D = _sum_over_ranks(((x_ND - mean_D) * valid_N1).square().sum(0)) / total
        with torch.no_grad():
            rate = torch.where(sums[-1] > 0, self.momentum, 0.0)
            unbiased_D = var_D * (total / (total - 1).clamp(min=1))
            self.running_mean.lerp_(mean_D.to(self.running_mean.dtype), rate.to(self.running_mean.dtype))
            self.running_var.lerp_(unbiased_D.to(self.running_var.dtype), rate.to(self.running_var.dtype))
        return mean_D, var_D


def _sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, with gradients; the input itself outside distributed training."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return all_reduce(x)
    return x

"""Layer norm that a condition scales and shifts, and gates that begin closed.

Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2 (adaLN-Zero).

Shape legend: B batch, T frames, D model, C condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaptiveNorm(nn.Module):
    """Layer norm frame by frame, without weights of its own; scale and shift are linear in the condition and begin as 0.

    With a gate from `zero_linear` behind it, a branch x + gate(condition) * f(norm(x, condition)) begins as the identity.

    Args:
        dim: D.
        condition_dim: C.
        eps: added to the variance.
    """

    def __init__(self, *, dim: int, condition_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.modulation = zero_linear(condition_dim, 2 * dim)

    def forward(self, x_BTD: Tensor, condition_BC: Tensor) -> Tensor:
        """Normalises (B, T, D) under the conditions of the rows (B, C); shape and dtype of the frames."""
        scale_B1D, shift_B1D = self.modulation(condition_BC)[:, None].to(x_BTD.dtype).chunk(2, dim=2)
        return torch.addcmul(shift_B1D, F.layer_norm(x_BTD, (self.dim,), eps=self.eps).to(x_BTD.dtype), 1 + scale_B1D)


def zero_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer that begins by giving 0."""
    layer = nn.Linear(in_dim, out_dim)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

"""Times of a generative process as vectors that condition a network.

Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B: sinusoids of the step, then two
layers.

Shape legend: B batch, D model, S sinusoids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.positional import sinusoids

SCALE = 1000.0  # times in [0, 1] as if they were steps of a thousand


class TimeEmbedding(nn.Module):
    """Sinusoids, linear, SiLU, linear.

    Args:
        dim: D.
        num_sinusoids: S, even.
    """

    def __init__(self, *, dim: int, num_sinusoids: int = 256) -> None:
        super().__init__()
        self.num_sinusoids = num_sinusoids
        self.up, self.out = nn.Linear(num_sinusoids, dim), nn.Linear(dim, dim)

    def forward(self, t_B: Tensor) -> Tensor:
        """Embeds times in [0, 1], shape (B,); the sinusoids are computed in fp32. Returns shape (B, D)."""
        with torch.autocast(t_B.device.type, enabled=False):
            waves_BS = sinusoids(SCALE * t_B.float(), self.num_sinusoids)
        return self.out(F.silu(self.up(waves_BS.to(self.up.weight.dtype))))

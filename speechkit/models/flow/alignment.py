"""Which frame belongs to which phone, found from what the encoder expects of each phone.

Source: Kim et al. 2020, "Glow-TTS", section 3.2; Mehta et al. 2024, "Matcha-TTS", section 3.

Shape legend: B batch, T frames, P phones, F channels of the features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


@torch.no_grad()
def gaussian_log_likelihood(x_BTF: Tensor, mean_BPF: Tensor) -> Tensor:
    """log N(x; mean, I) of each frame under each phone, by matrix products, in fp32 at least and also under autocast.

    Args:
        x_BTF: frames, shape (B, T, F).
        mean_BPF: what is expected of each phone, shape (B, P, F).

    Returns:
        without a gradient, shape (B, T, P).
    """
    with torch.autocast(x_BTF.device.type, enabled=False):
        x_BTF, mean_BPF = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (x_BTF, mean_BPF))
        squares_BTP = x_BTF.square().sum(2)[..., None] + mean_BPF.square().sum(2)[:, None]
        products_BTP = torch.baddbmm(squares_BTP, x_BTF, mean_BPF.transpose(1, 2), beta=-0.5)
        return products_BTP - 0.5 * x_BTF.shape[2] * LOG_2PI


def prior_loss(x_BTF: Tensor, mean_BTF: Tensor, counted_BT: Tensor) -> Tensor:
    """-log N(x; mean, I) by channel, mean over the counted frames, fp32, scalar; 0 without any."""
    squares_BTF = (x_BTF.float() - mean_BTF.float()).masked_fill(~counted_BT[..., None], 0.0).square()
    nll_BT = 0.5 * (squares_BTF.mean(2) + LOG_2PI).masked_fill(~counted_BT, 0.0)
    return nll_BT.sum() / counted_BT.sum().clamp(min=1)

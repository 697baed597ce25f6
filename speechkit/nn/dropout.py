"""Dropout whose random numbers cost little on a CPU.

torch draws one 32-bit number per element, in one thread: a sixth of the training step of a small Conformer. A byte is
enough to decide whether to keep an element, and one 64-bit draw gives eight of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 256  # values of a byte: rates are rounded to multiples of 1 / 256 on a CPU
INT64_MIN = -(2**63)


class Dropout(nn.Module):
    """Sets elements to zero in training and scales the others so that the expectation stays.

    Random numbers come from torch's default generator, so that seeding and restoring it repeats a run.

    Args:
        rate: share of elements set to zero; on a CPU the nearest multiple of 1 / 256.

    Raises:
        ValueError: `rate` is not in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout rate {rate} must be at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps any shape to the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        threshold = min(round(self.rate * LEVELS), LEVELS - 1)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(INT64_MIN, None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
        return x * keep.to(x.dtype).mul_(LEVELS / (LEVELS - threshold))

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"

"""The feed-forward layer that encoders and decoders share.

Shape legend: B batch, T positions (frames or tokens), D model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.dropout import Dropout

Activation = Literal["silu", "relu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}


class FeedForward(nn.Module):
    """Layer norm, linear, activation, linear, with dropout after each linear.

    Args:
        dim: D.
        ff_dim: width of the hidden layer.
        dropout: rate in training.
        activation: "silu" (Conformer), "relu" or "gelu".

    Raises:
        ValueError: `activation` is unknown.
    """

    def __init__(self, *, dim: int, ff_dim: int, dropout: float, activation: Activation = "silu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; choose {', '.join(ACTIVATIONS)}")
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, ff_dim)
        self.down = nn.Linear(ff_dim, dim)
        self.dropout = Dropout(dropout)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D); the residual is the caller's."""
        return self.dropout(self.down(self.dropout(self.activation(self.up(self.norm(x_BTD))))))

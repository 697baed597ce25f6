"""Glancing: which target tokens a non-autoregressive decoder is shown in training.

Source: Qian et al. 2021, "Glancing Transformer for Non-Autoregressive Neural Machine Translation", section 3.2; Gao et al. 2022,
"Paraformer", section 3.3. The more of the first pass is wrong, the more is shown: as the model learns, the hints vanish.

Shape legend: B batch, U tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def glance(
    predictions_BU: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, *, ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draws floor((U - hits) * ratio) positions of each row, where hits counts the tokens predicted right.

    Args:
        predictions_BU: token ids of the first pass, int64, shape (B, U).
        tokens_BU: targets, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        ratio: share of the wrong tokens, in [0, 1].
        generator: random numbers; None for torch's default generator.

    Returns:
        bool, shape (B, U), True on the positions to be shown, all of them valid; any valid position may be drawn, not the wrong
        ones alone.
    """
    valid_BU = torch.arange(tokens_BU.shape[1], device=tokens_BU.device) < token_lens_B[:, None]
    hits_B = ((predictions_BU == tokens_BU) & valid_BU).sum(1)
    counts_B = ((token_lens_B - hits_B).double() * ratio + 1e-9).floor().long()  # 100 * 0.29 is 28.999...
    return random_positions(valid_BU, counts_B, generator=generator)


def random_positions(valid_BU: Tensor, counts_B: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draws so many of the valid positions of each row without replacement, all alike; all rows at once.

    Args:
        valid_BU: positions to choose from, bool, shape (B, U).
        counts_B: how many, not more than there are, int64, shape (B,).
        generator: random numbers; None for torch's default generator.

    Returns:
        bool, shape (B, U).
    """
    keys_BU = torch.rand(valid_BU.shape, generator=generator, device=valid_BU.device).masked_fill(~valid_BU, 2.0)
    ranks_BU = keys_BU.argsort(dim=1).argsort(dim=1)
    return ranks_BU < counts_B[:, None]

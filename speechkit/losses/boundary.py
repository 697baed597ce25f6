"""Boundary loss: weights of frames that add up to one from each CTC spike to the next.

Source: Yu et al. 2021, "Boundary and Context Aware Training for CIF-based Non-Autoregressive End-to-end ASR", section 3.2:
spikes of CTC guide where integrate-and-fire ends its tokens. The form of the loss is ours.

Shape legend: B batch, T frames, U tokens, Q = U + 1 stretches (tokens, and what follows the last one).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def boundary_loss(alphas_BT: Tensor, spikes_BU: Tensor, token_lens_B: Tensor) -> Tensor:
    """Absolute errors of the weight of each token, which is that of the frames after the spike before it up to its own.

    Frames after the last spike should have no weight. Summed over all stretches of a row.

    Args:
        alphas_BT: weight of each frame, zero in padding, shape (B, T).
        spikes_BU: frame of each token's spike, ascending in each row; what lies past a length is not read, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,); 0 for a row without an alignment, which then costs nothing.

    Returns:
        fp32, shape (B,).
    """
    sums_BT = alphas_BT.float().cumsum(1)
    places_U = torch.arange(spikes_BU.shape[1], device=spikes_BU.device)
    is_token_BU = places_U < token_lens_B[:, None]
    at_spikes_BU = sums_BT.gather(1, spikes_BU.masked_fill(~is_token_BU, 0))
    ends_BQ = torch.cat((torch.where(is_token_BU, at_spikes_BU, sums_BT[:, -1:]), sums_BT[:, -1:]), dim=1)
    weights_BQ = ends_BQ - F.pad(ends_BQ[:, :-1], (1, 0))
    errors_BQ = (weights_BQ - F.pad(is_token_BU, (0, 1)).to(weights_BQ.dtype)).abs()
    return errors_BQ.sum(1).masked_fill(token_lens_B == 0, 0.0)

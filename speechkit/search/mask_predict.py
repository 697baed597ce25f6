"""Iterative decoding of masked token models: predict all hidden tokens, keep those that are surest, ask again.

Step i of N has time t = 1 - i / N. Hidden tokens are sampled from their best few, with a temperature that falls with t; in the
last step the best is taken. Of L tokens floor(sin(pi t' / 2) L) stay hidden for the time t' of the next step: those with the
least confidence, the probability of the sampled token plus noise that falls with t. What has been accepted never changes.

Sources: Chang et al. 2022, "MaskGIT", section 3.2; Wang et al. 2024, "MaskGCT", section 3.1 and appendix; spans, Ziv et al. 2024,
"MAGNeT", section 3.1; acceptance ahead of the schedule by a learned filter, Bao et al. 2025, "Learning to Parallel" (Learn2PD).

Every row has its own number of tokens to fill in, its own count of those that stay hidden, and its own noise; guidance is
rescaled by deviations of the row alone. In the public code of MaskGCT the first row's count and the deviation of the whole batch
serve all. So a row depends on its mates only if the predictor does.

Shape legend: B batch, T frames, V vocab, K best tokens, U spans of neighbours that are accepted together, D model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-3


class Prediction(NamedTuple):
    """What a network says about hidden tokens.

    Attributes:
        logits_BTV: scores before the softmax, shape (B, T, V); read where a token is hidden.
        final_BT: probability that the best token is the final one, shape (B, T); None for networks without such a filter.
    """

    logits_BTV: Tensor
    final_BT: Tensor | None = None


class MaskPredicted(NamedTuple):
    """What was decoded.

    Attributes:
        tokens_BT: int64, shape (B, T): as given where nothing was hidden.
        num_steps: calls of the predictor; fewer than planned where rows are short or a filter accepts.
    """

    tokens_BT: Tensor
    num_steps: int


# From tokens (B, T), which of them are hidden (B, T) and the time of each row (B,); ids of hidden tokens mean nothing.
Predictor = Callable[[Tensor, Tensor, Tensor], Prediction]
# Standard Gumbel noise of a step, from its number and a number of channels C: shape (B, T, C).
Noise = Callable[[int, int], Tensor]


def hidden_share(t: float) -> float:
    """Share of the tokens that are hidden at time t in [0, 1]."""
    return math.sin(math.pi / 2 * t)


def num_candidates(vocab_size: int, top_share: float) -> int:
    """K, the best tokens that are sampled from: a share of the vocabulary, at least one token."""
    return min(vocab_size, max(1, math.ceil(top_share * vocab_size)))


def guide(with_BTD: Tensor, without_BTD: Tensor, valid_BT: Tensor, *, weight: float, rescale: float) -> Tensor:
    """Moves what a network says away from what it says without the condition: c + w (c - u), then with the deviation of c.

    Sources: Ho and Salimans 2022, section 3.2; rescaling, Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are
    Flawed", section 3.4, with deviations of each row over its valid frames and channels.

    Args:
        with_BTD: c, hidden states or scores, shape (B, T, D).
        without_BTD: u, same shape.
        valid_BT: valid frames, bool, shape (B, T).
        weight: w; 0 gives c.
        rescale: share of the rescaled in the result, in [0, 1]; the rest is as it was.

    Returns:
        fp32, shape (B, T, D).

    Raises:
        ValueError: `rescale` is out of range.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale={rescale} must be in [0, 1]")
    with_BTD = with_BTD.float()
    guided_BTD = with_BTD + weight * (with_BTD - without_BTD.float())
    ratio_B = _deviation(with_BTD, valid_BT) / _deviation(guided_BTD, valid_BT).clamp(min=1e-12)
    return guided_BTD * (rescale * ratio_B + (1 - rescale))[:, None, None]


def mask_predict(
    predict: Predictor,
    tokens_BT: Tensor,
    masked_BT: Tensor,
    *,
    num_steps: int,
    noise: Noise,
    temperature: float = 1.0,
    choice_noise: float = 1.0,
    top_share: float = 0.02,
    span: int = 1,
    finish_threshold: float | None = None,
) -> MaskPredicted:
    """Fills in hidden tokens.

    Args:
        predict: the network.
        tokens_BT: known tokens, anything where hidden, int64, shape (B, T).
        masked_BT: tokens to fill in, bool, shape (B, T): neither a prompt nor padding.
        num_steps: N, at least 1; none is hidden after them.
        noise: standard Gumbel noise; see `Noise`. To be independent of batch mates it must be drawn row by row.
        temperature: of sampling in the first step; 0 takes the best token.
        choice_noise: factor of the noise on confidences in the first step; 0 for none.
        top_share: share of the vocabulary that is sampled from, in (0, 1].
        span: neighbours, counted from the first hidden token of a row, that are accepted together; their confidence is that of
            the surest.
        finish_threshold: best tokens (whole spans of them) that are final with at least this probability are accepted at once;
            None for none.

    Returns:
        `MaskPredicted`.

    Raises:
        ValueError: a value is out of range, or the predictor has no filter to set a threshold on.
    """
    _check(num_steps, temperature, choice_noise, top_share, span)
    units_BT, num_units = _units(masked_BT, span)
    sizes_B = (masked_BT.sum(1) + span - 1) // span
    for step in range(num_steps):
        if not bool(masked_BT.any()):
            return MaskPredicted(tokens_BT, step)
        t = 1 - step / num_steps
        logits_BTV, probs_BT = predict(tokens_BT, masked_BT, torch.full(sizes_B.shape, t, device=sizes_B.device))
        best = logits_BTV.float().topk(num_candidates(logits_BTV.shape[2], top_share), dim=2)
        noise_BTC = noise(step, best.values.shape[2] + 1)
        chosen_BT = torch.zeros_like(tokens_BT)
        if step < num_steps - 1 and temperature > 0:
            chosen_BT = (best.values / max(temperature * t, MIN_TEMPERATURE) + noise_BTC[..., 1:]).argmax(2)
        open_BT = masked_BT
        if finish_threshold is not None:
            open_BT = masked_BT & _doubted(probs_BT, finish_threshold, units_BT, masked_BT, num_units)
            chosen_BT = chosen_BT.masked_fill(~open_BT, 0)
        tokens_BT = torch.where(masked_BT, best.indices.gather(2, chosen_BT[..., None])[..., 0], tokens_BT)
        sure_BT = best.values.softmax(2).gather(2, chosen_BT[..., None])[..., 0]
        sure_BU = _greatest(sure_BT, units_BT, open_BT, num_units) + choice_noise * t * noise_BTC[:, :num_units, 0]
        stay_B = (hidden_share(1 - (step + 1) / num_steps) * sizes_B.double()).floor().long()
        masked_BT = open_BT & _least(sure_BU, _greatest(open_BT, units_BT, open_BT, num_units) > 0, stay_B).gather(1, units_BT)
    assert not bool(masked_BT.any())
    return MaskPredicted(tokens_BT, num_steps)


def _units(masked_BT: Tensor, span: int) -> tuple[Tensor, int]:
    """Number of each hidden token's span within its row, 0 for others, shape (B, T), and the most that a row can have."""
    places_BT = masked_BT.long().cumsum(1) - 1
    return places_BT.clamp(min=0) // span, -(-masked_BT.shape[1] // span)


def _greatest(values_BT: Tensor, units_BT: Tensor, where_BT: Tensor, num_units: int) -> Tensor:
    """Greatest value of each span's marked tokens, fp32, shape (B, U); -inf for spans without any."""
    values_BT = values_BT.float().masked_fill(~where_BT, -math.inf)
    return values_BT.new_full((len(values_BT), num_units), -math.inf).scatter_reduce(1, units_BT, values_BT, "amax")


def _doubted(
    probs_BT: Tensor | None, threshold: float, units_BT: Tensor, masked_BT: Tensor, num_units: int
) -> Tensor:
    """Tokens of spans in which not all hidden ones are final by the filter, bool, shape (B, T)."""
    if probs_BT is None:
        raise ValueError(f"finish_threshold={threshold} needs a network with a filter: train one with finish_weight above 0")
    return (_greatest(probs_BT < threshold, units_BT, masked_BT, num_units) > 0).gather(1, units_BT)


def _least(sure_BU: Tensor, open_BU: Tensor, stay_B: Tensor) -> Tensor:
    """Marks as many of the open spans of each row as are to stay hidden, the least sure first, bool, shape (B, U)."""
    order_BU = sure_BU.masked_fill(~open_BU, math.inf).argsort(dim=1, stable=True)
    ranks_BU = order_BU.argsort(dim=1)
    return (ranks_BU < stay_B[:, None]) & open_BU


def _deviation(x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    """Standard deviation of each row over its valid frames and channels, fp32, shape (B,); 0 for rows without a frame."""
    x_BTD = x_BTD.double().masked_fill(~valid_BT[..., None], 0.0)
    count_B = valid_BT.sum(1).clamp(min=1) * x_BTD.shape[2]
    mean_B = x_BTD.sum((1, 2)) / count_B
    centred_BTD = (x_BTD - mean_B[:, None, None]).masked_fill(~valid_BT[..., None], 0.0)
    return (centred_BTD.square().sum((1, 2)) / count_B).sqrt().float()


def _check(num_steps: int, temperature: float, choice_noise: float, top_share: float, span: int) -> None:
    for name, value, least in (("num_steps", num_steps, 1), ("span", span, 1), ("temperature", temperature, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if choice_noise < 0:
        raise ValueError(f"choice_noise={choice_noise} must be at least 0")
    if not 0 < top_share <= 1:
        raise ValueError(f"top_share={top_share} must be above 0 and at most 1; MaskGCT samples from the best 0.02")

"""Training by hiding tokens: which are hidden, and the loss on those alone, apart from any network.

A row has a time t in [0, 1]; each of its tokens is hidden with probability sin(pi t / 2): the law of MaskGCT (Wang et al. 2024,
"MaskGCT", section 3.1), and that of the cosine schedule of MaskGIT (Chang et al. 2022, section 3.3) with time reversed. What
stands at its beginning may be left as a prompt; some rows lose all that they are conditioned on, for guidance without a
classifier. In the public code of MaskGCT one draw decides on both, so that no row is ever without a prompt and conditioned on
its text; here there are two.

With spans (Ziv et al. 2024, "MAGNeT", section 3.1) neighbours are hidden together. There, overlapping spans are drawn and a
table tells how many make a rate; here they are cells of a grid whose phase is drawn, which has the rate itself and is what
decoding uses.

All choices are functions of uniform numbers, a column of them for each choice: torch's own in training, those of the utterance
in evaluation, which depend on neither batch mates nor padding.

Shape legend: B batch, T frames, V vocab, R = NUM_ROW_DRAWS + T uniform numbers of a row, N bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.losses.flow_matching import utterance_noise
from speechkit.losses.label_smoothing import smoothed_cross_entropy

NUM_ROW_DRAWS = 6
_TIME, _PROMPT, _PROMPT_LENGTH, _DROP, _PHASE, _CODEBOOK = range(NUM_ROW_DRAWS)
MIN_PROMPT = 5  # frames
BANDS = {"low": (0.0, 1 / 3), "mid": (1 / 3, 2 / 3), "high": (2 / 3, math.inf)}  # of the rate at which a row's tokens are hidden


class MaskDraw(NamedTuple):
    """What is hidden from the network.

    Attributes:
        t_B: time of each row, fp32, shape (B,).
        rate_B: probability with which its tokens were hidden, fp32, shape (B,).
        masked_BT: hidden tokens, bool, shape (B, T): at least one of every row that has any.
        prompt_lens_B: tokens at the beginning that are never hidden, int64, shape (B,).
        dropped_B: rows that are not conditioned on anything, bool, shape (B,); these have no prompt.
    """

    t_B: Tensor
    rate_B: Tensor
    masked_BT: Tensor
    prompt_lens_B: Tensor
    dropped_B: Tensor

    @property
    def prompted_B(self) -> Tensor:
        """Rows that have a prompt, bool, shape (B,)."""
        return self.prompt_lens_B > 0


class MaskedLoss(NamedTuple):
    """Loss on hidden tokens.

    Attributes:
        loss: mean over the hidden tokens, nats, scalar; 0 without any.
        num_masked: hidden tokens, scalar.
        accuracy: share of them that got the highest score, by band: "all", and those of `BANDS` that occur; detached scalars.
    """

    loss: Tensor
    num_masked: Tensor
    accuracy: dict[str, Tensor]


def training_uniforms(lens_B: Tensor, num_frames: int) -> Tensor:
    """Uniform numbers from torch's default generator of the CPU, on the device of the lengths, shape (B, R)."""
    return torch.rand(len(lens_B), NUM_ROW_DRAWS + num_frames).to(lens_B.device)


def utterance_uniforms(utterance_ids: Sequence[str], lens_B: Tensor, num_frames: int, *, seed: int = 0) -> Tensor:
    """Uniform numbers of each utterance, the same in any batch, on the device of the lengths, shape (B, R).

    Args:
        utterance_ids: B ids; equal ids get equal numbers.
        lens_B: tokens of each row, int64, shape (B,).
        num_frames: T.
        seed: another one, other numbers.

    Raises:
        ValueError: ids and lengths do not match, or a row is longer than `num_frames`.
    """
    size = NUM_ROW_DRAWS + num_frames
    noise_BR1 = utterance_noise(utterance_ids, lens_B + NUM_ROW_DRAWS, num_channels=1, num_frames=size, seed=seed)
    return torch.special.ndtr(noise_BR1[..., 0])


def draw_masks(
    uniforms_BR: Tensor,
    lens_B: Tensor,
    *,
    min_rate: float = 0.0,
    prompt_prob: float = 0.85,
    max_prompt: float = 0.5,
    drop_prob: float = 0.15,
    span: int = 1,
) -> MaskDraw:
    """Decides what is hidden.

    Args:
        uniforms_BR: of `training_uniforms` or `utterance_uniforms`, shape (B, R).
        lens_B: tokens of each row, int64, shape (B,).
        min_rate: least probability with which a token is hidden.
        prompt_prob: probability that a conditioned row keeps a prompt.
        max_prompt: its greatest share of the row, below 1; it has from 5 tokens, or as many as there can be, to that share.
        drop_prob: probability that a row is not conditioned on anything.
        span: neighbours that are hidden together.

    Raises:
        ValueError: a value is out of range.
    """
    check_masking(prompt_prob=prompt_prob, drop_prob=drop_prob, span=span)
    if not (0 <= min_rate <= 1 and 0 <= max_prompt < 1):
        raise ValueError(f"min_rate={min_rate} must be in [0, 1] and max_prompt={max_prompt} in [0, 1)")
    t_B = uniforms_BR[:, _TIME]
    rate_B = torch.sin(math.pi / 2 * t_B).clamp(min=min_rate)
    dropped_B = uniforms_BR[:, _DROP] < drop_prob
    most_B = (max_prompt * lens_B).floor().long()
    least_B = most_B.clamp(max=MIN_PROMPT)
    length_B = least_B + (uniforms_BR[:, _PROMPT_LENGTH] * (most_B - least_B + 1)).floor().long()
    prompted_B = (uniforms_BR[:, _PROMPT] < prompt_prob) & ~dropped_B
    prompt_lens_B = torch.where(prompted_B, torch.minimum(length_B, most_B), 0)
    tokens_BT = uniforms_BR[:, NUM_ROW_DRAWS:]
    frames_T = torch.arange(tokens_BT.shape[1], device=lens_B.device)
    if span > 1:
        phase_B = (uniforms_BR[:, _PHASE] * span).floor().long().clamp(max=span - 1)
        tokens_BT = tokens_BT.gather(1, _span_starts(frames_T, prompt_lens_B, phase_B, span))
    open_BT = (frames_T >= prompt_lens_B[:, None]) & (frames_T < lens_B[:, None])
    masked_BT = (tokens_BT < rate_B[:, None]) & open_BT
    if tokens_BT.shape[1]:
        least_B1 = tokens_BT.masked_fill(~open_BT, math.inf).amin(1, keepdim=True)
        masked_BT |= (tokens_BT == least_B1) & open_BT
    return MaskDraw(t_B, rate_B, masked_BT, prompt_lens_B, dropped_B)


def draw_codebooks(uniforms_BR: Tensor, num_codebooks: int, *, first: int = 0) -> Tensor:
    """Draws which codebook each row learns, the earlier the more often (MaskGCT, section 3.2.3): with weights Q - q.

    Args:
        uniforms_BR: as for `draw_masks`.
        num_codebooks: Q.
        first: codebooks before this one are not drawn.

    Returns:
        int64, shape (B,).
    """
    ends = torch.arange(num_codebooks - first, 0, -1, device=uniforms_BR.device, dtype=uniforms_BR.dtype).cumsum(0)
    drawn_B = torch.searchsorted(ends, uniforms_BR[:, _CODEBOOK].contiguous() * ends[-1], right=True)
    return drawn_B.clamp(max=num_codebooks - first - 1) + first


def masked_token_loss(
    logits_BTV: Tensor, targets_BT: Tensor, masked_BT: Tensor, rate_B: Tensor, *, smoothing: float = 0.0
) -> MaskedLoss:
    """Cross-entropy of the hidden tokens, in fp32; the others get no gradient.

    Args:
        logits_BTV: scores before the softmax, any float type, shape (B, T, V).
        targets_BT: token ids, anything where not hidden, int64, shape (B, T).
        masked_BT: hidden tokens, bool, shape (B, T).
        rate_B: at which rate they were hidden, shape (B,), for the bands of the accuracy.
        smoothing: of the targets, in [0, 1).

    Raises:
        ValueError: `smoothing` is out of range.
    """
    out = smoothed_cross_entropy(logits_BTV, targets_BT, masked_BT, smoothing=smoothing)
    correct_B = ((logits_BTV.detach().argmax(2) == targets_BT) & masked_BT).sum(1)
    rows_NB = torch.stack([(rate_B >= low) & (rate_B < high) for low, high in BANDS.values()])
    totals_N = (masked_BT.sum(1) * rows_NB).sum(1)
    shares_N = (correct_B * rows_NB).sum(1) / totals_N.clamp(min=1)
    found = {name: share for name, share, total in zip(BANDS, shares_N, totals_N.tolist()) if total}
    return MaskedLoss(out.loss, out.num_targets, {"all": out.accuracy, **found})


def finish_loss(final_BT: Tensor, logits_BTV: Tensor, targets_BT: Tensor, masked_BT: Tensor) -> Tensor:
    """Trains a filter that tells which best tokens are right already (Bao et al. 2025, Learn2PD).

    There the right token is the one that decoding in all its steps ends with; here it is the one that was spoken.

    Args:
        final_BT: what the filter says, before the sigmoid, shape (B, T).
        logits_BTV: scores of the tokens, shape (B, T, V); no gradient.
        targets_BT: token ids, int64, shape (B, T).
        masked_BT: hidden tokens, bool, shape (B, T).

    Returns:
        binary cross-entropy, mean over the hidden tokens, fp32, scalar; 0 without any.
    """
    right_BT = (logits_BTV.detach().argmax(2) == targets_BT).float()
    with torch.autocast(final_BT.device.type, enabled=False):
        losses_BT = F.binary_cross_entropy_with_logits(final_BT.float().masked_fill(~masked_BT, 0.0), right_BT, reduction="none")
    return losses_BT.masked_fill(~masked_BT, 0.0).sum() / masked_BT.sum().clamp(min=1)


def check_masking(*, prompt_prob: float, drop_prob: float, span: int) -> None:
    """Raises ValueError unless the settings of `draw_masks` that models take as theirs are in range."""
    for name, value in (("prompt_prob", prompt_prob), ("drop_prob", drop_prob)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be in [0, 1]")
    if span < 1:
        raise ValueError(f"span={span} must be at least 1 token; MAGNeT hides 3 together")


def _span_starts(frames_T: Tensor, prompt_lens_B: Tensor, phase_B: Tensor, span: int) -> Tensor:
    """First frame of each frame's cell of a grid that lies `phase_B` before the end of the prompt, shape (B, T)."""
    first_B1 = (prompt_lens_B - phase_B)[:, None]
    starts_BT = (frames_T - first_B1).div(span, rounding_mode="floor") * span + first_B1
    return torch.maximum(starts_BT, prompt_lens_B[:, None]).clamp(max=max(len(frames_T) - 1, 0))

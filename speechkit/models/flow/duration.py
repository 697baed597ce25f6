"""How long speech will be: of each phone, and of a text as a whole.

Sources: Ren et al. 2019, "FastSpeech", section 3.3 (durations of phones); Yang et al. 2024, "SimpleSpeech 2", section III-D (the
length of a sentence: predicted as a whole, or as the sum of its phones'); Chen et al. 2024, "F5-TTS", section 3.3 (by the rate of
the prompt); Zhu et al. 2025, "ZipVoice", section 2.2 (phones spread evenly over the frames).

Shape legend: B batch, P phones, T frames, D model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechkit.nn.dropout import Dropout
from speechkit.nn.frame_conv import FrameConv
from speechkit.nn.length_regulator import MAX_DURATION
from speechkit.nn.masks import padding_mask, valid_mask


class PhoneDurations(nn.Module):
    """log(d + 1) of each phone: two convolutions, each with ReLU, layer norm and dropout, and a linear layer.

    Args:
        in_dim: channels of the encoded phones.
        dim: D, inside.
        kernel_size: phones under each convolution, odd.
        dropout: rate in training.
    """

    def __init__(self, *, in_dim: int, dim: int, kernel_size: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(FrameConv(in_dim=d, out_dim=dim, kernel_size=kernel_size) for d in (in_dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(dim, 1)

    def forward(self, x_BPD: Tensor, phone_lens_B: Tensor) -> Tensor:
        """Encoded phones, P at least 1, to predictions as `length_regulator.durations_from_log` takes them, shape (B, P)."""
        valid_BP = padding_mask(phone_lens_B, x_BPD.shape[1])
        for conv, norm in zip(self.convs, self.norms):
            x_BPD = self.dropout(norm(conv(x_BPD, valid_BP).relu()))
        return self.out(x_BPD)[..., 0]


class TotalLength(nn.Module):
    """Frames of a text as a whole: the logarithm of frames per phone, from the mean of the encoded phones.

    Args:
        in_dim: channels of the encoded phones.
        dim: D, inside.
    """

    def __init__(self, *, in_dim: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, dim), nn.SiLU(), nn.Linear(dim, 1))

    def forward(self, x_BPD: Tensor, phone_lens_B: Tensor) -> Tensor:
        """Log of frames per phone, fp32, shape (B,); meaningless for rows without phones."""
        valid_BP1 = valid_mask(phone_lens_B, x_BPD.shape[1])[..., None]
        mean_BD = x_BPD.masked_fill(~valid_BP1, 0.0).sum(1) / phone_lens_B.clamp(min=1)[:, None].to(x_BPD.dtype)
        return self.layers(mean_BD)[:, 0].float()


def duration_loss(log_durations_BP: Tensor, durations_BP: Tensor, counted_BP: Tensor) -> Tensor:
    """Mean squared error of log(d + 1) over the counted phones, fp32, scalar; 0 without any."""
    errors_BP = log_durations_BP.float() - durations_BP.float().log1p()
    return errors_BP.masked_fill(~counted_BP, 0.0).square().sum() / counted_BP.sum().clamp(min=1)


def total_frames(log_rate_B: Tensor, phone_lens_B: Tensor, *, speed: float) -> Tensor:
    """Frames of whole texts from what `TotalLength` says; at least 1 where there are phones, 0 elsewhere, int64, shape (B,)."""
    rate_B = log_rate_B.double().exp().clamp(max=MAX_DURATION)
    return (rate_B * phone_lens_B / speed).round().long().clamp(min=1).masked_fill(phone_lens_B == 0, 0)


def frames_by_rate(prompt_frames_B: Tensor, prompt_phones_B: Tensor, phone_lens_B: Tensor, *, speed: float) -> Tensor:
    """Frames of texts spoken as fast as their prompts, phone for phone, int64, shape (B,); at least 1 where there are phones.

    Args:
        prompt_frames_B: frames of each prompt, int64, shape (B,).
        prompt_phones_B: phones of each prompt, int64, shape (B,); rows of 0 mean nothing.
        phone_lens_B: phones to speak, int64, shape (B,).
        speed: 2.0 for half as many frames.
    """
    rate_B = prompt_frames_B.double() / prompt_phones_B.clamp(min=1)
    return (rate_B * phone_lens_B / speed).round().long().clamp(min=1).masked_fill(phone_lens_B == 0, 0)


def spread(weights_BP: Tensor, phone_lens_B: Tensor, frames_B: Tensor) -> Tensor:
    """Shares out a given number of frames among phones: each phone ends at the frame nearest to its share, summed in fp64.

    Args:
        weights_BP: share of each phone, at least 0, anything past a row's phones, shape (B, P). Equal ones spread the phones
            evenly; so do those of a row in which they are all 0.
        phone_lens_B: phones of each row, int64, shape (B,).
        frames_B: frames of each row, int64, shape (B,).

    Returns:
        int64, shape (B, P); rows that have phones add up to their frames, and others are 0.
    """
    valid_BP = valid_mask(phone_lens_B, weights_BP.shape[1])
    weights_BP = weights_BP.double().masked_fill(~valid_BP, 0.0)
    even_B1 = weights_BP.sum(1, keepdim=True) <= 0
    weights_BP = torch.where(even_B1, valid_BP.double(), weights_BP)
    shares_BP = weights_BP.cumsum(1) / weights_BP.sum(1, keepdim=True).clamp(min=1e-30)
    ends_BP = (shares_BP * frames_B[:, None]).add(0.5).floor().long().masked_fill(~valid_BP, 0)
    starts_BP = torch.nn.functional.pad(ends_BP, (1, 0))[:, :-1]
    return (ends_BP - starts_BP).masked_fill(~valid_BP, 0)

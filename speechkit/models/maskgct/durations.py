"""How long speech will be, in semantic tokens, and where in the text each of them stands.

One small network says how long each phone lasts; a text lasts as long as its phones. It learns from durations where they are
known, and from the sum alone where they are not. MaskGCT takes the rate of the prompt, or a flow-matching model of durations.

Shape legend: B batch, P phones, T semantic tokens, D model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.models.maskgct.layers import Voice
from speechkit.nn.dropout import Dropout
from speechkit.nn.masks import valid_mask

MAX_LOG_DURATION = math.log1p(250)  # 10 s of one phone at 25 tokens a second: an untrained network's word has no end


class DurationPredictor(nn.Module):
    """Phones to log(d + 1), d in semantic tokens: embedding, two convolutions with ReLU and layer norm, a linear layer.

    Args:
        vocab_size: of the phones.
        num_speakers: above 1 for an embedding of them.
        num_languages: likewise.
        dim: D.
        kernel_size: phones under a convolution, odd.
        dropout: rate in training.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_speakers: int = 1,
        num_languages: int = 1,
        dim: int = 128,
        kernel_size: int = 5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.voice = Voice(num_speakers=num_speakers, num_languages=num_languages, dim=dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(dim, 1)
        nn.init.constant_(self.out.bias, math.log1p(2.0))  # two tokens a phone are a good beginning

    def forward(self, phones_BP: Tensor, phone_lens_B: Tensor, speakers_B: Tensor, languages_B: Tensor) -> Tensor:
        """Predicts.

        Args:
            phones_BP: phone ids, int64, shape (B, P).
            phone_lens_B: valid phones of each row, int64, shape (B,).
            speakers_B: number of the speaker of each row, int64, shape (B,).
            languages_B: number of the language of each row, int64, shape (B,).

        Returns:
            log(d + 1), at least 0, fp32, 0 past a row's phones, shape (B, P).
        """
        valid_BP = valid_mask(phone_lens_B, phones_BP.shape[1])
        x_BPD = self.voice(self.embedding(phones_BP), speakers_B, languages_B)
        if not phones_BP.shape[1]:
            return x_BPD.new_zeros(phones_BP.shape)
        for conv, norm in zip(self.convs, self.norms):
            x_BPD = x_BPD.masked_fill(~valid_BP[..., None], 0.0)
            x_BPD = x_BPD + self.dropout(norm(conv(x_BPD.transpose(1, 2)).transpose(1, 2).relu()))
        # softplus: nothing lasts less than no time, and the gradient never ends
        log_durations_BP = F.softplus(self.out(x_BPD)[..., 0].float()).clamp(max=MAX_LOG_DURATION)
        return log_durations_BP.masked_fill(~valid_BP, 0.0)


def duration_loss(
    log_durations_BP: Tensor, phone_lens_B: Tensor, lens_B: Tensor, durations_BP: Tensor | None
) -> Tensor:
    """Squared error of log(d + 1), averaged over phones; without durations that of the logarithms of the totals, over rows.

    Args:
        log_durations_BP: of `DurationPredictor`, shape (B, P).
        phone_lens_B: phones of each row, int64, shape (B,).
        lens_B: semantic tokens of each row, int64, shape (B,); rows of 0 do not count.
        durations_BP: semantic tokens of each phone, shape (B, P), or None.

    Returns:
        fp32, scalar; 0 where there is nothing to learn from.
    """
    counted_B = (phone_lens_B > 0) & (lens_B > 0)
    if durations_BP is not None:
        counted_BP = valid_mask(phone_lens_B, log_durations_BP.shape[1]) & counted_B[:, None]
        errors_BP = log_durations_BP - durations_BP.float().log1p()
        return errors_BP.masked_fill(~counted_BP, 0.0).square().sum() / counted_BP.sum().clamp(min=1)
    totals_B = log_durations_BP.expm1().sum(1).clamp(min=1e-3)
    errors_B = totals_B.log() - lens_B.clamp(min=1).log()
    return errors_B.masked_fill(~counted_B, 0.0).square().sum() / counted_B.sum().clamp(min=1)


def places_in_text(durations_BP: Tensor, phone_lens_B: Tensor, num_tokens: int) -> Tensor:
    """Where in the text the middle of each semantic token lies, in phones: 3.5 is half-way through the fourth.

    Args:
        durations_BP: of each phone, in semantic tokens, may be fractions, at least 0, shape (B, P).
        phone_lens_B: phones of each row, int64, shape (B,).
        num_tokens: T.

    Returns:
        fp32, never decreasing, at most the end of the last phone, shape (B, T); 0 for rows without phones.
    """
    if not durations_BP.shape[1]:
        return torch.zeros(len(durations_BP), num_tokens, device=durations_BP.device)
    valid_BP = valid_mask(phone_lens_B, durations_BP.shape[1])
    durations_BP = durations_BP.double().masked_fill(~valid_BP, 0.0)
    ends_BP = durations_BP.cumsum(1)
    middles_BT = (torch.arange(num_tokens, device=ends_BP.device) + 0.5).double().repeat(len(ends_BP), 1)
    phones_BT = torch.searchsorted(ends_BP, middles_BT, right=True).clamp(max=ends_BP.shape[1] - 1)
    length_BT = durations_BP.gather(1, phones_BT)
    into_BT = (middles_BT - (ends_BP.gather(1, phones_BT) - length_BT)) / length_BT.clamp(min=1e-6)
    return torch.minimum(phones_BT + into_BT.clamp(0.0, 1.0), phone_lens_B[:, None].double()).float()


def even_places(lens_B: Tensor, phone_lens_B: Tensor, num_tokens: int) -> Tensor:
    """As `places_in_text` where all phones of a row last as long as one another, and together as long as the row."""
    shares_BT = (torch.arange(num_tokens, device=lens_B.device) + 0.5) / lens_B.clamp(min=1)[:, None]
    return shares_BT.clamp(max=1.0) * phone_lens_B[:, None]

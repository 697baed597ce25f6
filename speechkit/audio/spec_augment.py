"""SpecAugment: time warp, frequency masks and time masks on features.

Sources: Park et al., "SpecAugment", Interspeech 2019; Park et al., "SpecAugment on large scale datasets", ICASSP 2020
(time masks that grow with the utterance).

Shape legend: B batch, T frames, F mel bins, M masks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from speechkit.audio.cmvn import valid_frames


class SpecAugment(nn.Module):
    """Masks bands and stretches of features, differently for every row; the identity in eval mode.

    Works on the whole batch at once. Widths and places follow each row's own length, lengths do not change, and padded
    frames are never touched. All random numbers are drawn on the generator's device, by default the CPU, so that CPU
    and GPU mask the same places.
    """

    def __init__(
        self,
        *,
        num_freq_masks: int = 2,
        max_freq_width: int = 27,
        num_time_masks: int = 10,
        max_time_ratio: float = 0.05,
        time_warp: int = 0,
        mask_value: Literal["zero", "mean"] = "zero",
    ) -> None:
        """Creates the augmenter.

        Args:
            num_freq_masks: frequency masks for each row.
            max_freq_width: greatest width of one, bins; it is drawn from 0 to this.
            num_time_masks: time masks for each row.
            max_time_ratio: greatest width of one as a share of the row's length; it is drawn from 0 to this.
            time_warp: greatest shift of the point about which time is warped, frames; 0 for no warp. Rows of
                2 * time_warp frames or fewer are not warped.
            mask_value: what masks hold: 0 (right for normalised features) or the row's mean in each bin.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__()
        counts = {"num_freq_masks": num_freq_masks, "max_freq_width": max_freq_width, "num_time_masks": num_time_masks}
        for name, value in {**counts, "time_warp": time_warp}.items():
            if value < 0:
                raise ValueError(f"{name}={value}: must be 0 or more")
        if not 0 <= max_time_ratio <= 1:
            raise ValueError(f"max_time_ratio={max_time_ratio}: must be from 0 to 1")
        if mask_value not in ("zero", "mean"):
            raise ValueError(f'mask_value={mask_value!r}: must be "zero" or "mean"')
        self.num_freq_masks = num_freq_masks
        self.max_freq_width = max_freq_width
        self.num_time_masks = num_time_masks
        self.max_time_ratio = max_time_ratio
        self.time_warp = time_warp
        self.mask_value = mask_value

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augments.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            generator: source of the random numbers; None takes torch's default one for the CPU.

        Returns:
            Features of the same shape and lengths; in eval mode the very input.
        """
        if not self.training or feats_BTF.numel() == 0:
            return feats_BTF
        batch, _, num_bins = feats_BTF.shape
        f, t = self.num_freq_masks, self.num_time_masks
        device = generator.device if generator is not None else torch.device("cpu")
        draws = torch.rand(batch, 2 + 2 * f + 2 * t, generator=generator, device=device).to(feats_BTF.device)
        warp, freq, time = draws.split([2, 2 * f, 2 * t], dim=1)
        lens_B1 = feat_lens_B.to(feats_BTF.device)[:, None]
        if self.time_warp:
            feats_BTF = _warp(feats_BTF, lens_B1, self.time_warp, warp)
        bins_B1 = torch.full_like(lens_B1, num_bins)
        widest_freq_B1 = bins_B1.clamp(max=self.max_freq_width)
        widest_time_B1 = (lens_B1 * self.max_time_ratio).long()
        masked_BF = _masks(num_bins, bins_B1, widest_freq_B1, freq)
        masked_BT = _masks(feats_BTF.shape[1], lens_B1, widest_time_B1, time)
        valid_BT = valid_frames(feats_BTF, lens_B1[:, 0])
        masked_BTF = (masked_BT[:, :, None] | masked_BF[:, None, :]) & valid_BT[:, :, None]
        if self.mask_value == "zero":
            return feats_BTF.masked_fill(masked_BTF, 0.0)
        total_BF = feats_BTF.masked_fill(~valid_BT[:, :, None], 0.0).sum(1, dtype=torch.float32)
        mean_BF = (total_BF / lens_B1.clamp(min=1)).to(feats_BTF.dtype)
        return torch.where(masked_BTF, mean_BF[:, None, :], feats_BTF)


def _masks(size: int, lens_B1: Tensor, widest_B1: Tensor, draws_BM: Tensor) -> Tensor:
    """Union of the masks of each row: width from 0 to the widest, anywhere inside the length. Bool, shape (B, size)."""
    width_draws_BM, place_draws_BM = draws_BM.chunk(2, dim=1)
    width_BM = torch.minimum((width_draws_BM * (widest_B1 + 1)).long(), widest_B1)
    last_BM = (lens_B1 - width_BM).clamp(min=0)
    begin_BM = torch.minimum((place_draws_BM * (last_BM + 1)).long(), last_BM)
    index_S = torch.arange(size, device=lens_B1.device)
    inside_BMS = (index_S >= begin_BM[:, :, None]) & (index_S < (begin_BM + width_BM)[:, :, None])
    return inside_BMS.any(1)


def _warp(feats_BTF: Tensor, lens_B1: Tensor, reach: int, draws_B2: Tensor) -> Tensor:
    """Moves a random frame c of each row by up to `reach` and interpolates linearly on both sides of it."""
    batch, num_frames, num_bins = feats_BTF.shape
    last_B1 = lens_B1 - 1
    room_B1 = (lens_B1 - 2 * reach).clamp(min=0)  # c lies in [reach, length - reach), so that both sides keep a frame
    from_B1 = reach + torch.minimum((draws_B2[:, :1] * room_B1).long(), (room_B1 - 1).clamp(min=0))
    shift_B1 = (draws_B2[:, 1:] * (2 * reach + 1)).long().clamp(max=2 * reach) - reach
    to_B1 = torch.minimum(from_B1 + shift_B1, last_B1 - 1).clamp(min=1)
    index_T = torch.arange(num_frames, device=feats_BTF.device)
    before_BT = index_T * (from_B1 / to_B1)
    after_BT = from_B1 + (index_T - to_B1) * ((last_B1 - from_B1) / (last_B1 - to_B1).clamp(min=1))
    warped_BT = torch.where(index_T < to_B1, before_BT, after_BT)
    source_BT = torch.where((room_B1 > 0) & (index_T < lens_B1), warped_BT, index_T.to(warped_BT.dtype))
    low_BT = source_BT.floor().long().clamp(min=0, max=num_frames - 1)
    high_BT = torch.minimum(low_BT + 1, torch.where(index_T < lens_B1, last_B1.clamp(min=0), index_T))
    row_B1 = torch.arange(batch, device=feats_BTF.device)[:, None] * num_frames
    flat_RF = feats_BTF.reshape(batch * num_frames, num_bins)
    low_BTF = flat_RF[row_B1 + low_BT]
    high_BTF = flat_RF[row_B1 + high_BT]
    share_BT1 = (source_BT - low_BT)[:, :, None].to(feats_BTF.dtype)
    return torch.lerp(low_BTF, high_BTF, share_BT1)

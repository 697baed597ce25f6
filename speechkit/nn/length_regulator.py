"""From phones to frames and back, by durations: repeating, averaging, and durations from a predictor.

Sources: Ren et al. 2019, "FastSpeech", section 3.2 (length regulator); Lancucki 2021, "FastPitch", section 2 (pitch averaged over
the frames of each symbol); Ren et al. 2021, "FastSpeech 2", section 2.3 (durations predicted as logarithms).

All rows at once: frame t belongs to the first phone whose durations, summed with those before it, exceed t.

Shape legend: B batch, T frames, P phones, N = B (P + 1) phones of all rows, D model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask

MAX_DURATION = 1000  # frames of one phone that a predictor may ask for


def frame_phones(durations_BP: Tensor, num_frames: int) -> Tensor:
    """Which phone each frame belongs to, as `speechkit.kernels.mas.mas` has it.

    Args:
        durations_BP: frames of each phone, at least 0, int64, shape (B, P).
        num_frames: T.

    Returns:
        int64, shape (B, T); -1 past the frames of a row.
    """
    ends_BP = durations_BP.cumsum(1)
    frames_BT = torch.arange(num_frames, device=durations_BP.device).repeat(len(durations_BP), 1)
    phones_BT = torch.searchsorted(ends_BP, frames_BT, right=True)
    return phones_BT.masked_fill(phones_BT == durations_BP.shape[1], -1)


def expand(
    x_BPD: Tensor, durations_BP: Tensor, phone_lens_B: Tensor, *, max_frames: int | None = None
) -> tuple[Tensor, Tensor]:
    """Repeats each phone for as many frames as it lasts. Copies: exact in any dtype, also under autocast.

    Args:
        x_BPD: what is known of each phone, any dtype, shape (B, P, D).
        durations_BP: frames of each phone, at least 0; what lies past a row's phones is not read, int64, shape (B, P).
        phone_lens_B: valid phones of each row, int64, shape (B,).
        max_frames: T. What is longer is cut there, and its length below says so. None for the longest row; on a GPU,
            finding it waits for the device.

    Returns:
        frames, zero past a row's length, shape (B, T, D), and their lengths, int64, shape (B,).

    Raises:
        ValueError: shapes do not fit together, or durations are no integers; on a CPU also where one is negative.
    """
    if x_BPD.ndim != 3:
        raise ValueError(f"x has shape {tuple(x_BPD.shape)}; give (B, P, D)")
    _check_durations(durations_BP, x_BPD.shape[:2])
    durations_BP = durations_BP.masked_fill(~valid_mask(phone_lens_B, durations_BP.shape[1]), 0)
    _check_signs(durations_BP)
    lens_B = durations_BP.sum(1)
    if max_frames is None:
        max_frames = int(lens_B.max()) if len(lens_B) else 0
    phones_BT = frame_phones(durations_BP, max_frames)
    batch, num_phones = phones_BT.shape[0], x_BPD.shape[1]
    x_ND = F.pad(x_BPD, (0, 0, 0, 1)).flatten(0, 1)  # each row has a phone of zeros for frames past its end
    places_BT = phones_BT.masked_fill(phones_BT < 0, num_phones)
    places_BT += torch.arange(batch, device=x_BPD.device)[:, None] * (num_phones + 1)
    return x_ND[places_BT], lens_B.clamp(max=max_frames)


def average_by_phone(values_BT: Tensor, durations_BP: Tensor, where_BT: Tensor | None = None) -> Tensor:
    """Mean of the values of each phone's frames, summed in fp64, also under autocast.

    Args:
        values_BT: one number per frame, any float dtype, shape (B, T). Frames past a row's durations and those that do not
            count are not read: nan may stand there.
        durations_BP: frames of each phone, at least 0, zero past a row's phones, together no more than T, int64, shape (B, P).
        where_BT: frames that count, bool, shape (B, T), such as the voiced ones for pitch; None for all.

    Returns:
        fp32 (fp64 for fp64 values), shape (B, P); 0 for phones without a frame that counts.

    Raises:
        ValueError: shapes do not fit together, or durations are no integers; on a CPU also where one is negative or a row of
            them takes more than T frames.
    """
    if values_BT.ndim != 2 or (where_BT is not None and where_BT.shape != values_BT.shape):
        where = None if where_BT is None else tuple(where_BT.shape)
        raise ValueError(f"values and where have shapes {tuple(values_BT.shape)} and {where}; give (B, T) for both")
    batch, num_frames = values_BT.shape
    _check_durations(durations_BP, torch.Size((batch, durations_BP.shape[-1])))
    _check_signs(durations_BP)
    if durations_BP.device.type == "cpu" and bool((durations_BP.sum(1) > num_frames).any()):
        raise ValueError(f"durations take up to {int(durations_BP.sum(1).max())} frames of a row, but values have {num_frames}")
    num_phones = durations_BP.shape[1]
    phones_BT = frame_phones(durations_BP, num_frames)
    counted_BT = phones_BT >= 0 if where_BT is None else (phones_BT >= 0) & where_BT
    phones_BT = phones_BT.masked_fill(~counted_BT, num_phones)  # a column for what does not count
    empty = torch.zeros(batch, num_phones + 1, dtype=torch.float64, device=values_BT.device)
    sums_BP = empty.scatter_add(1, phones_BT, values_BT.double().masked_fill(~counted_BT, 0.0))[:, :num_phones]
    counts_BP = empty.scatter_add(1, phones_BT, counted_BT.double())[:, :num_phones]
    return (sums_BP / counts_BP.clamp(min=1.0)).to(torch.promote_types(values_BT.dtype, torch.float32))


def durations_from_log(
    log_durations_BP: Tensor, phone_lens_B: Tensor, *, speed: float = 1.0, max_duration: int = MAX_DURATION
) -> Tensor:
    """Frames of each phone from what a predictor of log(d + 1) says: round((exp(p) - 1) / speed), computed in fp32.

    Halves go to the even neighbour. Where all phones of a row come to nothing, the one of the highest prediction, the first of
    equals, gets one frame: nothing but an empty text has no frames.

    Args:
        log_durations_BP: predictions, anything past a row's phones, any float dtype, shape (B, P).
        phone_lens_B: valid phones of each row, int64, shape (B,).
        speed: 2.0 for half as many frames.
        max_duration: frames that one phone gets at most: what an untrained predictor says may have no end.

    Returns:
        int64, shape (B, P), zero past a row's phones.

    Raises:
        ValueError: `speed` is not a positive number.
    """
    if not (math.isfinite(speed) and speed > 0.0):
        raise ValueError(f"speed={speed} must be a positive number; 1.0 keeps the predicted durations")
    valid_BP = valid_mask(phone_lens_B, log_durations_BP.shape[1])
    frames_BP = log_durations_BP.float().expm1() / speed
    durations_BP = frames_BP.round().clamp(0, max_duration).masked_fill(~valid_BP, 0.0).long()
    if durations_BP.shape[1] == 0:
        return durations_BP
    highest_B1 = log_durations_BP.float().masked_fill(~valid_BP, -torch.inf).argmax(1, keepdim=True)
    silent_B1 = (durations_BP.sum(1, keepdim=True) == 0) & (phone_lens_B > 0)[:, None]
    return durations_BP.scatter_add(1, highest_B1, silent_B1.long())


def _check_durations(durations_BP: Tensor, shape: torch.Size) -> None:
    """Refuses durations of another shape, and those that are no integers."""
    if durations_BP.ndim != 2 or durations_BP.shape != shape or durations_BP.dtype != torch.int64:
        raise ValueError(
            f"durations has shape {tuple(durations_BP.shape)} and dtype {durations_BP.dtype}; give int64 of shape {tuple(shape)}"
        )


def _check_signs(durations_BP: Tensor) -> None:
    """Refuses negative durations on a CPU; looking would wait for any other device."""
    if durations_BP.device.type == "cpu" and bool((durations_BP < 0).any()):
        raise ValueError(f"durations has values from {int(durations_BP.min())}; give numbers of frames, at least 0")

"""From waveforms to log-mel frames, in pieces: what the features of recognisers and the mels of synthesis share.

All is float32. Frames are taken in chunks that stay in the cache, straight from a strided view of the waveform, and no
value depends on padding, batch mates or the chunk that it is computed in.

Shape legend: B batch, N samples, S samples of a chunk, T frames, F mel bins, K samples or bins of an FFT, R rows (frames
of all utterances).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from speechkit.audio.cmvn import valid_frames

_CPU_ROWS = 4096  # frames per chunk: few enough for the cache, enough to keep threads from waiting for each other
_GPU_ROWS = 1 << 15
_MIN_ROWS = 32  # GEMM takes other code paths, with other rounding, for fewer rows
_LEAST_POWER = 1e-20  # below any floor on magnitudes; the gradient of a root ends here

LogBase = Literal["e", "10"]


class Constants:
    """Window and filterbank in float32, per device: kept out of the module's buffers so that .half() spares them."""

    def __init__(self, window_K: np.ndarray, weights_KF: np.ndarray, *, power: int = 2) -> None:
        """Keeps them for spectra of that power (1 magnitude, 2 power), window (n_fft,) and weights (n_fft // 2 + 1, F)."""
        # Power is re^2 + im^2: with every row doubled the GEMM adds the two, and no pass over the spectra is needed.
        rows_KF = np.repeat(weights_KF, 2, axis=0) if power == 2 else weights_KF
        self._tensors = {torch.device("cpu"): (float32(window_K), float32(rows_KF))}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both on a device, as `log_mel` wants them."""
        if device not in self._tensors:
            window_K, weights_KF = self._tensors[torch.device("cpu")]
            with torch.inference_mode(False):  # or training could not use what validation copied
                self._tensors[device] = (window_K.to(device), weights_KF.to(device))
        return self._tensors[device]


def hann_window(win_length: int, n_fft: int) -> np.ndarray:
    """Periodic Hann window, centred in zeros, float64, shape (n_fft,)."""
    left = (n_fft - win_length) // 2
    window_K = np.zeros(n_fft)
    window_K[left : left + win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    return window_K


def log_mel(
    frames_BTK: Tensor, n_fft: int, weights_KF: Tensor, floor: float, *, power: int = 2, log_base: LogBase = "e"
) -> Tensor:
    """Windowed frames to log-mel.

    Args:
        frames_BTK: windowed frames, float32, shape (B, T, K).
        n_fft: samples of the FFT.
        weights_KF: as `Constants` of the same power holds them.
        floor: least value of a band before the logarithm.
        power: 1 for bands of magnitudes, 2 for bands of powers.
        log_base: of the logarithm.

    Returns:
        float32, shape (B, T, F).
    """
    batch, count, _ = frames_BTK.shape
    rows = batch * count
    squares = torch.view_as_real(torch.fft.rfft(frames_BTK, n=n_fft)).square()
    if power == 2:
        spectrum_RK = squares.view(rows, n_fft // 2 * 2 + 2)
    else:
        spectrum_RK = (squares[..., 0] + squares[..., 1]).clamp(min=_LEAST_POWER).sqrt().view(rows, n_fft // 2 + 1)
    if rows < _MIN_ROWS:
        spectrum_RK = functional.pad(spectrum_RK, (0, 0, 0, _MIN_ROWS - rows))
    mel_RF = torch.mm(spectrum_RK, weights_KF)[:rows].clamp(min=floor)
    return (mel_RF.log() if log_base == "e" else mel_RF.log10()).view(batch, count, -1)


def join(pieces: list[Tensor], wave_BN: Tensor, dim: int) -> Tensor:
    """Chunks of frames as one tensor, float32, shape (B, T, F); (B, 0, dim) where there are none."""
    if not pieces:
        return wave_BN.new_zeros((len(wave_BN), 0, dim), dtype=torch.float32)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def silence_padding(feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
    """Features with exact zeros past each length, shape (B, T, F)."""
    if feats_BTF.device.type == "cpu" and bool((feat_lens_B == feats_BTF.shape[1]).all()):
        return feats_BTF
    return feats_BTF.masked_fill(~valid_frames(feats_BTF, feat_lens_B).unsqueeze(2), 0.0)


def samples(wave_BN: Tensor, begin: int, end: int) -> Tensor:
    """Samples begin..end of every row in float32, zeros where the waveform does not reach, shape (B, S)."""
    num_samples = wave_BN.shape[1]
    x_BS = wave_BN[:, min(max(begin, 0), num_samples) : max(min(end, num_samples), 0)].float()
    left, right = max(0, -begin), max(0, end - max(num_samples, begin))
    return functional.pad(x_BS, (left, right)) if left or right else x_BS


def mirrored(wave_BN: Tensor, wave_lens_B: Tensor, begin: int, end: int) -> Tensor:
    """Samples begin..end of every row in float32, mirrored at both ends of the utterance (..., 1, 0, 0, 1, ...)."""
    index_BS = torch.arange(begin, end, device=wave_BN.device).expand(len(wave_BN), -1)
    length_B1 = wave_lens_B.clamp(min=1)[:, None]
    index_BS = index_BS.remainder(2 * length_B1)
    index_BS = torch.where(index_BS < length_B1, index_BS, 2 * length_B1 - 1 - index_BS)
    return wave_BN.gather(1, index_BS).float()


def reflected(wave_BN: Tensor, wave_lens_B: Tensor, begin: int, end: int) -> Tensor:
    """Samples begin..end of every row in float32, reflected about its first and last sample (..., 2, 1, 0, 1, 2, ...).

    As numpy.pad(mode="reflect"): to and fro where an utterance is shorter than what is asked for. Shape (B, S).
    """
    index_BS = torch.arange(begin, end, device=wave_BN.device).expand(len(wave_BN), -1)
    last_B1 = (wave_lens_B - 1).clamp(min=0)[:, None]
    index_BS = index_BS.remainder((2 * last_B1).clamp(min=1))
    index_BS = torch.where(index_BS <= last_B1, index_BS, 2 * last_B1 - index_BS)
    return wave_BN.gather(1, index_BS).float()


def frames_per_chunk(wave_BN: Tensor) -> int:
    """Frames of an utterance to compute at once."""
    rows = _CPU_ROWS if wave_BN.device.type == "cpu" else _GPU_ROWS
    return max(1, rows // max(1, len(wave_BN)))


def check_batch(wave_BN: Tensor, wave_lens_B: Tensor) -> None:
    """Raises a ValueError where waveforms and lengths are not (B, N) floats and (B,) lengths up to N."""
    if wave_BN.ndim != 2 or wave_lens_B.shape != wave_BN.shape[:1]:
        shapes = f"wave_BN has shape {tuple(wave_BN.shape)}, wave_lens_B {tuple(wave_lens_B.shape)}"
        raise ValueError(f"{shapes}: give (B, N) and (B,)")
    if not wave_BN.is_floating_point():
        raise ValueError(f"wave_BN is {wave_BN.dtype}: give floating point samples in [-1, 1]")
    if wave_lens_B.device.type == "cpu" and len(wave_lens_B) and int(wave_lens_B.max()) > wave_BN.shape[1]:
        raise ValueError(f"wave_lens_B holds {int(wave_lens_B.max())}: wave_BN has {wave_BN.shape[1]} samples a row")


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raises a ValueError that names the field, its value and the rule, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={value}: must be {rule}")


def hash_settings(settings: dict[str, Any]) -> str:
    """Hash of plain values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def float32(values: np.ndarray) -> Tensor:
    """A float32 tensor of the values, on the CPU."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

"""From frames to a waveform by one inverse Fourier transform: the last layer of vocoders and codec decoders.

    frames (B, T, C) --linear--> log-magnitudes and phases (B, T, K) each --> spectrum --inverse FFT, overlap-add--> wave (B, N)

Source: Siuzdak 2023, "Vocos", section 3.

Shape legend: B batch, T frames, C channels, K FFT bins (n_fft // 2 + 1), S samples of an FFT (n_fft), N samples, O frames that
overlap, H samples of a hop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.nn.masks import valid_mask

_MAX_LOG_MAGNITUDE = math.log(100.0)
_MIN_WEIGHT = 1e-8  # of samples that no window covers


class Istft(nn.Module):
    """Inverse of the short-time Fourier transform that a mel spectrogram is made of, exact wherever windows overlap.

    T frames make `mel.num_samples(T)` samples, each at the place that its frames saw, for both paddings of the mel; window and
    hop are the mel's. Samples are weighted by the windows of the row's own frames alone.

    Args:
        mel: whose frames these are.
    """

    def __init__(self, *, mel: MelSpectrogram) -> None:
        super().__init__()
        self.mel = mel
        self._window_S = torch.from_numpy(mel.window()).float()  # no buffer: .half() would round it

    def forward(self, spectrum_BTK: Tensor, lens_B: Tensor) -> Tensor:
        """Makes waveforms.

        Args:
            spectrum_BTK: complex spectra, anything finite past each length, complex64, shape (B, T, K).
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            float32, exactly zero past `mel.num_samples(lens_B)`, shape (B, mel.num_samples(T)). A row is its own whatever its
            padding and its mates, to rounding.
        """
        batch, num_frames, _ = spectrum_BTK.shape
        num_samples = int(self.mel.num_samples(torch.tensor(num_frames)))
        if batch == 0 or num_samples == 0:
            return spectrum_BTK.real.new_zeros(batch, 0) + spectrum_BTK.real.sum() * 0.0
        window_S = self._window_S.to(spectrum_BTK.device)
        valid_BT = valid_mask(lens_B, num_frames).to(window_S.dtype)
        frames_BTS = torch.fft.irfft(spectrum_BTK, n=self.mel.n_fft) * (window_S * valid_BT[..., None])
        wave_BN = self._overlap_add(frames_BTS) / self._weights(valid_BT, window_S).clamp(min=_MIN_WEIGHT)
        wave_BN = wave_BN[:, self.mel.reach : self.mel.reach + num_samples]
        return wave_BN.masked_fill(~valid_mask(self.mel.num_samples(lens_B), num_samples), 0.0)

    def _overlap_add(self, frames_BTS: Tensor) -> Tensor:
        """Sum of overlapping frames, shape (B, (T + O - 1) * H)."""
        hop = self.mel.hop_length
        overlap = math.ceil(self.mel.n_fft / hop)
        parts = functional.pad(frames_BTS, (0, overlap * hop - self.mel.n_fft)).unflatten(2, (overlap, hop))
        shifted = (functional.pad(parts[:, :, o], (0, 0, o, overlap - 1 - o)) for o in range(overlap))
        total_BTH = next(shifted)
        for part_BTH in shifted:
            total_BTH = total_BTH + part_BTH
        return total_BTH.flatten(1)

    def _weights(self, valid_BT: Tensor, window_S: Tensor) -> Tensor:
        """Sum of the squared windows of valid frames, shape (B, (T + O - 1) * H): hop by hop, a product with what is valid."""
        hop = self.mel.hop_length
        overlap = math.ceil(self.mel.n_fft / hop)
        squares_OH = functional.pad(window_S.square(), (0, overlap * hop - self.mel.n_fft)).view(overlap, hop)
        covering_BTO = functional.pad(valid_BT, (overlap - 1, overlap - 1)).unfold(1, overlap, 1)
        return (covering_BTO @ squares_OH.flip(0)).flatten(1)


class IstftHead(nn.Module):
    """A linear layer to log-magnitudes and phases, and `Istft`.

    The spectrum is exp(m) (cos p + i sin p): any p is a phase, and none has to be unwrapped. Magnitudes end at 100. Spectrum
    and transform are float32 whatever the module is, and the linear layer runs in the dtype of its weights, also under
    autocast: halves would round phases by up to a hundredth of a turn.

    Args:
        dim: C.
        mel: whose frames the input's are; gives FFT, window, hop and padding.
    """

    def __init__(self, *, dim: int, mel: MelSpectrogram) -> None:
        super().__init__()
        self.out = nn.Linear(dim, mel.n_fft + 2)
        self.istft = Istft(mel=mel)

    def forward(self, x_BTC: Tensor, lens_B: Tensor) -> Tensor:
        """Makes waveforms.

        Args:
            x_BTC: frames, anything finite past each length, shape (B, T, C).
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            float32, exactly zero past `mel.num_samples(lens_B)`, shape (B, mel.num_samples(T)). Samples may pass 1 in absolute
            value.
        """
        with torch.autocast(x_BTC.device.type, enabled=False):
            log_magnitude_BTK, phase_BTK = self.out(x_BTC.to(self.out.weight.dtype)).float().chunk(2, dim=2)
            magnitude_BTK = log_magnitude_BTK.clamp(max=_MAX_LOG_MAGNITUDE).exp()
            return self.istft(torch.polar(magnitude_BTK, phase_BTK), lens_B)

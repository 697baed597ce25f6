"""Griffin-Lim: a waveform from a mel spectrogram with no training.

    mel (B, T, F)
      | undo the logarithm; magnitudes whose bands these are, none below 0   (T, K)
      | random phases, from the utterance's own seed
      | 60 times: to a waveform and back, keep the phases that came back, with momentum
    wave (B, N)

Sources: Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform"; Perraudin, Balazs and
Sondergaard 2013, "A fast Griffin-Lim algorithm", section 4 (momentum); Lee and Seung 2001, "Algorithms for non-negative matrix
factorization", section 3 (multiplicative steps for the divergence, here with one factor known).

Magnitudes come from multiplicative steps rather than from the pseudo-inverse or from least squares: their errors are
relative, as the ear's are, they start smooth and stay so between the bands, and nothing has to be cut off at 0. The
spectrum comes closer to the true one (a test has it).

Shape legend: B batch, N samples, T frames, F mel bins, K FFT bins (n_fft // 2 + 1), S samples of an FFT (n_fft).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.audio.spectrogram import MelSpectrogram

_MAGNITUDE_STEPS = 20  # bands are then met to 0.1 %
_TINY = 1e-12  # below all magnitudes that are heard
_MIN_WEIGHT = 1e-8  # of samples that no window covers


class GriffinLim(nn.Module):
    """Vocoder without weights: deterministic, the same for an utterance alone and in any batch.

    Utterances are computed one after another, each at its own length, in float32 whatever the module, the mel or autocast
    say. Memory grows with the length: about 40 kB per frame at 1024 samples per FFT.
    """

    def __init__(self, *, mel: MelSpectrogram, num_iterations: int = 60, momentum: float = 0.99) -> None:
        """Creates the vocoder.

        Args:
            mel: what the mel spectrograms are.
            num_iterations: of the phases; 32 take half the time and are a little rougher, 0 keeps the random phases.
            momentum: 0 for the algorithm of 1984, 0.99 for the fast one.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__()
        if num_iterations < 0:
            raise ValueError(f"num_iterations={num_iterations}: must be at least 0")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum={momentum}: must be at least 0 and below 1")
        self.mel = mel
        self.num_iterations = num_iterations
        self.momentum = momentum
        filters_KF = torch.from_numpy(mel.filters())
        empty_F = filters_KF.sum(0) == 0
        # Kept out of the buffers so that .half() spares them. A filter without a bin says nothing: it divides by 1.
        self._filters_KF = filters_KF.float()
        self._window_S = torch.from_numpy(mel.window()).float()
        self._band_sums_F = filters_KF.sum(0).masked_fill(empty_F, 1.0).float()
        self._bin_sums_K = filters_KF.sum(1).float()

    @torch.no_grad()
    def vocode(self, mel_BTF: Tensor, mel_lens_B: Tensor, *, seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Makes waveforms.

        Args:
            mel_BTF: log-mels as `mel` computes them, floating point, shape (B, T, F); what lies past a length is ignored.
            mel_lens_B: valid frames of each row, int64, shape (B,).
            seeds: of the first phases, one per utterance, drawn on the CPU for any device; None is 0 for each.

        Returns:
            Waveforms at `mel.sample_rate`, float32, exactly 0 past each length, shape (B, N), and their lengths in samples,
            `mel.num_samples(mel_lens_B)`, int64, shape (B,). N is the longest. Samples may pass 1 in absolute value where
            those of the mel's own waveform nearly did.

        Raises:
            ValueError: shapes do not fit, a length exceeds T, or a valid frame is not finite.
        """
        seeds = [0] * len(mel_BTF) if seeds is None else seeds
        self._check(mel_BTF, mel_lens_B, seeds)
        wave_lens_B = self.mel.num_samples(mel_lens_B)
        lens = mel_lens_B.tolist()
        num_samples = int(wave_lens_B.max()) if lens else 0
        wave_BN = torch.zeros(len(mel_BTF), num_samples, device=mel_BTF.device)
        with torch.autocast(mel_BTF.device.type, enabled=False):
            for wave_N, mel_TF, num_frames, seed in zip(wave_BN, mel_BTF, lens, seeds, strict=True):
                size = int(self.mel.num_samples(torch.tensor(num_frames)))
                if size:
                    magnitudes_TK = self.magnitudes(mel_TF[:num_frames])
                    wave_N[:size] = self._find_phases(magnitudes_TK, seed)[self.mel.reach :][:size]
        return wave_BN, wave_lens_B

    @torch.no_grad()
    def magnitudes(self, mel_TF: Tensor) -> Tensor:
        """A spectrum with the bands of a mel: the one that multiplicative steps reach from a smooth one.

        Args:
            mel_TF: log-mels of one utterance, shape (T, F).

        Returns:
            Magnitudes, float32, at least 0, exactly 0 where no band reaches, shape (T, K).
        """
        device = mel_TF.device
        filters_KF, band_sums_F = self._filters_KF.to(device), self._band_sums_F.to(device)
        bin_sums_K = self._bin_sums_K.to(device).clamp(min=_TINY)
        bands_TF = self.mel.undo_log(mel_TF)
        spectrum_TK = (bands_TF / band_sums_F) @ filters_KF.T / bin_sums_K
        for _ in range(_MAGNITUDE_STEPS):
            ratios_TF = bands_TF / (spectrum_TK @ filters_KF).clamp(min=_TINY)
            spectrum_TK = spectrum_TK * (ratios_TF @ filters_KF.T / bin_sums_K)
        return spectrum_TK if self.mel.power == 1 else spectrum_TK.sqrt()

    def _find_phases(self, magnitudes_TK: Tensor, seed: int) -> Tensor:
        """Waveform under all frames, beginning `mel.reach` samples before the utterance."""
        generator = torch.Generator().manual_seed(seed)
        angles_TK = torch.rand(magnitudes_TK.shape, generator=generator).to(magnitudes_TK.device) * (2 * math.pi)
        window_S = self._window_S.to(magnitudes_TK.device)
        weights = self._overlap_add(window_S.square().expand(len(magnitudes_TK), -1)).clamp(min=_MIN_WEIGHT)

        def to_wave(spectrum_TK: Tensor) -> Tensor:
            return self._overlap_add(torch.fft.irfft(spectrum_TK, n=self.mel.n_fft) * window_S) / weights

        spectrum_TK = torch.polar(magnitudes_TK, angles_TK)
        before_TK = torch.zeros_like(spectrum_TK)
        for _ in range(self.num_iterations):
            frames_TS = to_wave(spectrum_TK).unfold(0, self.mel.n_fft, self.mel.hop_length)
            consistent_TK = torch.fft.rfft(frames_TS * window_S)
            # Perraudin's (1 + a) x - a x_before, but for a factor, which the phase does not see.
            spectrum_TK = torch.sub(consistent_TK, before_TK, alpha=self.momentum / (1 + self.momentum))
            _set_magnitudes(spectrum_TK, magnitudes_TK)
            before_TK = consistent_TK
        return to_wave(spectrum_TK)

    def _overlap_add(self, frames_TS: Tensor) -> Tensor:
        """Sum of overlapping frames, shape ((T - 1) * hop_length + n_fft,)."""
        num_frames, size = frames_TS.shape
        hop = self.mel.hop_length
        overlap = math.ceil(size / hop)
        parts = functional.pad(frames_TS, (0, overlap * hop - size)).view(num_frames, overlap, hop)
        total = parts.new_zeros(num_frames + overlap - 1, hop)
        for shift in range(overlap):
            total[shift : shift + num_frames] += parts[:, shift]
        return total.view(-1)[: (num_frames - 1) * hop + size]

    def _check(self, mel_BTF: Tensor, mel_lens_B: Tensor, seeds: Sequence[int]) -> None:
        if mel_BTF.ndim != 3 or mel_BTF.shape[2] != self.mel.output_dim or mel_lens_B.shape != mel_BTF.shape[:1]:
            shapes = f"mel_BTF has shape {tuple(mel_BTF.shape)}, mel_lens_B {tuple(mel_lens_B.shape)}"
            raise ValueError(f"{shapes}: give (B, T, {self.mel.output_dim}) and (B,)")
        if len(seeds) != len(mel_BTF):
            raise ValueError(f"seeds holds {len(seeds)}: give one for each of the {len(mel_BTF)} utterances")
        if len(mel_lens_B) and not 0 <= int(mel_lens_B.min()) <= int(mel_lens_B.max()) <= mel_BTF.shape[1]:
            raise ValueError(f"mel_lens_B={mel_lens_B.tolist()}: must be from 0 to the {mel_BTF.shape[1]} frames of mel_BTF")
        valid_BT = torch.arange(mel_BTF.shape[1], device=mel_BTF.device) < mel_lens_B[:, None]
        broken_B = (~mel_BTF.isfinite().all(2) & valid_BT).any(1)
        if bool(broken_B.any()):
            rows = broken_B.nonzero().flatten().tolist()
            raise ValueError(f"mel_BTF is not finite in rows {rows}: look for a diverged model or a broken recording")


def _set_magnitudes(spectrum_TK: Tensor, magnitudes_TK: Tensor) -> None:
    """Gives a complex spectrum those magnitudes, in place; a bin of 0 stays 0. Cheaper than complex abs and product."""
    parts_TK2 = torch.view_as_real(spectrum_TK)
    squares_TK2 = parts_TK2.square()
    scale_TK = magnitudes_TK * (squares_TK2[..., 0] + squares_TK2[..., 1]).clamp_(min=_TINY**2).rsqrt_()
    parts_TK2[..., 0] *= scale_TK
    parts_TK2[..., 1] *= scale_TK

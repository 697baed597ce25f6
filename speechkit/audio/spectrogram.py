"""The mel spectrogram of speech synthesis: one definition for acoustic models, aligners and vocoders.

An acoustic model and a vocoder understand each other only where all of it agrees: rate, frames, bands, magnitude or
power, logarithm and floor. `MelSpectrogram` holds all of it, hashes it, and says which field differs.

Sources: Kong et al. 2020, "HiFi-GAN" (22.05 kHz); Siuzdak 2023, "Vocos" (24 kHz).

Shape legend: B batch, N samples, T frames, F mel bins, K FFT bins (n_fft // 2 + 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.audio import frames, mel
from speechkit.audio.settings import differing_settings
from speechkit.types import Seconds

_PRESETS: dict[int, dict[str, Any]] = {
    # Ours: frames of 10 ms, as the recognisers have them, so that durations from a CTC alignment carry over; windows of
    # four frames, as at the other rates; all else as at 22.05 kHz.
    16000: {"sample_rate": 16000, "win_length": 640, "hop_length": 160},
    22050: {},  # HiFi-GAN's and FastSpeech 2's
    24000: {  # Vocos'
        "sample_rate": 24000,
        "num_mels": 100,
        "f_max": 12000.0,
        "log_floor": 1e-7,
        "mel_scale": "htk",
        "mel_norm": None,
        "padding": "center",
    },
}


class MelSpectrogram(nn.Module):
    """Log-mel spectrogram whose frames a vocoder turns back into a waveform. Settings are fixed when it is created.

    An utterance of n > 0 samples has

    - `ceil(n / hop_length)` frames with padding "same": frame t is centred on the middle of samples t * hop_length ..
      (t + 1) * hop_length, and T frames make T * hop_length samples, so no sample is lost;
    - `1 + n // hop_length` with padding "center": frame t is centred on sample t * hop_length, and T frames make
      (T - 1) * hop_length samples.

    Outside of an utterance the waveform is reflected, as numpy.pad(mode="reflect") does at any length. The value is
    log(max(band, log_floor)). It is computed in float32 whatever the module, the input or autocast say, has gradients at
    digital silence, and depends on neither padding nor batch mates. The defaults are the settings at 22.05 kHz.

    Differences from the public code: HiFi-GAN adds 1e-9 under the root of the magnitude, and drops what is left after the
    last whole hop; its other frames are the same.

    Attributes:
        sample_rate: rate that the waveforms must have, Hz.
        hop_length: samples from frame to frame.
        output_dim: number of mel bins F.
        frame_shift: seconds from frame to frame.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 22050,
        n_fft: int = 1024,
        win_length: int = 1024,
        hop_length: int = 256,
        num_mels: int = 80,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        power: Literal[1, 2] = 1,
        log_base: frames.LogBase = "e",
        log_floor: float = 1e-5,
        mel_scale: mel.MelScale = "slaney",
        mel_norm: Literal["slaney"] | None = "slaney",
        padding: Literal["same", "center"] = "same",
    ) -> None:
        """Creates the spectrogram.

        Args:
            sample_rate: of the waveforms, Hz.
            n_fft: samples of an FFT.
            win_length: samples under the periodic Hann window, centred in the FFT.
            hop_length: samples from frame to frame.
            num_mels: number of mel bins F.
            f_min: lower edge of the first band, Hz.
            f_max: upper edge of the last band, Hz.
            power: bands add up magnitudes (1) or powers (2).
            log_base: natural logarithm ("e") or decimal ("10").
            log_floor: least value of a band before the logarithm.
            mel_scale: "htk" or "slaney" (librosa's default).
            mel_norm: "slaney" divides every band by half its width in Hz; None leaves its peak at 1.
            padding: where frames lie, see above.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__()
        frames.require(hop_length >= 1, "hop_length", hop_length, "at least 1")
        frames.require(win_length >= hop_length, "win_length", win_length, f"at least hop_length={hop_length}")
        frames.require(n_fft >= win_length, "n_fft", n_fft, f"at least win_length={win_length}")
        frames.require(n_fft % 2 == 0, "n_fft", n_fft, "even")
        frames.require(power in (1, 2), "power", power, "1 or 2")
        frames.require(log_base in ("e", "10"), "log_base", repr(log_base), '"e" or "10"')
        frames.require(log_floor >= 1e-9, "log_floor", log_floor, "at least 1e-9")
        frames.require(padding in ("same", "center"), "padding", repr(padding), '"same" or "center"')
        odd = padding == "same" and (n_fft - hop_length) % 2
        frames.require(not odd, "hop_length", hop_length, 'even where padding="same"')
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.output_dim = num_mels
        self.frame_shift: Seconds = hop_length / sample_rate
        self.f_min = float(f_min)
        self.f_max = float(f_max)
        self.power = power
        self.log_base: frames.LogBase = log_base
        self.log_floor = float(log_floor)
        self.mel_scale = mel_scale
        self.mel_norm = mel_norm
        self.padding = padding
        self._constants = frames.Constants(self.window(), self.filters(), power=power)

    @classmethod
    def preset(cls, sample_rate: int) -> MelSpectrogram:
        """The usual settings at 16000, 22050 (HiFi-GAN, FastSpeech 2) or 24000 Hz (Vocos).

        Raises:
            ValueError: there are none for that rate.
        """
        if sample_rate not in _PRESETS:
            rates = ", ".join(map(str, _PRESETS))
            raise ValueError(f"sample_rate={sample_rate}: presets are for {rates} Hz; give MelSpectrogram all settings instead")
        return cls(**_PRESETS[sample_rate])

    @property
    def reach(self) -> int:
        """Samples of the first frame's FFT that lie before the utterance."""
        return self.n_fft // 2 if self.padding == "center" else (self.n_fft - self.hop_length) // 2

    def window(self) -> np.ndarray:
        """Analysis window, float64, shape (n_fft,)."""
        return frames.hann_window(self.win_length, self.n_fft)

    def filters(self) -> np.ndarray:
        """Weights of the bands, float64, shape (K, F)."""
        rate, scale, norm = self.sample_rate, self.mel_scale, self.mel_norm
        return mel.filterbank(rate, self.n_fft, self.output_dim, self.f_min, self.f_max, scale=scale, norm=norm)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Frames of utterances of so many samples (int64 tensor of any shape)."""
        if self.padding == "same":
            return -(-num_samples // self.hop_length)
        return torch.where(num_samples > 0, num_samples // self.hop_length + 1, 0)

    def num_samples(self, num_frames: Tensor) -> Tensor:
        """Samples that a vocoder makes of so many frames (int64 tensor of any shape)."""
        return (num_frames - int(self.padding == "center")).clamp(min=0) * self.hop_length

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Computes mel spectrograms.

        Args:
            wave_BN: waveforms in [-1, 1] at `sample_rate`, floating point, shape (B, N); what lies past a length is
                ignored.
            wave_lens_B: valid samples of each row, int64, shape (B,).

        Returns:
            Mels, float32, shape (B, T, F), exactly 0 past each length, and the lengths in frames, int64, shape (B,).
            T is what a row of N samples has.

        Raises:
            ValueError: shapes do not fit, or a length exceeds N.
        """
        frames.check_batch(wave_BN, wave_lens_B)
        mel_lens_B = self.num_frames(wave_lens_B)
        num_frames = int(self.num_frames(torch.tensor(wave_BN.shape[1])))
        window_K, weights_KF = self._constants.on(wave_BN.device)
        pieces: list[Tensor] = []
        step = frames.frames_per_chunk(wave_BN)
        with torch.autocast(wave_BN.device.type, enabled=False):
            for first in range(0, num_frames, step):
                begin = first * self.hop_length - self.reach
                end = begin + (min(step, num_frames - first) - 1) * self.hop_length + self.n_fft
                x_BS = frames.reflected(wave_BN, wave_lens_B, begin, end)
                framed = x_BS.unfold(1, self.n_fft, self.hop_length) * window_K
                floor, power, base = self.log_floor, self.power, self.log_base
                pieces.append(frames.log_mel(framed, self.n_fft, weights_KF, floor, power=power, log_base=base))
            mel_BTF = frames.join(pieces, wave_BN, self.output_dim)
            return frames.silence_padding(mel_BTF, mel_lens_B), mel_lens_B

    def undo_log(self, mel_BTF: Tensor) -> Tensor:
        """Log-mels to the values of the bands, float32, any shape."""
        return mel_BTF.float().exp() if self.log_base == "e" else torch.pow(10.0, mel_BTF.float())

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as plain values; what the constructor takes, and the type."""
        return {
            "type": "MelSpectrogram",
            "sample_rate": self.sample_rate,
            "n_fft": self.n_fft,
            "win_length": self.win_length,
            "hop_length": self.hop_length,
            "num_mels": self.output_dim,
            "f_min": self.f_min,
            "f_max": self.f_max,
            "power": self.power,
            "log_base": self.log_base,
            "log_floor": self.log_floor,
            "mel_scale": self.mel_scale,
            "mel_norm": self.mel_norm,
            "padding": self.padding,
        }

    def fingerprint(self) -> str:
        """Hash of the settings, to tell whether a checkpoint was trained on these mels."""
        return frames.hash_settings(self.settings())

    def check_same(self, other: MelSpectrogram | Mapping[str, Any], *, name: str = "this", other_name: str = "the other") -> None:
        """Makes sure that two mels are the same, before one model is given another's.

        Args:
            other: another spectrogram, or its `settings()` as a checkpoint or an index keeps them.
            name: whose mel this is, for the error.
            other_name: whose mel the other is.

        Raises:
            ValueError: settings differ; it names each field that does, with both values.
        """
        differing = differing_settings(self.settings(), other.settings() if isinstance(other, MelSpectrogram) else other)
        if differing:
            raise ValueError(
                f"mel spectrograms of {name} and {other_name} differ: {differing}; use models trained on the same mel, or "
                f"train one of them anew"
            )

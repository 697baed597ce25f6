"""Log-mel features: `LogMel` (librosa's conventions) and `KaldiFbank` (Kaldi's), for training, decoding and export.

Both compute in float32 whatever the module, the input or autocast say; both work through the frames in chunks that
stay in the cache, straight from a strided view of the waveform, so an hour of audio needs little more memory than its
features, and a result depends on neither padding nor batch mates.

Shape legend: B batch, N samples, T frames, F mel bins, K samples of an FFT, R rows (frames of all utterances).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from speechkit.audio import frames, mel
from speechkit.audio.cmvn import Cmvn
from speechkit.types import Seconds


class LogMel(nn.Module):
    """Log-mel spectrogram with centred frames: frame t is centred on sample t * hop_length.

    An utterance of n > 0 samples has `1 + n // hop_length` frames; what lies outside of it counts as zeros.
    The value is log(max(power of the mel band, log_floor)), natural logarithm. With the same settings it equals
    librosa.feature.melspectrogram(..., center=True, pad_mode="constant", power=2) of the pre-emphasised waveform.

    Attributes:
        sample_rate: rate that the waveforms must have, Hz.
        output_dim: number of mel bins F.
        frame_shift: seconds from frame to frame.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        num_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        preemphasis: float | None = 0.97,
        log_floor: float = 2.0**-24,
        mel_scale: Literal["htk", "slaney"] = "htk",
        mel_norm: Literal["slaney"] | None = None,
        cmvn: Cmvn | None = None,
    ) -> None:
        """Creates the features.

        Args:
            sample_rate: of the waveforms, Hz.
            n_fft: samples of an FFT.
            win_length: samples under the periodic Hann window, centred in the FFT.
            hop_length: samples from frame to frame.
            num_mels: number of mel bins F.
            f_min: lower edge of the first band, Hz.
            f_max: upper edge of the last band, Hz; None is half the sample rate.
            preemphasis: y[i] = x[i] - preemphasis * x[i - 1] over the whole utterance; None or 0 for none.
            log_floor: least power of a band before the logarithm.
            mel_scale: "htk" or "slaney" (librosa's default).
            mel_norm: "slaney" divides every band by its width in Hz; None leaves its peak at 1.
            cmvn: normalisation of the result.
        """
        super().__init__()
        frames.require(win_length >= 1, "win_length", win_length, "at least 1")
        frames.require(n_fft >= win_length, "n_fft", n_fft, f"at least win_length={win_length}")
        frames.require(hop_length >= 1, "hop_length", hop_length, "at least 1")
        frames.require(log_floor > 0, "log_floor", log_floor, "above 0")
        f_max = sample_rate / 2 if f_max is None else f_max
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.output_dim = num_mels
        self.frame_shift: Seconds = hop_length / sample_rate
        self.f_min = f_min
        self.f_max = f_max
        self.preemphasis = preemphasis or 0.0
        self.log_floor = log_floor
        self.mel_scale = mel_scale
        self.mel_norm = mel_norm
        self.cmvn = cmvn
        weights_KF = mel.filterbank(sample_rate, n_fft, num_mels, f_min, f_max, scale=mel_scale, norm=mel_norm)
        self._constants = frames.Constants(frames.hann_window(win_length, n_fft), weights_KF)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Frames of utterances of so many samples (int64 tensor of any shape)."""
        return torch.where(num_samples > 0, num_samples // self.hop_length + 1, 0)

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features.

        Args:
            wave_BN: waveforms at `sample_rate`, floating point, shape (B, N); what lies past a length is ignored.
            wave_lens_B: valid samples of each row, int64, shape (B,).

        Returns:
            Features, float32, shape (B, 1 + N // hop_length, F), exactly 0 past each length, and the lengths in
            frames, int64, shape (B,).

        Raises:
            ValueError: shapes do not fit, or a length exceeds N.
        """
        frames.check_batch(wave_BN, wave_lens_B)
        num_samples = wave_BN.shape[1]
        feat_lens_B = self.num_frames(wave_lens_B)
        num_frames = num_samples // self.hop_length + 1 if num_samples else 0
        window_K, weights_KF = self._constants.on(wave_BN.device)
        hop, reach = self.hop_length, self.n_fft // 2
        ragged = wave_BN.device.type != "cpu" or bool((wave_lens_B < num_samples).any())
        pieces: list[Tensor] = []
        step = frames.frames_per_chunk(wave_BN)
        with torch.autocast(wave_BN.device.type, enabled=False):
            for first in range(0, num_frames, step):
                count = min(step, num_frames - first)
                begin = first * hop - reach
                end = begin + (count - 1) * hop + self.n_fft
                x_BS = frames.samples(wave_BN, begin - 1, end)
                y_BS = x_BS[:, 1:] - self.preemphasis * x_BS[:, :-1] if self.preemphasis else x_BS[:, 1:]
                if ragged or end > num_samples:  # pre-emphasis leaves an echo after the last sample
                    index_S = torch.arange(begin, end, device=wave_BN.device)
                    y_BS = y_BS.masked_fill(index_S >= wave_lens_B[:, None], 0.0)
                frames_BTK = y_BS.unfold(1, self.n_fft, hop) * window_K
                pieces.append(frames.log_mel(frames_BTK, self.n_fft, weights_KF, self.log_floor))
            return _finish(pieces, wave_BN, feat_lens_B, self.output_dim, self.cmvn)

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as plain values."""
        return {
            "type": "LogMel",
            "sample_rate": self.sample_rate,
            "n_fft": self.n_fft,
            "win_length": self.win_length,
            "hop_length": self.hop_length,
            "num_mels": self.output_dim,
            "f_min": float(self.f_min),
            "f_max": float(self.f_max),
            "preemphasis": float(self.preemphasis),
            "log_floor": float(self.log_floor),
            "mel_scale": self.mel_scale,
            "mel_norm": self.mel_norm,
            "cmvn": self.cmvn.settings() if self.cmvn else None,
        }

    def fingerprint(self) -> str:
        """Hash of the settings, to tell whether a checkpoint was trained on these features."""
        return frames.hash_settings(self.settings())


class KaldiFbank(nn.Module):
    """Kaldi's log filterbank energies (compute-fbank-feats with dither 0), as torchaudio.compliance.kaldi.fbank.

    With `snip_edges` an utterance of n samples has `1 + (n - w) // s` frames (none when n < w), for a window of w and
    a shift of s samples, and frame t begins at t * s. Without it there are `(n + s // 2) // s`, frame t is centred on
    t * s + s // 2, and the waveform is mirrored at its ends.

    Source: Povey et al., "The Kaldi speech recognition toolkit", ASRU 2011; feat/feature-window.cc, feat/mel-computations.cc.

    Attributes:
        sample_rate: rate that the waveforms must have, Hz.
        output_dim: number of mel bins F.
        frame_shift: seconds from frame to frame.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        num_mels: int = 80,
        frame_length: Seconds = 0.025,
        frame_shift: Seconds = 0.01,
        f_min: float = 20.0,
        f_max: float = 0.0,
        preemphasis: float = 0.97,
        remove_dc_offset: bool = True,
        window: Literal["povey", "hanning", "hamming", "rectangular"] = "povey",
        snip_edges: bool = True,
        scale: float = 32768.0,
        cmvn: Cmvn | None = None,
    ) -> None:
        """Creates the features.

        Args:
            sample_rate: of the waveforms, Hz.
            num_mels: number of mel bins F.
            frame_length: of the window, seconds; the FFT is the next power of two.
            frame_shift: seconds from frame to frame.
            f_min: lower edge of the first band, Hz.
            f_max: upper edge of the last band, Hz; 0 or less counts from half the sample rate.
            preemphasis: within each frame, after the offset is removed.
            remove_dc_offset: subtract each frame's mean.
            window: shape of the window.
            snip_edges: use whole frames only.
            scale: factor on the waveform; Kaldi works on 16-bit integers.
            cmvn: normalisation of the result.
        """
        super().__init__()
        self.sample_rate = sample_rate
        self.output_dim = num_mels
        self.win_length = int(sample_rate * frame_length)
        self.hop_length = int(sample_rate * frame_shift)
        frames.require(self.win_length >= 2, "frame_length", frame_length, "at least two samples long")
        frames.require(self.hop_length >= 1, "frame_shift", frame_shift, "at least one sample long")
        self.n_fft = 1 << (self.win_length - 1).bit_length()
        self.frame_shift: Seconds = self.hop_length / sample_rate
        self.f_min = f_min
        self.f_max = f_max if f_max > 0 else sample_rate / 2 + f_max
        self.preemphasis = preemphasis
        self.remove_dc_offset = remove_dc_offset
        self.window = window
        self.snip_edges = snip_edges
        self.scale = scale
        self.cmvn = cmvn
        weights_KF = mel.kaldi_filterbank(sample_rate, self.n_fft, num_mels, f_min, self.f_max)
        self._constants = frames.Constants(mel.kaldi_window(window, self.win_length), weights_KF)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Frames of utterances of so many samples (int64 tensor of any shape)."""
        if self.snip_edges:
            return torch.where(num_samples >= self.win_length, (num_samples - self.win_length) // self.hop_length + 1, 0)
        return (num_samples + self.hop_length // 2) // self.hop_length

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Computes features.

        Args:
            wave_BN: waveforms in [-1, 1] at `sample_rate`, floating point, shape (B, N); what lies past a length is
                ignored.
            wave_lens_B: valid samples of each row, int64, shape (B,).

        Returns:
            Features, float32, shape (B, T, F), exactly 0 past each length, and the lengths in frames, int64, shape
            (B,). T is what a row of N samples has.

        Raises:
            ValueError: shapes do not fit, or a length exceeds N.
        """
        frames.check_batch(wave_BN, wave_lens_B)
        feat_lens_B = self.num_frames(wave_lens_B)
        num_frames = int(self.num_frames(torch.tensor(wave_BN.shape[1])))
        window_K, weights_KF = self._constants.on(wave_BN.device)
        offset = 0 if self.snip_edges else self.hop_length // 2 - self.win_length // 2
        pieces: list[Tensor] = []
        step = frames.frames_per_chunk(wave_BN)
        with torch.autocast(wave_BN.device.type, enabled=False):
            for first in range(0, num_frames, step):
                begin = first * self.hop_length + offset
                end = begin + (min(step, num_frames - first) - 1) * self.hop_length + self.win_length
                if self.snip_edges:
                    x_BS = frames.samples(wave_BN, begin, end)
                else:
                    x_BS = frames.mirrored(wave_BN, wave_lens_B, begin, end)
                frames_BTK = self._condition(x_BS.unfold(1, self.win_length, self.hop_length)) * window_K
                pieces.append(frames.log_mel(frames_BTK, self.n_fft, weights_KF, torch.finfo(torch.float32).eps))
            return _finish(pieces, wave_BN, feat_lens_B, self.output_dim, self.cmvn)

    def _condition(self, frames_BTK: Tensor) -> Tensor:
        """Scales, removes the offset and pre-emphasises, frame by frame."""
        x_BTK = frames_BTK * self.scale
        if self.remove_dc_offset:
            x_BTK = x_BTK - x_BTK.mean(2, keepdim=True)
        if self.preemphasis:
            before_BTK = torch.cat([x_BTK[..., :1], x_BTK[..., :-1]], dim=2)
            x_BTK = x_BTK - self.preemphasis * before_BTK
        return x_BTK

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as plain values."""
        return {
            "type": "KaldiFbank",
            "sample_rate": self.sample_rate,
            "num_mels": self.output_dim,
            "win_length": self.win_length,
            "hop_length": self.hop_length,
            "f_min": float(self.f_min),
            "f_max": float(self.f_max),
            "preemphasis": float(self.preemphasis),
            "remove_dc_offset": self.remove_dc_offset,
            "window": self.window,
            "snip_edges": self.snip_edges,
            "scale": float(self.scale),
            "cmvn": self.cmvn.settings() if self.cmvn else None,
        }

    def fingerprint(self) -> str:
        """Hash of the settings, to tell whether a checkpoint was trained on these features."""
        return frames.hash_settings(self.settings())


def _finish(pieces: list[Tensor], wave_BN: Tensor, feat_lens_B: Tensor, dim: int, cmvn: Cmvn | None) -> tuple[Tensor, Tensor]:
    """Joins the chunks, silences padded frames and normalises."""
    feats_BTF = frames.join(pieces, wave_BN, dim)
    if cmvn is not None and pieces:
        return cmvn(feats_BTF, feat_lens_B), feat_lens_B
    return frames.silence_padding(feats_BTF, feat_lens_B), feat_lens_B

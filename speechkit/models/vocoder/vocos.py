"""Vocos: a waveform from a mel spectrogram by one network at the rate of frames and an inverse Fourier transform.

    mel (B, T, F) --ConvNeXt--> (B, T, C) --linear, exp, cos and sin--> spectrum (B, T, K) --inverse FFT--> wave (B, N)

Source: Siuzdak 2023, "Vocos", section 3.

Shape legend: B batch, T frames, F mel bins, C channels, K FFT bins, N samples.
"""

from __future__ import annotations

from torch import Tensor, nn

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.nn.convnext import ConvNextBackbone
from speechkit.nn.istft_head import IstftHead


class VocosGenerator(nn.Module):
    """The generator; the sizes of the paper by default.

    Args:
        mel: what the mel spectrograms are; the head takes FFT, window, hop and padding of it.
        dim: C.
        intermediate_dim: channels between the linear layers of the blocks.
        num_layers: ConvNeXt blocks.
    """

    def __init__(self, *, mel: MelSpectrogram, dim: int = 512, intermediate_dim: int = 1536, num_layers: int = 8) -> None:
        super().__init__()
        self.mel = mel
        self.backbone = ConvNextBackbone(
            input_dim=mel.output_dim, dim=dim, intermediate_dim=intermediate_dim, num_layers=num_layers
        )
        self.head = IstftHead(dim=dim, mel=mel)

    def forward(self, mel_BTF: Tensor, mel_lens_B: Tensor) -> Tensor:
        """Makes waveforms.

        Args:
            mel_BTF: log-mels, anything past each length, shape (B, T, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            float32, exactly zero past `mel.num_samples(mel_lens_B)`, shape (B, mel.num_samples(T)); samples may pass 1 in
            absolute value. A row is its own whatever its padding and its mates, to rounding.
        """
        return self.head(self.backbone(mel_BTF, mel_lens_B), mel_lens_B)

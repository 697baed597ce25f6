"""A small codec with a scalar quantiser, for flows in its latent; nobody trained it."""

from __future__ import annotations

import torch

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.model import CodecModel
from speechkit.nn.istft_head import IstftHead
from speechkit.nn.quantizers import ScalarQuantizer

MEL = MelSpectrogram(sample_rate=8000, n_fft=128, win_length=128, hop_length=32, num_mels=6, f_max=4000.0)
LATENTS = 4


def scalar_codec(*, head: bool = False, stride: int = 2) -> CodecModel:
    torch.manual_seed(7)
    codec = CodecModel(
        num_mels=MEL.output_dim,
        quantizer=ScalarQuantizer(dim=LATENTS),
        wave_head=IstftHead(dim=16, mel=MEL) if head else None,
        dim=16,
        intermediate_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        kernel_size=3,
        stride=stride,
    )
    codec.mel_norm.mean.fill_(-3.0)
    codec.mel_norm.std.fill_(2.0)
    codec.mel_norm.count.fill_(1)
    return codec

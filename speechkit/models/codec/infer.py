"""Waveforms to codes and back: copy synthesis, and each of its two halves.

Shape legend: B batch, N samples, T mel frames, S code frames, F mel bins, Q codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.model import CodecModel
from speechkit.nn.masks import valid_mask
from speechkit.nn.quantizers import ResidualVectorQuantizer
from speechkit.types import TtsOutput


@dataclass(frozen=True, slots=True)
class CodecOptions:
    """How to code.

    Attributes:
        num_codebooks: only so many are used, the first ones of a residual quantiser; None for all.
    """

    num_codebooks: int | None = None


class Codes(NamedTuple):
    """What a codec made of waveforms.

    Attributes:
        codes_BSQ: int64, -1 past each length, shape (B, S, Q).
        code_lens_B: valid code frames of each row, int64, shape (B,).
        mel_lens_B: mel frames that they stand for, int64, shape (B,).
    """

    codes_BSQ: Tensor
    code_lens_B: Tensor
    mel_lens_B: Tensor


@torch.inference_mode()
def infer(
    model: CodecModel,
    wave_BN: Tensor,
    wave_lens_B: Tensor,
    *,
    mel: MelSpectrogram,
    options: CodecOptions | None = None,
    vocoder: nn.Module | None = None,
) -> TtsOutput:
    """Copy synthesis: speech through the codes. A row is the same alone and in any batch, to rounding.

    Args:
        model: in eval mode.
        wave_BN: waveforms at `mel.sample_rate`, floating point, shape (B, N); what lies past a length is ignored.
        wave_lens_B: valid samples of each row, int64, shape (B,).
        mel: that the model was trained on.
        options: how to code.
        vocoder: makes the waveforms, as `speechkit.models.vocoder` does; None for the model's own head.

    Returns:
        log-mels, and waveforms if there is a head or a vocoder, none longer than what came in. With padding "same" they are
        exactly as long.

    Raises:
        ValueError: mels differ, or there are fewer codebooks than asked for.
    """
    codes = encode_waves(model, wave_BN, wave_lens_B, mel=mel, options=options)
    out = decode_codes(model, codes.codes_BSQ, codes.code_lens_B, mel=mel, vocoder=vocoder, mel_lens_B=codes.mel_lens_B)
    if out.wave_BN is None or out.wave_lens_B is None:
        return out
    lens_B = torch.minimum(out.wave_lens_B, wave_lens_B)
    made_BN = out.wave_BN[:, : wave_BN.shape[1]]
    return out._replace(wave_BN=made_BN.masked_fill(~valid_mask(lens_B, made_BN.shape[1]), 0.0), wave_lens_B=lens_B)


@torch.inference_mode()
def encode_waves(
    model: CodecModel,
    wave_BN: Tensor,
    wave_lens_B: Tensor,
    *,
    mel: MelSpectrogram,
    options: CodecOptions | None = None,
) -> Codes:
    """Waveforms to codes; arguments and errors as those of `infer`."""
    options = options or CodecOptions()
    num_codebooks = model.num_codebooks if options.num_codebooks is None else options.num_codebooks
    if not 1 <= num_codebooks <= model.num_codebooks:
        raise ValueError(f"num_codebooks={num_codebooks}: this codec has {model.num_codebooks}; choose from 1 to that")
    if num_codebooks < model.num_codebooks and not isinstance(model.quantizer, ResidualVectorQuantizer):
        kind = type(model.quantizer).__name__
        raise ValueError(f"num_codebooks={num_codebooks}: {kind} needs all {model.num_codebooks}; leave it at null")
    _check_mels(model, mel, None)
    mel_BTF, mel_lens_B = mel(wave_BN, wave_lens_B)
    codes_BSQ, code_lens_B = model.encode(mel_BTF, mel_lens_B)
    return Codes(codes_BSQ[..., :num_codebooks], code_lens_B, mel_lens_B)


@torch.inference_mode()
def decode_codes(
    model: CodecModel,
    codes_BSQ: Tensor,
    code_lens_B: Tensor,
    *,
    mel: MelSpectrogram,
    vocoder: nn.Module | None = None,
    mel_lens_B: Tensor | None = None,
) -> TtsOutput:
    """Codes to log-mels and waveforms.

    Args:
        model: in eval mode.
        codes_BSQ: as `encode_waves` or a generator of codes makes them, int64, shape (B, S, Q).
        code_lens_B: valid code frames of each row, int64, shape (B,).
        mel: that the model was trained on.
        vocoder: makes the waveforms; None for the model's own head.
        mel_lens_B: mel frames of each row; None for all that the codes make.

    Returns:
        log-mels, and waveforms if there is a head or a vocoder.

    Raises:
        ValueError: mels differ, a code is none of the codebook, or the lengths do not fit.
    """
    _check_mels(model, mel, vocoder)
    out = model.decode(codes_BSQ, code_lens_B, mel_lens_B=mel_lens_B)
    if vocoder is None:
        return out
    wave_BN, wave_lens_B = vocoder.vocode(out.mel_BTF, out.mel_lens_B)  # type: ignore[operator]
    return out._replace(wave_BN=wave_BN, wave_lens_B=wave_lens_B)


def _check_mels(model: CodecModel, mel: MelSpectrogram, vocoder: nn.Module | None) -> None:
    if model.mel is not None:
        model.mel.check_same(mel, name="the codec's waveform head", other_name="the mels")
    elif mel.output_dim != model.num_mels:
        raise ValueError(f"mel has {mel.output_dim} bins, the codec num_mels={model.num_mels}; give the mel of its training")
    if vocoder is not None:
        vocoder.mel.check_same(mel, name="the vocoder", other_name="the codec")  # type: ignore[union-attr, operator]

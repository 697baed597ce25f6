"""What the family is trained on, and who makes tokens of speech and speech of tokens.

Shape legend: B batch, N samples, M mel frames, F mel bins, P phones, T semantic tokens, A acoustic frames, Q codebooks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.types import TtsOutput


class MaskGctBatch(NamedTuple):
    """Speech as tokens, with what is said in it.

    Attributes:
        phones_BP: phone ids, int64, zero past each length, shape (B, P).
        phone_lens_B: phones of each row, int64, shape (B,).
        semantic_BT: semantic tokens, int64, anything past each length, shape (B, T).
        semantic_lens_B: semantic tokens of each row, int64, shape (B,).
        acoustic_BAQ: acoustic tokens, int64, anything past each length, shape (B, A, Q).
        acoustic_lens_B: acoustic frames of each row, at most `acoustic_ratio` times its semantic tokens, int64, shape (B,).
        speakers_B: number of the speaker of each row, int64, shape (B,).
        languages_B: number of the language of each row, int64, shape (B,).
        ids: utterance ids, B of them: what is hidden in evaluation is drawn by them.
        durations_BP: semantic tokens of each phone, may be fractions, fp32, zero past each length, shape (B, P); None when
            nobody has aligned the speech.
    """

    phones_BP: Tensor
    phone_lens_B: Tensor
    semantic_BT: Tensor
    semantic_lens_B: Tensor
    acoustic_BAQ: Tensor
    acoustic_lens_B: Tensor
    speakers_B: Tensor
    languages_B: Tensor
    ids: tuple[str, ...]
    durations_BP: Tensor | None = None


class SemanticTokens(Protocol):
    """Speech to one token per frame that tells what is said; an `nn.Module` whose forward pass this is.

    Attributes:
        num_codes: tokens are from 0 to num_codes - 1.
        sample_rate: that the waveforms must have, Hz.
    """

    num_codes: int
    sample_rate: int

    def __call__(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T), int64, anything past each length, and the lengths (B,)."""


class AcousticCodec(Protocol):
    """Log-mels to several tokens per frame, and these to log-mels or also to waveforms; an `nn.Module`.

    Attributes:
        num_codebooks: Q.
        num_codes: of each codebook; tokens are from 0 to num_codes - 1.
        num_mels: bands of the mels.
        stride: mel frames of an acoustic frame; M of them have ceil(M / stride).
    """

    num_codebooks: int
    num_codes: int
    num_mels: int
    stride: int

    @property
    def mel(self) -> MelSpectrogram | None:
        """The one mel that it can be used with; None where any with as many bands will do."""

    def encode(self, mel_BMF: Tensor, mel_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, A, Q), int64, anything past each length, and the lengths in acoustic frames (B,)."""

    def decode(self, acoustic_BAQ: Tensor, acoustic_lens_B: Tensor, *, mel_lens_B: Tensor | None = None) -> TtsOutput:
        """Log-mels, and waveforms if it makes them; of `mel_lens_B` frames, or of all that the tokens make."""

"""Any audio to codes and back: what a trained codec keeps of speech.

Shape legend: B recordings, N samples, S code frames, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.audio.inputs import iter_input
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.infer import CodecOptions, decode_codes, encode_waves, infer
from speechkit.models.codec.model import CodecModel
from speechkit.models.vocoder.griffin_lim import GriffinLim


class Codec:
    """A trained codec, ready to use. Made by `speechkit.load`.

    Args:
        mel: the mel spectrogram that the model was trained on.
        model: the model.
        vocoder: mels to waveforms; None for the model's own head, or Griffin-Lim where it has none.
        name: how the codec is called in messages.

    Raises:
        ValueError: the vocoder was trained on another mel; it names the fields that differ.
    """

    def __init__(self, *, mel: MelSpectrogram, model: CodecModel, vocoder: Any = None, name: str = "") -> None:
        self.mel, self.model, self.name = mel, model.eval(), name
        self.vocoder: Any = GriffinLim(mel=mel) if vocoder is None and model.mel is None else vocoder
        if self.vocoder is not None:
            mel.check_same(self.vocoder.mel, name=name or "the codec", other_name="its vocoder")

    @property
    def sample_rate(self) -> int:
        """Rate of the waveforms, Hz."""
        return self.mel.sample_rate

    @property
    def device(self) -> torch.device:
        """Device that the model lives on."""
        return next(self.model.parameters()).device

    def num_parameters(self) -> int:
        """Number of parameters, a vocoder's apart."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def encode(
        self, audio: Any, *, sample_rate: int | None = None, num_codebooks: int | None = None, batch_size: int = 8
    ) -> list[np.ndarray]:
        """Codes of one recording or a list of them.

        Args:
            audio: a path, open binary file, bytes, 1-D array or tensor of samples (2-D: one axis is channels, the shorter), or
                a list of these.
            sample_rate: rate of arrays and tensors in Hz; None means the codec's own rate. Files know theirs.
            num_codebooks: only the first so many of a residual quantiser; None for all.
            batch_size: recordings coded together; it changes the speed, not the codes.

        Returns:
            int64 codes of each recording, shape (S, Q).

        Raises:
            AudioError: a recording cannot be read.
            ValueError: an argument is of the wrong kind, or there are fewer codebooks than asked for.
        """
        options = CodecOptions(num_codebooks=num_codebooks)
        found = []
        for waves in self._batches(audio, sample_rate, batch_size):
            codes_BSQ, lens_B, _ = encode_waves(self.model, *_padded(waves, self.device), mel=self.mel, options=options)
            found += [codes_SQ[:num].cpu().numpy() for codes_SQ, num in zip(codes_BSQ, lens_B.tolist())]
        return found

    def decode(self, codes: Sequence[np.ndarray], *, batch_size: int = 8) -> list[np.ndarray]:
        """Waveforms of codes.

        Args:
            codes: as `encode` gives them: whole numbers, each of shape (S, Q), Q the same of all.
            batch_size: decoded together.

        Returns:
            float32 samples of each at `sample_rate`, shape (N,).

        Raises:
            ValueError: the codes have another shape or type, or one is none of the codebook.
        """
        _check_batch_size(batch_size)
        rows, made = _code_rows(codes), []
        for first in range(0, len(rows), batch_size):
            codes_BSQ, lens_B = _padded(rows[first : first + batch_size], self.device)
            out = decode_codes(self.model, codes_BSQ, lens_B, mel=self.mel, vocoder=self.vocoder)
            made += _rows(out.wave_BN, out.wave_lens_B)
        return made

    def copy(self, audio: Any, *, sample_rate: int | None = None, batch_size: int = 8) -> list[np.ndarray]:
        """What is left of recordings after coding, as long as they; arguments and errors as in `encode`.

        Returns:
            float32 samples of each at the codec's rate, shape (N,).
        """
        made = []
        for waves in self._batches(audio, sample_rate, batch_size):
            out = infer(self.model, *_padded(waves, self.device), mel=self.mel, vocoder=self.vocoder)
            made += _rows(out.wave_BN, out.wave_lens_B)
        return made

    def _batches(self, audio: Any, sample_rate: int | None, batch_size: int) -> list[list[Tensor]]:
        """Recordings as they are coded together."""
        _check_batch_size(batch_size)
        items = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        waves = [
            torch.from_numpy(np.concatenate([*iter_input(item, sample_rate=self.sample_rate, given_rate=sample_rate)]))
            for item in items
        ]
        return [waves[first : first + batch_size] for first in range(0, len(waves), batch_size)]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")


def _code_rows(codes: Sequence[np.ndarray]) -> list[Tensor]:
    """Codes of each recording, int64, that fit into a batch."""
    rows = [torch.as_tensor(each) for each in codes]
    shapes = [tuple(each.shape) for each in rows]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"codes of shapes {shapes}: give (frames, codebooks) of each")
    if len({num_codebooks for _, num_codebooks in shapes}) > 1:
        raise ValueError(f"codes of shapes {shapes}: give as many codebooks of each, or decode those of other numbers apart")
    for each in rows:
        if each.dtype == torch.bool or each.is_floating_point() or each.is_complex():
            raise ValueError(f"codes of type {each.dtype}: give whole numbers, as encode makes them")
    return [each.long() for each in rows]


def _padded(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    lens_B = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), lens_B.to(device)


def _rows(wave_BN: Tensor | None, lens_B: Tensor | None) -> list[np.ndarray]:
    assert wave_BN is not None
    assert lens_B is not None
    return [wave_N[:num].float().cpu().numpy() for wave_N, num in zip(wave_BN, lens_B.tolist())]

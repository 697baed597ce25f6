"""Who speaks in any audio, as vectors: the nearer two of them point, the likelier they are of one voice.

Shape legend: B recordings, N samples, T frames, F mel bins, D embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from speechkit.audio.inputs import iter_input
from speechkit.audio.io import AudioError
from speechkit.models.speaker.infer import embed
from speechkit.models.speaker.model import SpeakerModel


class SpeakerEncoder:
    """A trained speaker encoder, ready to use. Made by `speechkit.load`.

    Args:
        features: waveform to features, with `sample_rate`.
        model: the model, trained on them.
        name: how the model is called in messages.
    """

    def __init__(self, *, features: nn.Module, model: SpeakerModel, name: str = "") -> None:
        self.features: Any = features.eval()
        self.model = model.eval()
        self.name = name

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz that the model works at; audio of any other rate is resampled."""
        return int(self.features.sample_rate)

    @property
    def device(self) -> torch.device:
        """Device that the model lives on."""
        return next(self.model.parameters()).device

    @property
    def embedding_dim(self) -> int:
        """D, numbers of an embedding."""
        return self.model.embedding_dim

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @torch.inference_mode()
    def embed(self, audio: Any, *, sample_rate: int | None = None, batch_size: int = 16) -> np.ndarray:
        """Embeds one recording or a list of them; pauses are listened to as well, so cut long ones before.

        Args:
            audio: a path, open binary file, bytes, 1-D array or tensor of samples (2-D: one axis is channels, the shorter), or
                a list of these.
            sample_rate: rate of arrays and tensors in Hz; None means the model's own rate. Files know theirs.
            batch_size: recordings embedded together; it changes the speed, and the result by rounding at most.

        Returns:
            Vectors of length 1 in the order of the input, float32, shape (B, D); their products are cosines.

        Raises:
            AudioError: a recording cannot be read, or holds no samples.
            ValueError: an argument is of the wrong kind.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        items = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        embeddings_BD = np.zeros((len(items), self.embedding_dim), np.float32)
        for first in range(0, len(items), batch_size):
            chosen = items[first : first + batch_size]
            waves = [self._read(item, first + place, sample_rate) for place, item in enumerate(chosen)]
            embeddings_BD[first : first + batch_size] = self._embed_batch(waves)
        return embeddings_BD

    def _read(self, item: Any, place: int, sample_rate: int | None) -> np.ndarray:
        blocks = [*iter_input(item, sample_rate=self.sample_rate, given_rate=sample_rate)]
        wave_N = np.concatenate(blocks)
        if not len(wave_N):
            raise AudioError(f"audio[{place}] holds no samples: nobody speaks in it; leave it out")
        return wave_N

    def _embed_batch(self, waves: list[np.ndarray]) -> np.ndarray:
        """One recording after the other for the features, all together for the model."""
        feats = []
        for wave_N in waves:
            wave_1N = torch.from_numpy(wave_N).to(self.device)[None]
            feats_1TF, _ = self.features(wave_1N, torch.tensor([wave_1N.shape[1]], device=self.device))
            feats.append(feats_1TF[0])
        lens_B = torch.tensor([len(feats_TF) for feats_TF in feats], device=self.device)
        feats_BTF = nn.utils.rnn.pad_sequence(feats, batch_first=True)
        return embed(self.model, feats_BTF, lens_B).cpu().numpy()

"""Utterances to examples of synthesis: speech, its phones, how long each lasts, pitch and energy.

Shape legend: N samples, P phones, T mel frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.data.alignment import frame_durations
from speechkit.data.dataset import SpeechDataset
from speechkit.data.prosody import ProsodyIndex
from speechkit.types import Utterance


class Script(NamedTuple):
    """What one utterance says.

    Attributes:
        text: as a person would write it.
        phones_P: phone ids, int64, shape (P,).
        boundaries: seconds from the first sample at which the phones begin and the last one ends, shape (P + 1,); None where
            nobody knows.
    """

    text: str
    phones_P: np.ndarray
    boundaries: np.ndarray | None = None


class TtsExample(NamedTuple):
    """One utterance, read; see `speechkit.types.TtsBatch` for the meaning of the values."""

    id: str
    wave_N: np.ndarray
    phones_P: np.ndarray
    speaker: int
    language: int
    text: str
    lang: str
    durations_P: np.ndarray | None = None
    pitch_T: np.ndarray | None = None
    energy_T: np.ndarray | None = None


class TtsDataset(Dataset["TtsExample | None"]):
    """Map-style dataset; reads audio through a `SpeechDataset`, and so with its ways to treat what cannot be read.

    Args:
        speech: reads the utterances, at the rate of the mel, without transforms.
        scripts: what each of them says.
        mel: whose frames durations and pitch are counted in.
        speakers: number of each speaker.
        languages: number of each language.
        prosody: pitch and energy of the utterances, in their order; None leaves them out.

    Raises:
        ValueError: numbers of utterances and scripts differ, or a speaker or language has no number.
    """

    def __init__(
        self,
        *,
        speech: SpeechDataset,
        scripts: Sequence[Script],
        mel: MelSpectrogram,
        speakers: Mapping[str, int],
        languages: Mapping[str, int],
        prosody: ProsodyIndex | None = None,
    ) -> None:
        if len(scripts) != len(speech):
            raise ValueError(f"{len(scripts)} scripts for {len(speech)} utterances; give one for each")
        for utterance in speech.utterances:
            for what, label, known in (("speaker", utterance.speaker, speakers), ("lang", utterance.lang, languages)):
                if label not in known:
                    raise ValueError(f"utterance {utterance.id!r}: {what}={label!r} is none of {', '.join(map(repr, known))}")
        self.speech, self.scripts, self.mel = speech, scripts, mel
        self.speakers, self.languages, self.prosody = speakers, languages, prosody

    def __len__(self) -> int:
        return len(self.speech)

    def set_epoch(self, epoch: int) -> None:
        """Nothing here depends on the epoch but what `speech` may draw."""
        self.speech.set_epoch(epoch)

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each utterance, float32, shape (len,)."""
        return self.speech.durations

    @property
    def num_tokens(self) -> np.ndarray:
        """Phones of each utterance, int32, shape (len,)."""
        return np.array([len(script.phones_P) for script in self.scripts], np.int32)

    def __getitem__(self, i: int) -> TtsExample | None:
        """Reads utterance `i`; None where its audio cannot be read and `speech` skips those.

        Raises:
            AudioError: its audio cannot be read, and `speech` raises.
        """
        example = self.speech[i]
        if example is None:
            return None
        utterance: Utterance = self.speech.utterances[i]
        script = self.scripts[i]
        num_frames = int(self.mel.num_frames(torch.tensor(len(example.wave_N))))
        durations_P = pitch_T = energy_T = None
        if script.boundaries is not None:
            durations_P = frame_durations(script.boundaries, frame_shift=self.mel.frame_shift, num_frames=num_frames)
        if self.prosody is not None:
            pitch_T, energy_T = self.prosody(i, utterance.speaker)
            assert len(pitch_T) == num_frames, f"{utterance.id}: {len(pitch_T)} frames of pitch, {num_frames} of mel"
        return TtsExample(
            id=utterance.id,
            wave_N=example.wave_N,
            phones_P=script.phones_P,
            speaker=self.speakers[utterance.speaker],
            language=self.languages[utterance.lang],
            text=script.text,
            lang=utterance.lang,
            durations_P=durations_P,
            pitch_T=pitch_T,
            energy_T=energy_T,
        )

"""From phones to mel frames, with control of speed, pitch and energy.

Shape legend: B batch, P phones, T frames, F mel bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.fastspeech.model import FastSpeechModel
from speechkit.nn.length_regulator import durations_from_log
from speechkit.nn.masks import valid_mask
from speechkit.types import TtsInputs, TtsOutput


@dataclass(frozen=True, slots=True)
class FastSpeechOptions:
    """How to speak.

    Attributes:
        speed: 2.0 speaks twice as fast.
        pitch: semitones above the predicted pitch.
        energy: deviations of the corpus above the predicted energy.
        seed: nothing is drawn here; vocoders may.

    Raises:
        ValueError: a number is out of range.
    """

    speed: float = 1.0
    pitch: float = 0.0
    energy: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"speed={self.speed} must be a positive number; 1.0 keeps the predicted durations")
        for name, value in (("pitch", self.pitch), ("energy", self.energy)):
            if not math.isfinite(value):
                raise ValueError(f"{name}={value} must be a finite number; 0 keeps what is predicted")


@torch.inference_mode()
def infer(
    model: FastSpeechModel, inputs: TtsInputs, *, mel: MelSpectrogram, options: FastSpeechOptions | None = None
) -> TtsOutput:
    """Speaks a batch; a row is the same alone and in any batch, to rounding.

    Args:
        model: in eval mode.
        inputs: phones and voices, without prompts.
        mel: what the frames are.
        options: how to speak.

    Returns:
        log-mels, durations and pitch. An empty row has no frames; any other at least one.

    Raises:
        ValueError: pitch or energy shall change in a model without them, or a prompt is given.
    """
    options = options or FastSpeechOptions()
    if inputs.prompt_wave_BN is not None:
        raise ValueError(
            "prompt_wave is given, but FastSpeechModel has only the voices it was trained on; leave the prompt out and choose a "
            "speaker, or take a family that imitates prompts (F5, MaskGCT)"
        )
    for name, shift, predictor in (("pitch", options.pitch, model.pitch), ("energy", options.energy, model.energy)):
        if shift and predictor is None:
            raise ValueError(f"{name}={shift}: this model was trained without {name}; leave it at 0")
    x_BPD = model.encode(inputs.phones_BP, inputs.phone_lens_B, inputs.speakers_B, inputs.languages_B)
    predicted = model.predict(x_BPD, inputs.phone_lens_B)
    durations_BP = durations_from_log(predicted.log_durations_BP, inputs.phone_lens_B, speed=options.speed)
    semitone = math.log(2.0) / 12 / model.log_f0_std
    pitch_BP = None if predicted.pitch_BP is None else predicted.pitch_BP + options.pitch * semitone
    energy_BP = None if predicted.energy_BP is None else predicted.energy_BP + options.energy
    _, after_BTF, lens_B = model.decode(x_BPD, inputs.phone_lens_B, durations_BP, pitch_BP, energy_BP)
    mel_BTF = model.mel_norm.denormalize(after_BTF.float())
    mel_BTF = mel_BTF.masked_fill(~valid_mask(lens_B, mel_BTF.shape[1])[..., None], 0.0)
    if pitch_BP is not None:
        pitch_BP = pitch_BP.float().masked_fill(~valid_mask(inputs.phone_lens_B, pitch_BP.shape[1]), 0.0)
    return TtsOutput(mel_BTF=mel_BTF, mel_lens_B=lens_B, durations_BP=durations_BP, pitch_BP=pitch_BP)

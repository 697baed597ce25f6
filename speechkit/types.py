"""Shared types: what travels between the layers of the toolkit.

Shape legend: B batch, N samples, T frames, U tokens, P phones, F mel bins.
Batches are NamedTuples (Lightning moves them, the loader pins them); options and results are frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Seconds = float


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row of a manifest: a stretch of one audio file and what is said in it.

    Attributes:
        id: unique within a manifest.
        audio_path: absolute path of the audio file.
        duration: length of the utterance in seconds.
        start: where the utterance begins in the file, in seconds.
        text: transcript; empty when unknown.
        speaker: speaker label; empty when unknown.
        lang: BCP-47 language code; empty when unknown.
        extra: all further fields of the row, kept as they came.
    """

    id: str
    audio_path: Path
    duration: Seconds
    start: Seconds = 0.0
    text: str = ""
    speaker: str = ""
    lang: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class AsrBatch(NamedTuple):
    """A collated batch for recognition.

    Attributes:
        wave_BN: waveforms in [-1, 1], float32, zero past each length, shape (B, N).
        wave_lens_B: valid samples of each row, int64, shape (B,).
        tokens_BU: target token ids, int64, zero past each length, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        ids: utterance ids, B of them.
        texts: transcripts, B of them.
        langs: language codes ("" when unknown), B of them.
        num_skipped: utterances of the planned batch that could not be read and were left out.
        task_tokens_BU: what the task asks for where that is not the transcript, such as its translation; int64, zero past
            each length, shape (B, U'). None when the task is to transcribe.
        task_token_lens_B: valid tokens of each row of it, int64, shape (B,).
        tasks: names of the tasks, B of them, "" for the model's usual one; () when all are.
        prompt_tokens_BU: text that came before, int64, zero past each length, shape (B, U''). None when there is none.
        prompt_token_lens_B: valid tokens of each row of it, 0 for no prompt, int64, shape (B,).
    """

    wave_BN: Tensor
    wave_lens_B: Tensor
    tokens_BU: Tensor
    token_lens_B: Tensor
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    langs: tuple[str, ...]
    num_skipped: int = 0
    task_tokens_BU: Tensor | None = None
    task_token_lens_B: Tensor | None = None
    tasks: tuple[str, ...] = ()
    prompt_tokens_BU: Tensor | None = None
    prompt_token_lens_B: Tensor | None = None


class TextBatch(NamedTuple):
    """A collated batch of sentences, for language models.

    Attributes:
        tokens_BU: token ids, int64, zero past each length, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        ids: where the sentences stand, B of them.
        num_skipped: always 0: text is read before training begins.
    """

    tokens_BU: Tensor
    token_lens_B: Tensor
    ids: tuple[str, ...]
    num_skipped: int = 0


class TtsBatch(NamedTuple):
    """A collated batch for synthesis: speech, what is said in it, and who says it.

    Phones are those of `speechkit.text.frontend`: words and pauses alternate, so that every frame belongs to a phone.

    Attributes:
        wave_BN: waveforms in [-1, 1], float32, zero past each length, shape (B, N).
        wave_lens_B: valid samples of each row, int64, shape (B,).
        phones_BP: phone ids, int64, zero past each length, shape (B, P); (B, 0) for models that read no text.
        phone_lens_B: valid phones of each row, int64, shape (B,).
        speakers_B: number of the speaker of each row, int64, shape (B,).
        languages_B: number of the language of each row, int64, shape (B,).
        ids: utterance ids, B of them.
        texts: what is said, B of them.
        langs: language codes ("" when unknown), B of them.
        num_skipped: utterances of the planned batch that could not be read and were left out.
        durations_BP: frames of each phone, int64, zero past each length, shape (B, P); a row adds up to its mel frames.
            None when nobody has aligned the speech.
        pitch_BT: log F0 by mel frame, interpolated where there is no voice, less its speaker's mean and divided by the
            deviation of all, float32, zero past each length, shape (B, T). None when not asked for.
        energy_BT: log energy by mel frame, normalised by mean and deviation of all, likewise.
    """

    wave_BN: Tensor
    wave_lens_B: Tensor
    phones_BP: Tensor
    phone_lens_B: Tensor
    speakers_B: Tensor
    languages_B: Tensor
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    langs: tuple[str, ...]
    num_skipped: int = 0
    durations_BP: Tensor | None = None
    pitch_BT: Tensor | None = None
    energy_BT: Tensor | None = None


class TtsInputs(NamedTuple):
    """What a synthesiser is asked to say.

    Attributes:
        phones_BP: phone ids, int64, zero past each length, shape (B, P).
        phone_lens_B: valid phones of each row, int64, shape (B,).
        speakers_B: number of the speaker of each row, int64, shape (B,).
        languages_B: number of the language of each row, int64, shape (B,).
        ids: what random numbers of a row are drawn by, B of them; equal ids and seeds give equal noise in any batch.
        prompt_wave_BN: speech of the voice that is to speak, at the model's rate, zero past each length, shape (B, N).
            None when there is none.
        prompt_wave_lens_B: valid samples of each row of it, int64, shape (B,).
        prompt_phones_BP: what is said in it, int64, zero past each length, shape (B, P').
        prompt_phone_lens_B: valid phones of each row of it, int64, shape (B,).
    """

    phones_BP: Tensor
    phone_lens_B: Tensor
    speakers_B: Tensor
    languages_B: Tensor
    ids: tuple[str, ...]
    prompt_wave_BN: Tensor | None = None
    prompt_wave_lens_B: Tensor | None = None
    prompt_phones_BP: Tensor | None = None
    prompt_phone_lens_B: Tensor | None = None


class TtsOutput(NamedTuple):
    """What a synthesiser made: mel frames for a vocoder, or a waveform.

    Attributes:
        mel_BTF: log-mel frames, float32, zero past each length, shape (B, T, F).
        mel_lens_B: valid frames of each row, int64, shape (B,).
        durations_BP: frames of each phone, int64, shape (B, P); None for families that know the total alone.
        pitch_BP: predicted pitch of each phone, normalised as in training, float32, shape (B, P); None without one.
        wave_BN: waveforms of families that make them without a vocoder, float32, zero past each length, shape (B, N).
        wave_lens_B: valid samples of each row of it, int64, shape (B,).
    """

    mel_BTF: Tensor
    mel_lens_B: Tensor
    durations_BP: Tensor | None = None
    pitch_BP: Tensor | None = None
    wave_BN: Tensor | None = None
    wave_lens_B: Tensor | None = None


class LossOutput(NamedTuple):
    """What a model's loss returns.

    Attributes:
        loss: scalar to back-propagate.
        parts: named scalars for logging, detached.
        num_targets: number of target tokens that the loss was averaged over, scalar.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    num_targets: Tensor


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word (or token) with its place in the recording, times in seconds from its beginning."""

    text: str
    start: Seconds
    end: Seconds
    confidence: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One transcript.

    Attributes:
        text: the transcript.
        tokens: token ids.
        score: log-probability of the hypothesis under the search that made it.
        words: words with times and confidences; empty unless timestamps were asked for.
        token_times: tokens with times and confidences; empty unless token timestamps were asked for.
        language: language code, "" when the model does not tell.
        confidence: mean token confidence in [0, 1]; 1.0 for an empty transcript.
        audio_s: length of the audio in seconds, when the caller knew it.
        error: why there is no transcript (unreadable audio and the like), "" when all went well.
    """

    text: str
    tokens: tuple[int, ...] = ()
    score: float = 0.0
    words: tuple[Word, ...] = ()
    token_times: tuple[Word, ...] = ()
    language: str = ""
    confidence: float = 1.0
    audio_s: Seconds = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class TimedPhone:
    """A phone of synthesised speech with its place in it, times in seconds."""

    symbol: str
    start: Seconds
    end: Seconds


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Speech made of one text.

    Attributes:
        wave: samples in [-1, 1], one channel, float32, shape (N,).
        sample_rate: their rate, Hz.
        alignment: phones with their times; empty for families that know the total length alone.
        text: what was asked for.
        mel: log-mel frames that the waveform was made of, float32, shape (T, F).
        pitch: predicted F0 of each phone of `alignment` in Hz, float32, shape (P,); None for families without one.
    """

    wave: np.ndarray
    sample_rate: int
    alignment: tuple[TimedPhone, ...] = ()
    text: str = ""
    mel: np.ndarray | None = None
    pitch: np.ndarray | None = None

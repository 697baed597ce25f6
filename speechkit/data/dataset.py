"""Utterances to examples: the only place where training reads audio.

Whatever the rate, channels and container of a file, an example is one float32 channel at one rate. Augmentation is
reproducible: its random numbers come from (seed, epoch, utterance id) and nothing else, so neither the number of
workers nor the order of reading changes an example.

Shape legend: N samples, U tokens.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from speechkit.audio.augment import Compose, WaveTransform
from speechkit.audio.io import AudioError, Channel, load_audio
from speechkit.data.index import Index
from speechkit.data.shards import audio_source
from speechkit.data.wave_cache import WaveCache
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Seconds, Utterance

_MISSING_TAIL: tuple[Seconds, float] = (0.2, 0.05)  # a file may lack this much of an utterance: seconds, or a share


class Example(NamedTuple):
    """One utterance, read and tokenised.

    Attributes:
        id: utterance id.
        wave_N: samples, float32, shape (N,).
        tokens_U: token ids, int64, shape (U,); empty without a tokenizer.
        text: transcript, normalised.
        lang: language code, "" when unknown.
        speaker: speaker label, "" when unknown.
        task: name of the task, "" for the model's usual one.
        task_tokens_U: ids of what the task asks for, int64, shape (U',); None where that is the transcript.
        prompt_tokens_U: ids of the text that came before, int64, shape (U'',); None where there is none.
    """

    id: str
    wave_N: np.ndarray
    tokens_U: np.ndarray
    text: str
    lang: str
    speaker: str
    task: str = ""
    task_tokens_U: np.ndarray | None = None
    prompt_tokens_U: np.ndarray | None = None


class SpeechDataset(Dataset["Example | None"]):
    """Map-style dataset over a manifest's utterances.

    An example holds at most `durations[i]` seconds, which is what a sampler plans with: the utterance's duration as far
    as the transforms may lengthen it (speed perturbation to 0.9 gives 1/0.9 of it, pauses add to it).
    Planning with the worst case is the price for batches that never exceed their budget.
    """

    def __init__(
        self,
        *,
        utterances: Sequence[Utterance] | Index,
        tokenizer: Tokenizer | None = None,
        normalizer: Callable[[str], str] | None = None,
        sample_rate: int = 16000,
        channel: Channel = "mean",
        transforms: Sequence[WaveTransform] = (),
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
        cache: Literal["memory"] | None = None,
        target_field: str | None = None,
        task_field: str | None = None,
        prompt_field: str | None = None,
    ) -> None:
        """Creates the dataset; reads no audio.

        Args:
            utterances: rows of a manifest, or its index (for millions of them).
            tokenizer: turns transcripts into token ids; None leaves them empty.
            normalizer: applied to transcripts before anything else.
            sample_rate: what waveforms are resampled to, Hz.
            channel: "mean" averages the channels, an int takes that one.
            transforms: augmenters, called in turn as `(wave_N, sample_rate, rng) -> wave_N`.
            on_error: what audio that cannot be read does: "raise" an AudioError with id and path, or "skip": the item
                is None, a warning says why, and `collate_asr` counts it.
            seed: of the augmentation.
            cache: "memory" keeps decoded audio as 16-bit samples in memory that forked workers share (1.9 MB a minute
                at 16 kHz), for codecs that are slow to decode. The first read gives the rounded samples as well.
            target_field: manifest field with the text that the task asks for, such as a translation; rows without it,
                or with nothing in it, are to be transcribed. None when all are.
            task_field: manifest field with the name of the task; rows without it have the model's usual one.
            prompt_field: manifest field with the text that came before; rows without it have none.

        Raises:
            ValueError: an option has none of its values.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={on_error!r}: must be "raise" or "skip"')
        if cache not in (None, "memory"):
            raise ValueError(f'cache={cache!r}: must be "memory" or null')
        if sample_rate < 1:
            raise ValueError(f"sample_rate={sample_rate}: must be above 0 Hz")
        self.utterances = utterances
        self.tokenizer = tokenizer
        self.normalizer = normalizer
        self.sample_rate = sample_rate
        self.channel = channel
        self.transform = Compose(transforms=transforms)
        self.on_error = on_error
        self.seed = seed
        self.target_field, self.task_field, self.prompt_field = target_field, task_field, prompt_field
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._num_tokens: np.ndarray | None = None
        self._cache = WaveCache(self._read_durations(), sample_rate) if cache else None

    def __len__(self) -> int:
        return len(self.utterances)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's augmentation; workers that are running see it at once."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch that was set last."""
        return int(self._epoch)

    @property
    def durations(self) -> np.ndarray:
        """The longest that each example can get, in seconds, float32, shape (len,)."""
        durations = self._read_durations()
        stretch, added = np.float32(self.transform.max_stretch), np.float32(self.transform.max_added)
        return durations if (stretch, added) == (1.0, 0.0) else durations * stretch + added

    @property
    def num_tokens(self) -> np.ndarray | None:
        """Tokens of each transcript, or of what its task asks for where that is longer, int32, shape (len,).

        None without a tokenizer. A compiled index knows of the transcripts alone.
        """
        if self.tokenizer is None:
            return None
        if self._num_tokens is None:
            indexed = self.utterances.num_tokens if isinstance(self.utterances, Index) else None
            if indexed is None:
                indexed = np.fromiter((self._longest(self.utterances[i]) for i in range(len(self))), np.int32, len(self))
            self._num_tokens = indexed
        return self._num_tokens

    def __getitem__(self, i: int) -> Example | None:
        """Reads, augments and tokenises utterance `i`.

        Returns:
            The example, or None where its audio cannot be read and `on_error` is "skip".

        Raises:
            AudioError: the audio cannot be read and `on_error` is "raise"; the message has id and path.
        """
        utterance = self.utterances[i]
        try:
            wave_N = self._wave(i, utterance)
        except (AudioError, OSError) as error:
            message = f"utterance {utterance.id!r}: {error}"
            if self.on_error == "raise":
                raise AudioError(message) from error
            warnings.warn(f"skipped {message}", RuntimeWarning, stacklevel=2)
            return None
        wave_N = self.transform(wave_N, self.sample_rate, self._rng(utterance.id))
        text = self._text(utterance)
        return Example(
            id=utterance.id,
            wave_N=wave_N,
            tokens_U=self._tokens(text),
            text=text,
            lang=utterance.lang,
            speaker=utterance.speaker,
            task=field_text(utterance, self.task_field),
            task_tokens_U=self._field_tokens(utterance, self.target_field),
            prompt_tokens_U=self._field_tokens(utterance, self.prompt_field),
        )

    def _wave(self, i: int, utterance: Utterance) -> np.ndarray:
        if self._cache is None:
            return self._read(utterance)
        wave_N = self._cache.get(i)
        return self._cache.put(i, self._read(utterance)) if wave_N is None else wave_N

    def _read(self, utterance: Utterance) -> np.ndarray:
        if not utterance.duration > 0:
            raise AudioError(f"{utterance.audio_path}: duration={utterance.duration} in the manifest; correct the row")
        wave_N, _ = load_audio(
            audio_source(utterance),
            sample_rate=self.sample_rate,
            channel=self.channel,
            start=utterance.start,
            duration=utterance.duration,
        )
        found = len(wave_N) / self.sample_rate
        if utterance.duration - found > max(_MISSING_TAIL[0], _MISSING_TAIL[1] * utterance.duration):
            raise AudioError(
                f"{utterance.audio_path}: ends after {found:.2f} s of the {utterance.duration:.2f} s that the manifest "
                f"promises from {utterance.start:.2f} s on; restore the file or correct the row"
            )
        return wave_N

    def _read_durations(self) -> np.ndarray:
        if isinstance(self.utterances, Index):
            return self.utterances.durations
        return np.fromiter((utterance.duration for utterance in self.utterances), np.float32, len(self.utterances))

    def _text(self, utterance: Utterance) -> str:
        return utterance.text if self.normalizer is None else self.normalizer(utterance.text)

    def _tokens(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(text) if self.tokenizer is not None else [], dtype=np.int64)

    def _field_tokens(self, utterance: Utterance, name: str | None) -> np.ndarray | None:
        """Tokens of the text in a field of the manifest; None where there is none."""
        text = field_text(utterance, name)
        if not text:
            return None
        return self._tokens(text if self.normalizer is None else self.normalizer(text))

    def _longest(self, utterance: Utterance) -> int:
        """Tokens of the transcript, or of what the task asks for if these are more."""
        wanted = self._field_tokens(utterance, self.target_field)
        return max(len(self._tokens(self._text(utterance))), 0 if wanted is None else len(wanted))

    def _rng(self, utterance_id: str) -> np.random.Generator:
        key: Any = f"{self.seed}/{self.epoch}/{utterance_id}".encode("utf-8", "surrogatepass")
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little"))


def field_text(utterance: Utterance, name: str | None) -> str:
    """The text in a further field of a manifest row; "" without a name, and where the row has nothing there.

    Raises:
        ValueError: the field holds something else than a text.
    """
    value = None if name is None else utterance.extra.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"utterance {utterance.id!r}: field {name!r} is {value!r}, not a text; correct the manifest")
    return value or ""

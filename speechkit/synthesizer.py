"""Speech from text of any length: one sentence or a book, one voice or many.

How a text travels::

    text -> front end: normalised, split at sentences and clauses, phones -> those that the model knows
         -> batches of pieces of similar length -> the family's `infer` (mel frames, or a waveform) -> vocoder
         -> pieces of a text joined in order, with pauses by what they end with

A piece sounds the same alone and in any batch: random numbers are drawn by its phones and the seed, and padding is masked.

Shape legend: B batch, N samples, P phones, T mel frames, F mel bins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Integral, Real
from types import NoneType
from typing import Any, NamedTuple, Protocol, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.audio.joining import after_pause, in_a_row, joined
from speechkit.audio.prompts import read_prompt
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.vocoder.griffin_lim import GriffinLim
from speechkit.text.known_phones import KnownPhones, describe
from speechkit.text.pauses import pauses_before
from speechkit.text.tokenizers import PhonemeTokenizer, Tokenizer
from speechkit.text.verbalize import base_language
from speechkit.types import Seconds, Synthesis, TimedPhone, TtsInputs, TtsOutput

FIRST_CHARS = 60  # of the first piece of a stream, so that the first sound comes early


class TextFrontEnd(Protocol):
    """Text to phones; `speechkit.text.frontend.FrontEnd` is one."""

    @property
    def lang(self) -> str:
        """Language of texts that come without one."""

    def phones(self, text: str, *, lang: str | None = None) -> list[str]:
        """Symbols of a text, [] where there is nothing to say."""

    def split(self, text: str, *, max_chars: int = 200, lang: str | None = None) -> list[str]:
        """A long text in pieces."""


class Vocoder(Protocol):
    """Mels to waveforms; every vocoder of `speechkit.models.vocoder` is one."""

    mel: MelSpectrogram

    def vocode(self, mel_BTF: Tensor, mel_lens_B: Tensor, *, seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Waveforms and their lengths in samples."""


class _Piece(NamedTuple):
    """A part of one of the texts."""

    text: int
    written: str
    pause: Seconds
    symbols: list[str]
    phones: list[int]


class _Prompt(NamedTuple):
    """A voice to imitate: its speech and what it says."""

    wave_N: Tensor
    phones: list[int]


class _Job(NamedTuple):
    """What a call asks for beside texts and voices, checked and read."""

    options: Any
    language: str | None
    language_number: int
    prompt: _Prompt | None
    pauses: float
    seed: int


class Synthesizer:
    """A trained synthesiser, ready to speak. Made by `speechkit.load`.

    Args:
        mel: the mel spectrogram that the model was trained on.
        model: a model of any synthesis family.
        frontend: text to phones.
        tokenizer: phones to ids.
        infer: the family's `infer` function.
        options: the family's frozen options.
        vocoder: mels to waveforms; None for Griffin-Lim, which needs no training.
        speakers: names of the voices, in the order of their numbers.
        languages: language codes, likewise.
        log_f0_mean: mean log F0 of each voice, to give pitch in Hz; None where unknown.
        log_f0_std: deviation that pitch was normalised by.
        name: how the model is called in messages.
        max_chars: longest piece of text given to the model at once; not much longer than what it was trained on.

    Raises:
        ValueError: the vocoder was trained on another mel; it names the fields that differ.
    """

    def __init__(
        self,
        *,
        mel: MelSpectrogram,
        model: nn.Module,
        frontend: TextFrontEnd,
        tokenizer: Tokenizer,
        infer: Callable[..., TtsOutput],
        options: Any,
        vocoder: Any = None,
        speakers: Sequence[str] = ("",),
        languages: Sequence[str] = ("",),
        log_f0_mean: Mapping[str, float] | None = None,
        log_f0_std: float | None = None,
        name: str = "",
        max_chars: int = 200,
    ) -> None:
        self.mel, self.frontend, self.tokenizer = mel, frontend, tokenizer
        self._known: KnownPhones | None = None
        if isinstance(tokenizer, PhonemeTokenizer):
            self._known = KnownPhones(tokenizer.pieces(range(tokenizer.vocab_size)))
        self._replaced: dict[str, list[str]] = {}  # phones that the model does not know, and what is said for them
        self._num_told = 0  # of these
        self.model: Any = model.eval()
        self.infer, self.options = infer, options
        self.speakers, self.languages = tuple(speakers), tuple(languages)
        self.log_f0_mean, self.log_f0_std = dict(log_f0_mean or {}), log_f0_std
        self.name, self.max_chars = name, max_chars
        self.vocoder: Vocoder = GriffinLim(mel=mel) if vocoder is None else vocoder.eval()
        mel.check_same(self.vocoder.mel, name=name or "the synthesiser", other_name="its vocoder")

    @property
    def sample_rate(self) -> int:
        """Rate of the waveforms, Hz."""
        return self.mel.sample_rate

    @property
    def device(self) -> torch.device:
        """Device that the model lives on."""
        return next(self.model.parameters()).device

    def num_parameters(self) -> int:
        """Number of parameters, the vocoder's apart."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def synthesize(
        self,
        text: str | Sequence[str],
        *,
        speaker: str | Sequence[str | None] | None = None,
        language: str | None = None,
        prompt: Any = None,
        prompt_text: str | None = None,
        prompt_sample_rate: int | None = None,
        speed: float | None = None,
        pitch: float | None = None,
        seed: int = 0,
        pauses: float = 1.0,
        batch_size: int = 8,
        **options: Any,
    ) -> Any:
        """Speaks a text or a list of texts.

        Args:
            text: what to say. A text without anything to say (empty, or nothing but emoji) gives an empty waveform and a
                warning.
            speaker: name of the voice; None for the first. A list gives each text its own.
            language: language code of the text, for models of several, with or without a region ("en-us" is "en" where that is
                all the model knows); None for the front end's own.
            prompt: speech of the voice to imitate, for families that do: a path, an open file, bytes, or an array or tensor of
                samples; up to 30 s. Silence at its ends is cut off, and a quiet one made louder.
            prompt_text: what is said in it.
            prompt_sample_rate: of a prompt given as array or tensor, Hz; None for the model's own rate.
            speed: 2.0 speaks twice as fast; None for the model's options.
            pitch: semitones up; None for the model's options.
            seed: of all random numbers.
            pauses: how long pauses between pieces of a text are: 1.0 for 0.12 s of silence after a clause, 0.25 s after a
                sentence and 0.5 s after a paragraph, at normal speed; 0 for none but those that the model makes itself.
            batch_size: pieces of text spoken together; it changes the speed, not the sound.
            options: further options of the model's family, such as energy of FastSpeech, or num_steps, guidance and temperature
                of flow matching: what the fields of `self.options` are called.

        Returns:
            A `Synthesis`, or a list of them for a list of texts.

        Raises:
            ValueError: an argument is unknown to this model, or out of range.
            AudioError: the prompt cannot be read.
        """
        job = self._job(language, prompt, prompt_text, prompt_sample_rate, pauses, seed, speed=speed, pitch=pitch, **options)
        _check_batch_size(batch_size)
        if isinstance(text, str):
            if not (speaker is None or isinstance(speaker, str)):
                raise ValueError(f"speaker={speaker!r}: one text takes one voice")
            return self._speak([text], [speaker], job, batch_size)[0]
        texts = list(text)
        speakers = [speaker] * len(texts) if speaker is None or isinstance(speaker, str) else list(speaker)
        if len(speakers) != len(texts):
            raise ValueError(f"{len(speakers)} speakers for {len(texts)} texts; give one for each, or one for all")
        return self._speak(texts, speakers, job, batch_size)

    def stream(
        self,
        text: str,
        *,
        speaker: str | None = None,
        language: str | None = None,
        prompt: Any = None,
        prompt_text: str | None = None,
        prompt_sample_rate: int | None = None,
        speed: float | None = None,
        pitch: float | None = None,
        seed: int = 0,
        pauses: float = 1.0,
        first_chars: int | None = FIRST_CHARS,
        batch_size: int = 1,
        **options: Any,
    ) -> Iterator[Synthesis]:
        """Speaks a text piece by piece: what `synthesize` says, but with the first piece cut short.

        Arguments as in `synthesize`; wrong ones are refused at once.

        Args:
            first_chars: longest first piece; None for one as long as the others.
            batch_size: most pieces spoken together: one at first, then twice as many each time. More are faster on the whole,
                and come in gusts.

        Returns:
            What `synthesize` makes of each piece, times counted from the beginning of the text; its text is that of the piece.
            One empty piece where there is nothing to say.
        """
        if not isinstance(text, str):
            raise ValueError(f"text={text!r} is no string; a list of texts is for synthesize")
        if first_chars is not None and first_chars < 1:
            raise ValueError(f"first_chars={first_chars} must be at least 1, or None")
        job = self._job(language, prompt, prompt_text, prompt_sample_rate, pauses, seed, speed=speed, pitch=pitch, **options)
        _check_batch_size(batch_size)
        pieces = self._pieces(0, text, job.language, first_chars=first_chars)
        return in_a_row(self._stream(text, pieces, _speaker_number(speaker, self.speakers), job, batch_size))

    def _stream(self, text: str, pieces: Iterator[_Piece], speaker: int, job: _Job, batch_size: int) -> Iterator[Synthesis]:
        size = 0
        while batch := list(islice(pieces, max(size, 1))):
            self._tell_replaced()
            for piece, made in zip(batch, self._speak_batch(batch, [speaker] * len(batch), job)):
                yield dataclasses.replace(made, text=piece.written)
            size = min(2 * len(batch), batch_size)
        if not size:
            yield joined([], text=text, mel=self.mel)

    def _job(
        self,
        language: str | None,
        prompt: Any,
        prompt_text: str | None,
        prompt_sample_rate: int | None,
        pauses: float,
        seed: int,
        *,
        speed: float | None,
        pitch: float | None,
        **options: Any,
    ) -> _Job:
        """What a call asks for, checked and read."""
        if not 0.0 <= pauses < float("inf"):
            raise ValueError(f"pauses={pauses} must be a number from 0; 1.0 is usual")
        changes = {name: value for name, value in (("speed", speed), ("pitch", pitch)) if value is not None}
        if any(field.name == "seed" for field in dataclasses.fields(self.options)):
            changes["seed"] = seed
        options = self._options(**changes, **options)
        return _Job(
            options=options,
            language=language,
            language_number=_language_number(language, self.frontend.lang, self.languages),
            prompt=None if prompt is None else self._prompt(prompt, prompt_text, prompt_sample_rate, language),
            pauses=pauses / getattr(options, "speed", 1.0),
            seed=seed,
        )

    def _speak(self, texts: Sequence[str], speakers: Sequence[str | None], job: _Job, batch_size: int) -> list[Synthesis]:
        numbers = [_speaker_number(speaker, self.speakers) for speaker in speakers]
        pieces = [piece for index, text in enumerate(texts) for piece in self._pieces(index, text, job.language)]
        self._tell_replaced()
        made: dict[int, Synthesis] = {}
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].phones))
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = [pieces[i] for i in chosen]
            made.update(zip(chosen, self._speak_batch(batch, [numbers[piece.text] for piece in batch], job)))
        parts: list[list[Synthesis]] = [[] for _ in texts]
        for i, piece in enumerate(pieces):
            parts[piece.text].append(made[i])
        return [joined([*in_a_row(own)], text=text, mel=self.mel) for text, own in zip(texts, parts)]

    def _options(self, **changes: Any) -> Any:
        """The family's options with what a call changes."""
        hints = get_type_hints(type(self.options))
        for name, value in changes.items():
            if name not in hints:
                known = ", ".join(sorted(hints))
                raise ValueError(f"{name}={value!r}: {self.name or 'this model'} has no option {name}; its options are {known}")
            _check_number(name, value, hints[name])
        return dataclasses.replace(self.options, **changes)

    def _pieces(self, index: int, text: str, language: str | None, *, first_chars: int | None = None) -> Iterator[_Piece]:
        """The pieces of one text that have something to say, the first cut to so many characters."""
        if not isinstance(text, str):
            raise ValueError(f"text={text!r} is a {type(text).__name__}; give a string, or a list of strings")
        found = False
        parts = self.frontend.split(text, max_chars=self.max_chars, lang=language)
        if parts and first_chars is not None:
            [first, *more] = self.frontend.split(parts[0], max_chars=min(first_chars, self.max_chars), lang=language)
            parts[:1] = [first, parts[0][len(first) :].lstrip()] if more else [first]
        longest = 0.0  # pause since what was last said
        for part, pause in zip(parts, pauses_before(text, parts)):
            symbols = self._phones(part, language)
            longest = max(longest, pause)
            if symbols:
                yield _Piece(index, part, longest if found else 0.0, symbols, self.tokenizer.encode(" ".join(symbols)))
                found, longest = True, 0.0
        if not found:
            warnings.warn(f"text={text!r} has nothing to say: its speech is empty", stacklevel=4)

    def _phones(self, text: str, language: str | None) -> list[str]:
        """Phones of a text, by those that the model knows."""
        symbols = self.frontend.phones(text, lang=language)
        if self._known is None:
            return symbols
        for symbol in symbols:
            if self._known.stand_in(symbol) != [symbol]:
                self._replaced.setdefault(symbol, self._known.stand_in(symbol))
        return self._known.said(symbols)

    def _tell_replaced(self) -> None:
        """Warns of phones that were replaced, of each once."""
        new = dict(list(self._replaced.items())[self._num_told :])
        self._num_told = len(self._replaced)
        if new:
            warnings.warn(f"{self.name or 'this model'} was not trained on the phones {describe(new)}", stacklevel=4)

    def _prompt(self, prompt: Any, text: str | None, sample_rate: int | None, language: str | None) -> _Prompt:
        """The voice to imitate, read."""
        if text is None:
            raise ValueError("prompt_text=None: say what is spoken in the prompt")
        wave_N = read_prompt(prompt, sample_rate=self.sample_rate, given_rate=sample_rate)
        symbols = self._phones(text, language)
        if not symbols:
            raise ValueError(f"prompt_text={text!r} has nothing to say; give what is spoken in the prompt")
        return _Prompt(torch.from_numpy(wave_N), self.tokenizer.encode(" ".join(symbols)))

    @torch.inference_mode()
    def _speak_batch(self, pieces: Sequence[_Piece], speakers: Sequence[int], job: _Job) -> list[Synthesis]:
        device, prompt = self.device, job.prompt
        ids = tuple(f"{speaker}/{' '.join(piece.symbols)}" for piece, speaker in zip(pieces, speakers))
        phones_BP, lens_B = _padded([torch.tensor(piece.phones) for piece in pieces])
        prompts: dict[str, Tensor] = {}
        if prompt is not None:
            prompts["prompt_wave_BN"], prompts["prompt_wave_lens_B"] = _padded([prompt.wave_N] * len(pieces))
            prompts["prompt_phones_BP"], prompts["prompt_phone_lens_B"] = _padded([torch.tensor(prompt.phones)] * len(pieces))
        inputs = TtsInputs(
            phones_BP=phones_BP.to(device),
            phone_lens_B=lens_B.to(device),
            speakers_B=torch.tensor(speakers, device=device),
            languages_B=torch.full((len(pieces),), job.language_number, device=device),
            ids=ids,
            **{name: value.to(device) for name, value in prompts.items()},
        )
        output = self.infer(self.model, inputs, mel=self.mel, options=job.options)
        wave_BN, wave_lens_B = output.wave_BN, output.wave_lens_B
        if wave_BN is None or wave_lens_B is None:
            seeds = [_seed(job.seed, each) for each in ids]
            wave_BN, wave_lens_B = self.vocoder.vocode(output.mel_BTF, output.mel_lens_B, seeds=seeds)
        waves_BN, mels_BTF = wave_BN.float().cpu().numpy(), output.mel_BTF.float().cpu().numpy()
        results = []
        for row, (piece, speaker) in enumerate(zip(pieces, speakers)):
            num_frames = int(output.mel_lens_B[row])
            made = Synthesis(
                wave=np.clip(waves_BN[row, : int(wave_lens_B[row])], -1.0, 1.0),
                sample_rate=self.sample_rate,
                alignment=self._alignment(piece.symbols, output, row),
                mel=mels_BTF[row, :num_frames],
                pitch=self._pitch(len(piece.symbols), output, row, speaker),
            )
            results.append(after_pause(made, round(job.pauses * piece.pause / self.mel.frame_shift), mel=self.mel))
        return results

    def _alignment(self, symbols: Sequence[str], output: TtsOutput, row: int) -> tuple[TimedPhone, ...]:
        if output.durations_BP is None:
            return ()
        ends = (output.durations_BP[row, : len(symbols)].cumsum(0).cpu().double() * self.mel.frame_shift).tolist()
        return tuple(TimedPhone(symbol, start, end) for symbol, start, end in zip(symbols, [0.0, *ends], ends))

    def _pitch(self, num_phones: int, output: TtsOutput, row: int, speaker: int) -> np.ndarray | None:
        """Pitch in Hz, where it is predicted and the voice's own is known."""
        mean = self.log_f0_mean.get(self.speakers[speaker])
        if output.pitch_BP is None or mean is None or self.log_f0_std is None:
            return None
        return np.exp(output.pitch_BP[row, :num_phones].float().cpu().numpy() * self.log_f0_std + mean)


def _speaker_number(name: str | None, names: Sequence[str]) -> int:
    """Number of a voice; the first for None."""
    if name is None:
        return 0
    if name not in names:
        raise ValueError(f"speaker={name!r} is not known; choose one of {', '.join(map(repr, names))}")
    return names.index(name)


def _language_number(asked: str | None, own: str, languages: Sequence[str]) -> int:
    """Number of a language, by its code or else without the region ("en" for "en-us"); None asks for the front end's own."""
    if not any(languages) or (asked is None and len(languages) == 1):
        return 0
    wanted = own if asked is None else asked
    for key in (str.lower, base_language):
        keys = [key(language) for language in languages]
        if key(wanted) in keys:
            return keys.index(key(wanted))
    whose = "" if asked is not None else ", the front end's own,"
    raise ValueError(f"language={wanted!r}{whose} is not known; choose one of {', '.join(map(repr, languages))}")


def _check_number(name: str, value: Any, hint: Any) -> None:
    """Refuses what is no number for an option that is one."""
    kinds = set(get_args(hint)) or {hint}
    if not kinds <= {int, float, NoneType} or (value is None and NoneType in kinds):
        return
    if not isinstance(value, Real if float in kinds else Integral) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be a {'number' if float in kinds else 'whole number'}")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, zero past each length, and the lengths."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), torch.tensor([len(row) for row in rows])


def _seed(seed: int, name: str) -> int:
    """A seed of one utterance, for vocoders that draw."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "little")

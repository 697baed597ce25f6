"""Transcription of any audio: one file or thousands, a second or an hour, from a path, an array or an open file.

How a recording travels::

    audio -> blocks of a few seconds (never the whole file) -> voice-activity regions -> features of each region
          -> windows of at most `window_seconds`, overlapping by `context_seconds` on both sides
          -> batches of similar length (padding never changes a result) -> frame log-probabilities
          -> windows of a region stitched frame by frame -> one search per region -> texts joined in order

Stitching frame labels and collapsing once is the scheme of OWSM-CTC (Peng et al., 2024, section 3.5): no text has to be
merged at window borders. Families whose decoder writes freely transcribe each window, and the words of windows are
stitched by their times. Recordings that fit into one window are decoded whole, exactly as `speechkit decode` does; the
voice-activity gate only decides whether there is speech in them at all.

Shape legend: N samples, T feature frames, F mel bins, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.audio.inputs import iter_input
from speechkit.audio.io import AudioError
from speechkit.audio.regions import speech_regions
from speechkit.search.longform import Window, plan_windows, stitch, trim_to_seams
from speechkit.text.token_table import join_texts
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import AsrBatch, Hypothesis, Seconds, Word

BLOCK_SECONDS: Seconds = 10.0


class Region(NamedTuple):
    """A stretch of speech: the recording it belongs to, where it starts, and its samples."""

    recording: int
    start: Seconds
    wave_N: np.ndarray


class _Window(NamedTuple):
    """One window of one region, ready for the encoder."""

    region: int
    place: Window
    feats_TF: Tensor
    is_part: bool  # whether the region has more windows


class Recognizer:
    """A trained recogniser, ready to transcribe. Made by `speechkit.load`.

    Args:
        features: waveform to features, with `sample_rate`, `frame_shift` and `output_dim`.
        model: a model of any recogniser family, in evaluation mode.
        tokenizer: text to token ids and back.
        infer: the family's `infer` function.
        options: the family's frozen decode options.
        languages: language codes that the model was trained on; empty when unknown.
        name: how the model is called in messages.
        window_seconds: longest stretch given to the encoder at once; not much longer than what it was trained on. A
            sixth of it, 2 seconds at most, is context on either side whose output is thrown away.
        merge_seconds: speech regions with short pauses between them are given together up to this length: the usual
            length of a training utterance. None for half of `window_seconds`.
        load_named: decode options with the models loaded that they name by folders; None where they never do.
        normalizer: name of the text normaliser that the transcripts of training went through.
    """

    def __init__(
        self,
        *,
        features: nn.Module,
        model: nn.Module,
        tokenizer: Tokenizer,
        infer: Callable[..., list[Hypothesis]],
        options: Any,
        languages: Sequence[str] = (),
        name: str = "",
        window_seconds: Seconds = 30.0,
        merge_seconds: Seconds | None = None,
        load_named: Callable[[Any, Recognizer], Any] | None = None,
        normalizer: str = "none",
    ) -> None:
        self.features: Any = features.eval()
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.infer, self._load_named = infer, load_named
        self.options = options
        self.languages, self.name, self.normalizer = tuple(languages), name, normalizer
        self.window_seconds = window_seconds
        self.merge_seconds = window_seconds / 2 if merge_seconds is None else merge_seconds
        self.context_seconds = min(2.0, window_seconds / 6)
        # Families that label frames put `decode_log_probs` beside `infer`: windows can then be stitched exactly. Those whose
        # labels depend on the options (language, task) also put `frame_log_probs` there.
        family = sys.modules[infer.__module__]
        self._decode_log_probs = getattr(family, "decode_log_probs", None)
        self._frame_log_probs = getattr(family, "frame_log_probs", None)

    @property
    def options(self) -> Any:
        """The family's decode options. Models that they name by folders are loaded when they are set."""
        return self._options

    @options.setter
    def options(self, options: Any) -> None:
        self._options = options if self._load_named is None else self._load_named(options, self)

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz that the model works at; audio of any other rate is resampled."""
        return int(self.features.sample_rate)

    @property
    def device(self) -> torch.device:
        """Device that the model lives on."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type that the model computes in."""
        return next(self.model.parameters()).dtype

    @property
    def labels_frames(self) -> bool:
        """Whether the family's output are labels of frames, as those of `frame_log_probs`."""
        return self._decode_log_probs is not None

    @property
    def label_shift(self) -> Seconds:
        """Seconds from one labelled frame to the next."""
        return float(self.features.frame_shift) * int(self.model.subsampling_factor)

    def num_parameters(self) -> int:
        """Number of trainable and fixed parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def transcribe(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        batch_size: int = 8,
        timestamps: str | None = None,
        language: str | None = None,
        on_error: str = "raise",
    ) -> list[Hypothesis]:
        """Transcribes one recording or a list of them.

        Args:
            audio: a path, open binary file, bytes, 1-D array or tensor of samples (2-D: one axis is channels, the shorter),
                or a list of these.
            sample_rate: rate of arrays and tensors in Hz; None means the model's own rate. Files know theirs.
            batch_size: windows decoded together; it changes the speed, never the text.
            timestamps: None, "word" or "token".
            language: language code of the audio, for models that know several.
            on_error: "raise" stops at the first unreadable recording; "return" gives it an empty hypothesis with `error` set.

        Returns:
            One hypothesis per recording, in the order of the input; times count from the beginning of the recording.

        Raises:
            AudioError: a recording cannot be read and `on_error` is "raise".
            ValueError: an argument is unknown or of the wrong kind.
        """
        items = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        results: dict[int, Hypothesis] = dict(
            self.transcribe_iter(
                items,
                sample_rate=sample_rate,
                batch_size=batch_size,
                timestamps=timestamps,
                language=language,
                on_error=on_error,
            )
        )
        return [results[index] for index in range(len(items))]

    def transcribe_iter(
        self,
        audio: Iterable[Any],
        *,
        sample_rate: int | None = None,
        batch_size: int = 8,
        timestamps: str | None = None,
        language: str | None = None,
        on_error: str = "raise",
    ) -> Iterator[tuple[int, Hypothesis]]:
        """As `transcribe`, yielding (position in the input, hypothesis) as soon as a recording is finished."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error={on_error!r} is not "raise" or "return"')
        if language is not None and self.languages and language not in self.languages:
            raise ValueError(
                f"language={language!r} is not known to {self.name or 'this model'}: it speaks {', '.join(self.languages)}"
            )
        chosen = {} if language is None or not hasattr(self.options, "language") else {"language": language}
        options = dataclasses.replace(self.options, timestamps=timestamps, **chosen)
        job = _Job(self, options, batch_size)
        for index, item in enumerate(audio):
            try:
                for region in self._regions(index, item, sample_rate, job.lengths):
                    yield from job.add(region)
            except AudioError as error:
                if on_error == "raise":
                    raise
                job.fail(index, str(error))
            yield from job.close(index)
        yield from job.flush()

    @torch.inference_mode()
    def decode_batch(self, batch: AsrBatch) -> tuple[list[Hypothesis], Seconds]:
        """Transcribes a batch as it is, without voice activity or windows: what evaluation decodes and times.

        Returns:
            one hypothesis per row, and the seconds from samples in host memory to texts.
        """
        synchronize = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        synchronize()
        started = time.perf_counter()
        feats_BTF, feat_lens_B = self.features(batch.wave_BN.to(self.device), batch.wave_lens_B.to(self.device))
        shift, feats_BTF = float(self.features.frame_shift), feats_BTF.to(self.dtype)
        hypotheses = self.infer(
            self.model, feats_BTF, feat_lens_B, tokenizer=self.tokenizer, options=self.options, frame_shift=shift
        )
        synchronize()
        return hypotheses, time.perf_counter() - started

    @torch.inference_mode()
    def frame_log_probs(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """Log-probabilities of the labels at each frame, of whole recordings; long ones in windows, as in `transcribe`.

        Args:
            waves: samples of one channel at the model's rate, float32, shape (N,) each; decoded together.

        Returns:
            Of each recording, on the model's device, shape (T, V); frame t is centred on second t * `label_shift`.

        Raises:
            ValueError: the family does not label frames.
        """
        if not self.labels_frames:
            raise ValueError(f"{self.name or 'this model'} does not label frames; families that do: ctc, owsm_ctc")
        feats = [self._encode(Region(number, 0.0, wave_N)) for number, wave_N in enumerate(waves)]
        places = [self._windows(feats_TF) for feats_TF in feats]
        windows = [
            _Window(number, place, feats[number][place.start : place.end], len(own) > 1)
            for number, own in enumerate(places)
            for place in own
        ]
        step = max(len(waves), 1)
        outputs = [o for i in range(0, len(windows), step) for o in self._outputs(windows[i : i + step], self.options)]
        prefix, found = getattr(self.model, "num_prefix_frames", 0), iter(outputs)
        none_TV = torch.zeros(0, self.tokenizer.vocab_size, device=self.device)
        return [stitch([next(found) for _ in own], own, prefix=prefix)[prefix:] if own else none_TV for own in places]

    def speech_regions(self, audio: Any, *, sample_rate: int | None = None) -> list[tuple[Seconds, Seconds]]:
        """Where a recording is spoken in, as `transcribe` takes it apart; a short one is one stretch.

        Args:
            audio: one recording, as in `transcribe`.
            sample_rate: rate of arrays and tensors in Hz; None means the model's own rate.

        Returns:
            beginning and end of each stretch, in seconds.

        Raises:
            AudioError: the recording cannot be read.
        """
        regions = self._regions(0, audio, sample_rate, {})
        return [(region.start, region.start + len(region.wave_N) / self.sample_rate) for region in regions]

    def _regions(self, index: int, item: Any, sample_rate: int | None, lengths: dict[int, Seconds]) -> Iterator[Region]:
        """Speech regions of one recording, read in blocks; keeps in `lengths` how long it is as far as it was read."""
        rate = self.sample_rate

        def blocks() -> Iterator[np.ndarray]:
            num_samples = 0
            for block_N in iter_input(item, sample_rate=rate, given_rate=sample_rate, block_seconds=BLOCK_SECONDS):
                num_samples += len(block_N)
                lengths[index] = num_samples / rate
                yield block_N

        stride = round(float(self.features.frame_shift) * rate) * int(self.model.subsampling_factor)
        found = speech_regions(blocks(), rate, whole=self.window_seconds, merge=self.merge_seconds, stride=stride)
        for start, wave_N in found:
            yield Region(index, start, wave_N)

    @torch.inference_mode()
    def _encode(self, region: Region) -> Tensor:
        """Features of one region, (T, F). One region at a time: they never depend on batch mates."""
        wave_1N = torch.from_numpy(region.wave_N).to(self.device)[None]
        feats_1TF, lens_1 = self.features(wave_1N, torch.tensor([wave_1N.shape[1]], device=self.device))
        return feats_1TF[0, : int(lens_1[0])].to(self.dtype)

    def _windows(self, feats_TF: Tensor) -> list[Window]:
        """How a region of T frames is cut into windows; window starts fall on whole output frames."""
        shift = float(self.features.frame_shift)
        factor = int(self.model.subsampling_factor)
        return plan_windows(
            feats_TF.shape[0],
            window=_round_to(self.window_seconds / shift, factor),
            context=_round_to(self.context_seconds / shift, factor),
            stride=factor,
        )

    @torch.inference_mode()
    def _outputs(self, windows: Sequence[_Window], options: Any) -> list[Any]:
        """What is stitched later, of each window: frame log-probabilities (T', V), or a hypothesis with the times of words."""
        lens_B = torch.tensor([window.feats_TF.shape[0] for window in windows], device=self.device)
        feats_BTF = nn.utils.rnn.pad_sequence([window.feats_TF for window in windows], batch_first=True)
        if self._decode_log_probs is not None:
            if self._frame_log_probs is None:
                log_probs_BTV, out_lens_B = self.model.frame_log_probs(feats_BTF, lens_B)
            else:
                log_probs_BTV, out_lens_B = self._frame_log_probs(
                    self.model, feats_BTF, lens_B, tokenizer=self.tokenizer, options=options
                )
            return [row_TV[:length] for row_TV, length in zip(log_probs_BTV, out_lens_B.tolist())]
        if any(window.is_part for window in windows):
            options = dataclasses.replace(options, timestamps="word")
        shift = float(self.features.frame_shift)
        return self.infer(self.model, feats_BTF, lens_B, tokenizer=self.tokenizer, options=options, frame_shift=shift)

    def _stitch(self, outputs: Sequence[Sequence[Any]], places: Sequence[Sequence[Window]], options: Any) -> list[Hypothesis]:
        """Hypotheses of several regions from what was made of their windows."""
        shift = float(self.features.frame_shift) * int(self.model.subsampling_factor)
        if self._decode_log_probs is not None:
            prefix = getattr(self.model, "num_prefix_frames", 0)
            log_probs = [stitch(own, windows, prefix=prefix) for own, windows in zip(outputs, places)]
            lens_B = torch.tensor([row_TV.shape[0] for row_TV in log_probs], device=self.device)
            log_probs_BTV = nn.utils.rnn.pad_sequence(log_probs, batch_first=True)
            return self._decode_log_probs(log_probs_BTV, lens_B, tokenizer=self.tokenizer, options=options, frame_shift=shift)
        joined = []
        for own, windows in zip(outputs, places):
            parts = [(0.0, own[0])]
            if len(own) > 1:
                parts = trim_to_seams(own, windows, tokenizer=self.tokenizer, frame_shift=shift)
            joined.append(_without_times(join_hypotheses(parts, audio_s=0.0), options.timestamps))
        return joined


class _Job:
    """Book-keeping of one `transcribe` call: collects windows into batches and hands finished recordings back."""

    LOOK_AHEAD = 4  # batches collected before sorting by length, so that a batch holds windows of similar length

    def __init__(self, recognizer: Recognizer, options: Any, batch_size: int) -> None:
        self.recognizer = recognizer
        self.options = options
        self.batch_size = batch_size
        self.lengths: dict[int, Seconds] = {}
        self._waiting: list[_Window] = []
        self._regions: list[Region] = []
        self._places: dict[int, list[Window]] = {}
        self._parts: dict[int, dict[Window, Any]] = defaultdict(dict)
        self._texts: dict[int, list[tuple[Seconds, Hypothesis]]] = defaultdict(list)
        self._open: dict[int, int] = defaultdict(int)  # regions of a recording that are not decoded yet
        self._closed: set[int] = set()
        self._errors: dict[int, str] = {}

    def add(self, region: Region) -> Iterator[tuple[int, Hypothesis]]:
        """Takes a region in; yields recordings that became complete."""
        number = len(self._regions)
        feats_TF = self.recognizer._encode(region)
        self._regions.append(Region(region.recording, region.start, np.zeros(0, dtype=np.float32)))
        places = self._places[number] = self.recognizer._windows(feats_TF)
        self._open[region.recording] += 1
        self._waiting += [_Window(number, place, feats_TF[place.start : place.end], len(places) > 1) for place in places]
        if len(self._waiting) >= self.LOOK_AHEAD * self.batch_size:
            yield from self._run()

    def fail(self, recording: int, message: str) -> None:
        """Marks a recording as unreadable."""
        self._errors[recording] = message

    def close(self, recording: int) -> Iterator[tuple[int, Hypothesis]]:
        """All of a recording has been added."""
        self._closed.add(recording)
        yield from self._finished()

    def flush(self) -> Iterator[tuple[int, Hypothesis]]:
        """Decodes what still waits."""
        yield from self._run()

    def _run(self) -> Iterator[tuple[int, Hypothesis]]:
        self._waiting.sort(key=lambda window: (-window.feats_TF.shape[0], window.region))
        while self._waiting:
            batch, self._waiting = self._waiting[: self.batch_size], self._waiting[self.batch_size :]
            for window, output in zip(batch, self.recognizer._outputs(batch, self.options)):
                self._parts[window.region][window.place] = output
            ready = [number for number in dict.fromkeys(window.region for window in batch) if self._is_complete(number)]
            if ready:
                self._decode_regions(ready)
                yield from self._finished()

    def _is_complete(self, number: int) -> bool:
        return len(self._parts[number]) == len(self._places[number])

    def _decode_regions(self, numbers: Sequence[int]) -> None:
        places = [self._places.pop(number) for number in numbers]
        outputs = [[parts[place] for place in own] for own, parts in zip(places, map(self._parts.pop, numbers))]
        for number, hypothesis in zip(numbers, self.recognizer._stitch(outputs, places, self.options)):
            region = self._regions[number]
            self._texts[region.recording].append((region.start, hypothesis))
            self._open[region.recording] -= 1

    def _finished(self) -> Iterator[tuple[int, Hypothesis]]:
        for recording in sorted(index for index in self._closed if not self._open[index]):
            self._closed.remove(recording)
            parts = sorted(self._texts.pop(recording, []), key=lambda part: part[0])
            length = self.lengths.get(recording, 0.0)
            if recording in self._errors:
                yield recording, Hypothesis(text="", audio_s=length, confidence=0.0, error=self._errors[recording])
            else:
                yield recording, join_hypotheses(parts, audio_s=length)


def join_hypotheses(parts: Sequence[tuple[Seconds, Hypothesis]], *, audio_s: Seconds) -> Hypothesis:
    """Joins the hypotheses of consecutive regions, each given with its start in seconds, into one for the recording."""
    tokens = tuple(token for _, part in parts for token in part.tokens)
    weight = sum(len(part.tokens) for _, part in parts)
    confidence = sum(part.confidence * len(part.tokens) for _, part in parts) / weight if weight else 1.0
    languages = [part.language for _, part in parts if part.language]
    return Hypothesis(
        text=join_texts(part.text for _, part in parts),
        tokens=tokens,
        score=sum(part.score for _, part in parts),
        words=tuple(_shift(word, start) for start, part in parts for word in part.words),
        token_times=tuple(_shift(word, start) for start, part in parts for word in part.token_times),
        language=max(set(languages), key=languages.count) if languages else "",
        confidence=confidence,
        audio_s=audio_s,
    )


def _without_times(hypothesis: Hypothesis, timestamps: str | None) -> Hypothesis:
    """Leaves out times that were only needed to stitch."""
    words = hypothesis.words if timestamps == "word" else ()
    return dataclasses.replace(hypothesis, words=words, token_times=hypothesis.token_times if timestamps else ())


def _shift(word: Word, offset: Seconds) -> Word:
    return dataclasses.replace(word, start=word.start + offset, end=word.end + offset)


def _round_to(value: float, factor: int) -> int:
    return max(factor, round(value / factor) * factor)

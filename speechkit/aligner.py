"""When each phone and each word of a known text is spoken: by a trained recogniser, or by a synthesiser's own aligner.

Two ways, with one result:

- `CtcAligner`: the best path of a recogniser that labels frames (CTC, OWSM-CTC) through the text. One whose labels are phones
  gives phones and words; one of characters or subwords gives words, and phones only where it is asked to spread those of a
  word evenly.
- `MelAligner`: monotonic alignment search over the scores of an aligner that a FastSpeech model learnt along
  (learn_alignment=true).

CTC labels a sound where it is surest of it and leaves the other frames blank. Between two sounds of a word the border
therefore lies halfway. Between two words, and at both ends, silence belongs to the boundary that the front end put there, and
what is not silent to the sounds at either side. Models that see the whole utterance also tend to label its first sounds at
once, before they are spoken: in silence of a tenth of a second or more, blank alone is allowed.

Shape legend: B batch, N samples, T frames, V vocabulary, U tokens, P phones, F mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.audio.silence import Silence
from speechkit.search.ctc_align import Alignment, ctc_align
from speechkit.text.known_phones import KnownPhones
from speechkit.text.normalize import get_normalizer
from speechkit.text.phonemes import is_boundary
from speechkit.text.tokenizers import BLANK, PhonemeTokenizer, Tokenizer
from speechkit.text.word_spans import text_words, word_spans
from speechkit.types import Seconds

if TYPE_CHECKING:
    from speechkit.recognizer import Recognizer
    from speechkit.synthesizer import Synthesizer

SILENCE_DB = -60.0  # peak level in dB of full scale below which a recording is silent
_MIN_PAUSE: Seconds = 0.05  # shorter silence is part of a sound: plosives are closed that long
_SURE_PAUSE: Seconds = 0.1  # longer silence holds no sound
_NO_SOUND = 50.0  # by which log-probabilities of sounds are lowered there; finite, so that there is a path in any case
_REACH: Seconds = 0.15  # a sound goes on no longer than this beyond the frames that it was heard in
_DIGITS = 4  # of times


class PhoneFrontEnd(Protocol):
    """Text to phones; `speechkit.text.frontend.FrontEnd` is one."""

    def phones(self, text: str, *, lang: str | None = None) -> list[str]:
        """Symbols of a text, [] where there is nothing to say."""


class Span(NamedTuple):
    """A word or phone with its place, in seconds from the first sample.

    Attributes:
        text: the word as written, or the symbol.
        start: where it begins.
        end: where it ends.
        score: mean probability of what it is made of, in [0, 1]; None where nothing tells.
    """

    text: str
    start: Seconds
    end: Seconds
    score: float | None = None


@dataclass(frozen=True, slots=True)
class UtteranceAlignment:
    """What was found in one utterance.

    Attributes:
        duration: of the audio, seconds.
        words: words with their times, in order.
        phones: every symbol of the front end, boundaries among them, from 0 to the end without a gap; () from models that
            tell of words alone.
        error: why there is no alignment, "" where there is one.
    """

    duration: Seconds
    words: tuple[Span, ...] = ()
    phones: tuple[Span, ...] = ()
    error: str = ""


class _Script(NamedTuple):
    """What one utterance says.

    Attributes:
        symbols: phones and boundaries of the whole text; [] where they are not asked for.
        words: as written, those without a sound left out.
        owners: which word each sound belongs to.
    """

    symbols: list[str]
    words: list[str]
    owners: list[int]


class _Task(NamedTuple):
    """One utterance to be laid onto frames.

    Attributes:
        row: its place in the batch.
        script: what it says.
        tokens: ids to align, those of sounds or those within words.
        token_words: the word of each token, not decreasing.
    """

    row: int
    script: _Script
    tokens: list[int]
    token_words: list[int]


class CtcAligner:
    """Aligns by the frame labels of a recogniser.

    A row's times depend on neither padding nor batch mates.

    Args:
        recognizer: of a family that labels frames.
        frontend: text to phones; None where only words are wanted of a recogniser of characters or subwords.
        phones: what becomes of phones where the recogniser has other labels: "none", or "even" to spread those of each word
            evenly over it.

    Raises:
        ValueError: the recogniser does not label frames, or phones are wanted and there is no front end.
    """

    def __init__(
        self, *, recognizer: Recognizer, frontend: PhoneFrontEnd | None = None, phones: Literal["none", "even"] = "none"
    ) -> None:
        if not recognizer.labels_frames:
            raise ValueError(
                f"{recognizer.name or 'this recogniser'} does not label frames; recognisers that do are of the families ctc and "
                "owsm_ctc (a synthesiser that learnt its alignment, fastspeech with learn_alignment=true, aligns too)"
            )
        if phones not in ("none", "even"):
            raise ValueError(f'phones={phones!r} must be "none" or "even"')
        self.recognizer = recognizer
        self.knows_phones = isinstance(recognizer.tokenizer, PhonemeTokenizer)
        self.gives_phones = self.knows_phones or phones == "even"
        if self.gives_phones and frontend is None:
            raise ValueError("frontend=None: phones need a front end to read the texts; give a speechkit.text.frontend.FrontEnd")
        self._scribe = None if frontend is None else _Scribe(frontend, recognizer.tokenizer)

    @property
    def sample_rate(self) -> int:
        """Rate that waveforms must have, Hz."""
        return self.recognizer.sample_rate

    def align(
        self, waves: Sequence[np.ndarray], texts: Sequence[str], *, langs: Sequence[str | None] | None = None
    ) -> list[UtteranceAlignment]:
        """Aligns a batch.

        Args:
            waves: samples in [-1, 1], one channel, at `sample_rate`, float32, shape (N,) each.
            texts: what is said in them.
            langs: language of each text; None for the front end's own.

        Returns:
            An alignment of each, or what stands in its way as its `error`.
        """
        results, tasks = _prepare(self._task, waves, texts, langs, self.sample_rate)
        rows_TV = self.recognizer.frame_log_probs([waves[task.row] for task in tasks])
        silences = [Silence(waves[task.row], self.sample_rate) for task in tasks]
        for task, found, row_TV, silence in zip(tasks, self._paths(rows_TV, tasks, silences), rows_TV, silences):
            results[task.row] = self._result(task, found, len(row_TV), silence)
        return results

    def _task(self, row: int, text: str, lang: str | None) -> _Task:
        if self.knows_phones:
            assert self._scribe is not None
            script = self._scribe.script(text, lang)
            return _Task(row, script, self._scribe.sound_ids(script.symbols), script.owners)
        tokenizer = self.recognizer.tokenizer
        ids = tokenizer.encode(get_normalizer(self.recognizer.normalizer)(text))
        spelt = tokenizer.split_words(ids)
        if not spelt:
            raise ValueError("the text is empty: nothing to align")
        if tokenizer.unk_id in ids:
            raise ValueError(f"text={_short(text)} cannot be spelt by the recogniser; give texts as it learnt them")
        places = [(place, word) for word, (_, span) in enumerate(spelt) for place in range(span.start, span.stop)]
        script = _Script([], [word for word, _ in spelt], [])
        if self.gives_phones:
            assert self._scribe is not None
            script = self._scribe.script(text, lang, words=script.words)
        return _Task(row, script, [ids[place] for place, _ in places], [word for _, word in places])

    def _paths(
        self, rows_TV: Sequence[Tensor], tasks: Sequence[_Task], silences: Sequence[Silence]
    ) -> list[Alignment | None]:
        """The best path of each task; labels that stand for no sound count as blank, and so does silence."""
        if not tasks:
            return []
        tokens = [torch.tensor(task.tokens, dtype=torch.long) for task in tasks]
        lens_B, token_lens_B = (torch.tensor([len(row) for row in rows]) for rows in (rows_TV, tokens))
        log_probs_BTV = nn.utils.rnn.pad_sequence(list(rows_TV), batch_first=True).float()
        silent = sorted({BLANK, *self._silent_ids()})
        blank_BT = log_probs_BTV[..., silent].logsumexp(dim=2)
        silent_BT = torch.zeros_like(blank_BT, dtype=torch.bool)
        for row, silence in enumerate(silences):
            found_T = silence.frames(len(rows_TV[row]), self.recognizer.label_shift, least=_SURE_PAUSE)
            silent_BT[row, : len(found_T)] = torch.from_numpy(found_T).to(silent_BT.device)
        log_probs_BTV = torch.where(silent_BT[..., None], log_probs_BTV - _NO_SOUND, log_probs_BTV)
        log_probs_BTV[..., BLANK] = blank_BT.masked_fill(silent_BT, 0.0)
        return ctc_align(log_probs_BTV, lens_B, nn.utils.rnn.pad_sequence(tokens, batch_first=True), token_lens_B, blank=BLANK)

    def _silent_ids(self) -> list[int]:
        """Labels between words: boundaries of phones, blanks between characters."""
        tokenizer = self.recognizer.tokenizer
        names = tokenizer.pieces(range(tokenizer.vocab_size))
        return [i for i, name in enumerate(names) if (is_boundary(name) if self.knows_phones else name == " ")]

    def _result(self, task: _Task, found: Alignment | None, num_frames: int, silence: Silence) -> UtteranceAlignment:
        shift, duration = self.recognizer.label_shift, round(silence.duration, _DIGITS)
        if found is None:
            return UtteranceAlignment(
                duration,
                error=f"no path spells {len(task.tokens)} tokens in {num_frames} frames of {1000 * shift:.0f} ms: the text is "
                "too long for the audio, or not its text",
            )
        heard = [  # frame t is centred on second t * shift
            (min(max((start - 0.5) * shift, 0.0), duration), min((end - 0.5) * shift, duration))
            for start, end in zip(found.start_frames, found.end_frames)
        ]
        times = _borders(heard, task.token_words, silence)
        scores = list(found.confidences)
        if not self.knows_phones:
            words = _words(task.script.words, task.token_words, times, scores)
            if not self.gives_phones:
                return UtteranceAlignment(duration, words)
            counts = np.bincount(task.script.owners, minlength=len(words))
            edges = [np.linspace(word.start, word.end, count + 1) for word, count in zip(words, counts)]
            times = [(float(a), float(b)) for each in edges for a, b in pairwise(each)]
            return UtteranceAlignment(duration, words, _phones(task.script.symbols, times, [None] * len(times), duration))
        words = _words(task.script.words, task.script.owners, times, scores)
        return UtteranceAlignment(duration, words, _phones(task.script.symbols, times, scores, duration))


class MelAligner:
    """Aligns by the aligner of a synthesiser that learnt it along.

    Args:
        synthesizer: of the FastSpeech family, trained with learn_alignment=true; its front end reads the texts.

    Raises:
        ValueError: the synthesiser has no aligner.
    """

    gives_phones = True

    def __init__(self, *, synthesizer: Synthesizer) -> None:
        if getattr(synthesizer.model, "aligner", None) is None:
            raise ValueError(
                f"{synthesizer.name or 'this synthesiser'} has no aligner; those of the family fastspeech that were trained with "
                "learn_alignment=true do (recognisers of the families ctc and owsm_ctc align too)"
            )
        self.synthesizer = synthesizer
        self._scribe = _Scribe(synthesizer.frontend, synthesizer.tokenizer)

    @property
    def sample_rate(self) -> int:
        """Rate that waveforms must have, Hz."""
        return self.synthesizer.sample_rate

    def align(
        self, waves: Sequence[np.ndarray], texts: Sequence[str], *, langs: Sequence[str | None] | None = None
    ) -> list[UtteranceAlignment]:
        """Aligns a batch; arguments and result as in `CtcAligner.align`."""
        results, tasks = _prepare(self._task, waves, texts, langs, self.sample_rate)
        for task, durations in zip(tasks, self._durations([waves[task.row] for task in tasks], tasks)):
            wave_N, symbols = waves[task.row], task.script.symbols
            duration = _seconds(wave_N, self.sample_rate)
            if durations is None:
                error = f"{len(symbols)} phones need a mel frame each: the text is too long for {duration:.2f} s, or not its text"
                results[task.row] = UtteranceAlignment(duration, error=error)
                continue
            edges = np.minimum(np.cumsum([0, *durations]) * self.synthesizer.mel.frame_shift, duration).tolist()
            edges[-1] = duration
            times = list(pairwise(edges))
            sounds = [time for symbol, time in zip(symbols, times) if not is_boundary(symbol)]
            results[task.row] = UtteranceAlignment(
                duration,
                _words(task.script.words, task.script.owners, sounds, [None] * len(sounds)),
                tuple(_span(symbol, time, None) for symbol, time in zip(symbols, times)),
            )
        return results

    def _task(self, row: int, text: str, lang: str | None) -> _Task:
        script = self._scribe.script(text, lang)
        return _Task(row, script, self._scribe.ids(script.symbols), [])

    @torch.inference_mode()
    def _durations(self, waves: Sequence[np.ndarray], tasks: Sequence[_Task]) -> list[list[int] | None]:
        """Frames of each phone; None where there are too few."""
        if not tasks:
            return []
        own: Any = self.synthesizer
        pad = nn.utils.rnn.pad_sequence
        wave_BN = pad([torch.from_numpy(np.asarray(wave_N, np.float32)) for wave_N in waves], batch_first=True)
        wave_lens_B, phone_lens_B = (torch.tensor([*map(len, rows)]) for rows in (waves, [task.tokens for task in tasks]))
        phones_BP = pad([torch.tensor(task.tokens) for task in tasks], batch_first=True).to(own.device)
        mel_BTF, mel_lens_B = own.mel(wave_BN.to(own.device), wave_lens_B.to(own.device))
        dtype = next(own.model.parameters()).dtype
        found = own.model.align(mel_BTF.to(dtype), mel_lens_B, phones_BP, phone_lens_B.to(own.device))
        return [
            durations_P[: len(task.tokens)].tolist() if usable else None
            for task, durations_P, usable in zip(tasks, found.durations_BP.cpu(), found.usable_B.tolist())
        ]


class _Scribe:
    """Texts to phones that a model knows, and the words that they make."""

    def __init__(self, frontend: PhoneFrontEnd, tokenizer: Tokenizer) -> None:
        self.frontend = frontend
        self._known = KnownPhones(tokenizer.pieces(range(tokenizer.vocab_size)))
        self._read: dict[tuple[str, str | None], list[str]] = {}

    def script(self, text: str, lang: str | None, *, words: Sequence[str] | None = None) -> _Script:
        """Phones and words of a text; the words may be given."""
        symbols = self.frontend.phones(text, lang=lang)
        if not symbols:
            raise ValueError(f"text={_short(text)} has nothing to say: nothing to align")
        written = text_words(text) if words is None else list(words)
        spans = word_spans(written, symbols, lambda word: self._phones(word, lang))
        if words is None:
            kept = [(word, span) for word, span in zip(written, spans) if span.start < span.stop]
            written, spans = [word for word, _ in kept], [span for _, span in kept]
        owners = [number for number, span in enumerate(spans) for _ in range(span.start, span.stop)]
        if not owners:
            raise ValueError(f"text={_short(text)}: its words have no phones by themselves, so that their places are not known")
        return _Script(symbols, written, owners)

    def ids(self, symbols: Sequence[str]) -> list[int]:
        """Ids of symbols, or of what stands in for those that the model does not know: of several sounds the first.

        Raises:
            ValueError: for some there is nothing like them.
        """
        found = [self._known.stand_in(symbol)[:1] for symbol in symbols]
        unknown = sorted({symbol for symbol, names in zip(symbols, found) if not names})
        if unknown:
            raise ValueError(f"the model does not know the phones {' '.join(unknown[:10])}; use the front end it learnt by")
        return self._known.ids([name for [name] in found])

    def sound_ids(self, symbols: Sequence[str]) -> list[int]:
        """Ids of the symbols that are no boundaries."""
        return self.ids([symbol for symbol in symbols if not is_boundary(symbol)])

    def _phones(self, word: str, lang: str | None) -> list[str]:
        if (word, lang) not in self._read:
            self._read[word, lang] = self.frontend.phones(word, lang=lang)
        return self._read[word, lang]


def _borders(
    heard: Sequence[tuple[Seconds, Seconds]], words: Sequence[int], silence: Silence
) -> list[tuple[Seconds, Seconds]]:
    """When tokens begin and end, from when they were heard and the word of each."""
    starts, ends = [start for start, _ in heard], [end for _, end in heard]
    for i in range(1, len(heard)):
        gap = heard[i - 1][1], heard[i][0]
        middle = (gap[0] + gap[1]) / 2
        if words[i - 1] == words[i]:
            ends[i - 1] = starts[i] = middle
            continue
        pause = silence.longest(*gap, least=_MIN_PAUSE) or (middle, middle)
        ends[i - 1], starts[i] = min(pause[0], gap[0] + _REACH), max(pause[1], gap[1] - _REACH)
    pause = silence.longest(0.0, starts[0], least=_MIN_PAUSE) or (0.0, 0.0)
    starts[0] = max(pause[1], starts[0] - _REACH)
    pause = silence.longest(ends[-1], silence.duration, least=_MIN_PAUSE) or (silence.duration, silence.duration)
    ends[-1] = min(pause[0], ends[-1] + _REACH)
    return list(zip(starts, ends))


def _prepare(
    make_task: Callable[[int, str, str | None], _Task],
    waves: Sequence[np.ndarray],
    texts: Sequence[str],
    langs: Sequence[str | None] | None,
    sample_rate: int,
) -> tuple[list[UtteranceAlignment], list[_Task]]:
    """Tasks of the rows that can be aligned, and results that say why the others cannot."""
    langs = [None] * len(waves) if langs is None else langs
    if not len(waves) == len(texts) == len(langs):
        raise ValueError(f"{len(waves)} waves, {len(texts)} texts and {len(langs)} langs; give one of each for an utterance")
    results: list[UtteranceAlignment] = []
    tasks: list[_Task] = []
    for row, (wave_N, text, lang) in enumerate(zip(waves, texts, langs)):
        error = ""
        peak = float(np.abs(wave_N).max(initial=0.0))
        if not peak > 10 ** (SILENCE_DB / 20):
            error = f"the audio is silent: its loudest sample is below {SILENCE_DB:g} dB"
        else:
            try:
                tasks.append(make_task(row, text, lang or None))
            except ValueError as found:
                error = str(found)
        results.append(UtteranceAlignment(_seconds(wave_N, sample_rate), error=error))
    return results, tasks


def _words(
    words: Sequence[str],
    owners: Sequence[int],
    times: Sequence[tuple[Seconds, Seconds]],
    scores: Sequence[float] | Sequence[None],
) -> tuple[Span, ...]:
    """Words from what each is made of."""
    spans = []
    for number, word in enumerate(words):
        own = [place for place, owner in enumerate(owners) if owner == number]
        known = [score for score in (scores[place] for place in own) if score is not None]
        span = (times[own[0]][0], times[own[-1]][1])
        spans.append(_span(word, span, sum(known) / len(known) if known else None))
    return tuple(spans)


def _phones(
    symbols: Sequence[str],
    times: Sequence[tuple[Seconds, Seconds]],
    scores: Sequence[float] | Sequence[None],
    duration: Seconds,
) -> tuple[Span, ...]:
    """All symbols from the times of the sounds: boundaries take what lies between them."""
    spans = []
    sounds = iter(zip(times, scores))
    nexts = iter([*(start for start, _ in times), duration])
    now, after = 0.0, next(nexts)
    for symbol in symbols:
        if is_boundary(symbol):
            spans.append(_span(symbol, (now, after), None))
            now = after
            continue
        time, score = next(sounds)
        spans.append(_span(symbol, time, score))
        now, after = time[1], next(nexts)
    return tuple(spans)


def _span(text: str, time: tuple[Seconds, Seconds], score: float | None) -> Span:
    return Span(text, round(time[0], _DIGITS), round(time[1], _DIGITS), None if score is None else round(score, _DIGITS))


def _seconds(wave_N: np.ndarray, sample_rate: int) -> Seconds:
    return round(len(wave_N) / sample_rate, _DIGITS)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")

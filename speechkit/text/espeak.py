"""Speech and phonemes from the espeak-ng library, through ctypes.

`espeakng_loader` (extra `demo`) carries the shared library and its data. The library keeps one global state per
process: every call here takes a lock, the library is loaded on first use, and the lock is held across `fork`, so that
a child process inherits a sound state. The synthesiser also carries oscillator phases and noise over from one
utterance to the next; `speak` therefore unloads the library and loads it anew (0.6 ms), and seeds both its own random
generator and the C library's, so that its output depends on its arguments alone.

Shape legend: N samples.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechkit.types import Seconds

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_PHONEME_IPA = 0x0002
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_PARAMETER_RATE, _PARAMETER_VOLUME, _PARAMETER_PITCH, _PARAMETER_RANGE, _PARAMETER_WORDGAP = 1, 2, 3, 4, 7
_PHONEMES_IPA = 0x02
_RATE_RANGE = (80, 450)
_LANGUAGE_SWITCH = re.compile(r"\([a-z]{2,4}(-[a-z0-9-]+)?\)")  # around foreign words
_DOTTED_LETTERS = re.compile(r"(?:(?<![^\W_])[^\W\d_]\.[\W_]*){16,}")  # a hundred of them overrun the library's memory
_PROSODY = re.compile("[\u02c8\u02cc\u02d0]")  # marks of stress and length
_VOWELS = frozenset(
    "aeiouy\u00e6\u00f8\u0153\u0250\u0251\u0252\u0254\u0259\u025a\u025b\u025c\u0264\u0268\u026a\u026f\u0275\u0276\u0289\u028a\u028c\u028f"
)
_PUNCTUATION = '.,;:!?"()[]\u2026\u201c\u201d\u201e\u00ab\u00bb\u00bf\u00a1-'


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class TimedSymbol(NamedTuple):
    """A phoneme or a word with its place in the audio, in seconds from the beginning."""

    symbol: str
    start: Seconds
    end: Seconds


class Clause(NamedTuple):
    """A stretch of text that espeak-ng speaks in one go: what is written, closing punctuation included, and its IPA."""

    written: str
    spoken: str


@dataclass(frozen=True, slots=True)
class SpokenUtterance:
    """What `speak` returns.

    Attributes:
        wave: float32 waveform in [-1, 1], shape (N,).
        sample_rate: samples per second.
        phonemes: IPA symbols (stress marks included) with times; pauses have no symbol and leave gaps. They are the
            symbols of `phonemize`, one by one: where the voice makes one sound of two ("w" and "a" in French "froide"),
            the weaker has a third of the time.
        words: words of the text with times; words that the voice joins into one ("out of") stay one entry.
    """

    wave: np.ndarray
    sample_rate: int
    phonemes: tuple[TimedSymbol, ...]
    words: tuple[TimedSymbol, ...]


class _RawEvent(NamedTuple):
    kind: int
    sample: int
    text_position: int
    symbol: str


class _Library:
    """The loaded library and the buffers that its callback fills."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError('espeak-ng is needed for synthetic speech and phonemes: pip install "speechkit[demo]"') from error
        self.chunks: list[np.ndarray] = []
        self.events: list[_RawEvent] = []
        self.data_path = Path(espeakng_loader.get_data_path())
        self.lib: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        self._declare()
        options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_PHONEME_IPA | _INITIALIZE_DONT_EXIT
        self.sample_rate = int(self.lib.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, str(self.data_path).encode(), options))
        if self.sample_rate <= 0:
            raise OSError(f"espeak-ng could not start with its data at {self.data_path}: reinstall espeakng-loader")
        self._callback = _SynthCallback(self._on_audio)  # kept: the library holds a bare pointer to it
        self.lib.espeak_SetSynthCallback(self._callback)

    def _declare(self) -> None:
        pointer, integer, unsigned = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
        self.lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.lib.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(pointer), integer, integer]
        self.lib.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        self.lib.espeak_ListVoices.argtypes = [pointer]
        self.lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.lib.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self.lib.espeak_SetParameter.argtypes = [integer, integer, integer]
        self.lib.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, unsigned, integer, unsigned, unsigned, pointer, pointer
        ]  # fmt: skip

    def _on_audio(self, wave: Any, num_samples: int, events: Any) -> int:
        if num_samples > 0 and wave:
            self.chunks.append(np.ctypeslib.as_array(wave, shape=(num_samples,)).copy())
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                symbol = event.id.string.decode("utf-8", "ignore")
                self.events.append(_RawEvent(_EVENT_PHONEME, event.sample, event.text_position, symbol))
            elif event.type == _EVENT_WORD:
                self.events.append(_RawEvent(_EVENT_WORD, event.sample, event.text_position, ""))
            index += 1
        return 0

    def read(self, text: str, separator: str) -> list[Clause]:
        """Clauses of a text in the voice that is set; together they hold the whole text."""
        mode = _PHONEMES_IPA | (ord(separator) << 8 if separator else 0)
        switch = re.compile(f"{_LANGUAGE_SWITCH.pattern}{separator and f'{re.escape(separator)}?'}")
        encoded = text.encode("utf-8")
        buffer = ctypes.create_string_buffer(_safe(text))
        start = ctypes.addressof(buffer)
        cursor = ctypes.c_void_p(start)
        clauses: list[Clause] = []
        begin = 0
        while cursor.value:
            spoken = self.lib.espeak_TextToPhonemes(ctypes.byref(cursor), _CHARS_UTF8, mode) or b""
            end = cursor.value - start if cursor.value else len(encoded)
            written = encoded[begin:end].decode("utf-8", "ignore")
            if cursor.value and written[-1:].isalnum():  # the library has looked at the first letter of what follows
                end -= len(written[-1].encode("utf-8"))
                written = written[:-1]
            clauses.append(Clause(written, switch.sub("", spoken.decode("utf-8")).strip()))
            begin = end
        return clauses

    def list_voices(self) -> list[tuple[str, str, str]]:
        """Language, name and identifier (its file) of every voice."""
        listed = self.lib.espeak_ListVoices(None)
        found: list[tuple[str, str, str]] = []
        while listed[len(found)]:
            voice = listed[len(found)].contents
            language = ctypes.string_at(voice.languages + 1).decode()  # the byte before it is the priority
            found.append((language, voice.name.decode(), voice.identifier.decode()))
        return found

    def set_voice(self, voice: str, variant: str | None = None) -> None:
        if not _identifiers:
            for language, _, identifier in self.list_voices():
                _identifiers.setdefault(language, identifier)
        if voice not in _identifiers:
            raise ValueError(f"voice={voice!r} is unknown to espeak-ng: speechkit.text.espeak.voices() lists them")
        if variant is not None and variant not in _variants(self):
            raise ValueError(f"variant={variant!r} is unknown to espeak-ng: choose one of {', '.join(_variants(self))}")
        name = _identifiers[voice] if variant is None else f"{_identifiers[voice]}+{variant}"
        status = self.lib.espeak_SetVoiceByName(name.encode())
        assert status == 0, f"espeak_SetVoiceByName({name}) returned {status}"

    def seed(self) -> None:
        """Seed the generators behind breath noise: espeak-ng's own, else set from the clock, and C's `rand`."""
        self.lib.espeak_ng_SetRandSeed(1)
        (ctypes.CDLL("ucrtbase") if sys.platform == "win32" else self.lib).srand(1)

    def close(self) -> None:
        """Stop the library and unload it, statics and all."""
        self.lib.espeak_Terminate()
        handle = self.lib._handle
        import _ctypes

        if sys.platform == "win32":
            _ctypes.FreeLibrary(handle)
        else:
            _ctypes.dlclose(handle)


_lock = threading.RLock()
_library: _Library | None = None
_identifiers: dict[str, str] = {}  # voice file by language, read once per process
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _get_library(*, fresh: bool = False) -> _Library:
    """The process's library; the caller holds the lock. `fresh` forgets everything an earlier call left behind."""
    global _library
    if fresh and _library is not None:
        stale, _library = _library, None
        stale.close()
    if _library is None:
        _library = _Library()
    return _library


def _variants(library: _Library) -> list[str]:
    return sorted(path.name for path in (library.data_path / "voices" / "!v").iterdir())


def available() -> bool:
    """Whether espeak-ng can be used here (the extra `demo` is installed)."""
    try:
        with _lock:
            _get_library()
    except (ImportError, OSError):
        return False
    return True


def voices() -> dict[str, str]:
    """Voices by language code, such as "en-us", with their names.

    Raises:
        ImportError: espeakng-loader is not installed.
    """
    with _lock:
        listed = _get_library().list_voices()
    names: dict[str, str] = {}
    for language, name, _ in sorted(listed):
        names.setdefault(language, name)
    return names


def variants() -> list[str]:
    """Names of the voice variants ("m1", "f2", "Annie", "whisper" ...), each of which goes with every voice.

    Raises:
        ImportError: espeakng-loader is not installed.
    """
    with _lock:
        return _variants(_get_library())


def speak(
    text: str,
    *,
    voice: str = "en-us",
    variant: str | None = None,
    speed: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    word_gap: int = 0,
    volume: int = 100,
) -> SpokenUtterance:
    """Speak a text.

    The samples are a function of the arguments: the same in every process and after any other call.

    Args:
        text: what to say, plain text.
        voice: voice or language code, one of `voices()`.
        variant: one of `variants()`; None takes the voice's own timbre.
        speed: words per minute, 80 to 450.
        pitch: base pitch, 0 to 99, 50 being the variant's own.
        pitch_range: liveliness of the pitch, 0 (monotone) to 99.
        word_gap: extra pause between words in units of 10 ms.
        volume: 0 to 200, 100 being normal.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: an argument is out of range, or the voice or variant is unknown.
    """
    ranges = {"speed": (speed, *_RATE_RANGE), "pitch": (pitch, 0, 99), "pitch_range": (pitch_range, 0, 99),
              "word_gap": (word_gap, 0, 500), "volume": (volume, 0, 200)}  # fmt: skip
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ValueError(f"{name}={value} is out of range: give a value from {low} to {high}")
    _check_text(text)
    with _lock:
        library = _get_library(fresh=True)
        library.set_voice(voice, variant)
        settings = {_PARAMETER_RATE: speed, _PARAMETER_PITCH: pitch, _PARAMETER_RANGE: pitch_range,
                    _PARAMETER_WORDGAP: word_gap, _PARAMETER_VOLUME: volume}  # fmt: skip
        for parameter, value in settings.items():
            library.lib.espeak_SetParameter(parameter, value, 0)
        library.seed()
        encoded = _safe(text)
        status = library.lib.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        assert status == 0, f"espeak_Synth returned {status}"
        samples = np.concatenate(library.chunks) if library.chunks else np.zeros(0, np.int16)
        return SpokenUtterance(
            wave=samples.astype(np.float32) / 32768.0,
            sample_rate=library.sample_rate,
            phonemes=_phoneme_times(library.events, library.read(text, "_"), len(samples), library.sample_rate),
            words=_word_times(text, library.events, len(samples), library.sample_rate),
        )


def _phoneme_times(
    events: list[_RawEvent], clauses: list[Clause], num_samples: int, sample_rate: int
) -> tuple[TimedSymbol, ...]:
    marks = [event for event in events if event.kind == _EVENT_PHONEME]
    symbols = [_LANGUAGE_SWITCH.sub("", event.symbol) for event in marks]
    starts = [event.sample for event in marks]
    ends = [*starts[1:], num_samples]
    for index, symbol in enumerate(symbols):
        if symbol and starts[index] == ends[index]:
            _share_time(index, symbols, starts, ends)
    kept = [index for index, symbol in enumerate(symbols) if symbol and ends[index] > starts[index]]
    names = [symbols[index] for index in kept]
    read = [symbol for clause in clauses for word in clause.spoken.split() for symbol in word.split("_") if symbol]
    if [_PROSODY.sub("", symbol) for symbol in read] == [_PROSODY.sub("", name) for name in names]:
        names = read  # events lack the mark of length, and have the stress of whole phrases on words without
    return tuple(TimedSymbol(name, starts[index] / sample_rate, ends[index] / sample_rate) for name, index in zip(names, kept))


def _share_time(index: int, symbols: list[str], starts: list[int], ends: list[int]) -> None:
    """Give a phoneme without time of its own a third of the vowel after it, or of the phoneme before it."""
    after, before = index + 1, index - 1
    if after < len(symbols) and _PROSODY.sub("", symbols[after])[:1] in _VOWELS:
        cut = starts[after] + (ends[after] - starts[after]) // 3
        ends[index] = starts[after] = cut
    elif before >= 0 and symbols[before]:
        cut = ends[before] - (ends[before] - starts[before]) // 3
        starts[index] = ends[before] = cut


def _word_times(text: str, events: list[_RawEvent], num_samples: int, sample_rate: int) -> tuple[TimedSymbol, ...]:
    words: list[TimedSymbol] = []
    pending = ""  # text of an event inside a word, as in "25", joined to what follows
    begin = 0
    marks = [index for index, event in enumerate(events) if event.kind == _EVENT_WORD]
    for mark, following in zip(marks, [*marks[1:], len(events)]):
        sounding = [index for index in range(mark, following) if events[index].symbol]
        if not sounding:
            continue
        after = sounding[-1] + 1
        end = events[after].sample if after < len(events) else num_samples
        last = events[following].text_position - 1 if following < len(events) else len(text)
        if not pending:
            begin = events[mark].sample
        pending += text[events[mark].text_position - 1 : last]
        if pending[-1:].isspace() or following == len(events):
            symbol = " ".join(pending.split()).strip(_PUNCTUATION)
            words.append(TimedSymbol(symbol, begin / sample_rate, end / sample_rate))
            pending = ""
    return tuple(words)


def phonemize(text: str, lang: str = "en-us", *, separator: str = "") -> str:
    """IPA transcription of a text: words separated by blanks, clauses by ", ".

    Args:
        text: plain text.
        lang: voice or language code, one of `voices()`.
        separator: a character to put between the phonemes of a word.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: the language is unknown, or the separator is longer than a character.
    """
    return ", ".join(clause.spoken for clause in clauses(text, lang, separator=separator) if clause.spoken)


def clauses(text: str, lang: str = "en-us", *, separator: str = "") -> list[Clause]:
    """The clauses that espeak-ng makes of a text, each as it is written and in IPA, words separated by blanks.

    The written parts put together are the text. A pause inside a clause, at a bracket or a dash, shows as separators
    without a phoneme between them.

    Args:
        text: plain text.
        lang: voice or language code, one of `voices()`.
        separator: a character to put between the phonemes of a word.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: the language is unknown, or the separator is longer than a character.
    """
    if len(separator) > 1 or separator.isspace():
        raise ValueError(f"separator={separator!r}: give one character that is not white space, or none")
    _check_text(text)
    with _lock:
        library = _get_library()
        library.set_voice(lang)
        return library.read(text, separator)


def _safe(text: str) -> bytes:
    """A text for the library, as many bytes as the text has: blanks for the points of endless "A.B.C."."""
    return _DOTTED_LETTERS.sub(lambda match: match[0].replace(".", " "), text).encode("utf-8")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError(f"text={text!r} holds a NUL character: remove it")

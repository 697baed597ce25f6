"""The espeak-ng binding: output that depends on its arguments alone, phonemes and words with their times."""

from __future__ import annotations

import builtins
import hashlib
import itertools
import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from speechkit.text import espeak

pytest.importorskip("espeakng_loader")

TEXT = "Turn on the kitchen lights, at twenty-five past one."


def digest(spoken: espeak.SpokenUtterance) -> str:
    return hashlib.sha256(spoken.wave.tobytes() + repr((spoken.phonemes, spoken.words)).encode()).hexdigest()


@pytest.fixture(scope="module")
def spoken() -> espeak.SpokenUtterance:
    return espeak.speak(TEXT, variant="m3")


def test_wave_is_speech(spoken: espeak.SpokenUtterance) -> None:
    assert spoken.wave.dtype == np.float32
    assert spoken.wave.ndim == 1
    assert spoken.sample_rate == 22050
    assert 2.0 < len(spoken.wave) / spoken.sample_rate < 4.0
    assert 0.1 < np.abs(spoken.wave).max() <= 1.0


def test_phonemes_are_in_order_and_inside_the_audio(spoken: espeak.SpokenUtterance) -> None:
    ends = 0.0
    for phoneme in spoken.phonemes:
        assert phoneme.symbol
        assert ends <= phoneme.start < phoneme.end
        ends = phoneme.end
    assert ends <= len(spoken.wave) / spoken.sample_rate
    joined = "".join(phoneme.symbol for phoneme in spoken.phonemes)
    assert joined == espeak.phonemize(TEXT).replace(" ", "").replace(",", "")


def test_words_are_those_of_the_text(spoken: espeak.SpokenUtterance) -> None:
    words = [word.symbol for word in spoken.words]
    assert " ".join(words) == "Turn on the kitchen lights at twenty-five past one"
    starts = [word.start for word in spoken.words]
    assert starts == sorted(starts)
    assert all(word.start < word.end for word in spoken.words)
    assert all(first.end <= second.start for first, second in zip(spoken.words, spoken.words[1:]))
    lights, at = spoken.words[words.index("lights")], spoken.words[words.index("at")]
    assert at.start - lights.end > 0.05, "the comma is a pause outside both words"


def test_times_mark_silence_and_speech(spoken: espeak.SpokenUtterance) -> None:
    """The pause at the comma holds no energy; the stressed vowel of "kitchen" does."""
    words = {word.symbol: word for word in spoken.words}

    def level(start: float, end: float) -> float:
        piece = spoken.wave[round(start * spoken.sample_rate) : round(end * spoken.sample_rate)]
        return float(np.sqrt(np.mean(piece.astype(np.float64) ** 2)))

    pause = level(words["lights"].end + 0.02, words["at"].start - 0.02)
    assert pause < 0.02 * level(words["kitchen"].start, words["kitchen"].end)


def test_digits_of_a_number_stay_one_word() -> None:
    words = [word.symbol for word in espeak.speak("There are 25 apples.").words]
    assert words[-2:] == ["25", "apples"]


def test_words_in_other_scripts() -> None:
    words = [word.symbol for word in espeak.speak("Schön, die Tür öffnet sich.", voice="de").words]
    assert words == ["Schön", "die", "Tür", "öffnet", "sich"]


@pytest.mark.parametrize("variant", ["m3", "f2", "victor", "croak", "whisper", "klatt2", "caleb"])
def test_output_does_not_depend_on_what_was_said_before(variant: str) -> None:
    """Also for variants whose breath noise comes from espeak's generator, seeded by the clock, or from C's rand."""
    first = digest(espeak.speak(TEXT, variant=variant))
    espeak.speak("Something else, with another voice.", variant="klatt3", speed=220)
    espeak.phonemize("Schön", "de")
    assert digest(espeak.speak(TEXT, variant=variant)) == first


def test_output_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from speechkit.text.espeak import speak; s = speak('Good evening.', variant='f5');"
        "print(hashlib.sha256(s.wave.tobytes() + repr((s.phonemes, s.words)).encode()).hexdigest())"
    )
    espeak.speak("Something before.", variant="whisper")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == digest(espeak.speak("Good evening.", variant="f5"))


def test_threads_share_the_library_safely() -> None:
    alone = [digest(espeak.speak(f"Number {n}.", variant="f1")) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: digest(espeak.speak(f"Number {n}.", variant="f1")), [0, 1, 2, 3] * 3))
    assert together == alone * 3


def _speak_in_child(queue: Any) -> None:
    queue.put(digest(espeak.speak("Good evening.", variant="f5")))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the platform cannot fork")
def test_fork_while_a_thread_speaks() -> None:
    expected = digest(espeak.speak("Good evening.", variant="f5"))
    stop = threading.Event()

    def keep_speaking() -> None:
        while not stop.is_set():
            espeak.speak("One, two, three.")

    speaker = threading.Thread(target=keep_speaking)
    speaker.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(3):
            queue = context.Queue()
            child = context.Process(target=_speak_in_child, args=(queue,))
            child.start()
            assert queue.get(timeout=20) == expected
            child.join(timeout=20)
    finally:
        stop.set()
        speaker.join()


def test_arguments_change_the_voice() -> None:
    plain = espeak.speak(TEXT)
    assert len(espeak.speak(TEXT, speed=250).wave) < 0.85 * len(plain.wave)
    assert len(espeak.speak(TEXT, word_gap=20).wave) > len(plain.wave) + 22050
    assert np.abs(espeak.speak(TEXT, volume=30).wave).max() < 0.6 * np.abs(plain.wave).max()
    for changed in ({"pitch": 80}, {"pitch_range": 0}, {"variant": "f4"}, {"voice": "en-gb"}):
        assert digest(espeak.speak(TEXT, **changed)) != digest(plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"voice": "xx"}, "voice='xx'"),
        ({"variant": "nobody"}, "variant='nobody'"),
        ({"variant": "../../passwd"}, "variant="),
        ({"speed": 10}, "speed=10"),
        ({"pitch": 100}, "pitch=100"),
        ({"volume": -1}, "volume=-1"),
        ({"text": "a\0b"}, "NUL"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        espeak.speak(**{"text": "hello", **arguments})


@pytest.mark.parametrize("text", ["", "...", "  "])
def test_nothing_to_say(text: str) -> None:
    silent = espeak.speak(text)
    assert silent.phonemes == ()
    assert silent.words == ()
    assert not silent.wave.any()


def test_voices_and_variants() -> None:
    voices = espeak.voices()
    assert voices["de"] == "German"
    assert {"en-us", "fr-fr", "es", "cmn"} <= voices.keys()
    assert len(voices) >= 100
    assert {"m1", "f5", "whisper"} <= set(espeak.variants())


def test_phonemize() -> None:
    assert espeak.phonemize("hello world") == "həlˈoʊ wˈɜːld"
    assert espeak.phonemize("Hello, world.", separator="_") == "h_ə_l_ˈoʊ, w_ˈɜː_l_d"
    assert espeak.phonemize("") == ""
    assert "(" not in espeak.phonemize("le weekend", "fr-fr")
    with pytest.raises(ValueError, match="separator"):
        espeak.phonemize("a", separator="ab")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "espeakng_loader":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(espeak, "_library", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"speechkit\[demo\]"):
        espeak.speak("hello")
    assert not espeak.available()


@pytest.mark.parametrize(
    ("text", "voice", "sounds"),
    [
        ("I hear you very well.", "en-us", "w ˈɛ l"),  # "l" is spoken as the end of the vowel
        ("a well-known dog", "en-us", "w ˈɛ l n ˈoʊ n"),
        ("L'eau est trop froide.", "fr-fr", "f ʁ w ˈa d"),  # "w" is spoken as the beginning of the vowel
        ("Peter peint la nuit.", "fr-fr", "p ˈiː t ə p ˈɛ̃"),  # an English name: marks of language are no phonemes
        ("Es el siete de septiembre.", "es", "s e pː t j ˈe m b ɾ e"),  # the mark of length is in no event
        ("What?! No.", "en-us", "w ˌʌ t n ˈoʊ"),  # the tone of the phrase is on a word without stress
    ],
)
def test_events_and_transcription_have_the_same_phonemes(text: str, voice: str, sounds: str) -> None:
    phonemes = espeak.speak(text, voice=voice).phonemes
    assert sounds in " ".join(phoneme.symbol for phoneme in phonemes)
    read = espeak.phonemize(text, voice, separator="_").replace("_", " ").replace(",", " ").split()
    assert [phoneme.symbol for phoneme in phonemes] == read
    assert all(phoneme.end > phoneme.start for phoneme in phonemes)
    assert all(first.end <= second.start for first, second in itertools.pairwise(phonemes))


@pytest.mark.parametrize("text", ["", " ", "Hello, world. How are you? Ça va… 世界。好\n\nNew (paragraph)", "one" + " two" * 400])
def test_clauses_hold_the_whole_text(text: str) -> None:
    clauses = espeak.clauses(text, separator="_")
    assert "".join(clause.written for clause in clauses) == text
    spoken = ", ".join(clause.spoken for clause in clauses if clause.spoken)
    assert spoken.replace("_", "") == espeak.phonemize(text)


def test_clauses_end_with_their_punctuation() -> None:
    written = [clause.written for clause in espeak.clauses("Hello, world. Really?! (Yes.) Well; so")]
    assert [part.strip()[-1] for part in written] == [",", ".", "(", ")", ";", "o"]

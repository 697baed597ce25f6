"""Alignment: known frames become known times, rows are their own, and what cannot be aligned says why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechkit.aligner import CtcAligner, MelAligner
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.data.alignment import frame_durations, phone_boundaries, timed_phones
from speechkit.models.fastspeech.infer import FastSpeechOptions, infer
from speechkit.models.fastspeech.model import FastSpeechModel
from speechkit.pretrained import load
from speechkit.synthesizer import Synthesizer
from speechkit.text import espeak
from speechkit.text.frontend import FrontEnd
from speechkit.text.tokenizers import CharTokenizer, PhonemeTokenizer
from speechkit.types import Utterance

RATE = 16000
SHIFT = 0.02
STEP = 320  # samples of a frame of the stand-in
PHONES = PhonemeTokenizer(symbols=["a", "b", "c", "d"])
LETTERS = CharTokenizer(symbols=[" ", "a", "b", "c", "d"])


class Letters:
    """A front end whose phones are letters, the vowel with stress."""

    def phones(self, text: str, *, lang: str | None = None) -> list[str]:
        """Words of letters between boundaries."""
        words = text.rstrip(".").split()
        symbols = ["|"]
        for word in words:
            symbols += ["\u02c8a" if letter == "a" else letter for letter in word] + ["|"]
        return [*symbols[:-1], "."] if words else []

    def split(self, text: str, *, max_chars: int = 200, lang: str | None = None) -> list[str]:
        """One piece."""
        return [text]


class Stub:
    """A recogniser that reads its labels off the samples: 0.1 * n is label n of the list, once in a stretch (as CTC does)."""

    sample_rate, label_shift, labels_frames, normalizer, name = RATE, SHIFT, True, "none", "stub"

    def __init__(self, tokenizer: Any, labels: str, early: int = 0) -> None:
        self.tokenizer, self.early = tokenizer, early
        self._ids = [0, *(tokenizer.encode(label)[0] for label in labels)]

    def frame_log_probs(self, waves: list[np.ndarray]) -> list[Tensor]:
        """Sure of the label in the middle of each stretch, and of blank elsewhere."""
        rows = []
        for wave_N in waves:
            labels = np.rint(np.abs(wave_N[::STEP]) * 10).astype(int)
            probs_TV = np.full((len(labels), self.tokenizer.vocab_size), 1e-4)
            probs_TV[:, 0] = 1.0
            begin = 0
            for end in range(1, len(labels) + 1):
                if end == len(labels) or labels[end] != labels[begin]:
                    place = max((begin + end - 1) // 2 - self.early, 0)
                    if labels[begin]:
                        probs_TV[place, 0], probs_TV[place, self._ids[labels[begin]]] = 1e-4, 1.0
                    begin = end
            rows.append(torch.from_numpy(probs_TV / probs_TV.sum(1, keepdims=True)).log().float())
        return rows


def wave(*stretches: tuple[int, int]) -> np.ndarray:
    """Stretches of (label, frames); the sign alternates so that it is sound."""
    values = np.concatenate([np.full(frames * STEP, 0.1 * label) for label, frames in stretches])
    return (values * np.where(np.arange(len(values)) % 8 < 4, 1.0, -1.0)).astype(np.float32)


AB_CD = wave((0, 10), (1, 5), (2, 5), (0, 8), (3, 5), (4, 5), (0, 10))  # a from 0.2 s, b, pause from 0.4 s, c from 0.56 s, d


def aligner(**options: Any) -> CtcAligner:
    """By phones."""
    recognizer: Any = Stub(PHONES, "abcd", **options)
    return CtcAligner(recognizer=recognizer, frontend=Letters())


def test_phones_and_words_lie_where_they_are_spoken() -> None:
    [found] = aligner().align([AB_CD], ["ab cd."])
    assert found.error == ""
    assert found.duration == 0.96
    assert [phone.text for phone in found.phones] == ["|", "\u02c8a", "b", "|", "c", "d", "."]
    edges = [phone.start for phone in found.phones] + [found.phones[-1].end]
    assert edges == pytest.approx([0.0, 0.2, 0.3, 0.4, 0.56, 0.66, 0.76, 0.96], abs=0.021)
    assert edges[3:5] == pytest.approx([0.4, 0.56], abs=0.011)  # silence is seen to a hundredth of a second
    assert [end.end for end in found.phones[:-1]] == edges[1:-1]  # without a gap
    assert [(word.text, word.start, word.end) for word in found.words] == [("ab", edges[1], edges[3]), ("cd", edges[4], edges[6])]
    assert all(span.score is not None and span.score > 0.99 for span in found.words)
    assert [phone.score is None for phone in found.phones] == [True, False, False, True, False, False, True]


def test_unknown_phones_are_found_by_what_stands_in_for_them() -> None:
    class Affricates(Letters):
        def phones(self, text: str, *, lang: str | None = None) -> list[str]:
            return ["bc" if symbol == "b" else symbol for symbol in super().phones(text, lang=lang)]

    recognizer: Any = Stub(PHONES, "abcd")
    [found] = CtcAligner(recognizer=recognizer, frontend=Affricates()).align([AB_CD], ["ab cd."])
    [plain] = aligner().align([AB_CD], ["ab cd."])
    assert [phone.text for phone in found.phones] == ["|", "\u02c8a", "bc", "|", "c", "d", "."]
    assert [(phone.start, phone.end) for phone in found.phones] == [(phone.start, phone.end) for phone in plain.phones]


def test_training_reads_what_was_found() -> None:
    [found] = aligner().align([AB_CD], ["ab cd."])
    rows = [[span.text, span.start, span.end] for span in found.phones]
    utterance = Utterance(id="u", audio_path=Path("u.wav"), duration=0.96, extra={"phonemes": rows})
    boundaries = phone_boundaries(Letters().phones("ab cd."), timed_phones(utterance), start=0.0, end=0.96)
    assert boundaries.tolist() == pytest.approx([0.0, *(span.end for span in found.phones)])
    assert frame_durations(boundaries, frame_shift=0.01, num_frames=96).sum() == 96


def test_rows_are_their_own() -> None:
    waves = [AB_CD, wave((0, 3), (2, 4), (0, 30)), AB_CD[: 21 * STEP]]
    texts = ["ab cd.", "b", "ab"]
    alone = [aligner().align([each], [text])[0] for each, text in zip(waves, texts)]
    assert aligner().align(waves, texts) == alone
    assert not any(each.error for each in alone)
    assert aligner().align([], []) == []


def test_labels_ahead_of_the_speech_are_put_where_it_is() -> None:
    [found] = aligner(early=6).align([AB_CD[: 21 * STEP]], ["ab"])
    assert found.words[0].start == pytest.approx(0.2, abs=0.011)
    assert found.phones[1].end < 0.25


def test_what_cannot_be_aligned_says_why_and_others_are_done() -> None:
    waves = [AB_CD, AB_CD, np.zeros(8000, np.float32), wave((1, 3)), AB_CD, np.zeros(0, np.float32)]
    found = aligner().align(waves, ["ab cd.", " ...", "ab", "ab cd ab cd", "ab \u20ac x", "ab"])
    assert [bool(each.error) for each in found] == [False, True, True, True, True, True]
    messages = ["nothing to say", "silent", "no path spells 8 tokens in 3 frames", "phones x", "silent"]
    for each, message in zip(found[1:], messages):
        assert message in each.error
        assert each.words == each.phones == ()
    with pytest.raises(ValueError, match="1 waves, 2 texts"):
        aligner().align([AB_CD], ["a", "b"])


def test_letters_give_words_and_phones_only_where_asked() -> None:
    recognizer: Any = Stub(LETTERS, "abcd")
    words_only = CtcAligner(recognizer=recognizer)
    [found] = words_only.align([AB_CD], ["ab  cd"])
    assert not words_only.gives_phones
    assert found.phones == ()
    assert [word.text for word in found.words] == ["ab", "cd"]
    assert found.words[0].end == pytest.approx(0.4, abs=0.011)
    [even] = CtcAligner(recognizer=recognizer, frontend=Letters(), phones="even").align([AB_CD], ["ab cd"])
    assert even.words == found.words
    assert [phone.text for phone in even.phones] == ["|", "\u02c8a", "b", "|", "c", "d", "."]
    first, second = even.phones[1:3]
    assert first.end - first.start == pytest.approx(second.end - second.start, abs=1e-3)
    assert [each.error for each in words_only.align([AB_CD, AB_CD], ["", "ab x"])] == [
        "the text is empty: nothing to align",
        "text='ab x' cannot be spelt by the recogniser; give texts as it learnt them",
    ]


def test_what_no_aligner_can_be_made_of_is_refused() -> None:
    stub: Any = Stub(PHONES, "abcd")
    with pytest.raises(ValueError, match="frontend=None"):
        CtcAligner(recognizer=stub)
    with pytest.raises(ValueError, match="phones='all'"):
        CtcAligner(recognizer=stub, frontend=Letters(), phones="all")  # type: ignore[arg-type]
    stub.labels_frames = False
    with pytest.raises(ValueError, match="families ctc and owsm_ctc"):
        CtcAligner(recognizer=stub, frontend=Letters())
    with pytest.raises(ValueError, match="learn_alignment=true"):
        MelAligner(synthesizer=voice(learn_alignment=False))


def voice(**options: Any) -> Synthesizer:
    """A tiny untrained FastSpeech."""
    torch.manual_seed(0)
    mel = MelSpectrogram(sample_rate=RATE, n_fft=512, win_length=512, hop_length=160, num_mels=20)
    tokenizer = PhonemeTokenizer.train([" ".join(Letters().phones("abcd"))])
    sizes: dict[str, Any] = {"dim": 16, "encoder_layers": 1, "decoder_layers": 1, "filter_dim": 16, "predictor_dim": 16}
    model = FastSpeechModel(
        vocab_size=tokenizer.vocab_size, num_mels=20, postnet_layers=0, pitch=False, energy=False, **sizes, **options
    )
    return Synthesizer(
        mel=mel, model=model, frontend=Letters(), tokenizer=tokenizer, infer=infer, options=FastSpeechOptions()
    )  # fmt: skip


def test_a_voice_aligns_by_what_it_learnt() -> None:
    own = MelAligner(synthesizer=voice(learn_alignment=True))
    short = wave((1, 1))
    waves, texts = [AB_CD, short, AB_CD[:9000], np.zeros(999, np.float32)], ["ab cd", "abcdabcd", "ab", "a"]
    found = own.align(waves, texts)
    assert found == [own.align([each], [text])[0] for each, text in zip(waves, texts)]
    assert found[1].error.startswith("10 phones need a mel frame each")
    assert "silent" in found[3].error
    for each, symbols in ((found[0], 7), (found[2], 4)):
        assert len(each.phones) == symbols
        assert each.phones[0].start == 0.0
        assert each.phones[-1].end == each.duration
        assert all(span.end > span.start for span in each.phones)
        assert [span.end for span in each.phones[:-1]] == [span.start for span in each.phones[1:]]
    phones = found[0].phones
    assert [(word.text, word.start) for word in found[0].words] == [("ab", phones[1].start), ("cd", phones[4].start)]


def test_windows_of_a_long_recording_give_its_frames() -> None:
    recognizer = load("demo-ctc", device="cpu")
    recognizer.window_seconds, recognizer.context_seconds = 3.0, 0.5
    rng = np.random.default_rng(0)
    waves = [(0.1 * rng.standard_normal(num)).astype(np.float32) for num in (100, 16000, 80000)]
    together = recognizer.frame_log_probs(waves)
    for wave_N, row_TV in zip(waves, together):
        assert len(row_TV) == int(recognizer.model.output_lengths(torch.tensor(len(wave_N) // 160 + 1)))
        torch.testing.assert_close(recognizer.frame_log_probs([wave_N])[0], row_TV, atol=1e-4, rtol=1e-4)
        assert row_TV.exp().sum(1).sub(1).abs().max() < 1e-4
    assert recognizer.frame_log_probs([]) == []


@pytest.mark.skipif(not espeak.available(), reason="espeakng-loader is not installed")
def test_words_of_the_demo_voice() -> None:
    recognizer = load("demo-ctc", device="cpu")
    spoken = espeak.speak("The woman sees the old house near the river.", voice="en-us", variant="m1", speed=160)
    from speechkit.audio.io import resample

    speech_N = resample(spoken.wave, spoken.sample_rate, RATE)
    wave_N = np.pad(speech_N * np.float32(0.5 / np.abs(speech_N).max()), 3200)
    text = "the woman sees the old house near the river"
    own = CtcAligner(recognizer=recognizer, frontend=FrontEnd(lang="en"), phones="even")
    [found] = own.align([wave_N], [text])
    assert found.error == ""
    assert [word.text for word in found.words] == text.split()
    errors = [abs(word.start - known.start - 0.2) for word, known in zip(found.words, spoken.words)]
    assert len(spoken.words) == len(found.words)
    assert np.median(errors) < 0.05
    assert dataclasses.replace(found, phones=()) == CtcAligner(recognizer=recognizer).align([wave_N], [text])[0]

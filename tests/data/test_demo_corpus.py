"""The demo corpus: reproducible to the bit, disjoint splits, times inside the audio, parallel text."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit.data.corpora import prepare_corpus
from speechkit.data.corpora.demo import SETTINGS_NAME, prepare_demo, voice_pool, voice_table
from speechkit.data.corpora.demo_text import (
    LANGUAGES,
    grammar,
    number_words,
    sentences,
    split_of,
    spoken_form,
)
from speechkit.data.manifest import read_manifest

SPLITS = ("train", "dev", "test")
SIZES = {"num_train": 36, "num_dev": 4, "num_test": 9, "num_text": 300}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    out = tmp_path_factory.mktemp("demo")
    prepare_demo(out, languages=("en", "de"), num_workers=1, **SIZES)
    return out


def audio_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.flac"))}


def manifests(root: Path) -> dict[str, str]:
    return {split: (root / f"{split}.jsonl").read_text(encoding="utf-8") for split in SPLITS}


def test_report_counts_what_was_made(corpus: Path) -> None:
    report = prepare_demo(corpus, languages=("en", "de"), **SIZES)
    for split in SPLITS:
        rows = read_manifest(corpus / f"{split}.jsonl")
        assert report.splits[split].utterances == len(rows) == 2 * SIZES[f"num_{split}"]
        assert report.splits[split].seconds == pytest.approx(sum(row.duration for row in rows))
    assert "train.jsonl" in str(report)


def test_same_settings_make_the_same_bits_with_any_number_of_workers(corpus: Path, tmp_path: Path) -> None:
    prepare_demo(tmp_path / "again", languages=("en", "de"), num_workers=2, **{**SIZES, "num_train": 40})
    again = audio_bytes(tmp_path / "again")
    first = audio_bytes(corpus)
    assert len(first) == 2 * (36 + 4 + 9)
    assert first.keys() <= again.keys(), "a larger corpus begins with the smaller one"
    assert all(again[name] == content for name, content in first.items())
    for split in ("dev", "test"):
        assert manifests(tmp_path / "again")[split] == manifests(corpus)[split]


def test_more_languages_do_not_change_a_language(corpus: Path, tmp_path: Path) -> None:
    prepare_demo(tmp_path, languages=("de",), num_train=2, num_dev=1, num_test=2, num_workers=1)
    first = audio_bytes(corpus)
    assert all(first[name] == content for name, content in audio_bytes(tmp_path).items())


def test_another_seed_makes_another_corpus(corpus: Path, tmp_path: Path) -> None:
    prepare_demo(tmp_path, num_train=40, num_dev=2, num_test=3, seed=1, num_workers=1)
    texts = [row.text for row in read_manifest(tmp_path / "train.jsonl")]
    first = [row.text for row in read_manifest(corpus / "train.jsonl") if row.lang == "en"]
    assert not set(texts[26:]) & set(first[26:])  # the first 26 are the fixed everyday sentences


def test_a_prepared_corpus_is_left_alone_and_another_replaces_it(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    sizes = {"num_train": 2, "num_dev": 1, "num_test": 1}
    prepare_corpus("demo", None, tmp_path, **sizes)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    time.sleep(0.01)
    prepare_corpus("demo", None, tmp_path, **sizes)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")} == stamps
    (tmp_path / "train.jsonl").unlink()
    prepare_corpus("demo", None, tmp_path, **sizes)
    assert len(read_manifest(tmp_path / "train.jsonl")) == 2
    prepare_corpus("demo", None, tmp_path, **{**sizes, "num_train": 3})
    assert len(read_manifest(tmp_path / "train.jsonl")) == 3
    assert json.loads((tmp_path / SETTINGS_NAME).read_text())["train"] == 3


def test_audio_is_as_the_manifest_says(corpus: Path) -> None:
    for split in SPLITS:
        for row in read_manifest(corpus / f"{split}.jsonl"):
            wave, rate = soundfile.read(row.audio_path, dtype="float32")
            assert rate == 16000
            assert wave.ndim == 1
            assert len(wave) / rate == pytest.approx(row.duration, abs=1e-4)
            assert 0.2 < np.abs(wave).max() < 0.85
            assert not wave[: round(0.05 * rate)].any(), "silence comes first"


def test_times_are_in_order_inside_the_audio_and_over_speech(corpus: Path) -> None:
    for row in read_manifest(corpus / "test.jsonl"):
        wave, rate = soundfile.read(row.audio_path, dtype="float32")
        for name in ("phonemes", "words"):
            last = 0.0
            for symbol, start, end in row.extra[name]:
                assert symbol
                assert last <= start < end <= row.duration
                last = end
        spoken = spoken_form(" ".join(symbol for symbol, _, _ in row.extra["words"]))
        assert spoken == row.text
        begin, end = row.extra["phonemes"][0][1], row.extra["phonemes"][-1][2]
        inside = wave[round(begin * rate) : round(end * rate)]
        assert np.sum(inside**2) > 0.99 * np.sum(wave**2)


def test_splits_share_no_voice_and_no_sentence(corpus: Path) -> None:
    rows = {split: read_manifest(corpus / f"{split}.jsonl") for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        for key in (lambda row: row.speaker.split("_")[1], lambda row: row.text):
            assert not {key(row) for row in rows[one]} & {key(row) for row in rows[other]}
    english = {row.text for row in rows["train"] if row.lang == "en"}
    translated = {spoken_form(row.extra["translations"]["en"]) for row in rows["test"] if row.lang == "de"}
    assert not english & translated, "nor across languages"


def test_texts_for_language_models_hold_training_and_nothing_of_the_other_splits(corpus: Path) -> None:
    for language in ("en", "de"):
        lines = (corpus / f"text_{language}.txt").read_text(encoding="utf-8").splitlines()
        assert len(lines) == SIZES["num_text"]
        rows = {split: read_manifest(corpus / f"{split}.jsonl") for split in SPLITS}
        texts = {split: {row.text for row in rows[split] if row.lang == language} for split in SPLITS}
        assert texts["train"] < set(lines)
        assert not (texts["dev"] | texts["test"]) & set(lines)


def test_translations_are_the_rows_of_the_other_language(corpus: Path) -> None:
    rows = read_manifest(corpus / "train.jsonl")
    english = [row for row in rows if row.lang == "en"]
    german = [row for row in rows if row.lang == "de"]
    assert english[0].extra["translations"].keys() == {"de", "fr", "es"}
    assert [row.extra["translations"]["de"] for row in english] == [row.extra["text_raw"] for row in german]


def test_voice_pools() -> None:
    for pool in ("clear", "wide"):
        names = [name for split in SPLITS for name in voice_pool(split, pool=pool)]
        assert len(names) == len(set(names)), "a variant belongs to one split"
    assert set(voice_pool("test")) < set(voice_pool("test", pool="wide"))
    females = voice_table()["female"]
    for split in SPLITS:
        assert 0.2 < np.mean([name in females for name in voice_pool(split)]) < 0.8
    espeak = pytest.importorskip("speechkit.text.espeak")
    pytest.importorskip("espeakng_loader")
    known = set(espeak.variants())
    assert {name for split in SPLITS for name in voice_pool(split, pool="wide")} | set(females) <= known
    assert {voice for voices in voice_table()["languages"].values() for voice in voices} <= espeak.voices().keys()


def test_noise_has_the_ratio_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    sizes = {"num_train": 3, "num_dev": 0, "num_test": 0, "num_workers": 1, "audio_format": "wav"}
    prepare_demo(tmp_path / "clean", **sizes)
    prepare_demo(tmp_path / "noisy", noise_snr_db=(10.0, 10.0), **sizes)
    for clean, noisy in zip(*(read_manifest(tmp_path / name / "train.jsonl") for name in ("clean", "noisy"))):
        assert clean.text == noisy.text
        a, rate = soundfile.read(clean.audio_path)
        b, _ = soundfile.read(noisy.audio_path)
        speech = np.trim_zeros(a)
        ratio = 10 * np.log10(np.mean(speech**2) / np.mean((b - a) ** 2))
        assert ratio == pytest.approx(10.0, abs=0.5)
        assert rate == 16000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["xx"]}, "'xx' is not among"),
        ({"languages": []}, "languages"),
        ({"num_dev": -1}, "num_dev=-1"),
        ({"audio_format": "mp3"}, "audio_format='mp3'"),
        ({"voices": "loud"}, "voices='loud'"),
        ({"colour": 1}, "colour=1"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_corpus("demo", None, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# ---- the text ----


def test_every_frame_can_be_filled_in_every_language() -> None:
    made = list(itertools.islice(sentences(np.random.default_rng(0), "train"), 600))
    for sentence in made:
        assert sentence.written.keys() == set(LANGUAGES)
        for written in sentence.written.values():
            assert not re.search(r"[{}|/]", written), written
            assert written[-1] in ".?"
            assert written.lstrip("\u00bf")[0].isupper()
    assert len({sentence.written["en"] for sentence in made}) == len(made)


def test_vocabulary_is_closed_and_known_to_training() -> None:
    """Every word of dev and test, in every language, occurs in training."""
    train = list(itertools.islice(sentences(np.random.default_rng(0), "train"), 1600))
    for split in ("dev", "test"):
        held = list(itertools.islice(sentences(np.random.default_rng(1), split), 100))
        assert all(split_of(sentence.written["en"]) == split for sentence in held)
        for language, most in (("en", 0), ("de", 3), ("fr", 3), ("es", 3)):
            known = {word for row in train for word in spoken_form(row.written[language]).split()}
            words = {word for row in held for word in spoken_form(row.written[language]).split()}
            assert len(words - known) <= most, words - known
            assert 200 < len(known) < 420


def test_grammar_has_no_double_entries() -> None:
    for name, rows in grammar().items():
        assert len({row[0] for row in rows}) == len(rows), name


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, ("zero", "null", "zéro", "cero")),
        (16, ("sixteen", "sechzehn", "seize", "dieciséis")),
        (21, ("twenty-one", "einundzwanzig", "vingt et un", "veintiuno")),
        (22, ("twenty-two", "zweiundzwanzig", "vingt-deux", "veintidós")),
        (30, ("thirty", "dreißig", "trente", "treinta")),
        (59, ("fifty-nine", "neunundfünfzig", "cinquante-neuf", "cincuenta y nueve")),
    ],
)
def test_numbers(value: int, words: tuple[str, ...]) -> None:
    assert tuple(number_words(value, language) for language in LANGUAGES) == words


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="value=60"):
        number_words(60, "en")


def test_spoken_form() -> None:
    assert spoken_form("Réveille-moi à 7 heures, s'il te plaît !") == "réveille moi à 7 heures s'il te plaît"
    assert spoken_form("¿Qué hora es?") == "qué hora es"

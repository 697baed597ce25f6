"""The text front end: the sounds of espeak-ng one by one, boundaries, own pronunciations, and any text at all."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Iterator
from itertools import islice, pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.corpora.demo_text import sentences
from speechkit.text import espeak, phonemes
from speechkit.text.frontend import FrontEnd
from speechkit.text.phonemes import MARKS, is_boundary, phonemize, voice_of
from speechkit.text.tokenizers import PhonemeTokenizer

PLAIN = """
Out of the blue, a voice said that all of them would have to leave. | I don't know what you're looking for; do you?
The end of the story was well known: an apple a day. | What a day! Is it over? | He gave her the book, and she read it.
There are, however, a number of other things to be done. | She'd have been there if it weren't for the rain.
To be or not to be, that is the question. | Well, well, well... what have we here? | All's well that ends well.
It was the best of times, it was the worst of times. | Could you tell me where the nearest station is, please?
In the middle of the night the telephone rang (twice), and nobody answered. | "No," he said, "not at all."
The quick brown fox jumps over the lazy dog. | We are going to Tokyo and Rio de Janeiro next year - perhaps.
Some people like tea – others prefer coffee — most drink water. | Oh dear!! What?! | A well-known fact: it is so.
"""
needs_espeak = pytest.mark.skipif(not espeak.available(), reason="espeakng-loader is not installed")


@pytest.fixture(scope="module")
def english() -> FrontEnd:
    pytest.importorskip("espeakng_loader")
    return FrontEnd()


@pytest.fixture
def letters() -> FrontEnd:
    return FrontEnd(backend="characters")


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sounds(phones: list[str]) -> list[str]:
    return [phone for phone in phones if not is_boundary(phone)]


def check_form(phones: list[str]) -> None:
    """A boundary first, a mark last, a single boundary between words."""
    assert phones[0] == "|"
    assert phones[-1] in MARKS
    assert len(phones) > 2
    assert not any(is_boundary(first) and is_boundary(second) for first, second in pairwise(phones))
    assert all(phone and not set(phone) & set("{}|") for phone in phones if phone != "|")
    assert all(any(map(str.isalnum, phone)) for phone in sounds(phones)), "the only punctuation is that of the marks"


@needs_espeak
@pytest.mark.parametrize("lang", ["en", "de", "fr", "es"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sounds_are_those_that_espeak_speaks_in_the_demo_corpus(lang: str, normalize: bool) -> None:
    front_end = FrontEnd(lang=lang, normalize=normalize)
    for sentence in islice(sentences(np.random.default_rng(5), "test"), 200 if lang == "en" and normalize else 20):
        written = sentence.written[lang]
        phones = front_end.phones(written)
        check_form(phones)
        assert sounds(phones) == [phoneme.symbol for phoneme in espeak.speak(written, voice=voice_of(lang)).phonemes], written


def test_sounds_are_those_that_espeak_speaks_in_plain_english(english: FrontEnd) -> None:
    everyday = [sentence.written["en"] for sentence in islice(sentences(np.random.default_rng(0), "train"), 26)]
    for written in [*PLAIN.replace("\n", "|").split("|"), *everyday]:
        spoken = espeak.speak(written, voice="en-us").phonemes
        assert sounds(english.phones(written)) == [phoneme.symbol for phoneme in spoken], written
        assert sounds(english.phones(written)) == sounds(phonemize([written], "en")[0].split()), written


def test_words_are_joined_where_espeak_joins_them(english: FrontEnd) -> None:
    assert english.phone_text("Out of the blue") == "| ˌaʊ ɾ ə v | ð ə | b l ˈuː ."


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("written", "boundaries"),
    [
        ("one", "|."),
        ("one two", "||."),
        ("one, two; three: four. Five! Six? Seven", "|,;:.!?."),
        ("one?! two...", "|?."),
        ("one… two — three", "|.,."),
        ('one (two) "three" four', "|,,,."),
        ('(one) - "two"', "|,."),
        ("one\n\ntwo\nthree", "|.|."),
        ("¿one? ¡two!", "|?!"),
        ("one, two,", "|,,"),
        ("...one", "|."),
        ("one . , ! two", "|!."),
        ("one ! two ... three \U0001f600?", "|!.?"),
    ],
)
def test_punctuation_is_a_boundary(english: FrontEnd, written: str, boundaries: str) -> None:
    phones = english.phones(written)
    check_form(phones)
    assert "".join(filter(is_boundary, phones)) == boundaries


@pytest.mark.parametrize("text", ["", " ", "\n", "...", "?!", "\U0001f600", "\U0001f600! …", "{}", "{ }", "\u200b", "\0"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", ["characters", pytest.param("espeak", marks=needs_espeak)])
@pytest.mark.usefixtures("quiet")
def test_nothing_to_say(text: str, normalize: bool, backend: phonemes.Backend) -> None:
    front_end = FrontEnd(backend=backend, normalize=normalize)
    assert front_end.phones(text) == []
    assert front_end.phone_text(text) == ""


def test_phone_text_feeds_the_tokenizer(english: FrontEnd) -> None:
    texts = [english.phone_text("Hello, world! How are you?"), english.phone_text("A {h ə} b")]
    tokenizer = PhonemeTokenizer.train(texts)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id not in tokenizer.encode(texts[0])


def test_phones_in_braces(english: FrontEnd) -> None:
    assert english.phone_text("say {h ə l ˈoʊ} now") == "| s ˈeɪ | h ə l ˈoʊ | n ˈaʊ ."
    assert english.phone_text("{h ə l ˈoʊ | w ˈɜː l d !}") == "| h ə l ˈoʊ | w ˈɜː l d !"
    assert english.phone_text("A {z ˈuː}, the {z ˈuː}!") == "| ɐ | z ˈuː , ð ə | z ˈuː !"  # articles as before words
    assert english.phone_text("it costs {n ˈaʊ}5 kg").endswith("n ˈaʊ | f ˈaɪ v | k ˈɪ l ə ɡ ɹ ˌæ m z .")


def test_phones_in_braces_beside_the_word_that_stands_in(english: FrontEnd) -> None:
    assert english.phone_text("zazu, {h ə} zazu") == "| z ˈɑː z uː , h ə | z ˈɑː z uː ."


def test_what_is_no_phone_in_braces_is_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"left out of braces: \*"):
        assert FrontEnd(backend="characters").phone_text("a {b * c} d") == "| a | b c | d ."


def test_from_symbols(letters: FrontEnd) -> None:
    expected = ["|", "h", "ə", "l", "ˈoʊ", "|", "w", "ˈɜː", "l", "d", "!"]
    for text in ("h ə l ˈoʊ | w ˈɜː l d !", " {h ə l ˈoʊ  | | w ˈɜː l d , !} ", "| h ə l ˈoʊ | w ˈɜː l d !"):
        assert letters.from_symbols(text) == expected
    assert letters.from_symbols(" ".join(expected)) == expected
    assert letters.from_symbols("a") == ["|", "a", "."]
    assert letters.from_symbols("") == letters.from_symbols("| ,") == []
    assert FrontEnd(backend="characters", stress=False).from_symbols("ˈoʊ") == ["|", "oʊ", "."]
    for wrong, name in (("say {a} now", "'{a}'"), ("a * b", r"'\*'"), ("a b|c", r"'b\|c'")):
        with pytest.raises(ValueError, match=f"{name} is no phone"):
            letters.from_symbols(wrong)


def test_lexicon_replaces_whole_words_in_any_case(english: FrontEnd) -> None:
    front_end = FrontEnd(lexicon={"Smith": "s m ˈaɪ θ", "GPL": "dʒ ˈiː | p ˈiː | ˈɛ l"})
    assert front_end.phone_text("a SMITH, Smithers") == "| ɐ | s m ˈaɪ θ , " + english.phone_text("Smithers")[2:]
    assert front_end.phone_text("the gpl!") == "| ð ə | dʒ ˈiː | p ˈiː | ˈɛ l !"
    assert front_end.phone_text("Dr. Smith ran.") == "| d ˈɑː k t ɚ | s m ˈaɪ θ | ɹ ˈæ n ."
    assert front_end.phone_text("Smith's") == english.phone_text("Smith's")


def test_lexicon_from_a_file_travels_in_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("café\tk a f e\n", encoding="utf-8")
    front_end = FrontEnd(backend="characters", lexicon=str(path), stress=False)
    path.unlink()
    again = FrontEnd(**front_end.settings())
    assert again.phone_text("Cafe\u0301 x") == front_end.phone_text("Cafe\u0301 x") == "| k a f e | x ."
    assert again.fingerprint() == front_end.fingerprint() == pickle.loads(pickle.dumps(front_end)).fingerprint()
    others = [{"lexicon": None}, {"lexicon": {"x": "y"}}, {"stress": True}, {"normalize": False}, {"lang": "de"}]
    prints = {FrontEnd(**{**front_end.settings(), **other}).fingerprint() for other in others}
    assert len(prints | {front_end.fingerprint()}) == len(others) + 1


@needs_espeak
def test_settings_name_the_backend_in_use() -> None:
    assert FrontEnd().settings() == {"lang": "en", "backend": "espeak", "lexicon": None, "stress": True, "normalize": True}


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="backend='festival'"):
        FrontEnd(backend="festival")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lexicon='nowhere\.tsv'"):
        FrontEnd(backend="characters", lexicon="nowhere.tsv")


@needs_espeak
def test_unknown_language() -> None:
    with pytest.raises(ValueError, match="lang='zz'"):
        FrontEnd(lang="zz")
    with pytest.raises(ValueError, match="lang='zz'"):
        FrontEnd().phones("a", lang="zz")


def test_language_of_a_call(english: FrontEnd) -> None:
    assert english.phones("die Wolke", lang="de") == FrontEnd(lang="de").phones("die Wolke") != english.phones("die Wolke")


def test_stress(english: FrontEnd) -> None:
    phones = FrontEnd(stress=False).phones("hello {ˈa} world")
    assert phones == ["|", "h", "ə", "l", "oʊ", "|", "a", "|", "w", "ɜː", "l", "d", "."]


def test_text_without_normalization_is_left_to_espeak() -> None:
    pytest.importorskip("espeakng_loader")
    front_end = FrontEnd(normalize=False)
    for written in ("In 1984 Dr. Smith paid $5.50, i.e. 3 %.", "It is 5:30 & hot → ok", "the U.S.A. has 1,000"):
        assert sounds(front_end.phones(written)) == [phoneme.symbol for phoneme in espeak.speak(written).phonemes]


def test_normalization(english: FrontEnd) -> None:
    pytest.importorskip("num2words")
    assert english.phones("Dr. Smith has 5 kg.") == english.phones("Doctor Smith has five kilograms.")


def test_signs_are_left_out_with_one_warning(english: FrontEnd) -> None:
    front_end = FrontEnd()
    with pytest.warns(UserWarning, match=r"left out: → \(RIGHTWARDS ARROW\), \U0001f600 \(GRINNING FACE\)"):
        assert front_end.phones("hello \U0001f600 → world") == english.phones("hello world")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        front_end.phones("\U0001f600 hello")
        with pytest.raises(UserWarning, match="left out: \U0001f680"):
            front_end.phones("\U0001f600\U0001f680")


def test_letters_of_another_script_are_named_once() -> None:
    pytest.importorskip("espeakng_loader")
    front_end = FrontEnd()
    with pytest.warns(UserWarning, match=r"not of lang='en'.*世 \(CJK"):
        assert len(front_end.phones("hello 世")) > 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        front_end.phones("世 é ł ẽ")
        FrontEnd(lang="ru").phones("прив\u0435т, ok")
        front_end.phones("世界", lang="zh")


def test_characters() -> None:
    pytest.importorskip("num2words")
    front_end = FrontEnd(backend="characters")
    assert front_end.phone_text("Hello, it's 5 — World! ok") == "| h e l l o , i t s | f i v e , w o r l d ! o k ."
    assert front_end.phone_text("你好。再见？") == "| 你 好 再 见 ?"


def test_fallback_to_characters_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "available", lambda: False)
    phonemes._warn_of_characters.cache_clear()
    with pytest.warns(UserWarning, match=r"speechkit\[demo\]"):
        assert FrontEnd().settings()["backend"] == "characters"
    phonemes._warn_of_characters.cache_clear()


ANY = st.characters(exclude_categories=())  # lone surrogates too
TEXT = st.text(ANY, max_size=60) | st.text("aA1.,:-'$%5/{}|€é \n世\U0001f600", max_size=60)


@needs_espeak
@settings(max_examples=150, deadline=None)
@given(text=TEXT, lang=st.sampled_from(["en", "de", "fr", "es", "zh"]), normalize=st.booleans())
def test_any_text_has_phones(text: str, lang: str, normalize: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        phones = FrontEnd(lang=lang, normalize=normalize).phones(text)
        letters = FrontEnd(lang=lang, backend="characters", normalize=normalize).phones(text)
    for result in (phones, letters):
        assert len(result) <= 100 * len(text) + 2
        if result:
            check_form(result)


@needs_espeak
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("lang", ["en", "en-GB", "de", "fr", "es", "zh"])
def test_numbers_with_anything_after_them_have_phones(lang: str) -> None:
    spoken, spelt = FrontEnd(lang=lang), FrontEnd(lang=lang, backend="characters")
    words = ("", "k", "K", "M", "bn", "Md", "Mio.", "%", "€", "ms.", "½", " 1/2", "er", "e", "th", "h", " XIV")
    for number, word, sign in product(("20", "1,5", ".5", "1 234", "\u0663", "0"), words, ("", "$")):
        for front_end in (spoken, spelt):
            check_form(front_end.phones(f"So {sign}{number}{word} it is"))


@needs_espeak
@settings(max_examples=25, deadline=None)
@given(unit=st.text(ANY, min_size=1, max_size=5) | st.text("aB1.,-'{ ", min_size=1, max_size=5))
def test_two_thousand_characters_of_anything(unit: str) -> None:
    text = (unit * 2000)[:2000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        phones = FrontEnd().phones(text)
    assert len(phones) <= 100 * len(text)
    if phones:
        check_form(phones)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("unit", ["a.b.", "a.b. ", "а.б.", "a..", "a.-b.", "a._", "A.B.C.D.E.F.G.H.I.J.K.L.M.N.O.P. "])
def test_endless_abbreviations_leave_the_library_whole(english: FrontEnd, unit: str) -> None:
    """espeak-ng overran a buffer, which ended the process."""
    check_form(english.phones((unit * 700)[:2800]))
    assert len(espeak.speak((unit * 700)[:600]).phonemes) > 100
    assert english.phones("The U.S.A. is") == english.phones("The USA is")


def test_two_thousand_characters_are_quick(english: FrontEnd) -> None:
    text = ("Out of the blue, Dr. Smith paid $5.50 for 3.5 kg of it on May 17, 2024. " * 30)[:2000]
    english.phones(text)
    times = []
    for _ in range(7):
        begin = time.process_time()
        english.phones(text)
        times.append(time.process_time() - begin)
    assert min(times) < 0.05


def test_split_knows_the_language() -> None:
    front_end = FrontEnd(backend="characters", lang="de")
    text = "Das ist z. B. gut. Am 3. Mai kam er."
    assert front_end.split(text) == ["Das ist z. B. gut.", "Am 3. Mai kam er."]
    assert front_end.split(text, lang="en") != front_end.split(text)

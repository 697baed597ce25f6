"""Numbers, dates, times, money, units, signs and abbreviations in words."""

from __future__ import annotations

import builtins
import time
import warnings
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.corpora.demo_text import sentences
from speechkit.text import verbalize as module
from speechkit.text.language_rules import RULES
from speechkit.text.verbalize import base_language, drop_signs, verbalize

ENGLISH = {
    "Dr. Smith paid $5.50 on May 17, 2024 at 5:30 p.m.":
        "Doctor Smith paid five dollars and fifty cents on May seventeenth, twenty twenty-four at five thirty PM.",
    "3.5 km, i.e. 1,234 m/s, or 5 %.":
        "three point five kilometers, that is one thousand two hundred and thirty-four meters per second, or five percent.",
    "In 1984 Henry VIII met World War II at 17:05, on Louis XIV's IV drip.":
        "In nineteen eighty-four Henry the eighth met World War two at seventeen oh five, on Louis XIV's IV drip.",
    "No. 5, p. 10-15, 007 and B2B, 1.2.3":
        "number five, page ten to fifteen, zero zero seven and B two B, one point two point three",
    "5/17/2024, 2024-05-17, 13/13/2024-":
        "May seventeenth, twenty twenty-four, May seventeenth, twenty twenty-four, thirteen/thirteen/twenty twenty-four-",
    "the 1990s, 1/2 cup, 2½ cups, -5 °C":
        "the nineteen nineties, one half cup, two and a half cups, minus five degrees Celsius",
    "1 1/2 cups, 2½cups, 1,234 3/4, 3 1/3; -1 1/2, -1/2, 2 1/2/3":
        "one and a half cups, two and a half cups, one thousand two hundred and thirty-four and three quarters, three and a "
        "third; minus one and a half, minus one half, two one/two/three",
    "It took 5 ms. Then Ms. Smith; in 1984 Ms. Jones met 3 Dr. Watsons in 9 ms.":
        "It took five milliseconds. Then Miz Smith; in nineteen eighty-four Miz Jones met three Doctor Watsons in nine "
        "milliseconds.",
    "$1 1/2, $2½ million, 2½ million": "one and a half dollars, two and a half million dollars, two and a half million",
    "$.50, $.50-$1, €.99, $.5": "fifty cents, fifty cents to one dollar, ninety-nine cents, zero point five dollars",
    "AT&T, 50% off, 3×4=12, a@b": "AT and T, fifty percent off, three times four equals twelve, a at b",
    "St. Louis etc. The end, etc.": "Saint Louis et cetera. The end, et cetera.",
    "at 5pm. At 9:00 a.m. He; 7:00, 25:00": "at five PM. At nine AM. He; seven o'clock, twenty-five:zero zero",
    "$3 million and £0.99, €1, $2,000": "three million dollars and ninety-nine pence, one euro, two thousand dollars",
    "1914-1918, 5–10 km": "nineteen fourteen to nineteen eighteen, five to ten kilometers",
    "50%-60%, $5-$10, $5-10, 10am-5pm, 9-5pm, 10:30–11:00; 5°C-10°C":
        "fifty percent to sixty percent, five dollars to ten dollars, five dollars to ten dollars, ten AM to five PM, "
        "nine to five PM, ten thirty to eleven o'clock; five degrees Celsius to ten degrees Celsius",
    "£5m, $3bn, $2M, €2.5bn, $1m, $10-20m, 5 m, 5m":
        "five million pounds, three billion dollars, two million dollars, two point five billion euros, one million dollars, "
        "ten million dollars to twenty million dollars, five meters, five meters",
    "10k, 10K, 2.5k, 2bn people, 4K, 18k gold, my 401k":
        "ten thousand, ten thousand, two thousand five hundred, two billion people, four K, eighteen k gold, "
        "my four hundred and one k",
    "He is 5 ft. 3 in. tall. She is 5ft. 2in. It weighs 2 lbs. 4 oz.; 10 min. later":
        "He is five feet three inches tall. She is five feet two inches. It weighs two pounds four ounces; ten minutes later",
    "5 km. 3 men, 5 in the box": "five kilometers. three men, five in the box",
    "the 90s, the '90s, 1980s-1990s, 1,000s, 100s, 10,000s, 120s":
        "the nineties, the nineties, nineteen eighties to nineteen nineties, thousands, hundreds, tens of thousands, "
        "one hundred and twenties",
    "555-1234; +1-800-555-1230; 555-123-4567; 500-1500":
        "five five five, one two three four; one, eight zero zero, five five five, one two three zero; "
        "five five five, one two three, four five six seven; five hundred-fifteen hundred",
    "17th of May 2024, 3rd May, the 21st, Jan. 2":
        "seventeenth of May twenty twenty-four, third of May, the twenty-first, January second",
    "1,000,000.25; #7; 0.5 kg; 1 km": "one million point two five; number seven; zero point five kilograms; one kilometer",
}  # fmt: skip
GERMAN = {
    "Am 3. Mai 2024 um 17:45 Uhr zahlte Dr. Müller 5,50 € (z. B. bar).":
        "Am dritten Mai zweitausendvierundzwanzig um siebzehn Uhr fünfundvierzig zahlte Doktor Müller fünf Euro "
        "fünfzig (zum Beispiel bar).",
    "Der 2. Versuch, 1.234,5 km, 3 %, d.h. 1 km.":
        "Der zweite Versuch, eintausendzweihundertvierunddreißig Komma fünf Kilometer, drei Prozent, das heißt ein Kilometer.",
    "Ludwig XIV. war 1715 alt. Kapitel IV": "Ludwig der Vierzehnte war siebzehnhundertfünfzehn alt. Kapitel vier",
    "am 17.05.2024, 20 Mio. Euro, 3.5, usw. Dann":
        "am siebzehnten Mai zweitausendvierundzwanzig, zwanzig Millionen Euro, drei Punkt fünf, und so weiter. Dann",
    "um 2.30 Uhr, um 1 Uhr, um 1:00": "um zwei Uhr dreißig, um ein Uhr, um ein Uhr",
    "von 10 bis 20. Dann bis 3. Mai": "von zehn bis zwanzig. Dann bis dritten Mai",
    "die 1990er, 80er-Jahre, in den 1920ern, ein 1er":
        "die neunzehnhundertneunziger, achtziger-Jahre, in den neunzehnhundertzwanzigern, ein einser",
    "50%-60%, 5€-10€, 10-12 Uhr, 10:00-12:00 Uhr, 10k, 5 M€, 5 min. später":
        "fünfzig Prozent bis sechzig Prozent, fünf Euro bis zehn Euro, zehn bis zwölf Uhr, zehn Uhr bis zwölf Uhr, zehntausend, "
        "fünf Millionen Euro, fünf Minuten später",
    "Er hat 20K Follower, 12bn, $5K, 18k Gold, 4K":
        "Er hat zwanzigtausend Follower, zwölf Milliarden, fünftausend Dollar, achtzehn k Gold, vier K",
    "1 1/2 Tassen, 2½, 2 3/4": "eineinhalb Tassen, zweieinhalb, zwei drei Viertel",
    "Es war 1984. Dann kam -5 °C.": "Es war neunzehnhundertvierundachtzig. Dann kam minus fünf Grad Celsius.",
}  # fmt: skip
FRENCH = {
    "Le 17/05/2024 à 17h45, M. Dupont a payé 5,50 € (p. ex.).":
        "Le dix-sept mai deux mille vingt-quatre à dix-sept heures quarante-cinq, Monsieur Dupont a payé cinq euros "
        "cinquante (par exemple).",
    "1 234,5 km, le 1er mai, Louis XIV au XIXe siècle, 80 %":
        "mille deux cent trente-quatre virgule cinq kilomètres, le premier mai, Louis quatorze au dix-neuvième "
        "siècle, quatre-vingts pour cent",
    "50%-60%, 10h-12h30, 3 M€":
        "cinquante pour cent à soixante pour cent, dix heures à douze heures trente, trois millions d'euros",
    "Il a 20K abonnés, 12bn, 5K €, 2,5bn €":
        "Il a vingt mille abonnés, douze milliards, cinq mille euros, deux virgule cinq milliards d'euros",
    "1 1/2 litre, 2 3/4, 1 234 1/2": "un et demi litre, deux trois quarts, mille deux cent trente-quatre et demi",
    "3 millions d'euros, 2000000 €, 5 m. Il": "trois millions d'euros, deux millions d'euros, cinq mètres. Il",
}  # fmt: skip
SPANISH = {
    "El 17/05/2024 a las 17:45 el Sr. Pérez pagó 5,50 €.":
        "El diecisiete de mayo de dos mil veinticuatro a las diecisiete cuarenta y cinco el señor Pérez pagó cinco "
        "euros con cincuenta céntimos.",
    "21 km, siglo XIX, Felipe II, 1.º, 2.ª, 3.er, 50 %":
        "veintiún kilómetros, siglo diecinueve, Felipe segundo, primero, segunda, tercer, cincuenta por ciento",
    "Tiene 20K seguidores, 12bn, $1,5bn":
        "Tiene veinte mil seguidores, doce mil millones, uno coma cinco mil millones de dólares",
    "1 1/2 tazas, 2¾": "uno y medio tazas, dos y tres cuartos",
    "10€-20€, 3 M€": "diez euros a veinte euros, tres millones de euros",
    "EE. UU. y p. ej. 1.234,5": "Estados Unidos y por ejemplo mil doscientos treinta y cuatro coma cinco",
}  # fmt: skip
BY_LANGUAGE = {"en": ENGLISH, "de": GERMAN, "fr": FRENCH, "es": SPANISH}
CASES = [(lang, *case) for lang, cases in BY_LANGUAGE.items() for case in cases.items()]


@pytest.mark.parametrize(("lang", "written", "said"), CASES)
def test_what_is_written_as_it_is_said(lang: str, written: str, said: str) -> None:
    pytest.importorskip("num2words")
    assert verbalize(written, lang) == said
    assert verbalize(said, lang) == said, "reading twice changes nothing"


def test_the_day_comes_first_outside_america() -> None:
    pytest.importorskip("num2words")
    assert verbalize("3/5/2024", "en-US") == "March fifth, twenty twenty-four"
    assert verbalize("3/5/2024", "en_GB") == "May third, twenty twenty-four"


@pytest.mark.parametrize("lang", RULES)
def test_plain_words_stay(lang: str) -> None:
    for sentence in islice(sentences(np.random.default_rng(1), "train"), 200):
        assert verbalize(sentence.written[lang], lang) == sentence.written[lang]
    plain = 'Isn\'t it?  Well: "yes" — a (b); c…\n\nI said no. Mix, I, X.'
    assert verbalize(plain, lang) == plain


def test_other_languages_stay() -> None:
    assert verbalize("5 кг, 3 %", "ru") == "5 кг, 3 %"
    assert base_language("pt-BR") == base_language("PT_br") == "pt"


def test_without_num2words_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "num2words":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    module._reader.cache_clear()
    module._warn_of_digits.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"speechkit\[tts\]"):
            assert verbalize("Dr. Smith & 5 kg", "en") == "Doctor Smith and 5 kg"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert verbalize("3. Mai", "de") == "3. Mai"
        module._warn_of_digits.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert verbalize("I see, MIX I", "en") == "I see, MIX I"
    finally:
        module._reader.cache_clear()
        module._warn_of_digits.cache_clear()


def test_signs_that_nobody_reads_are_left_out() -> None:
    text, dropped = drop_signs("a*b → c\u00ad\u200bd \U0001f44d\U0001f3fd, 5 € + é\u0301 # ™ \ue000")
    assert text == "a b   cd   , 5 € + é\u0301 # ™  "
    assert dropped == {"*", "→", "\U0001f44d", "\U0001f3fd", "\ue000"}
    assert drop_signs("plain, words!") == ("plain, words!", set())


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=80) | st.text("0123456789.,:/-–$%€ hkmNoXIVstJan½²#°", max_size=80),
    lang=st.sampled_from(["en", "en-GB", "de", "fr", "es"]),
)
def test_any_text(text: str, lang: str) -> None:
    said = verbalize(text, lang)
    assert len(said) <= 60 * len(text)
    again = verbalize(said, lang)
    assert verbalize(again, lang) == again


@pytest.mark.parametrize("lang", RULES)
def test_everything_that_rules_know_is_read_in_every_language(lang: str) -> None:
    """Made up of what any of the languages writes, in another order: never an error."""
    known = {*"0123456789.,:;/-–' \n½¼¾ſıİ٣²", "0000", "1984", "99", "1" * 16, "XIV", "pm", "Uhr", "gold", "th", "ème"}
    for rules in RULES.values():
        for table in (rules.units, rules.scale_letters, rules.currencies, rules.signs, rules.fractions, rules.abbreviations,
                      rules.titles, rules.before_number, rules.before_name):  # fmt: skip
            known.update(table)
        known.update(rules.months + rules.short_months + rules.roman_after + rules.monarchs)
    numbers = [f"{number}{word}" for word in sorted(known) for number in ("1", "20", "1.5", "1,5")]
    words = [*sorted(known), *numbers]
    chosen = np.random.default_rng(0).integers(len(words), size=(500, 6))
    for text in [*numbers, *(gap.join(words[i] for i in row) for row in chosen for gap in ("", " "))]:
        verbalize(text, lang)


@pytest.mark.parametrize(
    ("lang", "text"),
    [("en", "Mrſ. Smith"), ("en", "ſept 5"), ("de", "bſpw. so"), ("de", "dieſe 3. Mai"), ("es", "ſra. Vıd"), ("en", "İ.e. ı.e.")],
)
def test_letters_that_only_count_as_the_same_are_no_error(lang: str, text: str) -> None:
    assert verbalize(text, lang)


@pytest.mark.parametrize("lang", RULES)
def test_numbers_of_any_length(lang: str) -> None:
    assert verbalize("1" * 5000 + "-" + "2" * 5000, lang)


@pytest.mark.parametrize(
    "unit",
    ["1", "1.", "1,", "1-", "1:", " 1", "I ", "$", "1/", "a.", "1 h", "5%", "XIV ", "- ", "0", "5%-", "$5-", "1 ft. ", "123-"],
)
@pytest.mark.parametrize("lang", RULES)
def test_time_grows_with_the_text_alone(lang: str, unit: str) -> None:
    text = (unit * 4000)[:4000]
    verbalize(unit, lang)
    begin = time.process_time()
    verbalize(text, lang)
    assert time.process_time() - begin < 0.5

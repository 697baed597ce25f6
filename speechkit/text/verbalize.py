"""Numbers, dates, times, money, units, signs and abbreviations in words, for English, German, French and Spanish.

Numbers are spelt by the package num2words (extra `tts`); without it they are left as they are, with one warning, for
espeak-ng to read in its own way. Text of other languages is left as it is. Plain words stay as they are, so that reading a
text twice changes nothing.

What is read as what:

- 1,234.5 (1.234,5 in German and Spanish, 1 234,5 in French) is one number; 007, and more than 15 digits, are digits one by
  one. Four digits from 1100 to 2099 are a year in English, to 1999 in German.
- 5/17/2024 has the month first in English ("en-GB" and all others: the day), 2024-05-17 everywhere.
- Roman numerals are numbers only after words such as "Chapter" or "War", and after names of kings and popes.
- "10-15" is a range where the second is larger and both have at most two digits or exactly four; with an en dash always.
  Between amounts of one kind ("50%-60%", "$5-$10", "10am-5pm", "5 km-10 km") every dash is.
- "555-1234" is a telephone number, digit by digit, with or without an area code; not "500-1500", which may be a range.
- "$3bn", "5m EUR": letters for millions count after or before a currency only ("5m" alone is meters); "10k" and "2bn" do.
- "1 1/2" and "1\u00bd" are "one and a half". "5 ms." has milliseconds in it, "Ms." anywhere else is a title.
- "90s" are the nineties, never seconds; "1,000s" are thousands. "5 ft. tall" has no end of a sentence in it.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable
from functools import cache, lru_cache

from speechkit.text.language_rules import RULES

_ROMAN = "(?=[IVX])(X{0,3})(IX|IV|V?I{0,3})"
_AFTER_ROMAN = r"(?![\w'\u2019-])"
_DOT = {"en": "point", "de": "Punkt", "fr": "point", "es": "punto"}
_SCALES = {
    "en": "thousand million billion trillion", "de": "Tausend Millionen Milliarden Billionen",
    "fr": "millions milliards", "es": r"mil\smillones millones",
}  # fmt: skip
_GERMAN_ARTICLES = {"der": "", "die": "", "das": "", "jede": "", "diese": ""} | dict.fromkeys(
    ("dem", "den", "des", "am", "zum", "zur", "im", "vom", "beim", "seit", "ab", "bis"), "n"
)  # with the ending that an ordinal has after them
_MERIDIEM = r"\s?([AaPp])(\.[Mm]\.|[Mm]\b)"
_AFTER_TIME = {"en": f"(?:{_MERIDIEM})?", "de": r"(?:\s?Uhr\b)?", "fr": "", "es": r"(?:\s?h\b)?"}
_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]")
_MARKUP = frozenset("*_~^|`\\<>{}")
_ALONE = {"k": "k", "K": r"(?<=\d\d)K", "bn": "bn"}  # letters that count without a currency; "4K" does not
_NOT_CARATS = r"(?!\w)(?!\s(?:\w+\s)?[Gg]old\b)"
_AMOUNT_ENDS = {"en": r"[AaPp]\.?[Mm]\.?", "de": "Uhr|ern?", "fr": r"h(?:\d\d)?", "es": "h"}
_GOES_ON = re.compile(r"\s+[a-z\u00df-\u00ff]|[,;:]")  # a sentence, after a point
_ROUND_PLURALS = {"10000": "tens of thousands", "100000": "hundreds of thousands"}
_KEPT_SIGNS = frozenset("+=\u00b1\u00d7\u00f7\u00b0\u00a9\u00ae\u2122#")
_MAX_DIGITS = 15


def base_language(lang: str) -> str:
    """The language of a code without its region: "pt" of "pt-BR"."""
    return re.split("[-_]", lang.lower(), maxsplit=1)[0]


def verbalize(text: str, lang: str) -> str:
    """A text as it is said, in words.

    Args:
        text: any text.
        lang: BCP-47 code; other languages than "en", "de", "fr" and "es" are left as they are.
    """
    base = base_language(lang)
    rules = RULES.get(base)
    if rules is None:
        return text
    text = _expand(unicodedata.normalize("NFC", text), base)
    if _has_numbers(text):
        reader = _reader(base, lang.lower().replace("_", "-"))
        text = text if reader is None else reader.read(text)
    return _signs(base).sub(lambda match: f" {rules.signs[match[1]]} ", text)


def drop_signs(text: str) -> tuple[str, set[str]]:
    """Leave out what nobody reads aloud: emoji, arrows, marks of layout ("*", "_", "|" ...), characters without a meaning.

    Returns:
        the text with blanks in their place, and what was left out; invisible characters go without mention.
    """
    text = _UNSEEN.sub("", text)
    dropped = {char for char in set(text) if _is_silent(char)}
    return text.translate({ord(char): " " for char in dropped}), dropped


@cache
def _is_silent(char: str) -> bool:
    return char in _MARKUP or (unicodedata.category(char) in ("So", "Sk", "Sm", "Cn", "Co", "Me") and char not in _KEPT_SIGNS)


def _has_numbers(text: str) -> bool:
    return re.search("[\\d\u00bd\u00bc\u00be]|\\b(?!I\\b)[IVX]+e?\\b", text) is not None


@cache
def _signs(base: str) -> re.Pattern[str]:
    return re.compile(rf"[ \t]*([{re.escape(''.join(RULES[base].signs))}])[ \t]*")


def _expand(text: str, base: str) -> str:
    """Abbreviations in words."""
    rules = RULES[base]

    def titled(match: re.Match[str]) -> str:
        before = match.string[max(0, match.start() - 2) : match.start()].rstrip()
        if before[-1:].isdecimal() and match[0].rstrip(".") in rules.units:  # "5 ms."
            return match[0]
        return rules.titles.get(_compact(match[0]), match[0])

    text = _abbreviations(tuple(rules.titles)).sub(titled, text)
    text = _abbreviations(tuple(rules.before_number), r"\s?\d").sub(lambda m: _apart(m, rules.before_number[m[0]]), text)
    text = _abbreviations(tuple(rules.before_name), r"\s+[^\W\d_a-z]").sub(lambda match: rules.before_name[match[0]], text)

    def expanded(match: re.Match[str]) -> str:
        key, after = _compact(match[0]), match.string[match.end() :]
        last = re.match(r"[\"')\]\u201d\u00bb\u201c]*[ \t]*(?:\n|$)", after) is not None
        last = last or (key in rules.closing and re.match(r"[\"')\]\u201d\u00bb]*\s+[^\W\d_a-z]", after) is not None)
        return rules.abbreviations[key] + "." * last if key in rules.abbreviations else match[0]

    return _abbreviations(tuple(rules.abbreviations)).sub(expanded, text)


def _compact(written: str) -> str:
    """The form in which tables have an abbreviation: lower case, without blanks."""
    return "".join(written.lower().split())


@cache
def _abbreviations(keys: tuple[str, ...], ahead: str = "") -> re.Pattern[str]:
    """Finds abbreviations; as they stand before something, else in any case and with blanks after their points."""
    keys = tuple(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    if ahead:
        return re.compile(rf"(?<![\w.-])(?:{'|'.join(keys)})(?={ahead})")
    keys = tuple(key.replace(r"\.", r"\.\s?").removesuffix(r"\s?") for key in keys)
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(keys)})(?!\w)", re.IGNORECASE)


@cache
def _reader(base: str, lang: str) -> _NumberReader | None:
    try:
        from num2words import num2words
    except ImportError:
        _warn_of_digits()
        return None
    return _NumberReader(base, month_first=base == "en" and lang in ("en", "en-us"), spell=num2words)


@cache
def _warn_of_digits() -> None:
    message = 'num2words is not installed: numbers are read in espeak-ng\'s own way; pip install "speechkit[tts]" spells them'
    warnings.warn(message, stacklevel=5)


class _NumberReader:
    """Reads numbers, and what holds numbers, in one language."""

    def __init__(self, base: str, *, month_first: bool, spell: Callable[..., str]) -> None:
        self._base = base
        self._rules = rules = RULES[base]
        self._month_first = month_first
        self._spell = lru_cache(maxsize=4096)(spell)
        point, group = re.escape(rules.decimal), re.escape(rules.group)
        number = rf"(?<!\d)(?:\d{{1,3}}(?:[{group}]\d{{3}})+(?!\d)(?:{point}\d+)?|\d+(?:{point}\d+)?)"
        units = "|".join(re.escape(unit) for unit in sorted(rules.units, key=len, reverse=True))
        money = "|".join(re.escape(sign) if len(sign) == 1 else rf"\b{sign}\b" for sign in rules.currencies)
        months = "|".join(rules.months)
        scales = "|".join(_SCALES[base].split())
        letters = "|".join(sorted(rules.scale_letters, key=len, reverse=True))
        after, monarchs = ("|".join(map(re.escape, words)) for words in (rules.roman_after, rules.monarchs))
        self._number = re.compile(number)
        alone = "|".join(form for letter, form in _ALONE.items() if letter in rules.scale_letters)
        parts = "|".join(fraction for fraction in rules.fractions if "/" in fraction)
        dotted = r"(?:\.(?=\s+[a-z\u00e4\u00f6\u00fc]))?" if base == "de" else ""
        steps: list[tuple[str, Callable[[re.Match[str]], str]]] = [
            (rf"\b({after})\s+{_ROMAN}{_AFTER_ROMAN}{dotted}", lambda m: f"{m[1]} {self._cardinal(_roman(m[2], m[3]))}"),
            (rf"\b({monarchs})\s+{_ROMAN}{_AFTER_ROMAN}{dotted}", self._monarch),
            (r"(?<![\d-])(\d{4})-(\d{2})-(\d{2})(?![\d-])", lambda m: self._date(m, *m.group(1, 2, 3))),
            (r"(?<![\d/.])(\d{1,2})([/.])(\d{1,2})\2(\d{4})(?!\d)", self._local_date),
            (rf"(?<!\d)(?<!\d\s)({money}){point}(?=\d)", lambda m: f"{m[1]}0{rules.decimal}"),
            *self._range_steps(number, f"{units}|{letters}", money, f"(?:{letters}|\\s(?:{scales}))?"),
            *self._language_steps(months, number),
            (rf"({money})\s?({number})({letters})(?!\w)", lambda m: self._scaled(m[2], m[3], sign=m[1])),
            (rf"({number})\s?({letters})(?=\s?(?:{money})(?!\w))", lambda m: self._scaled(m[1], m[2])),
            (rf"(?<![\w.,])(?!401k)({number})({alone}){_NOT_CARATS}", lambda m: self._scaled(m[1], m[2])),
            (rf"(?<![\d:.])(\d{{1,2}}):(\d{{2}})(?![\d:]){_AFTER_TIME[base]}", self._time),
            (r"(?<![\w.,/\u2013-])(\d+)([\u2013-])(\d+)(?![\d/\u2013-]|[.,]\d)", self._range),
            (r"(?<![\w.,)%\u00b0\u20ac])[-\u2212](?=\d)|\u2212(?=\d)", lambda m: f"{rules.words['minus']} "),
            (
                rf"(?:({money})\s?|(?<![\w.,/$\u20ac\u00a3\u00a5]))({number})"
                rf"(?:\s?([\u00bd\u00bc\u00be])|[ \u00a0\u202f]({parts})(?![\d/]))(\s(?:{scales})\b)?",
                self._mixed,
            ),
            (r"(?<![\d./,])(\d/\d|[\u00bd\u00bc\u00be])(?![\d/])", lambda m: rules.fractions.get(m[0], m[0])),
            (r"(?<=\d)[\u00bd\u00bc\u00be]", lambda m: f" {rules.fractions[m[0]]}"),
            (rf"({money})\s?({number})(?:\s({scales})\b)?", lambda m: self._money(m[2], m[1], m[3])),
            (rf"({number})(?:\s({scales})\b)?\s?({money})(?!\w)", lambda m: self._money(m[1], m[3], m[2])),
            (rf"({number})(?:\s?(?!s\b)|\s)({units})(?!\w)(\.(?!\w))?", self._quantity),
            (r"(?<![\d.,])\d+(?:\.\d+)+(?![.,]?\d)", self._dotted),
            (number, self._plain),
        ]
        self._steps = [(re.compile(pattern), read) for pattern, read in steps]

    def read(self, text: str) -> str:
        """The text with its numbers in words."""
        for pattern, read in self._steps:
            text = pattern.sub(read, text)
        return text

    def _range_steps(self, number: str, units: str, money: str, scale: str) -> list[tuple[str, Callable[[re.Match[str]], str]]]:
        """Dashes between two amounts, for which "to" is said, and those of telephone numbers."""
        hour = r"\d{1,2}(?::\d{2})?"
        to = f" {self._rules.words['to']} "
        amount = rf"(?:\d{{1,2}}:)?{number}\s?(?:{money}|{units}|{_AMOUNT_ENDS[self._base]})"
        steps: list[tuple[str, Callable[[re.Match[str]], str]]] = [
            (rf"((?:{money})\s?{number}{scale})[\u2013-](?=(?:{money})\s?\d)", lambda m: m[1] + to),
            (rf"({money})\s?({number})[\u2013-]({number})({scale})(?![\w\u2013-])", self._money_range),
            (rf"(?<![\w.,])({amount})[\u2013-](?={amount}(?!\w))", lambda m: m[1] + to),
            (r"(?<![\d:.,-])(\d{1,2}:\d{2})[\u2013-](?=\d{1,2}:\d{2}(?![\d:]))", lambda m: m[1] + to),
            (r"(?<![\w.,/\u2013-])(?:(?:\+?1-)?\d{3}-\d{3}|[2-9]\d\d)-\d{4}(?![\w\u2013-]|[.,/]\d)", self._telephone),
        ]
        if self._base == "en":
            steps.append((rf"(?<![\w:.,/-])({hour})[\u2013-](?={hour}{_MERIDIEM})", lambda m: m[1] + to))
        return steps

    def _language_steps(self, months: str, number: str) -> list[tuple[str, Callable[[re.Match[str]], str]]]:
        """What one language alone writes."""
        short = "|".join(sorted(self._rules.short_months, key=len, reverse=True))
        if self._base == "en":
            year = r"(?:,?\s(\d{4})(?!\d|[.,]\d))?"
            return [
                (rf"\b(?i:({short}))\b\.?(?=\s\d{{1,2}}\b)", self._whole_month),
                (rf"\b({months})\s(\d{{1,2}})(?:st|nd|rd|th)?(?![\d%:]|[.,]\d){year}", self._english_date),
                (rf"(?<![\d.,])(\d{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?({months})\b{year}",
                 lambda m: f"{self._ordinal(int(m[1]))} of {m[2]}" + (f" {self._year(m[3])}" if m[3] else "")),
                (r"(?<!\d)(\d{1,15})(?:st|nd|rd|th)\b", lambda m: self._ordinal(int(m[1]))),
                (r"(?<![\d,.])['\u2018\u2019]?(\d{1,3}(?:,\d{3})*,\d\d0|\d+0)s\b", self._english_plural),
                (rf"(?<![\d:.])(\d{{1,2}}){_MERIDIEM}", lambda m: f"{self._cardinal(int(m[1]))}{_meridiem(m, 2)}"),
                (r"#(?=\d)", lambda m: "number "),
            ]  # fmt: skip
        if self._base == "de":
            articles = "|".join(_GERMAN_ARTICLES)
            return [
                (rf"(?<=\d\.\s)(?i:({short}))\b\.?", self._whole_month),
                (rf"\b(?:(?i:({articles}))\s)?(\d{{1,2}})\.\s?(?=(?:{months})\b)", self._german_ordinal),
                (r"\b(?i:(der|die|das|dem|den|des|am|zum|im|vom|beim))\s(\d{1,3})\.\s(?=\w)", self._german_ordinal),
                (r"(?<![\d.,])(\d{1,2})\.(\d{2})\sUhr\b", self._time),
                (r"(?<![\d.,])1(?=\sUhr\b)", lambda m: "ein"),
                (rf"(?<![\d.,])({number})er(n?)\b", lambda m: f"{'eins' if m[1] == '1' else self._value(m[1])}er{m[2]}"),
            ]
        if self._base == "fr":
            return [
                (r"(?<![\d:,])(\d{1,2})\s?h\s?(\d{2})?(?!\w)", self._time),
                (r"\b1(er|re|\u00e8re)\b", lambda m: "premier" if m[1] == "er" else "premi\u00e8re"),
                (r"(?<!\d)(\d{1,15})(?:e|\u00e8me|nd|nde)\b", lambda m: self._ordinal(int(m[1]))),
                (rf"\b{_ROMAN}e(?=\s+si\u00e8cle)", lambda m: self._ordinal(_roman(m[1], m[2]))),
            ]
        return [
            (r"(\d{1,3})\.?([\u00ba\u00aa]|er\b)", self._spanish_ordinal),
            (r"(?<=\blas )(\d{1,2}):00(?!\d)", lambda m: f"{m[1]} en punto"),
        ]

    def _cardinal(self, value: int) -> str:
        return self._spell(value, lang=self._base).replace(",", "")

    def _ordinal(self, value: int) -> str:
        return self._spell(value, lang=self._base, to="ordinal").replace(",", "")

    def _year(self, digits: str) -> str:
        return self._spell(int(digits), lang=self._base, to="year").replace(",", "")

    def _digits(self, digits: str) -> str:
        return " ".join(self._cardinal(int(digit)) for digit in digits)

    def _words(self, number: str) -> str:
        """A number with its groups and decimals."""
        whole, _, decimals = number.partition(self._rules.decimal)
        whole = "".join(filter(str.isdigit, whole))
        one_by_one = len(whole) > _MAX_DIGITS or (whole[0] == "0" and len(whole) > 1)
        spoken = self._digits(whole) if one_by_one else self._cardinal(int(whole))
        if not decimals:
            return spoken
        as_number = self._base in ("fr", "es") and len(decimals) < 3 and decimals[0] != "0"
        after = self._cardinal(int(decimals)) if as_number else self._digits(decimals)
        return f"{spoken} {self._rules.words['point']} {after}"

    def _plain(self, match: re.Match[str]) -> str:
        return _apart(match, self._value(match[0]))

    def _value(self, number: str) -> str:
        """The words of a number that stands alone, which may be a year."""
        last_year = {"en": 2099, "de": 1999}.get(self._base, 0)
        is_year = len(number) == 4 and number.isdigit() and 1100 <= int(number) <= last_year
        return self._year(number) if is_year else self._words(number)

    def _english_plural(self, match: re.Match[str]) -> str:
        digits = match[1].replace(",", "")
        if len(digits) > _MAX_DIGITS or digits[0] == "0":
            return match[0]
        is_year = len(match[1]) == 4 and digits > "1000"
        spoken = self._year(digits) if is_year else self._cardinal(int(digits))
        if digits.strip("0") == "1":
            spoken = spoken.removeprefix("one ")
        return _ROUND_PLURALS.get(digits) or re.sub("y$", "ie", spoken) + "s"

    def _scaled(self, number: str, letters: str, *, sign: str = "") -> str:
        """An amount of thousands, millions ... with its noughts, or with their name, for the steps that follow to read."""
        zeros, name = self._rules.scale_letters[letters]
        whole, _, decimals = number.partition(self._rules.decimal)
        digits = "".join(filter(str.isdigit, whole + decimals))
        if decimals and (zeros > 3 or len(decimals) > zeros):
            return f"{sign}{number} {name}"
        return f"{sign}{digits}{'0' * (zeros - len(decimals))}"

    def _counted(self, number: str, one: str, more: str) -> str:
        """So many of something."""
        if number == "1":
            return one
        words = self._words(number)
        if self._base == "es":
            words = re.sub("uno$", "\u00fan" if words.endswith("veintiuno") else "un", words)
        link = ""
        if self._base in ("fr", "es") and re.search("(?:million|milliard|mill\u00f3n|millones)s?$", words):
            link = "d'" if self._base == "fr" and more[0] in "aeiou" else "de "
        return f"{words} {link}{more}"

    def _quantity(self, match: re.Match[str]) -> str:
        unit = match[2]
        ends = (match[3] is not None or unit.endswith(".")) and not _GOES_ON.match(match.string, match.end())
        if f"{unit.rstrip('.')}." in self._rules.before_number:  # "5ft. 3in."
            ends = ends and re.match(r"\s?\d", match.string[match.end() :][:2]) is None
        return _apart(match, self._counted(match[1], *self._rules.units[unit])) + "." * ends

    def _money(self, number: str, sign: str, scale: str | None) -> str:
        one, more, coin, coins = self._rules.currencies[sign]
        if scale:
            link = {"fr": "d'" if more[0] in "aeiou" else "de ", "es": "de "}.get(self._base, "")
            return f"{self._words(number)} {scale} {link}{more}"
        whole, _, cents = number.partition(self._rules.decimal)
        if len(cents) != 2:
            return self._counted(number, one, more)
        if cents == "00":
            return self._counted(whole, one, more)
        small = self._counted(str(int(cents)), coin, coins) if coins else self._cardinal(int(cents))
        return small if whole == "0" and coins else self._rules.amount.format(whole=self._counted(whole, one, more), cents=small)

    def _mixed(self, match: re.Match[str]) -> str:
        """A whole number and a fraction, perhaps of money."""
        whole, part = self._words(match[2]), self._rules.fractions[match[3] or match[4]]
        if self._base == "en":
            words = f"{whole} and {re.sub('^one ', 'a ', part)}"
        elif self._base == "de":
            words = re.sub("eins$", "ein", whole) + "einhalb" if part == "ein halb" else f"{whole} {part}"
        else:
            link = {"fr": "et " if part == "un demi" else "", "es": "y "}[self._base]
            words = f"{whole} {link}{part.removeprefix('un ') if part in ('un demi', 'un medio') else part}"
        money = f" {self._rules.currencies[match[1]][1]}" if match[1] else ""
        return _apart(match, f"{words}{match[5] or ''}{money}")

    def _dotted(self, match: re.Match[str]) -> str:
        if self._number.fullmatch(match[0]):
            return match[0]
        return f" {_DOT[self._base]} ".join(match[0].split("."))

    def _range(self, match: re.Match[str]) -> str:
        first, dash, second = match.groups()
        close = max(len(first), len(second)) <= 2 or len(first) == len(second) == 4
        is_range = dash != "-" or (close and int(first) < int(second))
        return f"{first} {self._rules.words['to']} {second}" if is_range else match[0]

    def _money_range(self, match: re.Match[str]) -> str:
        sign, first, second, scale = match.groups()
        return f"{sign}{first}{scale} {self._rules.words['to']} {sign}{second}{scale}"

    def _telephone(self, match: re.Match[str]) -> str:
        groups = match[0].removeprefix("+").split("-")
        if len(groups) == 2 and all(group.endswith("0") for group in groups):
            return match[0]
        return ", ".join(map(self._digits, groups))

    def _local_date(self, match: re.Match[str]) -> str:
        first, sign, second, year = match.groups()
        day, month = (second, first) if self._month_first and sign == "/" else (first, second)
        return self._date(match, year, *((month, day) if int(month) <= 12 else (day, month)))

    def _date(self, match: re.Match[str], year: str, month: str, day: str) -> str:
        """A date of numbers with the name of its month, for the steps that follow to read."""
        if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
            return match[0]
        written = "1er" if self._base == "fr" and int(day) == 1 else str(int(day))
        return self._rules.written_date.format(day=written, month=self._rules.months[int(month) - 1], year=year)

    def _whole_month(self, match: re.Match[str]) -> str:
        short, name = self._rules.short_months, match[1].lower()
        return self._rules.months[short.index(name)] if name in short else match[0]

    def _english_date(self, match: re.Match[str]) -> str:
        month, day, year = match.groups()
        return f"{month} {self._ordinal(int(day))}" + (f", {self._year(year)}" if year else "")

    def _german_ordinal(self, match: re.Match[str]) -> str:
        article = match[1]
        ending = "r" if article is None else _GERMAN_ARTICLES.get(article.lower(), "")
        return f"{article + ' ' if article else ''}{self._ordinal(int(match[2]))}{ending} "

    def _spanish_ordinal(self, match: re.Match[str]) -> str:
        word = self._ordinal(int(match[1]))
        return {"\u00ba": word, "\u00aa": re.sub(r"o\b", "a", word), "er": re.sub(r"o$", "", word)}[match[2]]

    def _monarch(self, match: re.Match[str]) -> str:
        name, value = match[1], _roman(match[2], match[3])
        if self._base == "en":
            return match[0] if value == 1 else f"{name} the {self._ordinal(value)}"
        if self._base == "de":
            return f"{name} {'die' if name in ('Elisabeth', 'Katharina') else 'der'} {self._ordinal(value).capitalize()}"
        ordinal = value == 1 if self._base == "fr" else value <= 10
        return f"{name} {self._ordinal(value) if ordinal else self._cardinal(value)}"

    def _time(self, match: re.Match[str]) -> str:
        hour, minute = int(match[1]), int(match[2] or 0)
        if hour > 24 or minute > 59:
            return match[0]
        hours, minutes = self._cardinal(hour), self._cardinal(minute)
        if self._base == "en":
            exact = "" if match[3] else " o'clock" if hour <= 12 else " hundred"
            return f"{hours}{f' oh {minutes}' if 0 < minute < 10 else f' {minutes}' if minute else exact}{_meridiem(match, 3)}"
        if self._base == "de":
            return f"{'ein' if hour == 1 else hours} Uhr{f' {minutes}' if minute else ''}"
        if self._base == "fr":
            return f"{'une heure' if hour == 1 else f'{hours} heures'}{f' {minutes}' if minute else ''}"
        return f"{re.sub('uno$', 'una', hours)}{f' {minutes}' if minute else ''}"


def _apart(match: re.Match[str], words: str) -> str:
    """Words in place of a match, set apart from letters that it touches."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() : match.end() + 1]
    return " " * before.isalnum() + words + " " * after.isalnum()


def _meridiem(match: re.Match[str], group: int) -> str:
    """Before or after noon, as letters; the point of "p.m." may end a sentence too."""
    if not match[group]:
        return ""
    ends = match[group + 1].endswith(".") and re.match(r"[\"')\]]*(?:\s*$|\s+[A-Z])", match.string[match.end() :])
    return f" {match[group].upper()}M{'.' if ends else ''}"


def _roman(tens: str, ones: str) -> int:
    values = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    return 10 * len(tens) + values.index(ones)

"""How English, German, French and Spanish write numbers, signs and abbreviations, and the words to read them by.

Data of `speechkit.text.verbalize` and `speechkit.text.sentences`. Abbreviations and titles are in
lower case without blanks, and found in either case, with and without; those before numbers and names are found as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LanguageRules:
    """What one language writes, and how it is read.

    Attributes:
        decimal: the decimal sign.
        group: characters that may stand between groups of three digits.
        months: names of the months.
        short_months: abbreviated names, a point may follow.
        date: order of day (d), month (m) and year (y) in a date of numbers.
        written_date: a date with the name of its month, with {day}, {month}, {year}.
        units: signs of units: one of them, more of them; with a point where it tells them from words.
        scale_letters: letters for thousands, millions and more after an amount of money: their noughts, their word.
        currencies: signs of currencies: one, more, one of the smaller coin, more of it.
        amount: an amount with small coins, with {whole}, {cents}; coins without a name are a mere number.
        words: "point", "minus", "to" (between the ends of a range), "oh" (before single minutes, where it is said).
        signs: signs that are read as words.
        fractions: the usual fractions.
        abbreviations: read as words everywhere.
        closing: those of them after which a capital begins a sentence.
        titles: likewise; never the last word of a sentence.
        before_number: read as words, or as a unit, before a number only; never the last word of a sentence.
        before_name: read as words before a capital only.
        roman_after: words after which Roman numerals are numbers.
        monarchs: names after which they are ordinals, or numbers.
    """

    decimal: str
    group: str
    months: tuple[str, ...]
    short_months: tuple[str, ...]
    date: str
    written_date: str
    units: dict[str, tuple[str, str]]
    scale_letters: dict[str, tuple[int, str]]
    currencies: dict[str, tuple[str, str, str, str]]
    amount: str
    words: dict[str, str]
    signs: dict[str, str]
    fractions: dict[str, str]
    abbreviations: dict[str, str]
    closing: frozenset[str]
    titles: dict[str, str]
    before_number: dict[str, str]
    before_name: dict[str, str] = field(default_factory=dict)
    roman_after: tuple[str, ...] = ()
    monarchs: tuple[str, ...] = ()


_EN = LanguageRules(
    decimal=".",
    group=",",
    months=("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
            "December"),
    short_months=("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sept", "oct", "nov", "dec"),
    date="mdy",
    written_date="{month} {day}, {year}",
    units={
        "km/h": ("one kilometer per hour", "kilometers per hour"), "mph": ("one mile per hour", "miles per hour"),
        "m/s": ("one meter per second", "meters per second"),
        "km": ("one kilometer", "kilometers"), "m": ("one meter", "meters"), "cm": ("one centimeter", "centimeters"),
        "mm": ("one millimeter", "millimeters"), "kg": ("one kilogram", "kilograms"), "g": ("one gram", "grams"),
        "mg": ("one milligram", "milligrams"), "l": ("one liter", "liters"), "ml": ("one milliliter", "milliliters"),
        "lb": ("one pound", "pounds"), "lbs": ("one pound", "pounds"), "oz": ("one ounce", "ounces"), "ft": ("one foot", "feet"),
        "min": ("one minute", "minutes"), "ms": ("one millisecond", "milliseconds"), "s": ("one second", "seconds"),
        "h": ("one hour", "hours"), "Hz": ("one hertz", "hertz"), "kHz": ("one kilohertz", "kilohertz"),
        "MHz": ("one megahertz", "megahertz"), "GHz": ("one gigahertz", "gigahertz"), "kB": ("one kilobyte", "kilobytes"),
        "MB": ("one megabyte", "megabytes"), "GB": ("one gigabyte", "gigabytes"), "TB": ("one terabyte", "terabytes"),
        "W": ("one watt", "watts"), "kW": ("one kilowatt", "kilowatts"), "kWh": ("one kilowatt hour", "kilowatt hours"),
        "V": ("one volt", "volts"), "dB": ("one decibel", "decibels"),
        "m²": ("one square meter", "square meters"), "km²": ("one square kilometer", "square kilometers"),
        "m³": ("one cubic meter", "cubic meters"), "°C": ("one degree Celsius", "degrees Celsius"),
        "°F": ("one degree Fahrenheit", "degrees Fahrenheit"), "°": ("one degree", "degrees"),
        "%": ("one percent", "percent"), "in.": ("one inch", "inches"),
    },
    scale_letters={"k": (3, "thousand"), "K": (3, "thousand"), "m": (6, "million"), "M": (6, "million"), "mn": (6, "million"),
                   "bn": (9, "billion"), "B": (9, "billion")},
    currencies={
        "$": ("one dollar", "dollars", "one cent", "cents"), "€": ("one euro", "euros", "one cent", "cents"),
        "£": ("one pound", "pounds", "one penny", "pence"), "¥": ("one yen", "yen", "one sen", "sen"),
        "USD": ("one dollar", "dollars", "one cent", "cents"), "EUR": ("one euro", "euros", "one cent", "cents"),
        "GBP": ("one pound", "pounds", "one penny", "pence"),
    },
    amount="{whole} and {cents}",
    words={"point": "point", "minus": "minus", "to": "to", "oh": "oh"},
    signs={"&": "and", "+": "plus", "=": "equals", "×": "times", "÷": "divided by", "±": "plus or minus",
           "@": "at", "%": "percent"},
    fractions={"½": "one half", "¼": "one quarter", "¾": "three quarters", "1/2": "one half",
               "1/4": "one quarter", "3/4": "three quarters", "1/3": "one third", "2/3": "two thirds"},
    abbreviations={"e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "approx.": "approximately",
                   "jr.": "junior", "inc.": "incorporated", "ltd.": "limited", "corp.": "corporation", "dept.": "department",
                   "est.": "established", "ave.": "avenue", "blvd.": "boulevard", "rd.": "road"},
    closing=frozenset({"etc.", "inc.", "ltd.", "corp.", "jr.", "ave.", "blvd.", "rd."}),
    titles={"mr.": "Mister", "mrs.": "Mrs", "ms.": "Miz", "dr.": "Doctor", "prof.": "Professor", "gen.": "General",
            "capt.": "Captain", "lt.": "Lieutenant", "sgt.": "Sergeant", "rev.": "Reverend", "hon.": "Honorable",
            "sen.": "Senator", "gov.": "Governor", "pres.": "President"},
    before_number={"No.": "number", "Nos.": "numbers", "p.": "page", "pp.": "pages", "vol.": "volume", "Vol.": "volume",
                   "fig.": "figure", "Fig.": "figure", "ch.": "chapter", "Ch.": "chapter", "ca.": "circa",
                   "ft.": "ft", "lb.": "lb", "lbs.": "lbs"},
    before_name={"St.": "Saint", "Mt.": "Mount", "Ft.": "Fort"},
    roman_after=("Chapter", "Part", "Book", "Volume", "Act", "Scene", "Section", "War", "Type", "Phase", "Class", "Appendix"),
    monarchs=("Henry", "Louis", "Charles", "George", "Edward", "Elizabeth", "Richard", "William", "James", "Philip", "Paul",
              "Benedict", "Pius", "Napoleon", "Francis", "Frederick", "Leo", "Alexander", "Nicholas", "Peter", "Catherine"),
)  # fmt: skip

_DE = LanguageRules(
    decimal=",",
    group=".\u00a0\u202f",
    months=("Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November",
            "Dezember"),
    short_months=("jan", "feb", "mär", "apr", "mai", "jun", "jul", "aug", "sept", "okt", "nov", "dez"),
    date="dmy",
    written_date="{day}. {month} {year}",
    units={
        "km/h": ("ein Kilometer pro Stunde", "Kilometer pro Stunde"), "m/s": ("ein Meter pro Sekunde", "Meter pro Sekunde"),
        "km": ("ein Kilometer", "Kilometer"), "m": ("ein Meter", "Meter"), "cm": ("ein Zentimeter", "Zentimeter"),
        "mm": ("ein Millimeter", "Millimeter"), "kg": ("ein Kilogramm", "Kilogramm"), "g": ("ein Gramm", "Gramm"),
        "mg": ("ein Milligramm", "Milligramm"), "l": ("ein Liter", "Liter"), "ml": ("ein Milliliter", "Milliliter"),
        "min": ("eine Minute", "Minuten"), "ms": ("eine Millisekunde", "Millisekunden"), "s": ("eine Sekunde", "Sekunden"),
        "h": ("eine Stunde", "Stunden"), "Hz": ("ein Hertz", "Hertz"), "kHz": ("ein Kilohertz", "Kilohertz"),
        "MHz": ("ein Megahertz", "Megahertz"), "GHz": ("ein Gigahertz", "Gigahertz"), "kB": ("ein Kilobyte", "Kilobyte"),
        "MB": ("ein Megabyte", "Megabyte"), "GB": ("ein Gigabyte", "Gigabyte"), "TB": ("ein Terabyte", "Terabyte"),
        "W": ("ein Watt", "Watt"), "kW": ("ein Kilowatt", "Kilowatt"), "kWh": ("eine Kilowattstunde", "Kilowattstunden"),
        "V": ("ein Volt", "Volt"), "dB": ("ein Dezibel", "Dezibel"),
        "m²": ("ein Quadratmeter", "Quadratmeter"), "km²": ("ein Quadratkilometer", "Quadratkilometer"),
        "m³": ("ein Kubikmeter", "Kubikmeter"), "°C": ("ein Grad Celsius", "Grad Celsius"),
        "°F": ("ein Grad Fahrenheit", "Grad Fahrenheit"), "°": ("ein Grad", "Grad"), "%": ("ein Prozent", "Prozent"),
    },
    scale_letters={"k": (3, "Tausend"), "K": (3, "Tausend"), "m": (6, "Millionen"), "M": (6, "Millionen"),
                   "bn": (9, "Milliarden")},
    currencies={
        "€": ("ein Euro", "Euro", "", ""), "$": ("ein Dollar", "Dollar", "", ""), "£": ("ein Pfund", "Pfund", "", ""),
        "¥": ("ein Yen", "Yen", "", ""), "EUR": ("ein Euro", "Euro", "", ""), "USD": ("ein Dollar", "Dollar", "", ""),
        "CHF": ("ein Franken", "Franken", "", ""),
    },
    amount="{whole} {cents}",
    words={"point": "Komma", "minus": "minus", "to": "bis", "oh": ""},
    signs={"&": "und", "+": "plus", "=": "gleich", "×": "mal", "÷": "geteilt durch", "±": "plus minus",
           "@": "ät", "%": "Prozent", "§": "Paragraf"},
    fractions={"½": "ein halb", "¼": "ein Viertel", "¾": "drei Viertel", "1/2": "ein halb", "1/4": "ein Viertel",
               "3/4": "drei Viertel", "1/3": "ein Drittel", "2/3": "zwei Drittel"},
    abbreviations={"z.b.": "zum Beispiel", "d.h.": "das heißt", "u.a.": "unter anderem", "z.t.": "zum Teil",
                   "i.d.r.": "in der Regel", "u.u.": "unter Umständen", "v.a.": "vor allem", "o.ä.": "oder ähnliche",
                   "v.chr.": "vor Christus", "n.chr.": "nach Christus", "usw.": "und so weiter", "etc.": "et cetera",
                   "bzw.": "beziehungsweise", "ca.": "zirka", "evtl.": "eventuell", "ggf.": "gegebenenfalls",
                   "inkl.": "inklusive", "vgl.": "vergleiche", "mio.": "Millionen", "mrd.": "Milliarden", "jh.": "Jahrhundert",
                   "sog.": "sogenannte",
                   "bspw.": "beispielsweise", "str.": "Straße"},
    closing=frozenset({"etc.", "usw.", "jh.", "str.", "v.chr.", "n.chr.", "o.ä."}),
    titles={"dr.": "Doktor", "prof.": "Professor", "hr.": "Herr", "dipl.": "Diplom", "ing.": "Ingenieur"},
    before_number={"Nr.": "Nummer", "S.": "Seite", "Abs.": "Absatz", "Art.": "Artikel", "Kap.": "Kapitel", "Bd.": "Band",
                   "Abb.": "Abbildung"},
    before_name={"St.": "Sankt", "Fr.": "Frau"},
    roman_after=("Kapitel", "Teil", "Band", "Akt", "Buch", "Weltkrieg", "Klasse", "Abschnitt"),
    monarchs=("Ludwig", "Karl", "Heinrich", "Friedrich", "Wilhelm", "Otto", "Georg", "Elisabeth", "Napoleon", "Paul", "Benedikt",
              "Pius", "Franz", "Leo", "Johannes", "Katharina"),
)  # fmt: skip

_FR = LanguageRules(
    decimal=",",
    group=" \u00a0\u202f",
    months=("janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre", "novembre",
            "décembre"),
    short_months=("janv", "févr", "mars", "avr", "mai", "juin", "juil", "août", "sept", "oct", "nov", "déc"),
    date="dmy",
    written_date="{day} {month} {year}",
    units={
        "km/h": ("un kilomètre heure", "kilomètres heure"),
        "km": ("un kilomètre", "kilomètres"), "m": ("un mètre", "mètres"), "cm": ("un centimètre", "centimètres"),
        "mm": ("un millimètre", "millimètres"), "kg": ("un kilogramme", "kilogrammes"), "g": ("un gramme", "grammes"),
        "l": ("un litre", "litres"), "ml": ("un millilitre", "millilitres"), "min": ("une minute", "minutes"),
        "s": ("une seconde", "secondes"), "Hz": ("un hertz", "hertz"), "kHz": ("un kilohertz", "kilohertz"),
        "Mo": ("un mégaoctet", "mégaoctets"), "Go": ("un gigaoctet", "gigaoctets"), "W": ("un watt", "watts"),
        "kWh": ("un kilowattheure", "kilowattheures"), "m²": ("un mètre carré", "mètres carrés"),
        "m³": ("un mètre cube", "mètres cubes"), "°C": ("un degré Celsius", "degrés Celsius"),
        "°": ("un degré", "degrés"), "%": ("un pour cent", "pour cent"),
    },
    scale_letters={"k": (3, "mille"), "K": (3, "mille"), "M": (6, "millions"), "Md": (9, "milliards"), "bn": (9, "milliards")},
    currencies={
        "€": ("un euro", "euros", "", ""), "$": ("un dollar", "dollars", "", ""), "£": ("une livre", "livres", "", ""),
        "EUR": ("un euro", "euros", "", ""), "USD": ("un dollar", "dollars", "", ""), "¥": ("un yen", "yens", "", ""),
    },
    amount="{whole} {cents}",
    words={"point": "virgule", "minus": "moins", "to": "à", "oh": ""},
    signs={"&": "et", "+": "plus", "=": "égale", "×": "fois", "÷": "divisé par", "±": "plus ou moins",
           "@": "arobase", "%": "pour cent"},
    fractions={"½": "un demi", "¼": "un quart", "¾": "trois quarts", "1/2": "un demi", "1/4": "un quart",
               "3/4": "trois quarts", "1/3": "un tiers", "2/3": "deux tiers"},
    abbreviations={"etc.": "et cetera", "p.ex.": "par exemple", "c.-à-d.": "c'est-à-dire", "av.j.-c.": "avant Jésus-Christ",
                   "apr.j.-c.": "après Jésus-Christ", "env.": "environ"},
    closing=frozenset({"etc.", "av.j.-c.", "apr.j.-c."}),
    titles={"mme": "Madame", "mlle": "Mademoiselle", "dr": "docteur", "pr": "professeur"},
    before_number={"n°": "numéro", "N°": "numéro", "p.": "page", "vol.": "volume", "art.": "article", "fig.": "figure"},
    before_name={"M.": "Monsieur", "St": "Saint", "Ste": "Sainte"},
    roman_after=("chapitre", "Chapitre", "tome", "Tome", "acte", "Acte", "partie", "Partie", "livre", "Livre"),
    monarchs=("Louis", "Henri", "Charles", "François", "Philippe", "Napoléon", "Jean", "Paul", "Pie", "Benoît", "Élisabeth"),
)  # fmt: skip

_ES = LanguageRules(
    decimal=",",
    group=".\u00a0\u202f",
    months=("enero", "febrero", "marzo", "abril", "mayo", "junio", "julio", "agosto", "septiembre", "octubre", "noviembre",
            "diciembre"),
    short_months=("ene", "feb", "mar", "abr", "may", "jun", "jul", "ago", "sept", "oct", "nov", "dic"),
    date="dmy",
    written_date="{day} de {month} de {year}",
    units={
        "km/h": ("un kilómetro por hora", "kilómetros por hora"),
        "km": ("un kilómetro", "kilómetros"), "m": ("un metro", "metros"), "cm": ("un centímetro", "centímetros"),
        "mm": ("un milímetro", "milímetros"), "kg": ("un kilogramo", "kilogramos"), "g": ("un gramo", "gramos"),
        "l": ("un litro", "litros"), "ml": ("un mililitro", "mililitros"), "min": ("un minuto", "minutos"),
        "s": ("un segundo", "segundos"), "Hz": ("un hercio", "hercios"), "kHz": ("un kilohercio", "kilohercios"),
        "MB": ("un megabyte", "megabytes"), "GB": ("un gigabyte", "gigabytes"), "W": ("un vatio", "vatios"),
        "kWh": ("un kilovatio hora", "kilovatios hora"), "m²": ("un metro cuadrado", "metros cuadrados"),
        "m³": ("un metro cúbico", "metros cúbicos"), "°C": ("un grado Celsius", "grados Celsius"),
        "°": ("un grado", "grados"), "%": ("uno por ciento", "por ciento"),
    },
    scale_letters={"k": (3, "mil"), "K": (3, "mil"), "M": (6, "millones"), "bn": (9, "mil millones")},
    currencies={
        "€": ("un euro", "euros", "un céntimo", "céntimos"), "$": ("un dólar", "dólares", "un centavo", "centavos"),
        "£": ("una libra", "libras", "un penique", "peniques"), "¥": ("un yen", "yenes", "un sen", "sen"),
        "EUR": ("un euro", "euros", "un céntimo", "céntimos"), "USD": ("un dólar", "dólares", "un centavo", "centavos"),
    },
    amount="{whole} con {cents}",
    words={"point": "coma", "minus": "menos", "to": "a", "oh": ""},
    signs={"&": "y", "+": "más", "=": "igual a", "×": "por", "÷": "dividido por", "±": "más menos",
           "@": "arroba", "%": "por ciento"},
    fractions={"½": "un medio", "¼": "un cuarto", "¾": "tres cuartos", "1/2": "un medio", "1/4": "un cuarto",
               "3/4": "tres cuartos", "1/3": "un tercio", "2/3": "dos tercios"},
    abbreviations={"etc.": "etcétera", "p.ej.": "por ejemplo", "ee.uu.": "Estados Unidos", "ud.": "usted", "uds.": "ustedes",
                   "aprox.": "aproximadamente", "a.c.": "antes de Cristo", "d.c.": "después de Cristo", "avda.": "avenida"},
    closing=frozenset({"etc.", "a.c.", "d.c.", "ee.uu."}),
    titles={"sr.": "señor", "sra.": "señora", "srta.": "señorita", "dr.": "doctor", "dra.": "doctora",
            "prof.": "profesor", "dña.": "doña"},
    before_number={"n.º": "número", "nº": "número", "núm.": "número", "pág.": "página", "vol.": "volumen",
                   "art.": "artículo", "cap.": "capítulo"},
    before_name={"D.": "don", "Sto.": "Santo", "Sta.": "Santa"},
    roman_after=("siglo", "Siglo", "capítulo", "Capítulo", "tomo", "Tomo", "acto", "Acto", "parte", "Parte", "Guerra"),
    monarchs=("Felipe", "Carlos", "Alfonso", "Fernando", "Isabel", "Enrique", "Jaime", "Juan", "Pablo", "Pío",
              "Luis", "Benedicto"),
)  # fmt: skip

RULES: dict[str, LanguageRules] = {"en": _EN, "de": _DE, "fr": _FR, "es": _ES}

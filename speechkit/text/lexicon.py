"""A user's own pronunciations: words with their phones, from a file or a mapping.

Two kinds of file, both UTF-8: TSV, a word, a tab and its phones per line (empty lines and lines that begin with "# " are
left out), and JSON, one object of words and phones. Phones are symbols separated by blanks, in the notation of the front
end; "|" parts the words of a longer reading ("GPL<TAB>dʒ ˈiː | p ˈiː | ˈɛ l").
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from speechkit.text.phonemes import MARKS, WORD_BOUNDARY, is_sound


def lexicon_key(word: str) -> str:
    """What words are compared by: composed characters, case folded."""
    return unicodedata.normalize("NFC", word).replace("\u2019", "'").casefold()


def load_lexicon(path: str | Path) -> dict[str, str]:
    """Read a lexicon: phones by `lexicon_key`.

    Args:
        path: a file whose name ends in ".json"; every other is read as TSV.

    Raises:
        ValueError: the file cannot be read, or an entry is wrong; the message names file and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"lexicon={str(path)!r} cannot be read as UTF-8 text ({error}); give a TSV or JSON file") from error
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _tsv_rows(path, text)
    return _entries(rows)


def lexicon_of(entries: Mapping[str, str]) -> dict[str, str]:
    """The same from a mapping of words to phones.

    Raises:
        ValueError: an entry is wrong; the message names it.
    """
    return _entries([("lexicon", word, phones) for word, phones in entries.items()])


def _tsv_rows(path: Path, text: str) -> list[tuple[str, str, str]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("# "):
            continue
        word, tab, phones = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}:{number}: no tab in {line.strip()!r}; write a word, a tab and its phones")
        rows.append((f"{path}:{number}", word, phones))
    return rows


def _json_rows(path: Path, text: str) -> list[tuple[str, str, str]]:
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{path}:{line}: not JSON ({error}); write one object of words and phones") from error
    if not isinstance(pairs, tuple):
        raise ValueError(f"{path}:1: not an object; write one object of words and phones")
    lines = text.split("\n")
    rows, number = [], 1
    for word, phones in pairs:  # in the order of the file, so that every search begins where the last one ended
        quoted = (json.dumps(word), json.dumps(word, ensure_ascii=False))
        number = next((i for i in range(number, len(lines) + 1) if any(name in lines[i - 1] for name in quoted)), number)
        rows.append((f"{path}:{number}", word, phones))
    return rows


def _entries(rows: list[tuple[str, str, str]]) -> dict[str, str]:
    entries: dict[str, str] = {}
    for place, word, phones in rows:
        key = lexicon_key(str(word).strip())
        if not is_lexicon_word(key):
            raise ValueError(f"{place}: {word!r} is not one word; letters and digits, with hyphens or apostrophes between them")
        symbols = phones.split() if isinstance(phones, str) else []
        wrong = [symbol for symbol in symbols if not is_sound(symbol) and symbol != WORD_BOUNDARY]
        if wrong or not any(map(is_sound, symbols)):
            problem = f"{wrong[0]!r} is no phone" if wrong else "no phones"
            remedy = f"give symbols separated by blanks, without any of {' '.join(MARKS)}"
            raise ValueError(f"{place}: {problem} for {word!r}, which has {phones!r}; {remedy}")
        if entries.setdefault(key, " ".join(symbols)) != " ".join(symbols):
            raise ValueError(f"{place}: {word!r} has other phones above ({entries[key]!r}); keep one")
    return entries


def is_lexicon_word(word: str) -> bool:
    """Whether a text is one word to the lexicon: letters and digits, with hyphens or apostrophes between them."""
    parts = word.replace("'", "-").split("-")
    return all(part and all(char.isalnum() or unicodedata.category(char)[0] == "M" for char in part) for part in parts)

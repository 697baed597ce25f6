"""Words of a text, and which of its phones each of them is.

A front end may read one word as several ("25"), or several as one ("out of"); what a word sounds like alone tells where it
lies among the phones of the whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from speechkit.text.phonemes import WORD_BOUNDARY, is_boundary, strip_stress
from speechkit.text.token_table import clean_text, group_words

_CHUNK = re.compile(r"\{[^{}]*\}|[^\s{}]+")  # phones in braces are one word
_READ_OUT = frozenset("%&@#*/\\\u00a7\u2030")  # punctuation to Unicode that is read as a word
_GAP = 0.5  # price of a boundary more or less; a wrong sound costs 1


def text_words(text: str) -> list[str]:
    """Words as they are written, punctuation around them left out; characters of scripts without spaces are words."""
    words: list[str] = []
    for chunk in _CHUNK.findall(clean_text(text)):
        parts = [chunk] if chunk[0] == "{" else [word for word, _ in group_words([char.encode() for char in chunk])]
        words += [_without_marks(part) for part in parts]
    return words


def word_spans(words: Sequence[str], symbols: Sequence[str], read: Callable[[str], Sequence[str]]) -> list[slice]:
    """Which sounds of a text belong to which of its words.

    Args:
        words: of the text, in order.
        symbols: what the front end made of the whole text, boundaries included.
        read: what it makes of a word alone.

    Returns:
        Of each word a range of the sounds (boundaries do not count), which may be empty. The ranges stand in order and hold
        every sound, unless no word has a sound of its own.
    """
    heard = _groups(symbols)
    alone = [[sound for group in _groups(read(word)) for sound in group] for word in words]
    owners = _owners(alone, heard)
    return [slice(*_range_of(number, owners)) for number in range(len(words))]


def _groups(symbols: Sequence[str]) -> list[list[str]]:
    """Sounds of each word of phones, without stress."""
    groups: list[list[str]] = [[]]
    for symbol in symbols:
        if is_boundary(symbol):
            groups.append([])
        else:
            groups[-1].append(strip_stress(symbol))
    return [group for group in groups if group]


def _owners(alone: Sequence[Sequence[str]], heard: Sequence[Sequence[str]]) -> list[int]:
    """The word of each sound that was heard: the cheapest way to turn the words read alone into the whole."""
    ours = _chain([(number, sounds) for number, sounds in enumerate(alone) if sounds])
    theirs = _chain(list(enumerate(heard)))
    if not ours:
        return []
    steps = _cheapest_steps([symbol for symbol, _ in ours], [symbol for symbol, _ in theirs])
    owners: list[int | None] = [None] * len(theirs)
    for i, j in steps:
        if theirs[j][0] != WORD_BOUNDARY:
            owners[j] = ours[i][1]
    found = [(owner, group) for owner, (symbol, group) in zip(owners, theirs) if symbol != WORD_BOUNDARY]
    return _filled(found)


def _chain(words: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[str, int]]:
    """Sounds with the number of their word, and a boundary between words."""
    chain: list[tuple[str, int]] = []
    for number, sounds in words:
        chain += [(WORD_BOUNDARY, number)] if chain else []
        chain += [(sound, number) for sound in sounds]
    return chain


def _cheapest_steps(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places that the cheapest edits lay on each other; what both begin or end with alike needs no search."""
    shorter = min(len(ours), len(theirs))
    head = next((n for n in range(shorter) if ours[n] != theirs[n]), shorter)
    tail = next((n for n in range(shorter - head) if ours[-1 - n] != theirs[-1 - n]), shorter - head)
    middle = _search(ours[head : len(ours) - tail], theirs[head : len(theirs) - tail])
    same = [(n, n) for n in range(head)] + [(len(ours) - 1 - n, len(theirs) - 1 - n) for n in range(tail)]
    return same + [(head + i, head + j) for i, j in middle]


def _search(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    never = float("inf")
    price = {True: _GAP, False: 1.0}
    costs = [[0.0]]
    for symbol in theirs:
        costs[0].append(costs[0][-1] + price[symbol == WORD_BOUNDARY])
    for own in ours:
        above, row = costs[-1], [costs[-1][0] + price[own == WORD_BOUNDARY]]
        for j, symbol in enumerate(theirs):
            mixed = (own == WORD_BOUNDARY) != (symbol == WORD_BOUNDARY)
            change = never if mixed else float(own != symbol)
            less, more = above[j + 1] + price[own == WORD_BOUNDARY], row[j] + price[symbol == WORD_BOUNDARY]
            row.append(min(above[j] + change, less, more))
        costs.append(row)
    pairs: list[tuple[int, int]] = []
    i, j = len(ours), len(theirs)
    while i and j:
        here, own, symbol = costs[i][j], ours[i - 1], theirs[j - 1]
        mixed = (own == WORD_BOUNDARY) != (symbol == WORD_BOUNDARY)
        if not mixed and here == costs[i - 1][j - 1] + float(own != symbol):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif here == costs[i - 1][j] + price[own == WORD_BOUNDARY]:
            i -= 1
        else:
            j -= 1
    return pairs


def _filled(found: Sequence[tuple[int | None, int]]) -> list[int]:
    """Owners of all sounds: those without one go with the sound before them in their word of phones, else the one after."""
    owners = [owner for owner, _ in found]
    groups = [group for _, group in found]
    for same_group in (True, False):
        for order in (range(1, len(owners)), range(len(owners) - 2, -1, -1)):
            for place in order:
                other = place - order.step
                if owners[place] is None and (not same_group or groups[other] == groups[place]):
                    owners[place] = owners[other]
    return [owner for owner in owners if owner is not None]


def _range_of(number: int, owners: Sequence[int]) -> tuple[int, int]:
    begin = next((place for place, owner in enumerate(owners) if owner >= number), len(owners))
    end = next((place for place, owner in enumerate(owners) if owner > number), len(owners))
    return begin, end


def _without_marks(word: str) -> str:
    """A word without punctuation at its ends; as it is where there is nothing else."""
    if word[:1] == "{":
        return word
    marks = [unicodedata.category(char)[0] == "P" and char not in _READ_OUT for char in word]
    if all(marks):
        return word
    return word[marks.index(False) : len(word) - marks[::-1].index(False)]

"""What tokenizers share: the table from ids to what they spell, and the grouping of tokens into words.

Kept apart from `speechkit.text.tokenizers`, where the interface and the kinds are.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

SPECIALS = ("<blank>", "<unk>", "<sos>", "<eos>")
BLANK, UNK, SOS, EOS = range(len(SPECIALS))  # their ids, the same in every tokenizer
CONFIG_FILE = "tokenizer.json"
MODEL_FILE = "tokenizer.model"
FORMAT_VERSION = 1
# Unicode blocks whose scripts put no spaces between words: (first, last) code points.
_SPACELESS_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana phonetic extensions
    (0x3400, 0x4DBF),  # Han extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han compatibility
    (0x20000, 0x323AF),  # Han extensions B to H
)
# After these a word begins although no space follows.
_SPACELESS_PUNCTUATION = frozenset("\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f")


def unify_whitespace(text: str) -> str:
    """Runs of Unicode white space become one space; both ends are stripped."""
    return " ".join(text.split())


def clean_text(text: str) -> str:
    """Unifies white space; lone surrogates, which no file can hold, become question marks."""
    return unify_whitespace(text.encode("utf-8", "replace").decode("utf-8"))


def is_spaceless(char: str) -> bool:
    """Whether a character belongs to a script that puts no spaces between words (combining marks excepted)."""
    code = ord(char)
    if code < 0x0E00 or unicodedata.category(char)[0] in "MPS":
        return False
    return any(first <= code <= last for first, last in _SPACELESS_BLOCKS)


def join_texts(texts: Iterable[str]) -> str:
    """Joins consecutive pieces of a transcript by spaces; no space comes between two Chinese or Japanese characters.

    Empty pieces are left out. Thai and its neighbours, which put a space where a speaker pauses, get one.
    """
    joined = ""
    for text in filter(None, texts):
        touches = joined and _is_chinese_or_japanese(joined[-1]) and _is_chinese_or_japanese(text[0])
        joined += text if touches or not joined else f" {text}"
    return joined


def _is_chinese_or_japanese(char: str) -> bool:
    """Whether a character, or a mark of punctuation, is of Chinese or Japanese writing."""
    if unicodedata.category(char)[0] == "P":
        return unicodedata.east_asian_width(char) in "WF"
    return char >= "\u3005" and is_spaceless(char)


def _is_boundary(previous: str, char: str) -> bool:
    """Whether a word begins at `char` when `previous` stands before it."""
    if previous.isspace() or char.isspace() or is_spaceless(char):
        return True
    follows = is_spaceless(previous) or previous in _SPACELESS_PUNCTUATION
    return follows and unicodedata.category(char)[0] not in "MPS"


def group_words(surfaces: Sequence[bytes]) -> list[tuple[str, slice]]:
    """Groups the UTF-8 spellings of consecutive tokens into words.

    Args:
        surfaces: what each token spells; empty for specials and tags.

    Returns:
        (word, range of positions) pairs in order. Ranges do not overlap; tokens of white space lie outside them.
        A character cut into several tokens (bytes) is whole in one word; several words in one token stay together.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    words: list[tuple[str, slice]] = []
    text, start, stop = "", 0, 0
    previous = " "
    char_start: int | None = None  # position where a character that is not complete yet began
    for i, surface in enumerate([*surfaces, b""]):
        final = i == len(surfaces)
        if not surface and not final:
            continue
        here = i if char_start is None else char_start
        chars = decoder.decode(surface, final=final)
        pending = decoder.getstate()[0]
        char_start = (here if not chars else i) if pending else None
        if not chars:
            continue
        if _is_boundary(previous, chars[0]) and text:
            words.append((unify_whitespace(text), slice(start, stop)))
            text = ""
        if not chars.isspace():
            # A token after broken bytes may hold nothing but the beginning of the next character.
            end = i if pending and len(pending) >= len(surface) else i + 1
            start, stop = (start if text else max(here, stop)), min(end, len(surfaces))
            text += chars
        previous = chars[-1]
    if text:
        words.append((unify_whitespace(text), slice(start, stop)))
    return words


class TableTokenizer(ABC):
    """Shared behaviour: a table from ids to what they spell. Kinds differ in `_encode` and in what they save."""

    kind: ClassVar[str]
    blank_id = BLANK
    unk_id = UNK
    sos_id = SOS
    eos_id = EOS

    def __init__(self, *, names: Sequence[str], surfaces: Sequence[bytes], tags: Sequence[str]) -> None:
        for tag in tags:
            if not tag or any(c in "<>" or c.isspace() for c in tag):
                raise ValueError(f"tags: {tag!r} is not a tag name; write it without brackets and spaces, such as 'en'")
        if len(set(tags)) != len(tags) or {f"<{tag}>" for tag in tags} & set(SPECIALS):
            raise ValueError(f"tags: {list(tags)!r} repeats a name or is one of {list(SPECIALS)}; make each unique")
        self._tags = tuple(tags)
        self._offset = len(SPECIALS) + len(tags)
        self._names = (*SPECIALS, *(f"<{tag}>" for tag in tags), *names)
        self._surfaces = (b"",) * self._offset + tuple(surfaces)
        assert len(self._names) == len(self._surfaces)

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a text without surplus white space and without lone surrogates."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Constructor arguments that JSON can hold, `tags` excepted."""

    @property
    def vocab_size(self) -> int:
        """Number of ids: specials, tags and pieces."""
        return len(self._names)

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the language and task tags, without brackets."""
        return self._tags

    def tag_id(self, name: str) -> int:
        """Id of a language or task tag.

        Args:
            name: tag name without brackets, such as "en".

        Raises:
            ValueError: the tokenizer has no such tag.
        """
        if name not in self._tags:
            known = ", ".join(self._tags) or "none"
            raise ValueError(f"tag: {name!r} is not in this tokenizer (it has: {known}); give tags= when it is made")
        return len(SPECIALS) + self._tags.index(name)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; what the tokenizer cannot spell becomes `<unk>`."""
        return self._encode(clean_text(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, specials and tags left out.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return unify_whitespace(b"".join(self._spell(ids)).decode("utf-8", "replace"))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A printable name for each id, specials and tags included.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return [self._names[self._checked(i)] for i in ids]

    def starts_word(self, token_id: int) -> bool:
        """Whether the token begins a word whatever stands before it (`split_words` also knows the context)."""
        text = self._surfaces[self._checked(token_id)].decode("utf-8", "ignore")
        return bool(text) and (text[0].isspace() or is_spaceless(text[0]))

    def split_words(self, ids: Sequence[int]) -> list[tuple[str, slice]]:
        """Words of a token sequence, each with the range of positions in `ids` that spells it.

        Joined by spaces the words equal `decode(ids)` in languages written with spaces. Specials, tags and separators
        lie between the ranges; one that stands inside a word is covered by its range.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return group_words(self._spell(ids))

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` (and `tokenizer.model` for SentencePiece) into a directory, made if need be."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._config(), ensure_ascii=False, indent=1)
        (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def fingerprint(self) -> str:
        """Hash of all that decides ids, 16 hexadecimal digits; equal for equal tokenizers on every machine."""
        text = json.dumps(self._config(), ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(text.encode("ascii") + self._model_bytes()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableTokenizer) and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, tags={list(self._tags)})"

    def _config(self) -> dict[str, Any]:
        return {"kind": self.kind, "format": FORMAT_VERSION, "tags": list(self._tags), **self._settings()}

    def _model_bytes(self) -> bytes:
        return b""

    def _checked(self, token_id: int) -> int:
        token_id = int(token_id)
        if not 0 <= token_id < len(self._names):
            raise ValueError(f"token id {token_id} is outside 0..{len(self._names) - 1}; use its own tokenizer")
        return token_id

    def _spell(self, ids: Iterable[int]) -> list[bytes]:
        return [self._surfaces[self._checked(i)] for i in ids]

"""Tokenizers: text to token ids and back, for recognition, synthesis and translation.

One interface, four kinds: characters, SentencePiece (BPE or unigram; Kudo and Richardson 2018), UTF-8 bytes, phonemes.
Ids 0..3 are `<blank> <unk> <sos> <eos>` in every tokenizer; language and task tags (`<en>`, `<transcribe>`) follow,
then the pieces themselves. Blank also serves as the padding value.

Rules that hold for all of them:

- `encode` unifies white space first (runs become one space, both ends are stripped); nothing else is normalised, that
  is `speechkit.text.normalize`. Text never encodes to specials other than `<unk>`, nor to tags: "<en>" in a transcript
  is four ordinary characters, and tags are added by id through `tag_id`.
- `decode` leaves out specials (`<unk>` too) and tags, and unifies white space in what remains.
- Words are separated by white space. Characters of scripts written without spaces (Han, kana, Thai, Lao, Khmer,
  Burmese) are words by themselves, so that word timestamps mean something there; `split_words` never cuts a token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from speechkit.text.sentencepiece_tokenizer import SentencePieceTokenizer
from speechkit.text.token_table import (
    BLANK,
    CONFIG_FILE,
    EOS,
    FORMAT_VERSION,
    MODEL_FILE,
    SOS,
    SPECIALS,
    UNK,
    TableTokenizer,
    clean_text,
)

__all__ = [
    "BLANK",
    "EOS",
    "SOS",
    "SPECIALS",
    "UNK",
    "ByteTokenizer",
    "CharTokenizer",
    "PhonemeTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
]


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer offers; models, datasets and searches rely on nothing else."""

    blank_id: int
    unk_id: int
    sos_id: int
    eos_id: int

    @property
    def vocab_size(self) -> int:
        """Number of ids: specials, tags and pieces."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the language and task tags, without brackets."""

    def tag_id(self, name: str) -> int:
        """Id of a tag."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A printable name for each id."""

    def starts_word(self, token_id: int) -> bool:
        """Whether the token begins a word whatever stands before it."""

    def split_words(self, ids: Sequence[int]) -> list[tuple[str, slice]]:
        """Words of a token sequence, each with the range of token positions that spells it."""

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files."""

    def fingerprint(self) -> str:
        """Hash of all that decides ids."""


class CharTokenizer(TableTokenizer):
    """One token per Unicode character; the space is a token like any other.

    Args:
        symbols: the characters, in the order of their ids.
        tags: language and task tags.
    """

    kind = "char"

    def __init__(self, *, symbols: Sequence[str], tags: Sequence[str] = ()) -> None:
        wrong = [s for s in symbols if len(s) != 1 or (s.isspace() and s != " ") or "\ud800" <= s <= "\udfff"]
        if wrong or len(set(symbols)) != len(symbols):
            problem = f"not single characters: {wrong}" if wrong else "some are repeated"
            raise ValueError(f"symbols: {problem}; give unique characters, of white space only ' '")
        super().__init__(names=symbols, surfaces=[s.encode("utf-8") for s in symbols], tags=tags)
        self._symbols = tuple(symbols)
        self._ids = {symbol: self._offset + i for i, symbol in enumerate(symbols)}

    @classmethod
    def train(cls, texts: Iterable[str], *, tags: Sequence[str] = (), min_count: int = 1) -> CharTokenizer:
        """Takes the characters of a corpus, in the order of their code points.

        Args:
            texts: transcripts, normalised.
            tags: language and task tags.
            min_count: characters seen fewer times are left out and will be `<unk>`.

        Raises:
            ValueError: no character is left.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(clean_text(text))
        symbols = sorted(char for char, count in counts.items() if count >= min_count)
        if not symbols:
            raise ValueError(f"texts: no character occurs {min_count} times or more; give transcripts that hold text")
        return cls(symbols=symbols, tags=tags)

    def _encode(self, text: str) -> list[int]:
        return [self._ids.get(char, self.unk_id) for char in text]

    def _settings(self) -> dict[str, Any]:
        return {"symbols": list(self._symbols)}


class ByteTokenizer(TableTokenizer):
    """One token per UTF-8 byte: 256 pieces, every language, no `<unk>`. Invalid sequences decode to U+FFFD.

    Args:
        tags: language and task tags.
    """

    kind = "byte"

    def __init__(self, *, tags: Sequence[str] = ()) -> None:
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        super().__init__(names=names, surfaces=[bytes([byte]) for byte in range(256)], tags=tags)

    @classmethod
    def train(cls, texts: Iterable[str], *, tags: Sequence[str] = ()) -> ByteTokenizer:
        """Same call as the other tokenizers; nothing is learnt from the texts."""
        del texts
        return cls(tags=tags)

    def _encode(self, text: str) -> list[int]:
        return [self._offset + byte for byte in text.encode("utf-8")]

    def _settings(self) -> dict[str, Any]:
        return {}


class PhonemeTokenizer(TableTokenizer):
    """One token per phoneme symbol; text is symbols separated by white space, words set apart by a separator symbol.

    "h e l oU | w 3: l d" is two words. `decode` gives the same notation back.

    Args:
        symbols: the phoneme symbols without the separator, in the order of their ids.
        separator: the symbol between words; its id follows the tags.
        tags: language and task tags.
    """

    kind = "phoneme"

    def __init__(self, *, symbols: Sequence[str], separator: str = "|", tags: Sequence[str] = ()) -> None:
        table = (separator, *symbols)
        wrong = [s for s in table if clean_text(s).split() != [s]]
        if wrong or len(set(table)) != len(table):
            problem = f"empty or with white space: {wrong}" if wrong else "some are repeated"
            raise ValueError(f"symbols: {problem}; give unique symbols other than the separator {separator!r}")
        super().__init__(names=table, surfaces=[f"{s} ".encode() for s in table], tags=tags)
        self._symbols = tuple(symbols)
        self._separator = separator
        self._ids = {symbol: self._offset + i for i, symbol in enumerate(table)}

    @classmethod
    def train(cls, texts: Iterable[str], *, separator: str = "|", tags: Sequence[str] = ()) -> PhonemeTokenizer:
        """Takes the symbols of a phonemised corpus, sorted.

        Raises:
            ValueError: the texts hold no symbol.
        """
        symbols = {symbol for text in texts for symbol in clean_text(text).split()}
        if not symbols - {separator}:
            raise ValueError("texts: no phoneme symbol found; give phonemised text, symbols separated by spaces")
        return cls(symbols=sorted(symbols - {separator}), separator=separator, tags=tags)

    def starts_word(self, token_id: int) -> bool:
        """Whether the token is the word separator."""
        return self._checked(token_id) == self._ids[self._separator]

    def split_words(self, ids: Sequence[int]) -> list[tuple[str, slice]]:
        """Words (symbols joined by spaces) with the range of positions that spells each; separators lie outside."""
        words: list[tuple[str, slice]] = []
        run: list[int] = []
        for i, token_id in enumerate([*ids, self._ids[self._separator]]):
            if self.starts_word(token_id):
                if run:
                    words.append((self.decode(ids[k] for k in run), slice(run[0], run[-1] + 1)))
                run = []
            elif self._surfaces[token_id]:
                run.append(i)
        return words

    def _encode(self, text: str) -> list[int]:
        return [self._ids.get(symbol, self.unk_id) for symbol in text.split()]

    def _settings(self) -> dict[str, Any]:
        return {"symbols": list(self._symbols), "separator": self._separator}


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Reads a tokenizer that `save` wrote.

    Args:
        directory: holds `tokenizer.json`, and `tokenizer.model` for SentencePiece.

    Raises:
        ValueError: a file is missing, is not JSON, or describes no known tokenizer.
    """
    directory = Path(directory)
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{directory}: no tokenizer here; expected {CONFIG_FILE} (and {MODEL_FILE} for SentencePiece)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, version, tags = config.pop("kind"), config.pop("format"), config.pop("tags")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a tokenizer file ({error!r}); write it with tokenizer.save()") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: format {version!r} is unknown here (known: {FORMAT_VERSION}); update speechkit")
    try:
        if kind == SentencePieceTokenizer.kind:
            model = directory / MODEL_FILE
            if not model.is_file():
                raise ValueError(f"{model} is missing; a SentencePiece tokenizer needs it beside {CONFIG_FILE}")
            return SentencePieceTokenizer(model_proto=model.read_bytes(), tags=tags, **config)
        for cls in (CharTokenizer, ByteTokenizer, PhonemeTokenizer):
            if kind == cls.kind:
                return cls(tags=tags, **config)
    except TypeError as error:
        raise ValueError(f"{path}: wrong fields for a {kind!r} tokenizer ({error})") from error
    raise ValueError(f"{path}: kind {kind!r} is unknown; known kinds: char, byte, phoneme, sentencepiece")

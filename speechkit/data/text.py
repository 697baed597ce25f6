"""Text for language models: files of sentences to token ids, examples and batches.

A sentence is a line of a text file, a column of a TSV file, or the transcript of a row of a manifest. All sentences are
tokenised once, into one flat array with 2 bytes per token, which worker processes share; no strings stay in memory.

Shape legend: N sentences, M tokens of all of them, B batch, U tokens of one.
"""

from __future__ import annotations

import gzip
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from speechkit.data.manifest import iter_manifest
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import TextBatch

_TSV, _MANIFEST = (".tsv", ".tsv.gz"), (".jsonl", ".jsonl.gz")


class Sentence(NamedTuple):
    """A sentence and the number, from 1, of the line that it stands in."""

    line: int
    text: str


def iter_sentences(path: str | Path, *, column: int | None = None) -> Iterator[Sentence]:
    """Reads the sentences of a file, empty ones included.

    Args:
        path: a manifest (.jsonl, or a directory with manifest.jsonl), whose transcripts are taken; a TSV file (.tsv); or
            any other text file in UTF-8, one sentence a line. Files ending in .gz are compressed.
        column: which column of a TSV file, from 1; other files have none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a TSV file without `column` or a line without that column, or a file that is not UTF-8.
    """
    path = Path(path)
    if path.is_dir() or path.name.endswith(_MANIFEST):
        for number, utterance in enumerate(iter_manifest(path, need_duration=False), 1):
            yield Sentence(number, utterance.text)
        return
    is_table = path.name.endswith(_TSV)
    if is_table and (column is None or column < 1):
        raise ValueError(f"{path} is a table and column={column}; say which column holds the text, counting from 1")
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip("\n")
                yield Sentence(number, _field(text, column, f"{path}:{number}") if is_table and column else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number + 1}: not UTF-8 ({error.reason}); convert the file") from error


class TextExample(NamedTuple):
    """One sentence.

    Attributes:
        id: name of its file and its line.
        tokens_U: token ids, int64, shape (U,).
    """

    id: str
    tokens_U: np.ndarray


class TextDataset(Dataset[TextExample]):
    """Sentences as token ids, a map-style dataset.

    Args:
        files: read in this order; see `iter_sentences`.
        tokenizer: turns text into token ids.
        normalizer: applied before; what is then empty is left out.
        column: of TSV files.
        max_tokens: longer sentences are left out; None for no limit.

    Attributes:
        num_tokens: of each sentence, int32, shape (N,).
        num_empty: sentences left out because nothing was in them.
        num_too_long: sentences left out because they have more than `max_tokens`.

    Raises:
        ValueError: a file cannot be read, or no sentence is left.
    """

    def __init__(
        self,
        *,
        files: Sequence[str | Path],
        tokenizer: Tokenizer,
        normalizer: Callable[[str], str],
        column: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.files = tuple(Path(path) for path in files)
        self.num_empty = self.num_too_long = 0
        tokens = array("H" if tokenizer.vocab_size <= 2**16 else "i")
        lengths, lines, ends = array("i"), array("q"), array("q")  # ends: sentences up to the end of each file
        for path in self.files:
            for line, text in iter_sentences(path, column=column):
                ids = tokenizer.encode(normalizer(text))
                if not ids:
                    self.num_empty += 1
                elif max_tokens is not None and len(ids) > max_tokens:
                    self.num_too_long += 1
                else:
                    tokens.extend(ids)
                    lengths.append(len(ids))
                    lines.append(line)
            ends.append(len(lengths))
        if not lengths:
            found = f"{self.num_empty} empty, {self.num_too_long} longer than max_tokens={max_tokens}"
            raise ValueError(f"{', '.join(map(str, files))}: no sentence is left ({found}); look at column and max_tokens")
        self.num_tokens = np.array(lengths, np.int32)
        self._tokens_M, self._lines_N, self._ends = np.array(tokens), np.array(lines), np.array(ends)
        self._begins = np.concatenate([[0], np.cumsum(self.num_tokens, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.num_tokens)

    def set_epoch(self, epoch: int) -> None:
        """Sentences are the same in every epoch."""

    def __getitem__(self, i: int) -> TextExample:
        """Sentence `i`."""
        path = self.files[int(np.searchsorted(self._ends, i, side="right"))]
        tokens_U = self._tokens_M[self._begins[i] : self._begins[i + 1]].astype(np.int64)
        return TextExample(id=f"{path.name}:{self._lines_N[i]}", tokens_U=tokens_U)


def collate_text(examples: Sequence[TextExample]) -> TextBatch:
    """Pads sentences into a batch, in their order."""
    rows = [torch.from_numpy(example.tokens_U) for example in examples]
    return TextBatch(
        tokens_BU=pad_sequence(rows, batch_first=True),
        token_lens_B=torch.tensor([len(row) for row in rows]),
        ids=tuple(example.id for example in examples),
    )


def sentence_texts(files: Iterable[str | Path], *, normalizer: Callable[[str], str], column: int | None = None) -> Iterator[str]:
    """Normalised sentences of several files, those that are not empty, e.g. to train a tokenizer on."""
    for path in files:
        yield from filter(None, (normalizer(sentence.text) for sentence in iter_sentences(path, column=column)))


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")  # type: ignore[return-value]
    return path.open(encoding="utf-8")


def _field(line: str, column: int, where: str) -> str:
    fields = line.split("\t")
    if len(fields) < column:
        raise ValueError(f"{where}: {len(fields)} columns, and column={column}; correct the row, or choose another column")
    return fields[column - 1]

"""SentencePiece tokenizer: byte-pair encoding (Sennrich et al. 2016) or a unigram language model (Kudo 2018).

The ids of the SentencePiece model are shifted so that specials and tags come first, as in every tokenizer; its own
`<unk>` maps to ours. The model is kept as bytes: it pickles into data workers and is written as `tokenizer.model`,
which other tools read.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speechkit.text.token_table import MODEL_FILE, SPECIALS, TableTokenizer, clean_text

_SPACE = "\u2581"  # SentencePiece's visible white space
_MAX_SENTENCE_BYTES = 1 << 24  # longer sentences would be left out of training without a word
_MAX_PIECE_CHARS = 16


class SentencePieceTokenizer(TableTokenizer):
    """Subword tokenizer over a SentencePiece model.

    Args:
        model_proto: the serialised SentencePiece model (the bytes of a `.model` file).
        tags: language and task tags.

    Raises:
        ValueError: the bytes are not a SentencePiece model.
    """

    kind = "sentencepiece"

    def __init__(self, *, model_proto: bytes, tags: Sequence[str] = ()) -> None:
        self._model_proto = model_proto
        self._processor = _load_processor(model_proto)
        sp = self._processor
        silent = (sp.is_unknown, sp.is_control, sp.is_unused)
        spelled = [i for i in range(sp.get_piece_size()) if not any(kind(i) for kind in silent)]
        names = [sp.id_to_piece(i) for i in spelled]
        surfaces = [
            bytes([int(name[3:5], 16)]) if sp.is_byte(i) else name.replace(_SPACE, " ").encode("utf-8")
            for i, name in zip(spelled, names)
        ]
        super().__init__(names=names, surfaces=surfaces, tags=tags)
        self._from_model = {i: self._offset + k for k, i in enumerate(spelled)}

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        model_type: str = "bpe",
        tags: Sequence[str] = (),
        byte_fallback: bool = False,
        character_coverage: float = 1.0,
        num_threads: int = 4,
    ) -> SentencePieceTokenizer:
        """Learns the pieces from a corpus; the same texts and settings give the same model.

        Args:
            texts: transcripts, normalised; read once.
            vocab_size: size of the whole vocabulary, specials and tags included. More than the texts can fill is
                reduced with a warning that names the largest possible size.
            model_type: "bpe" or "unigram".
            tags: language and task tags.
            byte_fallback: spell unknown characters with 256 byte pieces instead of `<unk>`.
            character_coverage: share of the characters' occurrences that must be spelled; below 1 the rarest are
                left out.
            num_threads: threads of the trainer (part of the unigram model's recipe, so not taken from the machine).

        Raises:
            ValueError: the texts are empty, an option is unknown, or vocab_size cannot hold the characters.
        """
        if model_type not in ("bpe", "unigram"):
            raise ValueError(f"model_type: {model_type!r} is unknown; use 'bpe' or 'unigram'")
        cleaned = [text for text in map(_clean, texts) if text]
        if not cleaned:
            raise ValueError("texts: nothing to train a tokenizer on; give transcripts with text in them")
        reserved = len(SPECIALS) + len(tags) - 1  # the model's own <unk> is one of the specials
        options = {
            "model_type": model_type,
            "byte_fallback": byte_fallback,
            "character_coverage": character_coverage,
            "num_threads": num_threads,
        }
        try:
            proto = _train_model(cleaned, vocab_size=max(vocab_size - reserved, 1), **options)
        except _VocabTooLarge as error:
            largest = error.limit + reserved
            warnings.warn(
                f"vocab_size: {vocab_size} is more than these texts can fill; reduced to the largest size, {largest}",
                stacklevel=2,
            )
            proto = _train_model(cleaned, vocab_size=error.limit, **options)
        except _VocabTooSmall as error:
            raise ValueError(
                f"vocab_size: {vocab_size} cannot hold the characters of these texts; "
                f"use at least {error.limit + reserved}, or lower character_coverage"
            ) from None
        return cls(model_proto=proto, tags=tags)

    @classmethod
    def from_model_file(cls, path: str | Path, *, tags: Sequence[str] = ()) -> SentencePieceTokenizer:
        """Takes a `.model` file that another tool trained.

        Raises:
            ValueError: the file is missing or is not a SentencePiece model.
        """
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such SentencePiece model file")
        return cls(model_proto=Path(path).read_bytes(), tags=tags)

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer.model` into a directory, made if need be."""
        super().save(directory)
        (Path(directory) / MODEL_FILE).write_bytes(self._model_proto)

    def __getstate__(self) -> dict[str, Any]:
        return {"model_proto": self._model_proto, "tags": self._tags}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _encode(self, text: str) -> list[int]:
        return [self._from_model.get(i, self.unk_id) for i in self._processor.encode(_clean(text))]

    def _settings(self) -> dict[str, Any]:
        return {}

    def _model_bytes(self) -> bytes:
        return self._model_proto


class _VocabTooLarge(Exception):
    """The texts yield at most `limit` pieces."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class _VocabTooSmall(Exception):
    """The characters alone need `limit` pieces."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


def _clean(text: str) -> str:
    """Clean text in which the model's own marker of white space is white space too."""
    return clean_text(text.replace(_SPACE, " "))


def _load_processor(model_proto: bytes) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model_proto)
        if processor.get_piece_size() == 0:
            raise RuntimeError("no pieces")
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model_proto: not a SentencePiece model ({len(model_proto)} bytes); train it anew") from error
    return processor


def _train_model(texts: Sequence[str], *, vocab_size: int, **options: Any) -> bytes:
    import sentencepiece

    def sentences() -> Iterator[str]:
        yield from texts

    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=writer,
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            max_sentence_length=_MAX_SENTENCE_BYTES,
            max_sentencepiece_length=_MAX_PIECE_CHARS,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        if found := re.search(r"value <= (\d+)", str(error)):
            raise _VocabTooLarge(int(found[1])) from error
        if found := re.search(r"required_chars\. -?\d+ vs (\d+)", str(error)):
            raise _VocabTooSmall(int(found[1])) from error
        raise ValueError(f"SentencePiece could not be trained: {error}") from error
    return writer.getvalue()

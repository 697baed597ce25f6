"""Files of text to sentences, token ids and batches; batches of a run and after a resume."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.cli import main
from speechkit.data.datamodule import BucketDataModule
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.text import Sentence, TextDataset, collate_text, iter_sentences
from speechkit.data.text_data import TextData, training_sentences
from speechkit.text.normalize import get_normalizer
from speechkit.text.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer(symbols=list(" abcdefghijklmnopqrstuvwxyz'"))
NONE = get_normalizer("none")


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_every_kind_of_file(tmp_path: Path) -> None:
    lines = ["one two", "", "drei \u00e4"]
    plain = write(tmp_path / "a.txt", *lines)
    table = write(tmp_path / "a.tsv", *(f"id{i}\t{line}\tmore" for i, line in enumerate(lines)))
    zipped = tmp_path / "a.txt.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    rows = [{"id": str(i), "audio_filepath": "x.wav", "duration": 1.0, "text": line} for i, line in enumerate(lines)]
    write(tmp_path / "manifest.jsonl", *map(json.dumps, rows))
    expected = [Sentence(number, line) for number, line in enumerate(lines, 1)]
    for path in (plain, zipped, tmp_path / "manifest.jsonl", tmp_path):
        assert list(iter_sentences(path)) == expected
        assert list(iter_sentences(path, column=2)) == expected, "only tables have columns"
    assert list(iter_sentences(table, column=2)) == expected
    assert [sentence.text for sentence in iter_sentences(table, column=1)] == ["id0", "id1", "id2"]


@pytest.mark.parametrize(
    ("name", "content", "column", "said"),
    [
        ("a.tsv", b"a\tb\n", None, r"a\.tsv is a table and column=None"),
        ("a.tsv", b"a\tb\n", 0, "column=0"),
        ("a.tsv", b"a\tb\nc\n", 2, r"a\.tsv:2: 1 columns, and column=2"),
        ("a.txt", b"fine\n\xff\xfe\n", None, r"a\.txt:\d: not UTF-8"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, column: int | None, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(iter_sentences(tmp_path / name, column=column))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        list(iter_sentences(tmp_path / "none.txt"))


@settings(max_examples=25, deadline=None)
@given(
    files=st.lists(st.lists(st.text("ab ", max_size=6), max_size=5), min_size=1, max_size=3),
    limit=st.one_of(st.none(), st.integers(1, 6)),
)
def test_sentences_keep_their_tokens_and_places(
    files: list[list[str]], limit: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("text")
    paths = [write(root / f"{i}.txt", *lines) for i, lines in enumerate(files)]
    encoded = {f"{i}.txt:{n}": TOKENIZER.encode(line) for i, lines in enumerate(files) for n, line in enumerate(lines, 1)}
    kept = {name: ids for name, ids in encoded.items() if 0 < len(ids) <= (limit or 99)}
    build = partial(TextDataset, files=paths, tokenizer=TOKENIZER, normalizer=NONE, max_tokens=limit)
    if not kept:
        with pytest.raises(ValueError, match="no sentence is left"):
            build()
        return
    dataset = build()
    assert {dataset[i].id: dataset[i].tokens_U.tolist() for i in range(len(dataset))} == kept
    assert dataset.num_tokens.tolist() == [len(ids) for ids in kept.values()]
    assert dataset.num_empty == sum(not ids for ids in encoded.values())
    assert dataset.num_empty + dataset.num_too_long + len(dataset) == len(encoded)
    batch = collate_text([dataset[i] for i in range(len(dataset))])
    assert batch.ids == tuple(kept)
    for row, length, ids in zip(batch.tokens_BU.tolist(), batch.token_lens_B.tolist(), kept.values(), strict=True):
        assert row == ids + [0] * (len(row) - length)


def test_large_vocabularies_keep_their_ids(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(symbols=[chr(0x10000 + i) for i in range(70_000)])
    path = write(tmp_path / "a.txt", chr(0x10000 + 69_999))
    dataset = TextDataset(files=[path], tokenizer=tokenizer, normalizer=NONE)
    assert dataset[0].tokens_U.tolist() == [tokenizer.vocab_size - 1]


def make(root: Path, **options: Any) -> BucketDataModule:
    if not (root / "train.txt").exists():
        rng = np.random.default_rng(0)
        words = ["ab", "cde", "f", "ghij", "klmno"]
        lines = [" ".join(rng.choice(words, size=size)) for size in rng.integers(1, 9, 80)]
        write(root / "train.txt", *lines, "", "a" * 300)
        write(root / "valid.txt", *lines[:7], "a" * 300)
    values: dict[str, Any] = {
        "train": root / "train.txt",
        "valid": root / "valid.txt",
        "tokenizer": TOKENIZER,
        "sampler": partial(BucketBatchSampler, seed=1),
        "max_batch_tokens": 120,
    }
    datamodule = BucketDataModule(TextData(**{**values, **options}))
    datamodule.setup("fit")
    return datamodule


def ids(batches: Sequence[Any]) -> list[tuple[str, ...]]:
    return [batch.ids for batch in batches]


def test_batches_stay_within_the_budget_and_hold_every_sentence_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datamodule = make(tmp_path)
    assert "left out 1 empty and 1 too long" in capsys.readouterr().out
    batches = list(datamodule._train_loader)  # type: ignore[arg-type]
    assert sorted(name for batch in batches for name in batch.ids) == sorted(f"train.txt:{n}" for n in range(1, 81))
    assert all((batch.tokens_BU.shape[1] + 1) * len(batch.ids) <= 120 for batch in batches)
    assert datamodule.batches_per_epoch == len(batches)
    assert "80 sentences" in datamodule.summary()
    assert "padding" in datamodule.padding_report()
    valid = ids(list(datamodule.val_dataloader()))
    assert sorted(name for batch in valid for name in batch) == [f"valid.txt:{n}" for n in range(1, 9)], "nothing is left out"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_reader_goes_on_where_it_was(tmp_path: Path, num_workers: int) -> None:
    whole = ids(list(make(tmp_path)._train_loader))  # type: ignore[arg-type]
    loader = make(tmp_path, num_workers=num_workers)._train_loader
    assert loader is not None
    reader = iter(loader)
    taken = [next(reader).ids for _ in range(3)]
    state = loader.state_dict()
    again = make(tmp_path)._train_loader
    assert again is not None
    again.load_state_dict(state)
    assert taken + ids(list(again)) == whole


def test_other_text_is_noticed_on_resuming(tmp_path: Path) -> None:
    loader, other = make(tmp_path)._train_loader, make(tmp_path, max_tokens=20)._train_loader
    assert loader is not None
    assert other is not None
    next(iter(loader))
    with pytest.raises(ValueError, match="sampler state does not fit"):
        other.load_state_dict(loader.state_dict())


def test_texts_for_a_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv", "1\tOne, two", "2\t...")
    write(tmp_path / "b.txt", "Three")
    found = training_sentences([tmp_path / "a.tsv", tmp_path / "b.txt"], normalizer="basic", column=2)
    assert list(found) == ["one two", "three"]


def test_an_ngram_model_of_a_column(tmp_path: Path) -> None:
    table = write(tmp_path / "a.tsv", "1\tone two", "2\tone")
    result = CliRunner().invoke(main, ["lm", str(table), "--column", "2", "-o", str(tmp_path / "a.arpa")])
    assert "2 sentences, 3 words" in result.output
    assert CliRunner().invoke(main, ["lm", str(table), "-o", str(tmp_path / "a.arpa")]).exit_code == 1


def test_a_budget_below_one_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_batch_tokens=1 must be at least 2"):
        make(tmp_path, max_batch_tokens=1)

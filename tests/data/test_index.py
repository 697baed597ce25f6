"""The compiled index against the manifest read whole; staleness in all its forms."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.index import Index, StaleIndexError, compile_index
from speechkit.data.manifest import ManifestError, read_manifest, write_manifest
from speechkit.data.parallel import IsolatedWorkers
from speechkit.text.normalize import get_normalizer
from speechkit.text.tokenizers import ByteTokenizer, PhonemeTokenizer
from speechkit.types import Utterance


def make_manifest(path: Path, num_rows: int = 5) -> list[Utterance]:
    rows = [
        Utterance(f"u{i}", path.parent / f"{i}.wav", 0.5 + i, start=i / 4, text="ä b" * i, extra={"n": i})
        for i in range(num_rows)
    ]
    write_manifest(path, rows)
    return rows


def test_columns_and_rows_equal_the_manifest(tmp_path: Path) -> None:
    rows = make_manifest(tmp_path / "m.jsonl")
    tokenizer = ByteTokenizer()
    index = compile_index(tmp_path / "m.jsonl", tmp_path / "index", tokenizer)
    assert len(index) == 5
    np.testing.assert_array_equal(index.durations, np.array([row.duration for row in rows], np.float32))
    assert index.num_tokens is not None
    np.testing.assert_array_equal(index.num_tokens, [len(tokenizer.encode(row.text)) for row in rows])
    assert (index.durations.dtype, index.num_tokens.dtype, index.offsets.dtype) == (np.float32, np.int32, np.int64)
    assert isinstance(index.durations, np.memmap)
    assert not index.durations.flags.writeable
    assert [index.utterance(i) for i in range(5)] == rows == [index[i - 5] for i in range(5)]
    assert list(index) == rows
    assert index.total_seconds == sum(row.duration for row in rows)
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            index.utterance(wrong)


def test_without_tokenizer_and_without_rows(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text("")
    index = compile_index(tmp_path, tmp_path / "index")
    assert len(index) == 0
    assert index.num_tokens is None
    assert index.durations.shape == index.offsets.shape == (0,)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=30), st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"])), max_size=12),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.booleans(),
)
def test_any_layout_of_lines(lines: list[tuple[str, str]], mark: bytes, end: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.jsonl"
        data = "".join(
            json.dumps({"id": f"u{i}", "audio_filepath": "a.wav", "duration": i, "text": text}, ensure_ascii=False) + gap
            for i, (text, gap) in enumerate(lines)
        )
        path.write_bytes(mark + (data if end else data.rstrip("\r\n \t")).encode())
        index = compile_index(path, Path(name) / "index")
        assert list(index) == read_manifest(path)


def test_many_rows_cross_the_write_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechkit.data.index._BUFFERED_ROWS", 7)
    rows = make_manifest(tmp_path / "m.jsonl", 30)
    index = compile_index(tmp_path / "m.jsonl", tmp_path / "index", ByteTokenizer())
    assert index.durations.tolist() == [row.duration for row in rows]
    assert list(index) == rows


def read_in_child(index: Index, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    queue.put([index[i].id for i in range(len(index))] + [float(index.durations.sum())])


def test_travels_to_processes(tmp_path: Path) -> None:
    rows = make_manifest(tmp_path / "m.jsonl")
    index = compile_index(tmp_path / "m.jsonl", tmp_path / "index")
    expected = [row.id for row in rows] + [float(index.durations.sum())]
    assert len(pickle.dumps(index)) < 2000  # no columns in it
    context = multiprocessing.get_context("fork")  # children that share the open file
    queue = context.Queue()
    children = [context.Process(target=read_in_child, args=(index, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [expected, expected]
    for child in children:
        child.join()
    with IsolatedWorkers(1) as fresh:  # a new interpreter that gets it pickled
        assert fresh.call(Index.utterance, index, 3) == rows[3]
    assert index[2] == rows[2]


def test_changed_manifest_is_detected_and_compiled_again(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    make_manifest(path)
    compile_index(path, tmp_path / "index")
    made = (tmp_path / "index" / "index.json").stat().st_mtime_ns
    compile_index(path, tmp_path / "index")
    assert (tmp_path / "index" / "index.json").stat().st_mtime_ns == made  # nothing to do

    os.utime(path, ns=(1, 1))  # touched, same content
    assert len(Index(tmp_path / "index")) == 5

    same_size = path.read_bytes().replace(b'"u1"', b'"v1"')
    path.write_bytes(same_size)
    os.utime(path, ns=(2, 2))
    with pytest.raises(StaleIndexError, match=r"m\.jsonl has changed since it was compiled; compile the index again"):
        Index(tmp_path / "index")
    assert compile_index(path, tmp_path / "index")[1].id == "v1"

    make_manifest(path, 6)
    with pytest.raises(StaleIndexError):
        Index(tmp_path / "index")
    assert len(compile_index(path, tmp_path / "index")) == 6
    path.unlink()
    with pytest.raises(ManifestError, match="is gone"):
        Index(tmp_path / "index")


def test_other_tokenizer_or_normalizer_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    make_manifest(path)
    first, second = ByteTokenizer(), PhonemeTokenizer(symbols=["b", "ä"])
    basic = get_normalizer("basic")
    plain = compile_index(path, tmp_path / "index", first)
    assert Index(tmp_path / "index", tokenizer=first).num_tokens is not None
    for wrong in ({"tokenizer": second}, {"tokenizer": first, "normalizer": basic}):
        with pytest.raises(StaleIndexError, match="compile the index again"):
            Index(tmp_path / "index", **wrong)  # type: ignore[arg-type]
    before = compile_index(path, tmp_path / "index", first).num_tokens
    again = compile_index(path, tmp_path / "index", second).num_tokens
    assert again is not None
    assert before is not None
    assert again.tolist() != before.tolist()
    with pytest.raises(StaleIndexError, match="compiled anew since it was opened"):
        _ = plain.num_tokens  # not mapped before
    folded = compile_index(path, tmp_path / "index", second, normalizer=basic)
    assert folded.num_tokens is not None
    assert folded.num_tokens.tolist() == [len(second.encode(basic("ä b" * i))) for i in range(5)]
    assert compile_index(path, tmp_path / "index").num_tokens is None
    assert not (tmp_path / "index" / "num_tokens.i32").exists()


def test_index_moves_with_its_manifest(tmp_path: Path) -> None:
    rows = make_manifest(tmp_path / "a" / "m.jsonl")
    compile_index(tmp_path / "a" / "m.jsonl", tmp_path / "a" / "index")
    (tmp_path / "a").rename(tmp_path / "b")
    assert [row.id for row in Index(tmp_path / "b" / "index")] == [row.id for row in rows]


def test_damaged_or_missing_index(tmp_path: Path) -> None:
    make_manifest(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="no index here"):
        Index(tmp_path)
    compile_index(tmp_path / "m.jsonl", tmp_path / "index")
    (tmp_path / "index" / "durations.f32").write_bytes(b"\0" * 8)
    with pytest.raises(ManifestError, match="not a column of 5 rows"):
        Index(tmp_path / "index")
    assert len(compile_index(tmp_path / "m.jsonl", tmp_path / "index").durations) == 5
    for damage in ("{", "{}", '{"version": 1, "manifest": 5}'):
        (tmp_path / "index" / "index.json").write_text(damage)
        with pytest.raises(ManifestError, match=r"index\.json"):
            Index(tmp_path / "index")
        assert len(compile_index(tmp_path / "m.jsonl", tmp_path / "index")) == 5


def test_bad_line_and_gzip_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl.gz", [])
    with pytest.raises(ManifestError, match="decompress"):
        compile_index(tmp_path / "m.jsonl.gz", tmp_path / "index")
    make_manifest(tmp_path / "m.jsonl")
    compile_index(tmp_path / "m.jsonl", tmp_path / "index")
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write("{\n")
    with pytest.raises(ManifestError, match=r"m\.jsonl:6: not valid JSON"):
        compile_index(tmp_path / "m.jsonl", tmp_path / "index")
    with pytest.raises(ManifestError, match="no index here"):
        Index(tmp_path / "index")  # an interrupted compilation leaves none


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    line = json.dumps({"id": "u", "audio_filepath": "a.wav", "duration": 1.0, "text": "x" * 600}) + "\n"
    (tmp_path / "m.jsonl").write_text(line * 15_000)
    script = (
        "import resource, sys; from speechkit.data.index import compile_index\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"index = compile_index({str(tmp_path / 'm.jsonl')!r}, {str(tmp_path / 'index')!r})\n"
        "assert len(index) == 15_000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert grown * 1024 < 5e6  # the manifest has 10 MB

"""Manifests: what is written is read again, whatever it holds; what is wrong is named by path and line."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data import manifest as manifest_module
from speechkit.data.manifest import (
    ManifestError,
    derived_id,
    filter_manifest,
    iter_lines,
    iter_manifest,
    read_manifest,
    write_manifest,
)
from speechkit.types import Utterance


def write_lines(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
    return path


def row(**fields: object) -> str:
    return json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "text": "hi", **fields})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and "://" not in name
)
extra_names = st.text(max_size=8).filter(
    lambda name: name not in ("id", "audio_filepath", "duration", "text", "offset", "speaker", "lang", "language")
)


@st.composite
def utterances(draw: st.DrawFn, base: Path) -> Utterance:
    folder = draw(st.sampled_from([base, base / "sub", base.parent, base.parent / "near", Path("/elsewhere/far")]))
    seconds = st.floats(0, 1e6)
    return Utterance(
        id=draw(st.text(min_size=1)),
        audio_path=folder / draw(names),
        duration=draw(seconds),
        start=draw(seconds),
        text=draw(st.text()),
        speaker=draw(st.text()),
        lang=draw(st.text()),
        extra=draw(st.dictionaries(extra_names, json_values, max_size=3)),
    )


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_round_trip_of_anything(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("parent") / "base" / name

    @settings(max_examples=60, deadline=None)
    @given(st.lists(utterances(path.parent), max_size=4))
    def check(rows: list[Utterance]) -> None:
        assert write_manifest(path, rows) == len(rows)
        assert read_manifest(path) == rows

    check()


def test_written_paths_are_relative_when_near(tmp_path: Path) -> None:
    base = tmp_path / "corpus" / "train"
    paths = [base / "a.wav", base / "audio" / "b.wav", base.parent / "audio" / "c.wav", Path("/other/d.wav")]
    write_manifest(base / "m.jsonl", [Utterance(str(i), path, 1.0) for i, path in enumerate(paths)])
    written = [json.loads(line)["audio_filepath"] for line in (base / "m.jsonl").read_text().splitlines()]
    assert written == ["a.wav", "audio/b.wav", "../audio/c.wav", "/other/d.wav"]
    moved = tmp_path / "moved"
    (tmp_path / "corpus").rename(moved)
    assert [entry.audio_path for entry in read_manifest(moved / "train" / "m.jsonl")][:3] == [
        moved / "train" / "a.wav",
        moved / "train" / "audio" / "b.wav",
        moved / "audio" / "c.wav",
    ]


def test_linked_directory_keeps_pointing_at_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep" / "train").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "c.wav").write_bytes(b"audio")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep" / "train")
    write_lines(tmp_path / "link" / "m.jsonl", row(audio_filepath="../c.wav"))
    for directory in (tmp_path / "link", tmp_path / "real" / "deep" / "train"):
        assert read_manifest(directory / "m.jsonl")[0].audio_path.read_bytes() == b"audio"
    write_manifest(tmp_path / "link" / "n.jsonl", [Utterance("c", tmp_path / "real" / "deep" / "c.wav", 1.0)])
    assert read_manifest(tmp_path / "link" / "n.jsonl")[0].audio_path.read_bytes() == b"audio"


def test_other_field_names(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "manifest.jsonl",
        json.dumps({"key": 7, "wav": "x/y.wav", "duration": 2, "language": "de", "txt": "kept"}),
        json.dumps({"utt_id": "u", "audio": "/abs.wav", "duration": 1.5, "offset": 0.5, "text": None, "id": ""}),
        json.dumps({"audio_path": "z.wav", "duration": 1, "lang": "en", "language": "English"}),
    )
    first, second, third = read_manifest(tmp_path)  # the directory is enough
    assert first == Utterance("7", tmp_path / "x" / "y.wav", 2.0, lang="de", extra={"txt": "kept"})
    assert (second.id, second.audio_path, second.start, second.text) == ("u", Path("/abs.wav"), 0.5, "")
    assert (third.lang, third.extra) == ("en", {"language": "English"})
    write_manifest(path, [first, second, third])
    assert read_manifest(path) == [first, second, third]


def test_derived_ids_depend_on_path_and_offset_alone(tmp_path: Path) -> None:
    lines = [row(), row(offset=1.0), row(audio_filepath="b/a.wav"), row(audio_filepath="./a.wav", text="other")]
    ids = [entry.id for entry in read_manifest(write_lines(tmp_path / "m.jsonl", *lines))]
    assert len(set(ids[:3])) == 3
    assert ids[3] == ids[0] == derived_id("a.wav")
    assert all(id.startswith("a-") for id in ids)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a JSON object is needed, found list"),
        ("[" * 100_000, "not valid JSON"),
        (b'{"audio_filepath": "\xff"}', "not UTF-8"),
        (row(duration="1.0"), "'duration' must be seconds"),
        (row(duration=True), "'duration' must be seconds"),
        (row(duration=-1), "'duration' must be seconds"),
        ('{"audio_filepath": "a", "duration": NaN}', "NaN is not JSON"),
        ('{"audio_filepath": "a", "duration": 1e999}', "'duration' must be seconds"),
        ('{"audio_filepath": "a", "duration": 1' + "0" * 400 + "}", "'duration' must be seconds"),
        (row(offset=-0.1), "'offset' must be seconds"),
        (row(text=5), "'text' must be a string"),
        (row(text=["a"]), "'text' must be a string"),
        (row(id={"a": 1}), "'id' must be a string"),
        (row(audio_filepath=""), "'audio_filepath' must be a path"),
        (row(audio_filepath=None), "'audio_filepath' must be a path"),
        (row(audio_filepath="a\0b"), "'audio_filepath' must be a path"),
        (row(audio_filepath="https://x.org/a.wav"), "is a URL"),
        ('{"audio_filepath": "a.wav", "text": "x"}', "'duration' is missing"),
    ],
)
def test_bad_lines_name_path_line_and_remedy(line: str | bytes, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", row(), "", line, row(id="last"))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert "; " in str(caught.value)  # the remedy
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="1 bad lines left out") as warned:
        rows = read_manifest(path, on_error="skip")
    assert [entry.id for entry in rows][-1] == "last"
    assert f"{path}:3" in str(warned[0].message)


def test_skip_shows_the_first_few_and_the_count(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", row(), *["{"] * 20)
    with pytest.warns(UserWarning, match=r"20 bad lines left out[\s\S]*and 15 more"):
        assert len(read_manifest(path, on_error="skip")) == 1
    with pytest.raises(ValueError, match="on_error='ignore'"):
        list(iter_manifest(path, on_error="ignore"))  # type: ignore[arg-type]


def test_byte_order_mark_line_ends_and_offsets(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row(id="a").encode() + b"\r\n \r\n" + row(id="b\u2028c").encode())
    assert [entry.id for entry in read_manifest(path)] == ["a", "b\u2028c"]
    data = path.read_bytes()
    for line in iter_lines(path):
        assert data[line.offset :].startswith(line.data)
    assert [line.number for line in iter_lines(path)] == [1, 3]


def test_endless_line_is_refused_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_LINE_BYTES", 1000)
    path = write_lines(tmp_path / "m.jsonl", row(), row(text="x" * 5000), row(id="after"))
    assert max(len(line.data) for line in iter_lines(path)) == 1001
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: longer than"):
        read_manifest(path)
    with pytest.warns(UserWarning, match="1 bad line"):
        assert [entry.id for entry in read_manifest(path, on_error="skip")][1:] == ["after"]
    data = path.read_bytes()
    assert all(data[line.offset :].startswith(line.data) for line in iter_lines(path))


def test_missing_directory_and_damaged_gzip(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match=r"holds no manifest\.jsonl"):
        read_manifest(tmp_path)
    packed = tmp_path / "m.jsonl.gz"
    whole = gzip.compress((row() + "\n").encode() * 1000)
    for damaged in (whole[: len(whole) // 2], b"not gzip at all"):
        packed.write_bytes(damaged)
        with pytest.raises(ManifestError, match=r"m\.jsonl\.gz:\d+: cannot be read"):
            read_manifest(packed)


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = Utterance("a", tmp_path / "a.wav", 1.0)
    write_manifest(path, [good])
    for bad in (
        Utterance("b", tmp_path / "a.wav", math.nan),
        Utterance("b", tmp_path / "a.wav", 1.0, extra={"set": {1}}),
        Utterance("b", tmp_path / "a.wav", 1.0, extra={"text": "twice"}),
        Utterance("", tmp_path / "a.wav", 1.0),
    ):
        with pytest.raises(ValueError, match=r"'b'|empty id"):
            write_manifest(path, [good, good, bad])
        assert read_manifest(path) == [good]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]


def test_gzip_bytes_are_reproducible(tmp_path: Path) -> None:
    rows = [Utterance("a", tmp_path / "a.wav", 1.0)]
    write_manifest(tmp_path / "a.jsonl.gz", rows)
    write_manifest(tmp_path / "b.jsonl.gz", rows)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = b"na\xefve.wav".decode("utf-8", "surrogateescape")
    rows = [Utterance("a", tmp_path / name, 1.0)]
    write_manifest(tmp_path / "m.jsonl", rows)
    assert read_manifest(tmp_path / "m.jsonl") == rows


def test_filter_tells_what_was_left_out_and_why() -> None:
    rows = [Utterance(f"u{i}", Path("/a.wav"), float(i), text="x y" * i) for i in range(1, 21)]
    rows += [Utterance("mute", Path("/a.wav"), 5.0), Utterance("fast", Path("/a.wav"), 4.0, text="z" * 400)]
    kept, report = filter_manifest(rows, min_duration=3, max_duration=10, max_tokens_per_second=20, need_text=True)
    assert [entry.id for entry in kept] == [f"u{i}" for i in range(3, 11)]
    assert {reason: entry.num for reason, entry in report.left_out.items()} == {
        "shorter than 3 s": 2,
        "longer than 10 s": 10,
        "no text": 1,
        "more than 20 tokens per second": 1,
    }
    assert report.num_left_out + report.num_kept == len(rows)
    assert report.left_out["longer than 10 s"].first_ids == ("u11", "u12", "u13", "u14", "u15")
    assert report.left_out["longer than 10 s"].seconds == sum(range(11, 21))
    assert "left out 10, 0.04 h: longer than 10 s (u11, u12, u13, u14, u15, ...)" in report.summary()
    assert len(filter_manifest(rows)[0]) == len(rows)


def test_filter_counts_with_the_tokenizer_given() -> None:
    rows = [Utterance("words", Path("/a.wav"), 1.0, text="one two three")]
    assert filter_manifest(rows, min_tokens_per_second=4, encode=str.split)[0] == []
    assert filter_manifest(rows, min_tokens_per_second=3, encode=str.split)[0] == rows

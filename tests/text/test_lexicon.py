"""Own pronunciations from files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from speechkit.text.lexicon import lexicon_of, load_lexicon


def test_tsv_and_json_hold_the_same(tmp_path: Path) -> None:
    tsv, json = tmp_path / "a.tsv", tmp_path / "a.json"
    lines = ["# word, phones", "Smith\ts m aɪ θ\r", "", "O’Neil\tə | n i: l  ", "x-ray\tx", "SMITH\ts  m aɪ θ"]
    tsv.write_text("\n".join(lines), encoding="utf-8")
    json.write_text('{"Smith": "s m aɪ θ", "O\'Neil": "ə | n i: l",\n "x-ray": "x"}', encoding="utf-8")
    wanted = {"smith": "s m aɪ θ", "o'neil": "ə | n i: l", "x-ray": "x"}
    assert load_lexicon(tsv) == load_lexicon(str(json)) == wanted
    assert lexicon_of({"Café": "a"}) == lexicon_of({"cafe\u0301": "a"}) == {"café": "a"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "a\tb\nc d\n", "a.tsv:2: no tab in 'c d'"),
        ("a.tsv", "\n\na\t \n", "a.tsv:3: no phones for 'a'"),
        ("a.tsv", "a\tb , c\n", "a.tsv:1: ',' is no phone for 'a'"),
        ("a.tsv", "a\tb {c}\n", "a.tsv:1: '{c}' is no phone"),
        ("a.tsv", "a b\tc\n", "a.tsv:1: 'a b' is not one word"),
        ("a.tsv", "\tc\n", "a.tsv:1: '' is not one word"),
        ("a.tsv", "a\tb\nc\td\nA\tx\n", "a.tsv:3: 'A' has other phones above ('b')"),
        ("a.json", '{"a": "b",\n"c": }', "a.json:2: not JSON"),
        ("a.json", "[]", "a.json:1: not an object"),
        ("a.json", '"a"', "a.json:1: not an object"),
        ("a.json", '{"a": "b",\n"c": 5}', "a.json:2: no phones for 'c'"),
        ("a.json", '{"a": "b",\n\n"é": ["x"]}', "a.json:3: no phones for 'é'"),
        ("a.json", '{"a": "b",\n"c": "d",\n"A": "d"}', "a.json:3: 'A' has other phones above ('b')"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_lexicon(path)


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    with pytest.raises(ValueError, match="cannot be read"):
        load_lexicon(path)
    path.write_bytes(b"\xff\tb\n")
    with pytest.raises(ValueError, match="UTF-8"):
        load_lexicon(path)


def test_wrong_entries_of_a_mapping_are_named() -> None:
    with pytest.raises(ValueError, match="lexicon: 'a b' is not one word"):
        lexicon_of({"a b": "c"})

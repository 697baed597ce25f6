"""Hypotheses files: every unusable one is refused with its path and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechkit.metrics.hyps import HypsError, read_hyps

GOOD = {"id": "a", "ref": "x", "hyp": "", "audio_s": 1, "decode_s": 0.5, "age": 7}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def test_reads_rows_in_order_with_extras(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", GOOD, "", {**GOOD, "id": "b", "ref": "日本"})
    rows = read_hyps(path, seconds=("audio_s", "decode_s"))
    assert rows == [GOOD, {**GOOD, "id": "b", "ref": "日本"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "not JSON"),
        ("[1]", "a list, not an object"),
        ({"id": "b", "ref": "x"}, "field 'hyp' is missing"),
        ({"id": "b", "ref": "x", "hyp": None}, "field 'hyp' is None, not a string"),
        ({"ref": "x", "hyp": "x"}, "field 'id' is missing"),
        ({**GOOD}, "id 'a' was on line 1 already"),
        ({**GOOD, "id": "b", "audio_s": -1}, "field 'audio_s' is -1, not a number of seconds"),
        ({**GOOD, "id": "b", "decode_s": float("nan")}, "field 'decode_s' is nan"),
        ({**GOOD, "id": "b", "decode_s": "1"}, "field 'decode_s' is '1'"),
        ({**GOOD, "id": "b", "decode_s": True}, "field 'decode_s' is True"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "h.jsonl", GOOD, "", row)
    with pytest.raises(HypsError, match=r"h\.jsonl:3: ") as info:
        read_hyps(path, seconds=("audio_s", "decode_s"))
    assert message in str(info.value)
    assert "\n" not in str(info.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(HypsError, match="no such file"):
        read_hyps(tmp_path / "none.jsonl")
    with pytest.raises(HypsError, match="not a regular file"):
        read_hyps(tmp_path)
    with pytest.raises(HypsError, match="empty file"):
        read_hyps(write(tmp_path / "e.jsonl", "", " "))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00{}\n")
    with pytest.raises(HypsError, match=r"b\.jsonl:1: not JSON"):
        read_hyps(tmp_path / "b.jsonl")

"""Rows to be spoken: files that overwrite nothing, languages that the model knows, batches of one language."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from speechkit.data.to_speak import known_languages, output_paths, plan_batches
from speechkit.types import Utterance


def _rows(*ids: str, audio: Path = Path("/corpus/long.wav")) -> list[Utterance]:
    return [Utterance(id=each, audio_path=audio, duration=1.0) for each in ids]


def test_files_lie_in_the_folder(tmp_path: Path) -> None:
    ids = ("a", "b/1", "b/2", "..c", "d.wav", "e:1")
    paths = output_paths(_rows(*ids), tmp_path, suffix=".wav", manifest="m.jsonl")
    assert paths == [tmp_path / f"{each}.wav" for each in ids]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["/abs/long", "../../long", "a/../b", "..", "a\0b"])
def test_ids_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"m\.jsonl, row 2: id .* cannot name a file") as raised:
        output_paths(_rows("a", name), tmp_path, suffix=".wav", manifest="m.jsonl")
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("name", ["a", "./a", "b//1"])
def test_one_file_for_two_rows_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"m\.jsonl, row 3: id .* has the file of row [12]"):
        output_paths(_rows("a", "b/1", name), tmp_path, suffix=".wav", manifest="m.jsonl")


def test_recordings_are_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1: id 'long' would overwrite .*long\.wav"):
        output_paths(_rows("long", audio=tmp_path / "long.wav"), tmp_path, suffix=".wav", manifest="m.jsonl")
    assert output_paths(_rows("long", audio=tmp_path / "long.wav"), tmp_path, suffix=".ogg", manifest="m.jsonl")


def test_languages_are_told_by_code_or_without_region() -> None:
    codes = ["en-us", "DE", "", "en"]
    rows = [Utterance(id=str(i), audio_path=Path("a"), duration=1.0, lang=each) for i, each in enumerate(codes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known_languages(rows, ("de", "en")) == ["en-us", "DE", "", "en"]
        assert known_languages(rows, ("",)) == ["", "", "", ""]
    with pytest.warns(UserWarning, match=r"1 rows, the first of id '1', .*\('DE'\).* knows 'en-gb', 'fr'") as told:
        assert known_languages(rows, ("en-gb", "fr")) == ["en-us", "", "", "en"]
    assert len(told) == 1


def test_batches_are_of_one_language_and_of_similar_length() -> None:
    assert plan_batches(["ccc", "a", "bb", "d"], ["", "", "", "de"], batch_size=2) == [[1, 2], [0], [3]]

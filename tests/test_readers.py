"""Readers of synthetic speech: ours by folder or name, any function, Moonshine where its package is."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

import speechkit
from speechkit.readers import load_reader


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    times = np.arange(16000) / 16000
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(2 * np.pi * 200 * times), 16000)
    return tmp_path / "a.wav"


def test_our_recognisers_read_as_they_transcribe(audio: Path) -> None:
    [expected] = speechkit.load("demo-ctc", device="cpu").transcribe([audio])
    assert load_reader("demo-ctc", device="cpu")([audio]) == [expected.text]


def test_any_function_reads(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_reader_of_mine")
    module.read = lambda paths: [path.name for path in paths]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert load_reader("a_reader_of_mine:read")([audio]) == ["a.wav"]
    with pytest.raises(ValueError, match="has no function 'hear'"):
        load_reader("a_reader_of_mine:hear")
    with pytest.raises(ImportError, match="nowhere_at_all"):
        load_reader("nowhere_at_all:read")
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        load_reader("no_such_folder")


def test_of_nothing_nothing_is_read(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    module = ModuleType("a_reader_of_sounds")
    module.read = lambda paths: [f"{soundfile.info(path).frames:.0f}" for path in paths if soundfile.info(path).frames]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    read = load_reader("a_reader_of_sounds:read")
    assert read([tmp_path / "empty.wav", audio, tmp_path / "empty.wav"]) == ["", "16000", ""]
    assert read([tmp_path / "empty.wav"]) == [""]
    assert read([]) == []


def test_moonshine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)
    with pytest.raises(ImportError, match=r"speechkit\[moonshine\]"):
        load_reader("moonshine")


def test_moonshine_lines_are_joined(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []

    class Transcriber:
        def __init__(self, folder: str, arch: int) -> None:
            self.folder = folder

        def transcribe_without_streaming(self, samples: list[float], rate: int) -> SimpleNamespace:
            heard.append((Path(self.folder).name, len(samples), rate))
            return SimpleNamespace(lines=[SimpleNamespace(text="One line."), SimpleNamespace(text="Two.")])

    package, functions = ModuleType("moonshine_voice"), ModuleType("moonshine_voice.utils")
    vars(package).update(Transcriber=Transcriber, ModelArch=SimpleNamespace(TINY=0))
    vars(functions).update(get_assets_path=lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "moonshine_voice", package)
    monkeypatch.setitem(sys.modules, "moonshine_voice.utils", functions)
    with pytest.raises(ImportError, match="brings no model along"):
        load_reader("moonshine")
    (tmp_path / "tiny-en").mkdir()
    (tmp_path / "tiny-en" / "encoder_model.ort").touch()
    assert load_reader("moonshine")([audio]) == ["One line. Two."]
    assert heard == [("tiny-en", 16000, 16000)]
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    assert load_reader("moonshine")([tmp_path / "empty.wav", audio]) == ["", "One line. Two."]


@pytest.mark.skipif(importlib.util.find_spec("moonshine_voice") is None, reason="moonshine-voice is not installed")
def test_moonshine_reads_english(data_root: Path) -> None:
    folder = data_root / "ljspeech" / "dev"
    row = json.loads((folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[1])
    [text] = load_reader("moonshine")([folder / row["audio_filepath"]])
    assert "beer from the neighboring public" in text.lower()

"""Recognisers that read synthetic speech back, ours or others', behind one call: audio files in, texts out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from speechkit.audio.io import AudioError, audio_info, load_audio
from speechkit.pretrained import load_recognizer

Reader = Callable[[Sequence[Path]], list[str]]


def load_reader(name: str | Path, *, device: str | None = None) -> Reader:
    """A function that reads audio files; of one without samples it reads "".

    Args:
        name: pretrained folder or shipped name of a recogniser of ours; "moonshine" for Moonshine tiny of Useful Sensors
            (English, trained on 200,000 h of others' speech), which its package brings along; or "module:function" for any
            function that takes a list of paths and returns a list of texts.
        device: of a recogniser of ours; None takes the GPU when there is one.

    Raises:
        FileNotFoundError: there is no such folder or shipped model.
        ImportError: the package or module is not there; the message says what to install.
        ValueError: the module has no such function.
    """
    reader = _named(name, device=device)

    def read(paths: Sequence[Path]) -> list[str]:
        spoken = [path for path in paths if not _is_empty(path)]
        texts = dict(zip(spoken, reader(spoken), strict=True)) if spoken else {}
        return [texts.get(path, "") for path in paths]

    return read


def _is_empty(path: Path) -> bool:
    """Whether an audio file holds no samples; what cannot be read is for the reader to refuse."""
    try:
        return not audio_info(path).num_samples
    except AudioError:
        return False


def _named(name: str | Path, *, device: str | None) -> Reader:
    """The reader of a name, which need not know files without samples."""
    if name == "moonshine":
        return _moonshine()
    module, colon, function = str(name).partition(":")
    if colon and not Path(name).exists():
        found = getattr(importlib.import_module(module), function, None)
        if not callable(found):
            raise ValueError(f"recognizer={name}: {module} has no function {function!r}")
        reader: Reader = found
        return reader
    recognizer = load_recognizer(name, device=device)

    def read(paths: Sequence[Path]) -> list[str]:
        return [hypothesis.text for hypothesis in recognizer.transcribe(list(paths), on_error="return")]

    return read


def _moonshine() -> Reader:
    """Jeffries et al., "Moonshine: Speech Recognition for Live Transcription and Voice Commands" (2024): the tiny model."""
    remedy = 'pip install "speechkit[moonshine]"'
    try:
        import moonshine_voice
        from moonshine_voice.utils import get_assets_path
    except ImportError as error:
        raise ImportError(f"recognizer=moonshine needs moonshine-voice; {remedy}") from error
    folder = get_assets_path() / "tiny-en"
    if not (folder / "encoder_model.ort").is_file():
        raise ImportError(f"recognizer=moonshine: this version of moonshine-voice brings no model along; {remedy}")
    transcriber = moonshine_voice.Transcriber(str(folder), moonshine_voice.ModelArch.TINY)

    def read(paths: Sequence[Path]) -> list[str]:
        texts = []
        for path in paths:
            wave_N, rate = load_audio(path, sample_rate=16000)
            lines = transcriber.transcribe_without_streaming(np.asarray(wave_N, np.float32).tolist(), rate).lines
            texts.append(" ".join(line.text for line in lines))
        return texts

    return read

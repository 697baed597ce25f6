"""recipes/synthesize.py with a voice that was never trained: languages, recordings, pictures, formats, interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechkit.audio.io import save_audio
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.fastspeech import infer as fastspeech
from speechkit.models.fastspeech.model import FastSpeechModel
from speechkit.models.vocoder.griffin_lim import GriffinLim
from speechkit.pretrained import save_pretrained
from speechkit.synthesizer import Synthesizer
from speechkit.text.tokenizers import PhonemeTokenizer

Run = Callable[[str, Sequence[str]], None]
LETTERS = PhonemeTokenizer(symbols=[*"abcdefghijklmnopqrstuvwxyz.,?!;:'"])
SIZES: dict[str, Any] = {
    "vocab_size": LETTERS.vocab_size, "num_mels": 80, "num_languages": 2, "dim": 16, "encoder_layers": 1, "decoder_layers": 1,
    "filter_dim": 16, "kernel_sizes": [3, 1], "predictor_dim": 16, "postnet_layers": 0,
}  # fmt: skip
ROWS = [
    {"id": "a", "text": "good morning", "lang": "de-AT"},
    {"id": "b", "text": "one", "lang": "en"},
    {"id": "c/1", "text": "price $a_b_c$ is", "lang": "de"},
    {"id": "d", "text": "hm"},
    {"id": "e", "text": "", "lang": "en"},
]


@pytest.fixture(scope="module", params=[16000, 22050])
def voice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a voice of two languages that mumbles."""
    mel = MelSpectrogram.preset(request.param)
    torch.manual_seed(0)
    model = FastSpeechModel(**SIZES)
    with torch.no_grad():
        model.duration.out.bias.fill_(1.5)
    model.mel_norm.mean.fill_(-5.0)
    config = {
        "kind": "synthesizer",
        "features": {
            "_target_": "speechkit.audio.spectrogram.MelSpectrogram",
            **{key: value for key, value in mel.settings().items() if key != "type"},
        },
        "features_fingerprint": mel.fingerprint(),
        "frontend": {"_target_": "speechkit.text.frontend.FrontEnd", "lang": "en", "backend": "characters"},
        "model": {"_target_": "speechkit.models.fastspeech.model.FastSpeechModel", **SIZES},
        "decode": {
            "_target_": "speechkit.models.fastspeech.infer.infer",
            "options": {"_target_": "speechkit.models.fastspeech.infer.FastSpeechOptions"},
        },
        "speakers": [""],
        "languages": ["en", "de"],
    }
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    directory = tmp_path_factory.mktemp("voice") / "pretrained"
    return save_pretrained(directory, config=config, state_dict=weights, tokenizer=LETTERS, card="mumbling")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Five rows: of a whole file, of its beginning, of its middle, of a file that is absent, without text."""
    tone_N = np.sin(np.arange(16000 * 3) / 20).astype(np.float32) * np.linspace(0, 0.5, 48000, dtype=np.float32)
    save_audio(tmp_path / "long.flac", tone_N, 16000)
    places = [{"duration": 3.0}, {"duration": 1.0}, {"duration": 1.5, "offset": 1.0}, {"duration": 1.0}, {"duration": 2.995}]
    rows = [{**row, **place, "audio_filepath": "long.flac"} for row, place in zip(ROWS, places, strict=True)]
    rows[3]["audio_filepath"] = "absent.wav"
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Griffin-Lim that does not listen to what it makes."""
    first = GriffinLim.__init__
    monkeypatch.setattr(GriffinLim, "__init__", lambda self, **own: first(self, **{"num_iterations": 0, **own}))


def _arguments(voice: Path, manifest: Path, *more: str) -> list[str]:
    output = manifest.with_name("out")
    return [f"checkpoint={voice}", f"manifest={manifest}", f"output={output}", "threads=1", "warmup_batches=0", *more]


def test_rows_are_spoken_in_their_own_language(
    voice: Path, manifest: Path, run_recipe: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[int, int] = {}
    plain = fastspeech.infer

    def spy(model: Any, inputs: Any, **options: Any) -> Any:
        heard.update(zip(inputs.phone_lens_B.tolist(), inputs.languages_B.tolist(), strict=True))
        return plain(model, inputs, **options)

    monkeypatch.setattr(Synthesizer, "infer", property(lambda self: spy, lambda self, value: None), raising=False)
    with pytest.warns(UserWarning, match="nothing to say"):
        run_recipe("synthesize.py", _arguments(voice, manifest, "batch_size=8"))
    assert sorted(heard.values()) == [0, 0, 1, 1]
    assert heard[min(heard)] == 0  # "hm" has no language, and is not spoken in that of its neighbours
    rows = [json.loads(line) for line in (manifest.parent / "out/synthesis.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]


def test_recordings_are_those_of_the_rows(voice: Path, manifest: Path, run_recipe: Run) -> None:
    with pytest.warns(UserWarning, match="nothing to say"):
        run_recipe("synthesize.py", _arguments(voice, manifest))
    output = manifest.parent / "out"
    rows = {row["id"]: row for row in map(json.loads, (output / "synthesis.jsonl").read_text().splitlines())}
    whole = str((manifest.parent / "long.flac").resolve())
    assert {key: row.get("ref_audio") for key, row in rows.items()} == {
        "a": whole, "b": "recordings/b.wav", "c/1": "recordings/c/1.wav", "d": None, "e": whole,
    }  # fmt: skip
    long_N, _ = soundfile.read(whole)
    for key, first, last in (("b", 0, 16000), ("c/1", 16000, 40000)):
        part_N, rate = soundfile.read(output / rows[key]["ref_audio"])
        assert rate == 16000
        np.testing.assert_allclose(part_N, long_N[first:last], atol=1e-4)
    assert sorted(path.name for path in (output / "recordings").rglob("*.wav")) == ["1.wav", "b.wav"]
    assert not (output / "synthesis.jsonl.part").exists()


def test_pictures_and_ogg(voice: Path, manifest: Path, run_recipe: Run) -> None:
    pytest.importorskip("matplotlib")
    with pytest.warns(UserWarning, match="nothing to say"):
        run_recipe("synthesize.py", _arguments(voice, manifest, "plots=5", "audio_format=ogg"))
    audio = manifest.parent / "out/audio"
    assert sorted(path.name for path in audio.rglob("*.png")) == ["1.png", "a.png", "b.png", "d.png"]
    info = soundfile.info(audio / "a.ogg")
    assert (info.samplerate, info.subtype) in ((16000, "OPUS"), (22050, "VORBIS"))
    with pytest.raises(SystemExit):
        run_recipe("synthesize.py", _arguments(voice, manifest, "audio_format=mp3"))


@pytest.mark.parametrize("names", [("{folder}/long", "b"), ("../../long", "b"), ("b", "b"), ("b", "./b")])
def test_ids_that_would_overwrite_are_refused(
    voice: Path, manifest: Path, run_recipe: Run, capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    source = manifest.with_name("long.wav")
    save_audio(source, np.linspace(0, 0.5, 48000, dtype=np.float32), 16000)
    before = source.read_bytes()
    segment = {"text": "one", "audio_filepath": "long.wav", "duration": 1.0}
    rows = [{"id": name.format(folder=manifest.parent), **segment} for name in names]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        run_recipe("synthesize.py", _arguments(voice, manifest))
    message = capsys.readouterr().err
    assert f"{manifest}, row {1 if 'long' in names[0] else 2}: id " in message
    assert source.read_bytes() == before
    assert not (manifest.parent / "out/audio").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recognizer=no_such_folder", "no_such_folder"),
        ("decode=flow_matcha", "decode= is for speechkit.models.flow.infer, the model needs speechkit.models.fastspeech.infer"),
    ],
)
def test_mistakes_cost_no_speech(
    voice: Path, manifest: Path, run_recipe: Run, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        run_recipe("synthesize.py", _arguments(voice, manifest, setting))
    assert message in capsys.readouterr().err
    assert not (manifest.parent / "out").exists()


def test_an_interruption_loses_nothing(
    voice: Path, manifest: Path, run_recipe: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Synthesizer.synthesize
    spoken: list[str] = []

    def synthesize(self: Synthesizer, texts: list[str], **asked: Any) -> Any:
        if len(spoken) == 3:
            raise KeyboardInterrupt
        spoken.extend(texts)
        return plain(self, texts, **asked)

    monkeypatch.setattr(Synthesizer, "synthesize", synthesize)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="nothing to say"):
        run_recipe("synthesize.py", _arguments(voice, manifest, "batch_size=1"))
    part = manifest.parent / "out/synthesis.jsonl.part"
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    assert [row["text"] for row in rows] == spoken
    assert all((part.parent / row["audio"]).is_file() for row in rows)
    assert f"{part}: kept the 3 of 5 utterances" in capsys.readouterr().err
    assert not part.with_suffix("").exists()

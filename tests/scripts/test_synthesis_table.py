"""scripts/synthesis_table.py: figures of rows against what they are defined as, kinds of rows, rows kept, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.metrics.tts import stoi
from speechkit.metrics.wer import count_errors_batch, sum_counts
from speechkit.pretrained import instantiate, load_synthesizer, load_vocoder, save_pretrained
from speechkit.text.tokenizers import PhonemeTokenizer

TEXTS = ["a bad cab", "dab", "a cad, a bead"]
LETTERS = PhonemeTokenizer(symbols=[*"abcdefghijklmnopqrstuvwxyz.,?!;:'"])
FEATURES = {**MelSpectrogram.preset(16000).settings(), "_target_": "speechkit.audio.spectrogram.MelSpectrogram"}
del FEATURES["type"]
FAMILY = "speechkit.models.fastspeech"
CONFIGS: dict[str, dict[str, Any]] = {
    "voice": {
        "kind": "synthesizer",
        "features": FEATURES,
        "frontend": {"_target_": "speechkit.text.frontend.FrontEnd", "lang": "en", "backend": "characters"},
        "model": {
            "_target_": f"{FAMILY}.model.FastSpeechModel", "vocab_size": LETTERS.vocab_size, "num_mels": 80, "dim": 16,
            "encoder_layers": 1, "decoder_layers": 1, "filter_dim": 16, "kernel_sizes": [3, 1], "predictor_dim": 16,
            "postnet_layers": 0,
        },
        "decode": {"_target_": f"{FAMILY}.infer.infer", "options": {"_target_": f"{FAMILY}.infer.FastSpeechOptions"}},
        "training": {"steps": 1234, "cpu_minutes": 5.6},
    },
    "vocoder": {
        "kind": "vocoder",
        "features": FEATURES,
        "model": {
            "_target_": "speechkit.models.vocoder.model.Vocoder", "mel": FEATURES,
            "generator": {
                "_target_": "speechkit.models.vocoder.vocos.VocosGenerator", "_partial_": True, "dim": 16, "num_layers": 1,
                "intermediate_dim": 16,
            },
        },
    },
    "codec": {
        "kind": "codec",
        "features": FEATURES,
        "model": {
            "_target_": "speechkit.models.codec.model.CodecModel", "num_mels": 80, "dim": 16, "intermediate_dim": 16,
            "num_encoder_layers": 1, "num_decoder_layers": 1, "wave_head": None,
            "quantizer": {
                "_target_": "speechkit.nn.quantizers.ResidualVectorQuantizer", "num_codebooks": 2, "num_codes": 8, "dim": 16,
            },
        },
    },
}  # fmt: skip


def hear(paths: list[Path]) -> list[str]:
    """A reader: knows the texts, and makes one mistake in the last."""
    texts = {f"u{i}": text for i, text in enumerate(TEXTS)} | {"u2": "a cat a bead"}
    return [texts[path.stem] for path in paths]


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("synthesis_table")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of tones, and folders of random models."""
    root = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = []
    for i, text in enumerate(TEXTS):
        times = np.arange(12000 + 3000 * i) / 16000
        wave = 0.3 * np.sin(2 * np.pi * 150 * times) + 0.05 * rng.standard_normal(len(times))
        soundfile.write(root / f"{i}.wav", wave, 16000)
        row = {"id": f"u{i}", "audio_filepath": f"{i}.wav", "duration": len(wave) / 16000, "text": text}
        rows.append(json.dumps(row))
    (root / "test.jsonl").write_text("\n".join(rows) + "\n")
    for name, config in CONFIGS.items():
        torch.manual_seed(1)
        parts = torch.nn.ModuleDict({part: instantiate(config[part], where=part) for part in ("features", "model")})
        for key, parameter in parts.named_parameters():
            if key.endswith("duration.out.bias"):
                parameter.data.fill_(1.5)
        tokenizer = LETTERS if name == "voice" else None
        save_pretrained(root / name, config=config, state_dict=parts.state_dict(), tokenizer=tokenizer, card="")
    return root


def arguments(work: Path, output: Path, *rows: str, **options: Any) -> list[str]:
    values = {"manifest": work / "test.jsonl", "output": output, "reader": f"{__name__}:hear", "timed": 2, **options}
    return [*rows, *(f"--{name}={value}" for name, value in values.items()), f"--threads={torch.get_num_threads()}"]


def test_figures_are_what_they_are_defined_as(script: ModuleType, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "table.md"
    rows = ["as they are=recordings", f"a voice={work}/voice", f"vocoder={work}/vocoder", f"codec={work}/codec"]
    assert script.main(arguments(work, output, *rows)) == 0
    found = {row["name"]: row for row in json.loads(output.with_suffix(".json").read_text())["rows"]}
    assert [*found] == ["as they are", "a voice", "vocoder", "codec"]
    for unit in ("word", "char"):
        counts = count_errors_batch([text.replace(",", "") for text in TEXTS], ["a bad cab", "dab", "a cat a bead"], unit)
        rate = found["a voice"]["readers"][f"{__name__}:hear"][unit]
        assert rate["rate"] == pytest.approx(sum_counts(counts).rate)
    voice = found["a voice"]
    assert (voice["steps"], voice["cpu_minutes"]) == (1234, 5.6)
    assert voice["first_audio_s"] > 0
    assert voice["largest_difference"] < 0.02  # Griffin-Lim amplifies rounding
    assert all(found[name]["real_time_factor"][size] > 0 for name in ("a voice", "vocoder", "codec") for size in ("1", "8"))
    spoken, rate = soundfile.read(output.with_suffix("") / "a_voice" / "u0.wav", dtype="float32")
    expected = load_synthesizer(work / "voice").synthesize(TEXTS[0]).wave
    assert rate == 16000
    assert np.abs(spoken - expected).max() < 0.02
    assert found["as they are"]["measures"] is None
    assert found["as they are"]["real_time_factor"] is None
    assert found["a voice"]["stoi"] is None
    assert found["vocoder"]["measures"]["num_utterances"] == 3
    values = []
    for i in range(3):
        wave_N, _ = soundfile.read(work / f"{i}.wav", dtype="float32")
        mel: MelSpectrogram = load_vocoder(work / "vocoder").mel
        with torch.inference_mode():
            mel_BTF, lens_B = mel(torch.from_numpy(wave_N)[None], torch.tensor([len(wave_N)]))
            copy_N = load_vocoder(work / "vocoder").vocode(mel_BTF, lens_B)[0][0].numpy()
        num = min(len(wave_N), len(copy_N))
        values.append(stoi(wave_N[:num], copy_N[:num], 16000))
    assert found["vocoder"]["stoi"] == pytest.approx(np.mean(values), abs=1e-4)
    assert len({line.count("|") for line in output.read_text().splitlines()}) == 1


def test_rows_stay_and_vocoders_are_used(script: ModuleType, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    assert script.main(arguments(work, output, f"a={work}/voice", f"b={work}/codec", limit=1)) == 0
    assert script.main(arguments(work, output, f"a={work}/voice:fastspeech:speed=2.0", vocoder=work / "vocoder")) == 0
    rows = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [(row["name"], row["num_utterances"], row["vocoder"]) for row in rows] == [
        ("a", 3, str(work / "vocoder")),
        ("b", 1, None),
    ]
    assert rows[0]["options"] == {"speed": 2.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("folder", "is not NAME=FOLDER"),
        ("a=nowhere", "nowhere"),
        ("a={work}/vocoder:fastspeech", "a vocoder takes no decode=fastspeech"),
        ("a={work}/voice:flow_matcha", "the model needs speechkit.models.fastspeech.infer"),
        ("a=demo-ctc", "holds a recognizer, which makes no speech"),
    ],
)
def test_mistakes_cost_one_line(
    script: ModuleType, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, message: str
) -> None:
    assert script.main(arguments(work, tmp_path / "table.md", row.format(work=work))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "table.md").exists()

"""scripts/synthesis_table.py: figures of rows against what they are defined as, kinds of rows, rows kept, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
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
from speechkit.types import Synthesis, Utterance

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
    assert all(soundfile.info(path).frames for path in paths)
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
    own = {"vocoder": work / "vocoder", "limit": 1, "timed": 9}
    assert script.main(arguments(work, output, f"a={work}/voice:fastspeech:speed=2.0", **own)) == 0
    rows = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [(row["name"], row["num_utterances"], row["vocoder"], row["manifest"]) for row in rows] == [
        ("a", 1, str(work / "vocoder"), str(work / "test.jsonl")),
        ("b", 1, None, str(work / "test.jsonl")),
    ]
    assert rows[0]["options"] == {"speed": 2.0}


def test_rows_of_other_measurements_are_refused(
    script: ModuleType, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "table.md"
    assert script.main(arguments(work, output, "a=recordings", "b=recordings")) == 0
    before = output.with_suffix(".json").read_text()
    (work / "other.jsonl").write_text((work / "test.jsonl").read_text())
    for name, value, shown in (
        ("manifest", work / "other.jsonl", f"manifest '{work}/test.jsonl', and this run has '{work}/other.jsonl'"),
        ("limit", 2, "num_utterances 3, and this run has 2"),
        ("normalizer", "none", "normalizer 'basic', and this run has 'none'"),
        ("timed", 1, "num_timed_alone 2, and this run has 1"),
    ):
        capsys.readouterr()
        assert script.main(arguments(work, output, "a=recordings", **{name: value})) == 2
        assert f"holds row 'b', measured with {shown}: give another --output" in capsys.readouterr().err
    assert output.with_suffix(".json").read_text() == before
    assert script.main(arguments(work, output, "b=recordings", "a=recordings", limit=2)) == 0
    rows = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [(row["name"], row["num_utterances"]) for row in rows] == [("b", 2), ("a", 2)]


def test_segments_are_measured_against_their_part(script: ModuleType, work: Path, tmp_path: Path) -> None:
    wave, rate = soundfile.read(work / "0.wav")
    quiet = np.random.default_rng(1).standard_normal(rate) * 0.01
    soundfile.write(tmp_path / "long.wav", np.concatenate([quiet, wave, quiet]), rate)
    soundfile.write(tmp_path / "copy.wav", wave, rate)
    segment = Utterance(id="s", audio_path=tmp_path / "long.wav", start=1.0, duration=len(wave) / rate)
    found = script._measure(script.parse_row("a=b"), [segment], [tmp_path / "copy.wav"], MelSpectrogram.preset(rate))
    assert found["mcd"] == pytest.approx(0, abs=1e-3)
    assert (found["relative_duration"], found["voicing_error_rate"]) == (0, 0)


def test_what_has_no_distance_is_left_out_and_told(
    script: ModuleType, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (work / "test.jsonl").read_text().splitlines()]
    rows[1] |= {"id": "part/u1", "text": ""}
    (work / "gap.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "table.md"
    with pytest.warns(UserWarning, match="nothing to say"):
        assert script.main(arguments(work, output, f"a={work}/voice", manifest=work / "gap.jsonl")) == 0
    [row] = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert (row["measures"]["num_utterances"], row["measures"]["num_unaligned"]) == (3, 1)
    assert row["measures"]["mcd"] > 0
    assert "a: 1 of 3 have no samples and count in duration alone" in capsys.readouterr().err
    assert soundfile.info(tmp_path / "table" / "a" / "part" / "u1.wav").frames == 0
    soundfile.write(work / "silent.wav", np.zeros(12000), 16000)
    pair = [Utterance(id=name, audio_path=work / f"{name}.wav", duration=0.75) for name in ("0", "silent")]
    wave_N = script._recording(pair[0], 16000)
    found = script._stoi(script.parse_row("c=d"), pair, {0: wave_N, 1: wave_N}, 16000)
    assert found == {"stoi": pytest.approx(1.0), "num_stoi": 1}
    assert "c: STOI leaves out 1 of 2, first silent: ref_N: 12000 samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num", "most", "expected"), [(8, 3, [1, 4, 6]), (30, 4, [3, 11, 18, 26]), (3, 9, [0, 1, 2]), (7, 1, [3])]
)
def test_sentences_are_spread_over_all_lengths(script: ModuleType, num: int, most: int, expected: list[int]) -> None:
    assert script.spread(["a" * i for i in range(num)], most) == expected
    assert script.spread(["a" * (num - i) for i in range(num)], most) == [num - 1 - i for i in expected]


def test_rows_are_spoken_by_their_voice_in_their_language(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def synthesize(texts: list[str], *, speaker: list[str | None], language: str | None, batch_size: int) -> list[Synthesis]:
        asked.append((texts, speaker, language))
        return [Synthesis(wave=np.zeros(160, np.float32), sample_rate=16000) for _ in texts]

    def stream(text: str, *, speaker: str | None, language: str | None) -> Iterator[None]:
        asked.append((text, speaker, language))
        yield None

    fake = SimpleNamespace(
        synthesize=synthesize, stream=stream, languages=("de", "en"), speakers=("ann", "bob"), infer=None, options=None,
        mel=MelSpectrogram.preset(16000), num_parameters=lambda: 1,
    )  # fmt: skip
    monkeypatch.setattr(script, "load_synthesizer", lambda *_, **__: fake)
    facts = [("bob", "en-us"), ("eve", "de"), ("ann", "fr"), ("", "de")]
    utterances = [
        Utterance(id=str(i), audio_path=Path("a"), duration=1.0, text="abcd"[i], speaker=speaker, lang=lang)
        for i, (speaker, lang) in enumerate(facts)
    ]
    options = SimpleNamespace(vocoder=None, text_field="text")
    with pytest.warns(UserWarning, match=r"the first of id '2', are in languages .*\('fr'\)"):
        system = script._synthesizer(script.parse_row("a=b"), utterances, options, {})
    assert system.languages == ["en-us", "de", "", "de"]
    for indices in script.plan_batches(["a"] * 4, system.languages, batch_size=8):
        assert len(system.speak([utterances[i] for i in indices])) == len(indices)
    system.first(utterances[0])
    assert asked == [(["c"], ["ann"], None), (["b", "d"], [None, None], "de"), (["a"], ["bob"], "en-us"), ("a", "bob", "en-us")]


def test_ids_that_would_overwrite_are_refused(
    script: ModuleType, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "long.wav"
    soundfile.write(source, np.full(32000, 0.1), 16000)
    before = source.read_bytes()
    for name in (str(tmp_path / "long"), "../../long", "b"):
        rows = [{"id": each, "audio_filepath": "long.wav", "duration": 1.0, "text": "a"} for each in (name, "b")]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert script.main(arguments(work, tmp_path / "table.md", "a=recordings", manifest=tmp_path / "rows.jsonl")) == 2
        assert f"rows.jsonl, row {2 if name == 'b' else 1}: id {name!r}" in capsys.readouterr().err
        assert source.read_bytes() == before
        assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"timed": 0}, "--timed 0: must be at least 1"), ({"output": "table"}, "--output table: name a file that ends in .md")],
)
def test_options_are_checked_first(
    script: ModuleType, work: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], message: str
) -> None:
    assert script.main(arguments(work, Path("table.md"), "a b=recordings", "a_b=recordings")) == 2
    assert "rows 'a b', 'a_b' share a folder of audio" in capsys.readouterr().err
    values = {"output": Path("table.md"), **options}
    assert script.main(arguments(work, values.pop("output"), "a=recordings", **values)) == 2
    assert message in capsys.readouterr().err


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

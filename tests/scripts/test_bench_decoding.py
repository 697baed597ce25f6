"""scripts/bench_decoding.py: that it runs, that it refuses what does not compare, and what it reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.audio.features import LogMel
from speechkit.audio.io import save_audio
from speechkit.data.manifest import write_manifest
from speechkit.pretrained import instantiate, save_pretrained
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import Utterance


@pytest.fixture(scope="module")
def bench(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_decoding")


@pytest.fixture
def no_peers(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "optional", lambda name: None)


def save_model(folder: Path, **settings: Any) -> Path:
    """An untrained AED model."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer(symbols="abc ")
    encoder = {"_target_": "speechkit.nn.conformer.ConformerEncoder", "input_dim": 20, "dim": 16, "num_layers": 1}
    encoder |= {"num_heads": 2, "ff_dim": 16, "kernel_size": 3}
    model = {"_target_": "speechkit.models.aed.model.AedModel", "encoder": encoder, "vocab_size": tokenizer.vocab_size}
    model |= {"decoder_layers": 1, "decoder_heads": 2, "decoder_ff_dim": 16, **settings}
    options = {"_target_": "speechkit.models.aed.infer.AedDecodeOptions"}
    config = {
        "kind": "recognizer",
        "features": {"_target_": "speechkit.audio.features.LogMel", "num_mels": 20},
        "model": model,
        "decode": {"_target_": "speechkit.models.aed.infer.infer", "options": options},
    }
    weights = {f"model.{name}": tensor for name, tensor in instantiate(model, where="model").state_dict().items()}
    weights |= {f"features.{name}": tensor for name, tensor in LogMel(num_mels=20).state_dict().items()}
    return save_pretrained(folder, config=config, state_dict=weights, tokenizer=tokenizer, card="")


def save_speech(folder: Path) -> Path:
    """A manifest of three recordings of noise."""
    rng, utterances = np.random.default_rng(0), []
    for i, seconds in enumerate((0.5, 0.8, 0.3)):
        save_audio(folder / f"{i}.wav", rng.normal(0.0, 0.1, int(16000 * seconds)).astype(np.float32), 16000)
        utterances.append(Utterance(id=str(i), audio_path=folder / f"{i}.wav", duration=seconds, text="ab"))
    write_manifest(folder / "speech.jsonl", utterances)
    return folder / "speech.jsonl"


@pytest.mark.usefixtures("no_peers")
def test_ours_alone(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech, report = save_speech(tmp_path), tmp_path / "report.json"
    trained = ["--model", str(save_model(tmp_path / "model")), "--manifest", str(speech), "--utterances", "2"]
    bench.main(["--quick", "--batches", "1,2", "--threads", "1", "--json", str(report), *trained])
    shown, found = capsys.readouterr().out, json.loads(report.read_text())
    rows = {(row["group"], row["batch"], row["system"]): row for row in found["rows"]}
    assert shown.count("not installed") == 6  # two systems of one package and one of the other, in two groups
    assert rows["random", 1, "Speech2Text greedy"]["decoder_s"] is None
    for key in (("random", 1, "AED no cache"), ("random", 2, "CASS-NAT"), ("trained", 1, "AED speculative, CTC draft")):
        assert 0.0 < rows[key]["decoder_s"] < rows[key]["total_s"]
    ratios = {(r["group"], r["batch"], r["first"], r["second"], r["part"]): r for r in found["ratios"]}
    cache = ratios["random", 1, "AED no cache", "AED greedy", "decoder"]
    assert cache["wanted"] == ">= 5"
    assert cache["met"] == (cache["ratio"] >= 5)
    assert ratios["trained", 1, "AED greedy", "AED speculative, CTC draft", "decoder"]["wanted"] == ">= 2"
    assert ratios["random", 2, "AED no cache", "AED greedy", "decoder"]["met"] is None  # a goal of batch 1
    assert ratios["random", 2, "AED beam 3", "Paraformer", "total"]["met"] is None
    for row in found["rows"]:
        assert row["system"] in shown


def test_with_transformers(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    bench.main(["--quick", "--batches", "1", "--threads", "1"])
    assert "AED greedy / Speech2Text greedy, decoder" in capsys.readouterr().out


@pytest.mark.usefixtures("no_peers")
def test_what_does_not_compare_is_refused(bench: ModuleType, tmp_path: Path) -> None:
    group = bench.Group("random", 1, [], [])
    sizes = bench.Sizes(tokens=2)
    bench.check_tokens(group, {"CTC": [(5, 6)]}, sizes)
    with pytest.raises(SystemExit, match=r"CTC, batch 1: \[3\] tokens instead of 2"):
        bench.check_tokens(group, {"CTC": [(5, 6, 7)]}, sizes)
    with pytest.raises(SystemExit, match="AED no cache and AED greedy differ"):
        bench.check_tokens(group, {"AED greedy": [(5, 6)], "AED no cache": [(6, 6)]}, sizes)
    with pytest.raises(SystemExit, match="give an AED model with a CTC head"):
        bench.trained_group(save_model(tmp_path, ctc_weight=0.0), tmp_path / "none.jsonl", 1, 3)
    with pytest.raises(SystemExit):
        bench.main(["--model", "x"])

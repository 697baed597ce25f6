"""The ranker of transcripts: its scores, how options name it, and what may not rank."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.audio.io import save_audio
from speechkit.data.manifest import write_manifest
from speechkit.models.aed.ranker import AedRanker
from speechkit.models.cassnat.infer import CassNatDecodeOptions
from speechkit.pretrained import instantiate, load, load_ranker, save_pretrained
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import Utterance

FEATURES = {"_target_": "speechkit.audio.features.LogMel", "num_mels": 20}
ENCODER = {
    "_target_": "speechkit.nn.conformer.ConformerEncoder",
    "input_dim": 20,
    "dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "ff_dim": 32,
    "kernel_size": 5,
}
SMALL = {"decoder_heads": 2, "decoder_ff_dim": 32}


def save(directory: Path, family: str, *, symbols: str = " abc", features: dict[str, Any] | None = None, **sizes: Any) -> Path:
    """A pretrained folder with random weights."""
    torch.manual_seed(3)
    tokenizer = CharTokenizer(symbols=list(symbols), tags=["en", "zh"])
    name = {"aed": "Aed", "cassnat": "CassNat", "ctc": "Ctc"}[family]
    small = {} if family == "ctc" else SMALL
    model = {"_target_": f"speechkit.models.{family}.model.{name}Model", "encoder": ENCODER, **small, **sizes}
    options = {"_target_": f"speechkit.models.{family}.infer.{name}DecodeOptions"}
    config: dict[str, Any] = {
        "kind": "recognizer",
        "features": features or FEATURES,
        "model": {**model, "vocab_size": tokenizer.vocab_size},
        "decode": {"_target_": f"speechkit.models.{family}.infer.infer", "options": options},
    }
    parts = {part: instantiate(config[part], where=part) for part in ("features", "model")}
    return save_pretrained(
        directory, config=config, state_dict=torch.nn.ModuleDict(parts).state_dict(), tokenizer=tokenizer, card=""
    )


def test_scores_do_not_depend_on_company(tmp_path: Path) -> None:
    tags = {"en": 4, "zh": 5}
    rec = load(save(tmp_path / "aed", "aed", decoder_layers=2, language_tokens=tags), device="cpu")
    ranker = AedRanker(model=rec.model, language="zh")
    feats, lens = torch.randn(3, 90, 20), torch.tensor([90, 31, 64])
    sequences = [[(7, 8), (), (9, 7, 6, 8)], [], [(8,)]]
    together = ranker.score(sequences, feats, lens)
    assert list(map(len, together)) == [3, 0, 1]
    for row, own in enumerate(sequences):
        for tokens, score in zip(own, together[row]):
            [[alone]] = ranker.score([[tokens]], feats[row : row + 1, : lens[row]], lens[row : row + 1])
            assert alone == pytest.approx(score, abs=1e-4)
    assert AedRanker(model=rec.model, language="en").score(sequences, feats, lens) != together
    with pytest.warns(UserWarning, match="taking 'en'"):
        AedRanker(model=rec.model).score(sequences, feats, lens)


def test_options_name_it_by_its_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    rec = load(save(tmp_path / "cassnat", "cassnat", sad_layers=1, mad_layers=1), device="cpu")
    folder = save(tmp_path / "aed", "aed", decoder_layers=1)
    rec.options = CassNatDecodeOptions(num_samples=4, rank_by="ranker", ranker=str(folder))
    assert isinstance(rec.options.ranker, AedRanker)
    assert repr(rec.options.ranker) == f"AedRanker({folder})"
    waves = [rng.normal(size=size).astype(np.float32) * np.hanning(size).astype(np.float32) for size in (9000, 16000)]
    together = rec.transcribe(waves)
    assert [rec.transcribe(wave)[0].text for wave in waves] == [hyp.text for hyp in together]
    named = dataclasses.replace(rec.options, ranker="no/such folder/here")
    with pytest.raises(FileNotFoundError, match="no/such folder/here"):
        rec.options = named


def test_it_is_named_on_the_command_line(
    tmp_path: Path, repo_root: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = []
    for name, size in (("a", 9000), ("b", 16000)):
        save_audio(tmp_path / f"{name}.wav", 0.1 * rng.normal(size=size).astype(np.float32), 16000)
        utterances.append(Utterance(id=name, audio_path=tmp_path / f"{name}.wav", duration=size / 16000, text="ab"))
    write_manifest(tmp_path / "both.jsonl", utterances)
    checkpoint = save(tmp_path / "cassnat", "cassnat", sad_layers=1, mad_layers=1)
    ranker = save(tmp_path / "aed", "aed", decoder_layers=1)
    files = [f"checkpoint={checkpoint}", f"manifest={tmp_path / 'both.jsonl'}", f"output={tmp_path / 'hyps.jsonl'}", "device=cpu"]
    options = ["decode=cassnat_esa_ranked", f"decode.options.ranker={ranker}", "decode.options.num_samples=3"]
    monkeypatch.setattr(sys, "argv", ["decode.py", *files, *options])
    runpy.run_path(str(repo_root / "recipes" / "decode.py"), run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "hyps.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b"]
    assert json.loads((tmp_path / "hyps.jsonl.meta.json").read_text())["decode"]["ranker"] == f"AedRanker({ranker})"


def test_what_may_not_rank_is_named(tmp_path: Path) -> None:
    rec = load(save(tmp_path / "cassnat", "cassnat", sad_layers=1, mad_layers=1), device="cpu")
    with pytest.raises(ValueError, match=r"ranker=.* is a speechkit\.models\.ctc\.model\.CtcModel; give the folder of an att"):
        load_ranker(save(tmp_path / "ctc", "ctc"), rec)
    with pytest.raises(ValueError, match=r"ranker=.* has other tokenizer .* than the recogniser"):
        load_ranker(save(tmp_path / "letters", "aed", symbols=" abd", decoder_layers=1), rec)
    other = {**FEATURES, "f_min": 40.0}
    with pytest.raises(ValueError, match=r"ranker=.* has other features"):
        load_ranker(save(tmp_path / "features", "aed", features=other, decoder_layers=1), rec)

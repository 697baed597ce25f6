"""The language model's recipe: train on text, export, fuse into a recogniser's search, resume."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speechkit.models.ctc.infer import CtcDecodeOptions, decode_log_probs
from speechkit.models.lm.infer import infer
from speechkit.pretrained import instantiate, load, load_language_model, read_config, save_pretrained
from speechkit.text.tokenizers import CharTokenizer

Run = Callable[[str, Sequence[str]], None]
WORDS = ("tea", "for", "two", "and", "you")

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in which a word is always followed by the same one, and a recogniser that knows their letters."""
    root, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    lines = []
    for _ in range(120):
        first, length = rng.integers(len(WORDS)), rng.integers(1, 6)
        lines.append(" ".join(WORDS[(first + i) % len(WORDS)] for i in range(length)))
    (root / "train.txt").write_text("\n".join(lines[:100]) + "\n", encoding="utf-8")
    (root / "valid.tsv").write_text("".join(f"{i}\t{line.upper()}!\n" for i, line in enumerate(lines[100:])), encoding="utf-8")
    tokenizer = CharTokenizer.train(lines)
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "kind": "recognizer",
        "features": {"_target_": "speechkit.audio.features.LogMel", "sample_rate": 8000, "n_fft": 256, "win_length": 200,
                     "hop_length": 80, "num_mels": 20},
        "model": {"_target_": "speechkit.models.ctc.model.CtcModel", "vocab_size": tokenizer.vocab_size,
                  "encoder": {"_target_": "speechkit.nn.conformer.ConformerEncoder", "input_dim": 20, "dim": 16, "num_layers": 1,
                              "num_heads": 2, "ff_dim": 16, "kernel_size": 5}},
        "decode": {"_target_": "speechkit.models.ctc.infer.infer",
                   "options": {"_target_": "speechkit.models.ctc.infer.CtcDecodeOptions"}},
    }  # fmt: skip
    parts = {name: instantiate(config[name], where=name) for name in ("features", "model")}
    state = torch.nn.ModuleDict(parts).state_dict()
    save_pretrained(root / "recogniser", config=config, state_dict=state, tokenizer=tokenizer, card="")
    return root


def overrides(corpus: Path, run_dir: Path, **values: Any) -> list[str]:
    settings = {
        "experiment": "demo_lm",
        "run_dir": run_dir,
        "tokenizer.name": corpus / "recogniser",
        "data.train": corpus / "train.txt",
        "data.valid": corpus / "valid.tsv",
        "data.column": 2,
        "data.max_batch_tokens": 200,
        "model.num_layers": 1,
        "model.dim": 32,
        "model.ff_dim": 64,
        "model.dropout": 0.0,
        "optim.lr": 0.01,
        "callbacks.ema.decay": 0.5,
        "trainer.max_epochs": 10,
        "threads": 1,
    }
    return [f"{key}={value}" for key, value in {**settings, **values}.items()]


@pytest.fixture(scope="module")
def trained(corpus: Path, run_recipe: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a few seconds."""
    directory = tmp_path_factory.mktemp("lm") / "run"
    run_recipe("train.py", overrides(corpus, directory))
    return directory


def test_it_learns_and_is_exported(corpus: Path, trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert result["valid/ppl"] < 2.0, "which letter follows is nearly always certain"
    assert result["valid/ppl"] == pytest.approx(np.exp(result["valid/loss"]), rel=1e-4)
    assert result["valid/word_ppl"] > result["valid/ppl"]
    assert {path.name for path in (trained / "pretrained").iterdir()} == {
        "config.yaml", "model.safetensors", "tokenizer.json", "README.md"
    }  # fmt: skip
    config = read_config(trained / "pretrained")
    assert config["kind"] == "language_model"
    assert not {"features", "decode"} & set(config)
    lm = load_language_model(trained / "pretrained", device="cpu")
    right, wrong = (lm.tokenizer.encode(text) for text in ("tea for two", "for tea two"))
    model = instantiate(config["model"], where="model").eval()
    weights = load_file(trained / "pretrained/model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    assert np.subtract(*infer(model, [right, wrong])) > 3.0


def test_it_decides_what_was_said(corpus: Path, trained: Path) -> None:
    """Sound that leaves a letter open: fusion finds the word that follows."""
    recogniser = load(corpus / "recogniser", device="cpu")
    recogniser.options = CtcDecodeOptions(method="beam", lm=str(trained / "pretrained"), lm_weight=1.0)
    tokenizer = recogniser.tokenizer
    heard, doubt = tokenizer.encode("tea for two"), tokenizer.encode("e")[0]
    probs = torch.full((1, 2 * len(heard), tokenizer.vocab_size), 1e-4)
    for place, token in enumerate(heard):
        probs[0, 2 * place, token] = 1.0
        probs[0, 2 * place + 1, 0] = 1.0
    probs[0, 10, doubt] = 1.5  # "tea fer two" sounds better
    log_probs = (probs / probs.sum(dim=-1, keepdim=True)).log()
    lens = torch.tensor([probs.shape[1]])
    texts = []
    for options in (CtcDecodeOptions(method="beam"), recogniser.options):
        [hypothesis] = decode_log_probs(log_probs, lens, tokenizer=tokenizer, options=options, frame_shift=0.04)
        texts.append(hypothesis.text)
    assert texts == ["tea fer two", "tea for two"]
    [silent] = recogniser.transcribe(np.zeros(8000, np.float32))
    assert silent.text == ""


def test_wrong_folders_are_explained(corpus: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match="holds a language model: name it in a recogniser's decode options"):
        load(trained / "pretrained")
    with pytest.raises(ValueError, match="is a folder with a recognizer"):
        load_language_model(corpus / "recogniser")
    recogniser = load(corpus / "recogniser", device="cpu")
    with pytest.raises(ValueError, match="is a folder with a recognizer"):
        recogniser.options = dataclasses.replace(recogniser.options, method="beam", lm=str(corpus / "recogniser"))


def test_tokens_can_come_from_other_texts(corpus: Path, tmp_path: Path, run_recipe: Run) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("abcdefghijklmnopqrstuvwxyz and so on\n", encoding="utf-8")
    arguments = [each for each in overrides(corpus, tmp_path / "run") if not each.startswith("tokenizer.name")]
    char = ["tokenizer=char", "~tokenizer.name", f"tokenizer_texts={tokens}"]
    run_recipe("train.py", [*arguments, *char, "trainer.max_epochs=1"])
    lm = load_language_model(tmp_path / "run/pretrained", device="cpu")
    assert lm.tokenizer.vocab_size == 4 + 27
    with pytest.raises(ValueError, match="has another tokenizer"):
        lm.scorer(load(corpus / "recogniser", device="cpu").tokenizer)


def test_a_run_that_is_killed_goes_on_exactly(corpus: Path, tmp_path: Path, run_recipe: Run) -> None:
    """From a checkpoint in the second epoch: the same losses and weights, bit for bit."""

    def arguments(name: str) -> list[str]:
        values = {
            "model.dropout": 0.1,
            "trainer.max_epochs": 2,
            "+callbacks.trace._target_": "tiny.Trace",
            "+callbacks.trace.path": tmp_path / f"{name}.jsonl",
            "callbacks.checkpointer._target_": "tiny.KeepingCheckpointer",
            "callbacks.checkpointer.every_steps": 1,
        }
        return overrides(corpus, tmp_path / name, **values)

    run_recipe("train.py", arguments("whole"))
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    epochs = [json.loads(line)[1] for line in lines if json.loads(line)[0] == "train"]
    taken = epochs.count(0) + 1 + 2  # a validation and two steps
    assert len(epochs) > taken + 2
    (tmp_path / "killed/checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / f"whole/checkpoints/after-{taken}.ckpt", tmp_path / "killed/checkpoints/last.ckpt")
    run_recipe("train.py", [*arguments("killed"), "resume=true"])
    assert (tmp_path / "killed.jsonl").read_text().splitlines() == lines[taken:]
    weights, expected = (load_file(tmp_path / name / "pretrained/model.safetensors") for name in ("killed", "whole"))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)

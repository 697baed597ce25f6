"""Pretrained folders: written, read again, and never trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import speechkit
from speechkit.nn.mel_norm import MelNorm
from speechkit.pretrained import ASSETS, init_from, instantiate, list_models, load, save_pretrained
from speechkit.text.tokenizers import CharTokenizer

CONFIG: dict[str, Any] = {
    "kind": "recognizer",
    "languages": ["en"],
    "features": {"_target_": "speechkit.audio.features.LogMel", "sample_rate": 16000, "num_mels": 40},
    "model": {
        "_target_": "speechkit.models.ctc.model.CtcModel",
        "vocab_size": 31,
        "encoder": {
            "_target_": "speechkit.nn.conformer.ConformerEncoder",
            "input_dim": 40,
            "dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "ff_dim": 64,
            "kernel_size": 7,
        },
    },
    "decode": {
        "_target_": "speechkit.models.ctc.infer.infer",
        "options": {"_target_": "speechkit.models.ctc.infer.CtcDecodeOptions", "method": "greedy"},
    },
}


def _save(directory: Path, config: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    config = CONFIG if config is None else config
    features = instantiate(CONFIG["features"], where="features")
    model = instantiate(CONFIG["model"], where="model")
    state_dict = torch.nn.ModuleDict({"features": features, "model": model}).state_dict()
    tokenizer = CharTokenizer(symbols=list(" abcdefghijklmnopqrstuvwxyz"))
    return save_pretrained(directory, config=config, state_dict=state_dict, tokenizer=tokenizer, card="# A model\n")


def test_round_trip_gives_the_same_model(tmp_path: Path, rng: np.random.Generator) -> None:
    first = load(_save(tmp_path / "a"), device="cpu")
    second = load(_save(tmp_path / "b"), device="cpu")
    wave = rng.normal(size=16000).astype(np.float32) * np.hanning(16000).astype(np.float32)
    feats = first.features(torch.from_numpy(wave)[None], torch.tensor([16000]))
    torch.testing.assert_close(first.model.frame_log_probs(*feats)[0], second.model.frame_log_probs(*feats)[0], rtol=0, atol=0)
    assert first.languages == ("en",)
    assert (tmp_path / "a" / "README.md").read_text(encoding="utf-8") == "# A model\n"


def test_speechkit_load_is_the_same_function(tmp_path: Path) -> None:
    assert speechkit.load(_save(tmp_path), device="cpu").sample_rate == 16000


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.run", "speechkit.audio.io.np.save", "speechkit.models.ctc.model.torch.load", "builtins.eval", 3],
)
def test_foreign_targets_are_refused(tmp_path: Path, target: object) -> None:
    directory = _save(tmp_path)
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    config["model"]["encoder"]["_target_"] = target
    (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"_target_ .* (refused|does not exist)"):
        load(directory)


def test_functions_that_write_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "precious.wav"
    path.write_bytes(b"precious")
    node = {"_target_": "speechkit.audio.io.save_audio", "path": str(path), "wave": [0.0], "sample_rate": 16000}
    with pytest.raises(ValueError, match="refused"):
        instantiate(node, where="model")
    assert path.read_bytes() == b"precious"


def test_an_unknown_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device='gpu' is none that torch knows"):
        load(_save(tmp_path), device="gpu")


def test_a_reexported_foreign_object_is_refused() -> None:
    # `nn` is a module that speechkit's model imports; its objects are torch's, whatever path leads to them.
    with pytest.raises(ValueError, match=r"refused|does not exist"):
        instantiate({"_target_": "speechkit.models.ctc.model.Tensor"}, where="model")


def test_wrong_argument_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.encoder: .*wings"):
        instantiate({**CONFIG["model"], "encoder": {**CONFIG["model"]["encoder"], "wings": 2}}, where="model")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.yaml").unlink(), "has no config.yaml"),
        (lambda d: (d / "config.yaml").write_text("just text"), "lacks kind"),
        (lambda d: (d / "config.yaml").write_text("a: [1"), "not valid YAML"),
        (lambda d: (d / "model.safetensors").unlink(), "missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"rubbish"), "damaged"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_damaged_folders_are_explained(tmp_path: Path, damage: Any, message: str) -> None:
    directory = _save(tmp_path)
    damage(directory)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(directory)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_explained(tmp_path: Path) -> None:
    directory = _save(tmp_path)
    weights = load_file(directory / "model.safetensors")
    weights["model.head.weight"] = torch.zeros(7, 32)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit config\.yaml.*head\.weight"):
        load(directory)


def test_edited_feature_settings_are_noticed(tmp_path: Path) -> None:
    directory = _save(tmp_path, {**CONFIG, "features_fingerprint": "0123456789ab"})
    with pytest.raises(ValueError, match="fingerprint"):
        load(directory)


def _fresh(**encoder: Any) -> torch.nn.ModuleDict:
    torch.manual_seed(1)
    config = {**CONFIG["model"], "vocab_size": 7, "encoder": {**CONFIG["model"]["encoder"], **encoder}}
    return torch.nn.ModuleDict({"model": instantiate(config, where="model")})


def test_training_begins_with_the_encoder_of_another_model(tmp_path: Path) -> None:
    given = load_file(_save(tmp_path) / "model.safetensors")
    module = _fresh()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    line = init_from(module, tmp_path)
    for key, tensor in module.state_dict().items():
        expected = given[key] if key.startswith("model.encoder.") else before[key]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert "2 others start afresh" in line, "weight and bias of the output layer"


def test_weights_that_cannot_be_taken_are_explained(tmp_path: Path) -> None:
    _save(tmp_path)
    with pytest.raises(ValueError, match=r"model\.encoder\..* has shape .* same sizes"):
        init_from(_fresh(dim=48), tmp_path)
    with pytest.raises(ValueError, match="none in common"):
        init_from(_fresh(), tmp_path, prefix="model.decoder.")
    with pytest.raises(ValueError, match=r"model\.head\..* has shape"):
        init_from(_fresh(), tmp_path, prefix="model.")


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor a shipped model"):
        load("no-such-model")


def test_config_without_a_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks model"):
        _save(tmp_path, {key: value for key, value in CONFIG.items() if key != "model"})


@pytest.mark.parametrize("info", list_models(), ids=lambda info: info.name)
def test_shipped_models_load_and_are_small(info: Any) -> None:
    assert info.num_bytes <= 5_000_000
    assert (ASSETS / info.name / "README.md").read_text(encoding="utf-8").strip()
    model = load(info.name, device="cpu")
    assert model.num_parameters() > 100_000
    if info.kind == "synthesizer":
        made = model.synthesize("The train leaves at five.")
        assert 0.8 < len(made.wave) / made.sample_rate < 4.0
        assert [phone.symbol for phone in made.alignment] == model.frontend.phones("The train leaves at five.")


def test_a_training_that_begins_with_another_counts_and_measures_itself(tmp_path: Path) -> None:
    there, here = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    there.register_buffer("step", torch.tensor(1884))
    there.mel_norm, here.mel_norm = MelNorm(), MelNorm()
    there.mel_norm.mean.fill_(-5.0)
    here.register_buffer("step", torch.tensor(0))
    there.weight.data.fill_(2.0)
    weights = torch.nn.ModuleDict({"model": there}).state_dict()
    save_pretrained(tmp_path, config=CONFIG, state_dict=weights, tokenizer=None, card="")
    init_from(torch.nn.ModuleDict({"model": here}), tmp_path, prefix="model.")
    assert here.weight.tolist() == [2.0] * 4
    assert int(here.step) == 0
    assert float(here.mel_norm.mean) == 0.0

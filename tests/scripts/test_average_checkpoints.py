"""scripts/average_checkpoints.py: the mean, what travels along, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("average_checkpoints")


def state(seed: int, **changes: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.w": torch.randn(3, 4, generator=generator),
        "model.half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "model.steps": torch.tensor(seed),
        **changes,
    }


def folder(path: Path, weights: dict[str, Tensor], card: str = "# Card\n") -> Path:
    path.mkdir()
    save_file(weights, path / "model.safetensors")
    for name, text in (("config.yaml", "kind: recognizer\n"), ("tokenizer.json", "{}"), ("README.md", card)):
        (path / name).write_text(text)
    return path


def check_mean(mean: dict[str, Tensor], states: list[dict[str, Tensor]]) -> None:
    assert mean.keys() == states[0].keys()
    for name in ("model.w", "model.half"):
        exact = torch.stack([s[name].double() for s in states]).mean(0)
        assert mean[name].dtype == states[0][name].dtype
        torch.testing.assert_close(mean[name], exact.to(mean[name].dtype), rtol=0, atol=0)
    assert mean["model.steps"] == states[0]["model.steps"]


def test_folders(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = [state(k) for k in range(3)]
    inputs = [str(folder(tmp_path / f"f{k}", s)) for k, s in enumerate(states)]
    assert script.main([*inputs, "--output", str(tmp_path / "out")]) == 0
    assert "mean of 3 checkpoints" in capsys.readouterr().out
    check_mean(load_file(tmp_path / "out" / "model.safetensors"), states)
    assert (tmp_path / "out" / "config.yaml").read_text() == "kind: recognizer\n"
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# Card")
    assert "not measured with these weights" in card
    assert all(path in card for path in inputs)
    check_mean(load_file(tmp_path / "f0" / "model.safetensors"), states[:1])  # inputs stay as they are


def test_weight_files_into_a_file_and_like_a_folder(script: ModuleType, tmp_path: Path) -> None:
    states = [state(k) for k in range(2)]
    inputs = []
    for k, weights in enumerate(states):
        save_file(weights, tmp_path / f"weights-{k}.safetensors")
        inputs.append(str(tmp_path / f"weights-{k}.safetensors"))
    assert script.main([*inputs, "--output", str(tmp_path / "mean.safetensors")]) == 0
    check_mean(load_file(tmp_path / "mean.safetensors"), states)
    like = folder(tmp_path / "like", state(9))
    assert script.main([*inputs, "--output", str(tmp_path / "out"), "--like", str(like)]) == 0
    check_mean(load_file(tmp_path / "out" / "model.safetensors"), states)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_lightning_checkpoints(script: ModuleType, tmp_path: Path) -> None:
    states = [state(k) for k in range(2)]
    inputs = []
    for k, weights in enumerate(states):
        path = tmp_path / f"{k}.ckpt"
        torch.save({"state_dict": weights, "epoch": k, "optimizer_states": [1], "callbacks": {"a": 1}}, path)
        inputs.append(str(path))
    assert script.main([*inputs, "--output", str(tmp_path / "mean.ckpt")]) == 0
    result = torch.load(tmp_path / "mean.ckpt", weights_only=True)
    check_mean(result["state_dict"], states)
    assert result["epoch"] == 0
    assert result.keys() == {"state_dict", "epoch"}


class Rogue:
    """An object that weights_only loading must refuse."""


def test_refusals(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(folder(tmp_path / "good", state(0)))
    fewer = state(1)
    del fewer["model.half"]
    missing = str(folder(tmp_path / "missing", fewer))
    extra = str(folder(tmp_path / "extra", state(1, other=torch.zeros(1))))
    shape = str(folder(tmp_path / "shape", state(1, **{"model.w": torch.zeros(4, 3)})))
    kind = str(folder(tmp_path / "kind", state(1, **{"model.steps": torch.tensor(1.0)})))
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    (tmp_path / "bad.ckpt").write_bytes(b"rubbish")
    torch.save({"state_dict": state(0), "x": Rogue()}, tmp_path / "rogue.ckpt")
    torch.save({"weights": state(0)}, tmp_path / "other.ckpt")
    bad, rogue, other = (str(tmp_path / f"{name}.ckpt") for name in ("bad", "rogue", "other"))
    for argv, message in (
        ([good], "1 checkpoint given; give two or more"),
        ([good, missing], "lacks 'model.half' and 0 more, unlike"),
        ([good, extra], "has 'other' and 0 more besides, unlike"),
        ([good, shape], "'model.w' has shape (4, 3) in"),
        ([good, kind], "'model.steps' is torch.float32 in"),
        ([good, str(tmp_path / "none")], "no such file; expected a folder with model.safetensors"),
        ([good, str(tmp_path / "bad.safetensors")], "not a safetensors file"),
        ([good, bad], "cannot be read as plain weights"),
        ([good, rogue], "cannot be read as plain weights"),
        ([good, other], "has no state_dict"),
        ([bad, good], "is no pretrained folder"),
    ):
        assert script.main([*argv, "--output", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("average_checkpoints: ")
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert script.main([good, good, "--output", good]) == 2
    assert "exists" in capsys.readouterr().err
    assert script.main([good, good, "--output", str(tmp_path / "x.ckpt")]) == 2
    assert "can only be made from .ckpt files" in capsys.readouterr().err

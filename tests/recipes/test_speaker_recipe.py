"""A speaker encoder by recipe, as a user trains and uses it: go on exactly, embed, compare voices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import speechkit
from speechkit.data.corpora import prepare_corpus
from speechkit.data.manifest import read_manifest
from speechkit.metrics.speaker import equal_error_rate, score_pairs
from speechkit.text import espeak

Run = Callable[[str, Sequence[str]], None]

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.skipif(not espeak.available(), reason='espeak-ng speaks the corpus: pip install "speechkit[demo]"'),
]


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two utterances of each of the 64 training voices, and of 8 others."""
    root = tmp_path_factory.mktemp("voices")
    prepare_corpus("demo", None, root, num_train=128, num_dev=16, num_test=2, num_text=2)
    return root


def _overrides(voices: Path, run_dir: Path, **values: Any) -> list[str]:
    """A run of a few steps of a narrow model."""
    settings = {
        "experiment": "demo_speaker",
        "run_dir": run_dir,
        "data.train": voices / "train.jsonl",
        "data.valid": voices / "dev.jsonl",
        "data.num_workers": 0,
        "data.valid_batch_seconds": 15.0,
        "data.sampler.utterances_per_speaker": 2,
        "model.hidden_dim": 16,
        "model.num_layers": 1,
        "model.embedding_dim": 8,
        "model.segment_frames": 40,
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 1,
        "threads": 1,
        "+callbacks.trace._target_": "tiny.Trace",
        "+callbacks.trace.path": f"{run_dir}.jsonl",
        "callbacks.checkpointer._target_": "tiny.KeepingCheckpointer",
        "callbacks.checkpointer.every_steps": 3,
    }
    return [f"{key}={value}" for key, value in {**settings, **values}.items()]


def test_training_goes_on_exactly_and_tells_voices(voices: Path, tmp_path: Path, run_recipe: Run) -> None:
    run_recipe("train.py", _overrides(voices, tmp_path / "whole"))
    whole = (tmp_path / "whole.jsonl").read_text().splitlines()
    kept = sorted((tmp_path / "whole/checkpoints").glob("after-*.ckpt"), key=lambda path: int(path.stem.split("-")[1]))
    middle = kept[0]
    lines = int(middle.stem.split("-")[1])
    assert 0 < lines < len([line for line in whole if json.loads(line)[:2] == ["train", 0]])  # amid the first epoch
    (tmp_path / "again/checkpoints").mkdir(parents=True)
    shutil.copy(middle, tmp_path / "again/checkpoints/last.ckpt")
    run_recipe("train.py", [*_overrides(voices, tmp_path / "again"), "resume=true"])
    assert (tmp_path / "again.jsonl").read_text().splitlines() == whole[lines:]
    weights, expected = (load_file(tmp_path / name / "pretrained/model.safetensors") for name in ("again", "whole"))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)

    encoder = speechkit.load(tmp_path / "whole/pretrained", device="cpu")
    rows = [*read_manifest(voices / "dev.jsonl")]
    embeddings = encoder.embed([row.audio_path for row in rows])
    assert embeddings.shape == (16, 8)
    rate = equal_error_rate(*score_pairs(embeddings, [row.speaker for row in rows])).rate
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert rate == pytest.approx(result["valid/eer"], abs=0.02)  # of files in 16 bits, in other batches
    assert 0.0 <= rate < 0.5
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
    card = (tmp_path / "whole/pretrained/README.md").read_text()
    assert "valid/eer" in card
    assert 'speechkit.load("<this folder>").embed(["a.wav", "b.wav"])' in card


def test_speakers_must_be_named(voices: Path, tmp_path: Path, run_recipe: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (voices / "train.jsonl").read_text().splitlines()][:4]
    path = tmp_path / "nameless.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "speaker"}) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        run_recipe("train.py", _overrides(voices, tmp_path / "run", **{"data.train": path}))
    assert "has no speaker; give every row the field speaker" in capsys.readouterr().err

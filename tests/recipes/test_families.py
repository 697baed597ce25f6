"""What every family owes to training, by its recipe on a dozen utterances: exact resume, bf16, accumulation, two ranks."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

Run = Callable[[str, Sequence[str]], None]
FAMILIES = ["ctc", "aed", "paraformer", "cassnat", "owsm_ctc"]
OFTEN = {"callbacks.checkpointer.every_steps": 1}
NOTHING_RANDOM: dict[str, Any] = {
    "augment": "none",
    "augment.feats.num_freq_masks": 0,
    "augment.feats.num_time_masks": 0,
    "model.dropout": 0.0,
    "model.encoder.dropout": 0.0,
    "model.encoder.conv_norm": "layer",  # batch statistics are those of a part
    "+optim.optimizer.eps": 1e-3,  # or else the sign of rounding errors decides where a gradient is nought
}
FAMILY_NOTHING_RANDOM: dict[str, dict[str, Any]] = {
    "paraformer": {"model.glancing_ratio": 0.0},
    "owsm_ctc": {"model.no_language_prob": 1.0},
}

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def tones(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen utterances of three tones each; as many tokens in every batch of the same size."""
    root = tmp_path_factory.mktemp("tones")
    tiny.write_tones(root / "train", num=12, seed=0, letters_from=3, letters_to=3)
    tiny.write_tones(root / "valid", num=4, seed=1)
    return root


def overrides(family: str, tones: Path, run_dir: Path, **values: Any) -> list[str]:
    """The family's FSDD recipe, narrow, on tones, for two epochs of three batches, traced."""
    settings = {
        "experiment": f"fsdd_{family}",
        "tokenizer": "char",
        "run_dir": run_dir,
        "features.sample_rate": 8000,  # that of the tones
        "features.n_fft": 256,
        "features.win_length": 200,
        "features.hop_length": 80,
        "data.train": tones / "train/manifest.jsonl",
        "data.valid": tones / "valid/manifest.jsonl",
        "data.num_workers": 0,
        "data.sampler.max_batch_size": 4,
        "data.sampler.num_buckets": 1,
        "model.encoder.dim": 16,
        "model.encoder.ff_dim": 16,
        "model.encoder.kernel_size": 5,
        "model.encoder.subsampling_channels": 2,
        "trainer.max_epochs": 2,
        "threads": 1,
        "+callbacks.trace._target_": "tiny.Trace",
        "+callbacks.trace.path": f"{run_dir}-${{oc.env:LOCAL_RANK,0}}.jsonl",
        "callbacks.checkpointer._target_": "tiny.KeepingCheckpointer",
    }
    return ["~tokenizer.vocab_size", *(f"{key}={value}" for key, value in {**settings, **values}.items())]


def trace(run_dir: Path, rank: int = 0) -> list[list[Any]]:
    """Lines of the training steps: epoch, batch, step, learning rate, loss, sum of weights, ids; numbers exact."""
    path = run_dir.with_name(f"{run_dir.name}-{rank}.jsonl")
    return [line[1:] for line in map(json.loads, path.read_text().splitlines()) if line[0] == "train"]


def losses(lines: Sequence[Sequence[Any]]) -> list[float]:
    return [float.fromhex(line[4]) for line in lines]


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request: pytest.FixtureRequest, tones: Path, run_recipe: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each family, with its augmentation and dropout, that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("families") / request.param
    run_recipe("train.py", overrides(request.param, tones, run_dir, **OFTEN))
    return run_dir


def test_a_run_that_is_killed_goes_on_exactly(whole: Path, tones: Path, tmp_path: Path, run_recipe: Run) -> None:
    """From the checkpoint of the first of three steps of the second epoch: the same losses and weights, bit for bit."""
    killed = tmp_path / "killed"
    (killed / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints/after-4.ckpt", killed / "checkpoints/last.ckpt")
    run_recipe("train.py", [*overrides(whole.name, tones, killed, **OFTEN), "resume=true"])
    assert [line[:2] for line in trace(whole)] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert trace(killed) == trace(whole)[4:]
    weights, expected = (load_file(run / "pretrained/model.safetensors") for run in (killed, whole))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)


def test_bf16_autocast_stays_near_fp32(whole: Path, tones: Path, tmp_path: Path, run_recipe: Run) -> None:
    run_dir = tmp_path / "bf16"
    run_recipe("train.py", overrides(whole.name, tones, run_dir, **{"trainer.precision": "bf16-mixed"}))
    found, expected = losses(trace(run_dir)), losses(trace(whole))
    assert [line[-1] for line in trace(run_dir)] == [line[-1] for line in trace(whole)]
    assert all(math.isfinite(loss) for loss in found)
    assert found[0] == pytest.approx(expected[0], rel=0.03)
    assert found == pytest.approx(expected, rel=0.15)
    assert found != expected


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_batches_train_like_one(family: str, tones: Path, tmp_path: Path, run_recipe: Run) -> None:
    """Three batches of 4 make the steps that one of 12 makes: all utterances have three tokens, and nothing is random."""
    settings = {**NOTHING_RANDOM, **FAMILY_NOTHING_RANDOM.get(family, {}), "trainer.max_epochs": 3}
    parts, one = tmp_path / "parts", tmp_path / "one"
    run_recipe("train.py", overrides(family, tones, parts, **settings, **{"trainer.accumulate_grad_batches": 3}))
    run_recipe("train.py", overrides(family, tones, one, **{**settings, "data.sampler.max_batch_size": 12}))
    assert [line[2] for line in trace(parts)] == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert [line[2] for line in trace(one)] == [1, 2, 3]
    sums = [sum(losses(trace(parts)[i : i + 3])) for i in range(0, 9, 3)]  # thirds, as they count in the gradient
    expected = losses(trace(one))
    assert sums[0] == pytest.approx(expected[0], rel=1e-5)
    assert sums == pytest.approx(expected, rel=1e-3)
    assert expected[-1] < expected[0]
    weights = [float.fromhex(line[5]) for line in trace(parts)]
    assert weights[0] == weights[1] != weights[2], "a step was taken in between"


def test_two_ranks_train_in_step(tones: Path, tmp_path: Path, repo_root: Path) -> None:
    """Both ranks take as many steps and hold the same weights after each, and every utterance is seen once an epoch."""
    more = {"trainer": "ddp", "trainer.accelerator": "cpu", "trainer.precision": "32-true", "trainer.devices": 2}
    more |= {"data.sampler.max_batch_size": 3}
    runs = tmp_path / "runs.json"
    runs.write_text(json.dumps([overrides(family, tones, tmp_path / family, **more) for family in FAMILIES]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(repo_root / "tests" / "training"), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MASTER_PORT": str(port)}
    command = [sys.executable, str(Path(__file__).with_name("two_ranks.py")), str(repo_root), str(runs)]
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            own = {**environment, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            ranks.append(subprocess.Popen(command, env=own, stdout=file, stderr=file, cwd=tmp_path))
    try:
        codes = [rank.wait(timeout=280) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    for family in FAMILIES:
        first, second = (trace(tmp_path / family, rank) for rank in (0, 1))
        assert len(first) == len(second) == 4, family
        assert [line[5] for line in first] == [line[5] for line in second], f"{family}: the ranks hold different weights"
        assert [line[4] for line in first] != [line[4] for line in second]
        for epoch in (0, 1):
            seen = sorted(name for line in (*first, *second) if line[0] == epoch for name in line[-1])
            assert seen == sorted(f"u{i}" for i in range(12)), family
        assert (tmp_path / family / "pretrained/model.safetensors").is_file()

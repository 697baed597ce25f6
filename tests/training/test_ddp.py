"""Two gloo ranks on the CPU: as many steps on each, the same place of the plan at each step, everything once; resume."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from speechkit.data.sampler import BucketBatchSampler

HERE = Path(__file__).parent


def _trace(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _datamodule(root: Path) -> Any:
    """The data, written before the ranks look."""
    spec = importlib.util.spec_from_file_location("tiny", HERE / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    datamodule = tiny.make_datamodule(root)
    datamodule.setup("fit")
    return datamodule


def _run(*arguments: str) -> None:
    """Two ranks."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "WORLD_SIZE", "RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(HERE / "ddp_run.py"), *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_a_batch_that_one_rank_cannot_read_is_left_out_by_all(tmp_path: Path) -> None:
    dataset = _datamodule(tmp_path).train_dataset
    make = partial(BucketBatchSampler, durations=dataset.durations, num_tokens=dataset.num_tokens, max_batch_seconds=3.0)
    mine, other = ([[dataset.utterances[i] for i in batch] for batch in make(seed=0, rank=rank, world_size=2)] for rank in (0, 1))
    for utterance in other[1]:
        utterance.audio_path.write_bytes(b"RIFF, so it says")
    _run(str(tmp_path), "skip")
    traces = [[line for line in _trace(tmp_path / f"rank{rank}.jsonl") if line[0] == "train"] for rank in (0, 1)]
    assert traces[1][1][-1] == []
    assert traces[0][1][-1] == [utterance.id for utterance in mine[1]]
    assert [line[-3] for line in traces[0]][1] == (0.0).hex()  # nothing was learnt from it
    weights = [[line[-2] for line in trace] for trace in traces]
    assert weights[0] == weights[1], "the ranks do not hold the same weights"
    assert len(set(weights[0])) > len(weights[0]) / 2, "nothing is learnt"


def test_two_ranks_train_in_step_and_go_on_exactly(tmp_path: Path) -> None:
    datamodule = _datamodule(tmp_path)
    _run(str(tmp_path))
    whole = [_trace(tmp_path / f"whole-rank{rank}.jsonl") for rank in (0, 1)]
    steps = [[line for line in trace if line[0] == "train"] for trace in whole]
    assert len(steps[0]) == len(steps[1]) >= 6
    dataset = datamodule.train_dataset
    make = partial(BucketBatchSampler, durations=dataset.durations, num_tokens=dataset.num_tokens, max_batch_seconds=3.0)
    samplers = [make(seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    for epoch in (0, 1):
        ids = [[line[-1] for line in trace if line[1] == epoch] for trace in steps]
        for sampler, seen in zip(samplers, ids):
            sampler.set_epoch(epoch)
            assert seen == [[dataset.utterances[i].id for i in batch] for batch in sampler]
        assert all(abs(len(mine) - len(other)) <= 1 for mine, other in zip(*ids))
        assert sorted(i for trace in ids for batch in trace for i in batch) == sorted(u.id for u in dataset.utterances)
    weights = [[line[-2] for line in trace] for trace in steps]
    assert weights[0] == weights[1], "the ranks do not hold the same weights"
    assert [line[-3] for line in steps[0]] != [line[-3] for line in steps[1]], "the ranks see the same losses"
    assert [line[3] for line in whole[0] if line[0] == "valid"] == [line[3] for line in whole[1] if line[0] == "valid"]
    for rank in (0, 1):
        assert _trace(tmp_path / f"resumed-rank{rank}.jsonl") == whole[rank][2:]

"""scripts/rtfx.py: figures, the statement of what was timed, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from speechkit.metrics.rtfx import RunInfo, run_info_path, write_run_info


@pytest.fixture(scope="module")
def rtfx(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("rtfx")


@pytest.fixture
def hyps(tmp_path: Path) -> Path:
    rows = [{"id": str(k), "audio_s": 1.5 * k, "decode_s": 0.01 * k} for k in range(1, 9)]
    path = tmp_path / "hyps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_report_states_what_was_timed(rtfx: ModuleType, hyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = RunInfo(
        device="cpu (test)",
        dtype="bfloat16",
        threads=3,
        batch_size=16,
        warmup_batches=2,
        wall_s=1.25,
        decode={"method": "greedy"},
        versions={"torch": "2.11.0"},
        command="decode x",
    )
    write_run_info(hyps, info)
    assert rtfx.main([str(hyps), "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    for text in (
        "RTFx 150.0  (54.0 s of audio in 0.36 s)",
        "timed: features, transfer, model, search, text; not timed: load, warmup, read, resample",
        "device cpu (test), bfloat16, 3 CPU threads, batch size 16, 2 warm-up batches",
        "whole run, everything included: 1.25 s",
        "decode: method=greedy",
        "versions: torch 2.11.0",
        "command: decode x",
    ):
        assert text in out
    result = json.loads((tmp_path / "out.json").read_text())["files"][0]
    assert result["rtfx"] == pytest.approx(150)
    assert [band["num_utterances"] for band in result["bands"]] == [1, 2, 3, 2]
    assert result["run"]["batch_size"] == 16


def test_batches_in_seconds_and_unknown_timing(rtfx: ModuleType, hyps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rtfx.main([str(hyps)]) == 0
    assert "how this was timed is not known: hyps.jsonl.meta.json is not there" in capsys.readouterr().out
    write_run_info(hyps, RunInfo(device="cpu", dtype="float32", threads=1, batch_seconds=120.0))
    assert rtfx.main([str(hyps), str(hyps)]) == 0
    assert capsys.readouterr().out.count("batches of 120 padded seconds") == 2


def test_bad_input_is_one_line_and_status_2(
    rtfx: ModuleType, hyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untimed = tmp_path / "untimed.jsonl"
    untimed.write_text('{"id": "a", "audio_s": 1.0}\n')
    zero = tmp_path / "zero.jsonl"
    zero.write_text('{"id": "a", "audio_s": 1.0, "decode_s": 0}\n')
    run_info_path(hyps).write_text("{}")
    for argv, message in (
        (["missing.jsonl"], "no such file"),
        ([str(untimed)], "untimed.jsonl:1: field 'decode_s' is missing"),
        ([str(zero)], "decode_s is 0 in every row"),
        ([str(hyps)], "not a run description"),
    ):
        assert rtfx.main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("rtfx: ")
        assert message in err
        assert err.count("\n") == 1

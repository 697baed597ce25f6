"""RTFx is a quotient of sums; the run description survives its file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from speechkit.metrics.rtfx import RunInfo, measure_rtfx, read_run_info, run_info_path, write_run_info

ROWS = [{"audio_s": 1.0, "decode_s": 0.5}, {"audio_s": 2.0, "decode_s": 0.1}, {"audio_s": 97.0, "decode_s": 0.4}]


def test_sums_are_divided_once() -> None:
    report = measure_rtfx(ROWS)
    assert report.overall.rtfx == pytest.approx(100.0)
    assert [(b.label, b.num_utterances) for b in report.bands] == [("0-2 s", 1), ("2-5 s", 1), ("30+ s", 1)]
    assert [b.rtfx for b in report.bands] == pytest.approx([2.0, 20.0, 242.5])
    assert sum(b.audio_s for b in report.bands) == report.overall.audio_s


def test_errors() -> None:
    with pytest.raises(ValueError, match="no utterance"):
        measure_rtfx([])
    with pytest.raises(ValueError, match="decode_s is 0 in every row"):
        measure_rtfx([{"audio_s": 1.0, "decode_s": 0.0}])
    for edges in ([], [1.0], [0.0, 5.0, 5.0]):
        with pytest.raises(ValueError, match="must ascend from 0"):
            measure_rtfx(ROWS, edges_s=edges)
    zero = measure_rtfx([{"audio_s": 1.0, "decode_s": 0.0}, {"audio_s": 9.0, "decode_s": 1.0}])
    assert zero.bands[0].rtfx == math.inf


def test_run_info_round_trip(tmp_path: Path) -> None:
    hyps = tmp_path / "hyps.jsonl"
    assert read_run_info(hyps) is None
    info = RunInfo(device="cpu", dtype="float32", threads=2, batch_size=8, decode={"method": "greedy"}, timed=["model"])
    assert write_run_info(hyps, info) == run_info_path(hyps) == tmp_path / "hyps.jsonl.meta.json"
    assert read_run_info(hyps) == RunInfo(
        device="cpu",
        dtype="float32",
        threads=2,
        batch_size=8,
        decode={"method": "greedy"},
        timed=["model"],
        not_timed=list(info.not_timed),
    )
    for text in ("{", '{"device": "cpu"}', '{"gpu": 1}', "[]", '"x"'):
        run_info_path(hyps).write_text(text)
        with pytest.raises(ValueError, match=r"not a run description .* its fields are: device, dtype"):
            read_run_info(hyps)

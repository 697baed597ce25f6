"""The bench script runs at a small size, with or without its peers."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_ctc_search.py"


def test_bench_writes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("bench_ctc_search", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    for name, value in (("FRAMES", 60), ("TOKENS", 8), ("VOCAB", 20), ("BATCH", 2)):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr("sys.argv", ["bench", "--quick", "--json", str(tmp_path / "rows.json")])
    bench.main()
    report = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {row["task"] for row in report["rows"]} == {"prefix beam 10", "alignment", "greedy"}
    assert all(row["ms_per_utterance"] > 0 for row in report["rows"])
    assert all(-math.inf < row["log_prob_of_best"] < 0 for row in report["rows"] if row["task"] == "prefix beam 10")
    out = capsys.readouterr().out
    assert "ms per utterance" in out
    assert "pyctcdecode" in out, "a missing peer must be named"

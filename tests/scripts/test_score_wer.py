"""scripts/score_wer.py: figures, tables, comparison, JSON and exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jiwer
import numpy as np
import pytest

ROWS: list[dict[str, Any]] = [
    {"id": "u1", "ref": "Hello world", "hyp": "hello word", "speaker": "s1", "age": 6, "tags": ["noisy", "far"]},
    {"id": "u2", "ref": "the cat sat", "hyp": "the cat", "speaker": "s1", "age": 6, "tags": ["noisy"]},
    {"id": "u3", "ref": "a b c d", "hyp": "a b c d", "speaker": "s2", "age": 30, "tags": []},
    {"id": "u4", "ref": "", "hyp": "uh", "speaker": "s2", "age": "41"},
    {"id": "u5", "ref": "x", "hyp": "x", "speaker": "", "age": None},
]


@pytest.fixture(scope="module")
def score(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("score_wer")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def hyps(tmp_path: Path) -> Path:
    return write(tmp_path / "hyps.jsonl", ROWS)


def run(score: ModuleType, tmp_path: Path, *argv: str) -> dict[str, Any]:
    assert score.main([*argv, "--json", str(tmp_path / "out.json")]) == 0
    return json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))


def test_corpus_figures(score: ModuleType, hyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(score, tmp_path, str(hyps))["files"][0]
    word = result["word"]
    assert (word["errors"], word["substitutions"], word["deletions"], word["insertions"]) == (4, 2, 1, 1)
    assert (word["hits"], word["ref_length"], word["hyp_length"]) == (7, 10, 10)
    assert result["wer"] == word["rate"] == 0.4
    refs, texts = [row["ref"] for row in ROWS], [row["hyp"] for row in ROWS]
    assert result["cer"] == pytest.approx(jiwer.cer(refs, texts))
    assert result["num_empty_refs"] == 1
    assert result["normalizer"] == "none-1"
    assert result["versions"]["jiwer"] == version("jiwer")
    assert word["interval"]["low"] <= word["rate"] <= word["interval"]["high"]
    assert word["utterance_error_rate"] == 0.6
    out = capsys.readouterr().out
    assert "normalizer none-1, jiwer " in out
    assert "40.00" in out
    assert "1 empty references" in out


def test_normalizer_is_applied_and_named(score: ModuleType, hyps: Path, tmp_path: Path) -> None:
    result = run(score, tmp_path, str(hyps), "--normalizer", "basic")["files"][0]
    assert result["wer"] == 0.3
    assert result["normalizer"] == "basic-1"


def test_groups(score: ModuleType, hyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--by", "speaker", "--by", "age >= 18", "--by", "tags", "--unit", "word", "--normalizer", "basic"]
    groups = run(score, tmp_path, str(hyps), *argv)["files"][0]["groups"]

    def table(by: str) -> dict[str, tuple[int, int, int]]:
        rows = groups[by]
        return {r["group"]: (r["num_utterances"], r["word"]["errors"], r["word"]["ref_length"]) for r in rows}

    assert table("speaker") == {"s1": (2, 2, 5), "s2": (2, 1, 4), "(none)": (1, 0, 1)}
    assert [r["group"] for r in groups["speaker"]] == ["s1", "s2", "(none)"]  # highest rate first
    assert table("age >= 18") == {"age<18": (2, 2, 5), "age>=18": (2, 1, 4), "(none)": (1, 0, 1)}
    assert table("tags") == {"noisy": (2, 2, 5), "far": (1, 1, 2), "(none)": (3, 1, 5)}
    assert "by age >= 18, highest WER first" in capsys.readouterr().out


def test_many_groups_are_cut_on_the_screen_only(
    score: ModuleType, hyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(score, tmp_path, str(hyps), "--by", "id", "--max-groups", "2")["files"][0]
    assert len(result["groups"]["id"]) == 5
    out = capsys.readouterr().out
    assert "... 3 more" in out
    assert out.index("u4") < out.index("u1")  # no reference words: an infinite rate comes first
    assert "inf" in out


def test_worst_utterances(score: ModuleType, hyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worst = run(score, tmp_path, str(hyps), "--worst", "10")["files"][0]["worst"]
    assert [row["id"] for row in worst] == ["u1", "u4", "u2"]  # rows without errors are not listed
    assert worst[1]["rate"] is None
    assert worst[2]["alignment"][-1] == {"op": "delete", "ref": "sat", "hyp": ""}
    assert "REF: the cat sat\nHYP: the cat ***\n             D" in capsys.readouterr().out
    assert run(score, tmp_path, str(hyps), "--worst", "0")["files"][0]["worst"] == []


def test_comparison_is_paired(
    score: ModuleType, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    words = np.array(["a", "b", "c", "d"])
    first, second = [], []
    for i in range(200):
        ref = " ".join(rng.choice(words, 8))
        noisy = ["z" if rng.random() < 0.2 else w for w in ref.split()]
        better = [w if i % 3 or w != "z" else r for w, r in zip(noisy, ref.split())]
        first.append({"id": str(i), "ref": ref, "hyp": " ".join(noisy)})
        second.append({"id": str(i), "ref": ref, "hyp": " ".join(better)})
    a = write(tmp_path / "a.jsonl", first)
    b = write(tmp_path / "b.jsonl", second[::-1])  # order does not matter
    result = run(score, tmp_path, str(a), str(b), str(a), "--unit", "word")
    wers = [file["wer"] for file in result["files"]]
    paired, same = result["comparison"]
    assert paired["difference"] == pytest.approx(wers[1] - wers[0])
    assert paired["low"] <= paired["difference"] <= paired["high"] < 0
    assert paired["significant"] is True
    assert (same["difference"], same["significant"], same["improvement"]) == (0.0, False, 0.5)
    assert "paired bootstrap" in capsys.readouterr().out


def test_comparison_needs_the_same_utterances(score: ModuleType, hyps: Path, tmp_path: Path, capsys: Any) -> None:
    fewer = write(tmp_path / "fewer.jsonl", ROWS[:-1])
    assert score.main([str(hyps), str(fewer)]) == 2
    assert "hold different utterances, such as 'u5'" in capsys.readouterr().err
    other = write(tmp_path / "other.jsonl", [{**ROWS[0], "ref": "bye"}, *ROWS[1:]])
    assert score.main([str(hyps), str(other)]) == 2
    assert "differ in the reference of 'u1'" in capsys.readouterr().err


def test_bootstrap_over_speakers(score: ModuleType, hyps: Path, tmp_path: Path) -> None:
    interval = run(score, tmp_path, str(hyps), "--bootstrap-by", "speaker", "--confidence", "0.9")["files"][0]["word"]["interval"]
    assert (interval["num_units"], interval["resampled"], interval["confidence"]) == (3, "speaker", 0.9)


def test_fail_above(score: ModuleType, hyps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main([str(hyps), "--fail-above", "40"]) == 0
    assert score.main([str(hyps), "--fail-above", "39.9"]) == 1
    assert "WER 40.00 % is above 39.9 %" in capsys.readouterr().err
    assert score.main([str(hyps), "--unit", "char", "--fail-above", "1"]) == 1
    assert "CER" in capsys.readouterr().err


def test_bad_input_is_one_line_and_status_2(
    score: ModuleType, hyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write(tmp_path / "empty.jsonl", [])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(ROWS[0]) + "\n{oops\n")
    for argv, message in (
        (["missing.jsonl"], "missing.jsonl: no such file"),
        ([str(empty)], "empty.jsonl: empty file"),
        ([str(broken)], "broken.jsonl:2: not JSON"),
        ([str(hyps), "--normalizer", "x"], "use one of: none, basic, char, whisper_en"),
        ([str(hyps), "--by", "colour"], "no row has the field 'colour'; the fields are: age, hyp, id"),
        ([str(hyps), "--confidence", "95"], "confidence: 95.0 must lie between 0 and 1"),
        ([str(hyps), "--worst", "-1"], "--worst must not be negative"),
        ([str(hyps), "--json", str(tmp_path / "no" / "x.json")], "No such file or directory"),
    ):
        assert score.main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("score_wer: ")
        assert message in err
        assert err.count("\n") == 1


def test_runs_as_a_script(repo_root: Path, hyps: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(repo_root)}
    command = [sys.executable, "scripts/score_wer.py"]
    result = subprocess.run([*command, str(hyps)], cwd=repo_root, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "40.00" in result.stdout
    code = (
        "import runpy, sys\nsys.argv[1:] = ['--help']\n"
        "try: runpy.run_path('scripts/score_wer.py', run_name='__main__')\n"
        "except SystemExit: print({'torch', 'numpy', 'jiwer'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=repo_root, env=env, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"  # so that --help is quick

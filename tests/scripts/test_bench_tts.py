"""scripts/bench_tts.py: that all systems run and say as much, and that the baseline's cache changes nothing but the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def bench(load_script: Callable[[str], ModuleType], repo_root: Path) -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo_root / "scripts"))
        yield load_script("bench_tts")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def contestants(bench: ModuleType) -> ModuleType:
    import tts_contestants

    return tts_contestants


def test_quick_run_has_a_row_of_every_system(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "peers", lambda *sizes: iter(()))  # whatever is installed
    jsonl, page = tmp_path / "rows.jsonl", tmp_path / "tts.md"
    bench.main(["--quick", "--threads", "1", "--batches", "1,2", "--jsonl", str(jsonl), "--markdown", str(page)])
    rows = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    alone = {row["system"] for row in rows if row["batch"] == 1}
    together = {row["system"] for row in rows if row["batch"] == 2}
    models = {"AR Transformer", "AR Transformer, equal size", "FastSpeech 2", "Matcha", "F5 small", "MaskGCT"}
    assert together == models | {"Vocos 22.05 kHz", "Vocos 24 kHz", "HiFi-GAN V1", "Griffin-Lim"}
    assert alone == together | {"AR Transformer, no cache"}
    for row in rows:
        assert 0 < row["p20_s"] <= row["s"] <= row["p80_s"]
        assert row["real_time_factor"] == pytest.approx(row["s"] / row["batch"])  # of 1 s of speech
        assert (row["as_fast"] is None) == (row["kind"] == "vocoder")
        assert (row["first_audio_s"] is None) == (row["batch"] == 2)
        assert row["as_fast"] == 1 or row["system"] != "AR Transformer"
        assert (row["rounds"], row["threads"]) == (1, 1)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == len(rows)
    assert printed.strip() in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("batches", ["0", "1,", "one"])
def test_batches_are_numbers(bench: ModuleType, batches: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--batches", batches])
    assert "give numbers from 1 on" in capsys.readouterr().err


def test_a_system_that_says_less_is_refused(bench: ModuleType, contestants: ModuleType) -> None:
    mel = contestants.MelSpectrogram.preset(22050)
    work = contestants.Work(1.0, 2)
    system = contestants.System("mute", mel, lambda work: torch.zeros(2, 85, 80), 0)
    bench.check(system, work, torch.zeros(2, 86, 80))
    with pytest.raises(SystemExit, match=r"mute: .* instead of 2 rows of 86"):
        bench.check(system, work, system.run(work))


def test_goals_are_of_medians_over_common_rounds(bench: ModuleType) -> None:
    whole = {("AR Transformer", 1): {0: 30.0, 1: 10.0, 2: 50.0}, ("FastSpeech 2", 1): {0: 0.1, 1: 0.2}}
    [line] = bench.goals(bench.Measured(whole, {}), [])
    assert line == "FastSpeech 2 against AR Transformer: 175.0 times as fast; wanted 100: met"


def test_published_systems_run_beside_ours(
    bench: ModuleType, contestants: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def peers(sizes: Any, mel22: Any, mel24: Any) -> Iterator[Any]:
        def run(work: Any) -> torch.Tensor:
            return torch.zeros(work.rows, work.num_frames(mel22), mel22.output_dim)

        print("noise of a package")
        yield contestants.System("theirs", mel22, run, 1, rival="FastSpeech 2")

    monkeypatch.setattr(bench, "peers", peers)
    bench.main(["--quick", "--threads", "1", "--batches", "1", "--only", "FastSpeech", "--only", "theirs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| AR Transformer", "| FastSpeech 2", "| theirs"]
    whole = {("FastSpeech 2", 1): {0: 0.5, 1: 0.25}, ("theirs", 1): {0: 1.0, 1: 0.25, 2: 9.0}}
    [line] = bench.goals(bench.Measured(whole, {}), [], list(peers(None, contestants.MelSpectrogram.preset(22050), None)))
    assert line == "FastSpeech 2 against theirs: 1.5 times as fast; wanted 1: met"


@pytest.mark.parametrize("package", ["espnet2", "matcha", "f5_tts", "vocos"])
def test_installed_peers_say_as_much(bench: ModuleType, contestants: ModuleType, package: str) -> None:
    pytest.importorskip(package, exc_type=ImportError)
    import tts_peers

    mel22, mel24 = (contestants.MelSpectrogram.preset(rate) for rate in (22050, 24000))
    make = {"espnet2": tts_peers.espnet, "matcha": tts_peers.matcha, "f5_tts": tts_peers.f5, "vocos": tts_peers.vocos}[package]
    sizes, work = contestants.SMALL, contestants.Work(1.0, 1)
    for system in make(sizes, mel24 if package in ("f5_tts", "vocos") else mel22):
        with torch.inference_mode():
            bench.check(system, work, system.run(work))


def test_cache_of_the_baseline_changes_nothing(contestants: ModuleType) -> None:
    torch.manual_seed(0)
    model = contestants.ArBaseline(num_mels=8, dim=16, num_layers=2, ff_dim=32, postnet_dim=16).eval()
    inputs = contestants.Work(1.0, 2).inputs()
    cached_BTF = model.speak(inputs, 20, cached=True)
    assert cached_BTF.shape == (2, 20, 8)
    torch.testing.assert_close(cached_BTF, model.speak(inputs, 20, cached=False), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cached_BTF[:, :-12], model.speak(inputs, 30, cached=True)[:, :8], rtol=1e-4, atol=1e-5)
    assert cached_BTF.diff(dim=1).abs().amax(2).min() > 0  # a frame is not a copy of the one before


def test_parameters_of_equal_size_are_equal(contestants: ModuleType) -> None:
    mel = contestants.MelSpectrogram.preset(22050)
    systems = {system.name: system for system in contestants.acoustic_systems(contestants.SMALL, mel)}
    ours, theirs = (systems[name].parameters for name in ("FastSpeech 2", contestants.EQUAL_SIZE))
    assert theirs == pytest.approx(ours, rel=0.02)
    assert systems[contestants.BASELINE].parameters < ours

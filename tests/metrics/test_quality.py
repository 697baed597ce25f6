"""PESQ and predictors of opinion scores, with stand-ins where their packages are not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.audio.io import save_audio
from speechkit.metrics.quality import load_opinion_score, pesq


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """A quiet and a loud tone at different rates."""
    for name, rate, level in (("quiet.wav", 16000, 0.25), ("loud.wav", 22050, 0.999)):
        save_audio(tmp_path / name, level * np.sign(np.sin(np.arange(rate) / 9)), rate)
    return [tmp_path / "quiet.wav", tmp_path / "loud.wav"]


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **own: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(own)
    monkeypatch.setitem(sys.modules, name, module)


def test_pesq_asks_for_wide_band_and_names_what_it_cannot_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoUtterancesError(RuntimeError):
        pass

    class BufferTooShortError(RuntimeError):
        pass

    def rate(sample_rate: int, ref_N: np.ndarray, syn_N: np.ndarray, mode: str) -> float:
        assert (sample_rate, mode) == (16000, "wb")
        if len(ref_N) < 4000:
            raise BufferTooShortError
        return 4.64 if np.array_equal(ref_N, syn_N) else 1.5

    _module(monkeypatch, "pesq", pesq=rate, NoUtterancesError=NoUtterancesError, BufferTooShortError=BufferTooShortError)
    noise_N = np.random.default_rng(0).normal(size=8000)
    assert pesq(noise_N, noise_N) == 4.64
    assert pesq(noise_N, -noise_N) == 1.5
    for ref_N, syn_N, reason in (
        (noise_N[:100], noise_N[:100], "too little speech"),
        (noise_N, noise_N[1:], "have shapes"),
        (noise_N * np.nan, noise_N, "finite"),
        (noise_N, 0 * noise_N, "silent"),
    ):
        with pytest.raises(ValueError, match=reason):
            pesq(ref_N, syn_N)
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(ImportError, match=r"speechkit\[mos\]"):
        pesq(noise_N, noise_N)


def test_the_real_pesq() -> None:
    pytest.importorskip("pesq")
    rng = np.random.default_rng(0)
    speech_N = np.sin(np.arange(32000) / 20) * (1 + np.sin(np.arange(32000) / 800)) * 0.3
    assert pesq(speech_N, speech_N) == pytest.approx(4.64, abs=0.01)
    assert pesq(speech_N, speech_N + rng.normal(0, 0.05, 32000)) < 3


def test_dnsmos_hears_16_khz_within_bounds(sounds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(wave_N: np.ndarray, rate: int) -> dict[str, float]:
        assert rate == len(wave_N) == 16000
        assert np.abs(wave_N).max() <= 1.0  # resampling overshoots
        return {"ovrl_mos": float(np.abs(wave_N).mean()), "sig_mos": 9.0}

    _module(monkeypatch, "speechmos", dnsmos=SimpleNamespace(run=run))
    quiet, loud = load_opinion_score("dnsmos")(sounds)
    assert quiet < loud
    monkeypatch.setitem(sys.modules, "speechmos", None)
    with pytest.raises(ImportError, match=r"speechkit\[mos\]"):
        load_opinion_score("dnsmos")


def test_utmos_takes_weights_that_are_its_own(sounds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Score:
        def __init__(self, *, ckpt_path: str) -> None:
            self.weight = torch.load(ckpt_path, weights_only=True)["weight"]

        def score(self, wave_N: torch.Tensor) -> torch.Tensor:
            return (wave_N.abs().mean() * self.weight.sum())[None]

    _module(monkeypatch, "utmos_pytorch")
    _module(monkeypatch, "utmos_pytorch.utmos_torch", UTMOSModel=lambda: torch.nn.Linear(2, 1), UTMOSScoreTorch=Score)
    good, poor, other = tmp_path / "good.pt", tmp_path / "poor.pt", tmp_path / "other.pt"
    torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, good)
    torch.save({"weight": torch.ones(1, 2)}, poor)
    other.write_text("no weights")
    quiet, loud = load_opinion_score("utmos", weights=good)(sounds)
    assert quiet < loud
    for path, reason in ((poor, "lacks 1 weights, the first is bias"), (other, "not a file"), (tmp_path / "no", "no such file")):
        with pytest.raises(ValueError, match=reason):
            load_opinion_score("utmos", weights=path)


def test_names_of_predictors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _module(monkeypatch, "mine", rate=lambda paths: [3.0 for _ in paths])
    assert load_opinion_score("mine:rate")([tmp_path, tmp_path]) == [3.0, 3.0]
    for name, weights, reason in (
        ("wvmos", None, "choose dnsmos, utmos or module:function"),
        ("utmos", None, "give the file with its weights"),
        ("dnsmos", "x.pt", "it takes none"),
        ("mine:other", None, "mine has no function 'other'"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_opinion_score(name, weights=weights)

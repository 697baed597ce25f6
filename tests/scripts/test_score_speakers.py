"""scripts/score_speakers.py: the rate of all pairs, the file written, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from speechkit.audio.io import save_audio
from speechkit.metrics.speaker import equal_error_rate, score_pairs
from speechkit.pretrained import instantiate, load_speaker_encoder, save_pretrained

CONFIG = {
    "kind": "speaker_encoder",
    "features": {"_target_": "speechkit.audio.features.LogMel", "num_mels": 20},
    "model": {"_target_": "speechkit.models.speaker.model.SpeakerModel", "num_mels": 20, "hidden_dim": 16, "num_layers": 1},
}


@pytest.fixture(scope="module")
def score_speakers(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("score_speakers")


def test_rate(score_speakers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    modules = torch.nn.ModuleDict({name: instantiate(CONFIG[name], where=name) for name in ("features", "model")})
    folder = save_pretrained(tmp_path / "model", config=CONFIG, state_dict=modules.state_dict(), tokenizer=None, card="")
    noise_N = np.random.default_rng(0).normal(size=40000).astype(np.float32)
    save_audio(tmp_path / "all.wav", 0.1 * noise_N * np.repeat([1.0, 0.1, 0.7, 0.3, 0.5], 8000).astype(np.float32), 16000)
    rows = [
        {"id": f"u{i}", "audio_filepath": "all.wav", "offset": 0.5 * i, "duration": 0.5, "text": "", "speaker": "ab"[i % 2]}
        for i in range(5)
    ]
    manifest = tmp_path / "a.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score_speakers.main([str(folder), str(manifest), "--device", "cpu", "--json", str(tmp_path / "a.json")]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    waves = [*np.split(0.1 * noise_N * np.repeat([1.0, 0.1, 0.7, 0.3, 0.5], 8000).astype(np.float32), 5)]
    embeddings = load_speaker_encoder(folder, device="cpu").embed(waves)
    expected = equal_error_rate(*score_pairs(embeddings, [row["speaker"] for row in rows]))
    assert (report["num_same"], report["num_different"], report["num_speakers"]) == (4, 6, 2)
    assert report["rate"] == pytest.approx(expected.rate)
    assert report["threshold"] == pytest.approx(expected.threshold, abs=1e-3)  # of files in 16 bits
    assert f"equal error rate {100 * expected.rate:.1f} %" in capsys.readouterr().out
    manifest.write_text(json.dumps({**rows[0], "speaker": ""}) + "\n")
    assert score_speakers.main([str(folder), str(manifest)]) == 2
    assert "utterance 'u0' has no speaker" in capsys.readouterr().err
    assert score_speakers.main(["fsdd-ctc", str(tmp_path / "none.jsonl")]) == 2

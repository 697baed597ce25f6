"""Speaker encoder: every kind of input, the same vector in any batch, folders and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import speechkit
from speechkit.audio.io import AudioError
from speechkit.pretrained import instantiate, load_recognizer, load_speaker_encoder, save_pretrained
from speechkit.speaker_encoder import SpeakerEncoder

RATE = 16000
CONFIG = {
    "kind": "speaker_encoder",
    "features": {"_target_": "speechkit.audio.features.LogMel", "sample_rate": RATE, "num_mels": 20},
    "model": {
        "_target_": "speechkit.models.speaker.model.SpeakerModel",
        "num_mels": 20,
        "hidden_dim": 24,
        "num_layers": 2,
        "embedding_dim": 12,
        "segment_frames": 40,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an untrained model."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({name: instantiate(CONFIG[name], where=name) for name in ("features", "model")})
    directory = tmp_path_factory.mktemp("speaker") / "pretrained"
    return save_pretrained(directory, config=CONFIG, state_dict=modules.state_dict(), tokenizer=None, card="# A model\n")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SpeakerEncoder:
    return load_speaker_encoder(folder, device="cpu")


def buzz(seconds: float, pitch: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.1 * sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))).astype(np.float32)


def test_every_kind_of_input_gives_the_same(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    wave = buzz(0.7, 130)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    stereo = np.stack([wave, wave])
    inputs = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), wave, torch.from_numpy(wave), stereo.T]
    vectors = encoder.embed(inputs, batch_size=3)
    assert vectors.shape == (7, 12) == (7, encoder.embedding_dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.tile(encoder.embed(path), (7, 1)), atol=1e-5)


def test_batch_mates_change_nothing(encoder: SpeakerEncoder) -> None:
    waves = [buzz(seconds, pitch) for seconds, pitch in ((0.4, 110), (2.3, 150), (0.01, 210), (1.1, 95), (0.0001, 100))]
    alone = np.concatenate([encoder.embed(wave) for wave in waves])
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-5)
    for batch_size in (2, 5):
        np.testing.assert_allclose(encoder.embed(waves, batch_size=batch_size), alone, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(waves[::-1])[::-1], alone, atol=1e-5)
    assert encoder.embed([]).shape == (0, 12)


def test_arrays_of_another_rate_are_resampled(encoder: SpeakerEncoder) -> None:
    wave = buzz(0.5, 120)
    resampled = encoder.embed(wave[::2], sample_rate=RATE // 2)
    assert resampled @ encoder.embed(wave).T > encoder.embed(wave[::2]) @ encoder.embed(wave).T


def test_unusable_audio_is_refused(encoder: SpeakerEncoder) -> None:
    with pytest.raises(ValueError, match="audio of type int"):
        encoder.embed(3)
    with pytest.raises(AudioError, match=r"audio\[1\] holds no samples"):
        encoder.embed([buzz(0.1, 100), np.zeros(0, np.float32)], batch_size=1)
    with pytest.raises(AudioError):
        encoder.embed("nowhere.wav")
    with pytest.raises(ValueError, match="batch_size=0"):
        encoder.embed([], batch_size=0)


def test_folders_load_by_their_kind(folder: Path, encoder: SpeakerEncoder) -> None:
    loaded = speechkit.load(folder, device="cpu")
    assert isinstance(loaded, SpeakerEncoder)
    assert (loaded.sample_rate, loaded.name, loaded.num_parameters()) == (RATE, str(folder), encoder.num_parameters())
    wave = buzz(0.5, 120)
    np.testing.assert_array_equal(loaded.embed(wave), encoder.embed(wave))
    with pytest.raises(ValueError, match=r"dtype=bfloat16: .* computes in float32"):
        speechkit.load(folder, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"vocoder=x: .* holds a speaker_encoder"):
        speechkit.load(folder, vocoder="x")
    with pytest.raises(ValueError, match="is a folder with a recognizer"):
        load_speaker_encoder("fsdd-ctc")
    with pytest.raises(ValueError, match="kind 'speaker_encoder' is not a recogniser"):
        load_recognizer(folder)

"""Codec: codes and copies of any audio, alone as in batches; loading from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import speechkit
from speechkit.audio.io import AudioError
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.codec import Codec
from speechkit.models.codec.model import CodecModel
from speechkit.models.vocoder.griffin_lim import GriffinLim
from speechkit.nn.quantizers import ResidualVectorQuantizer
from speechkit.pretrained import instantiate, save_pretrained

FEATURES = {**MelSpectrogram.preset(16000).settings(), "_target_": "speechkit.audio.spectrogram.MelSpectrogram"}
del FEATURES["type"]
CONFIG: dict[str, Any] = {
    "kind": "codec",
    "features": FEATURES,
    "model": {
        "_target_": "speechkit.models.codec.model.CodecModel", "num_mels": 80, "dim": 16, "intermediate_dim": 16,
        "num_encoder_layers": 1, "num_decoder_layers": 1, "wave_head": None,
        "quantizer": {
            "_target_": "speechkit.nn.quantizers.ResidualVectorQuantizer", "num_codebooks": 2, "num_codes": 8, "dim": 16,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("codec") / "pretrained"
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict({name: instantiate(CONFIG[name], where=name) for name in ("features", "model")})
    return save_pretrained(directory, config=CONFIG, state_dict=parts.state_dict(), tokenizer=None, card="")


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    made = speechkit.load(folder, device="cpu")
    assert isinstance(made, Codec)
    return made


def _waves() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [0.1 * rng.standard_normal(n).astype(np.float32) for n in (4000, 9000, 6001)]


def test_codes_are_the_same_alone_and_together(codec: Codec) -> None:
    together = codec.encode(_waves(), batch_size=3)
    assert [codes.shape for codes in together] == [(len(codes), 2) for codes in together]
    for wave_N, codes_SQ in zip(_waves(), together):
        [alone] = codec.encode(wave_N)
        np.testing.assert_array_equal(alone, codes_SQ)
        np.testing.assert_array_equal(codec.encode(wave_N, num_codebooks=1)[0], codes_SQ[:, :1])


def test_copies_are_decoded_codes_as_long_as_the_recordings(codec: Codec) -> None:
    copies, decoded = codec.copy(_waves(), batch_size=2), codec.decode(codec.encode(_waves()), batch_size=2)
    for wave_N, copy_N, decoded_N in zip(_waves(), copies, decoded):
        assert len(copy_N) == len(wave_N)
        assert len(decoded_N) >= len(wave_N) - codec.mel.hop_length
    assert codec.decode([]) == []


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8])
def test_codes_of_any_whole_type_are_decoded(codec: Codec, kind: type[np.generic]) -> None:
    """As they come from smaller files; what lies past a length must not depend on the type."""
    codes = codec.encode(_waves())
    for wave_N, other_N in zip(codec.decode(codes), codec.decode([codes[0], *(each.astype(kind) for each in codes[1:])])):
        np.testing.assert_array_equal(wave_N, other_N)
    for wave_N, other_N in zip(codec.decode(codes), codec.decode([each.astype(kind) for each in codes])):
        np.testing.assert_array_equal(wave_N, other_N)


def test_files_of_other_rates_are_resampled(codec: Codec, tmp_path: Path) -> None:
    wave_N = _waves()[1]
    soundfile.write(tmp_path / "a.wav", np.stack([wave_N, wave_N], 1), 44100)
    [copy_N] = codec.copy(tmp_path / "a.wav")
    assert abs(len(copy_N) - len(wave_N) * 16000 / 44100) <= 1


def test_mistakes_are_named(codec: Codec, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"a\.wav"):
        codec.encode(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="num_codebooks=3"):
        codec.encode(_waves(), num_codebooks=3)
    with pytest.raises(ValueError, match="batch_size=0"):
        codec.copy(_waves(), batch_size=0)
    with pytest.raises(ValueError, match=r"give \(frames, codebooks\)"):
        codec.decode([np.zeros(4, np.int64)])
    with pytest.raises(ValueError, match="dtype=float16"):
        speechkit.load(folder, dtype="float16")
    zeros_SQ = np.zeros((4, 2), np.int64)
    with pytest.raises(ValueError, match=r"codes of shapes \[\(4, 2\), \(4, 1\)\]: give as many codebooks of each"):
        codec.decode([zeros_SQ, zeros_SQ[:, :1]], batch_size=1)
    for kind, name in ((np.float32, "float32"), (np.bool_, "bool")):
        with pytest.raises(ValueError, match=f"codes of type torch.{name}: give whole numbers"):
            codec.decode([zeros_SQ, zeros_SQ.astype(kind)])
    with pytest.raises(ValueError, match="codebooks"):
        codec.decode([np.zeros((4, 3), np.int64)])
    with pytest.raises(ValueError, match="sample_rate"):
        Codec(mel=codec.mel, model=_model(), vocoder=GriffinLim(mel=MelSpectrogram.preset(22050)))


def _model() -> CodecModel:
    quantizer = ResidualVectorQuantizer(num_codebooks=2, num_codes=8, dim=16)
    return CodecModel(
        num_mels=80, dim=16, intermediate_dim=16, num_encoder_layers=1, num_decoder_layers=1, wave_head=None, quantizer=quantizer
    )

"""Codebooks of means and semantic tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

import speechkit
from speechkit.audio.features import LogMel
from speechkit.data.corpora.demo import prepare_demo
from speechkit.data.manifest import read_manifest
from speechkit.metrics.units import phones_at, purity
from speechkit.models.codec.kmeans import KMeansQuantizer
from speechkit.models.codec.semantic import SemanticTokenizer
from speechkit.nn.conformer import ConformerEncoder
from speechkit.nn.quantizers import FiniteScalarQuantizer, ResidualVectorQuantizer, VectorQuantizer
from speechkit.types import Utterance

FEATURES = LogMel(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, num_mels=16)
LENS = [4000, 1500, 3000, 1, 0]


def encoder(num_layers: int = 3) -> ConformerEncoder:
    torch.manual_seed(0)
    return ConformerEncoder(
        input_dim=16, dim=16, num_layers=num_layers, num_heads=2, ff_dim=32, kernel_size=5, dropout=0.1, conv_norm="layer"
    )


def waves(lens: list[int] = LENS, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noise whose colour changes, so that frames differ."""
    torch.manual_seed(seed)
    wave_BN, lens_B = torch.randn(len(lens), max(lens)), torch.tensor(lens)
    time = torch.arange(max(lens))
    wave_BN = wave_BN * (1 + torch.sin(time / 300)) + wave_BN.roll(1, 1) * torch.cos(time / 500)
    return wave_BN.masked_fill(time >= lens_B[:, None], 0.0), lens_B


def build(kind: str = "means", layer: int = 2) -> SemanticTokenizer:
    torch.manual_seed(3)
    quantizer = {
        "means": lambda: KMeansQuantizer(dim=16, num_codes=12),
        "vector": lambda: VectorQuantizer(dim=16, num_codes=12, code_dim=8),
        "finite": lambda: FiniteScalarQuantizer(dim=16, levels=(4, 3)),
    }[kind]()
    return SemanticTokenizer(features=FEATURES, encoder=encoder(), layer=layer, quantizer=quantizer)


def test_means_find_clusters_and_repeat() -> None:
    torch.manual_seed(0)
    centres = 10 * torch.randn(20, 5)
    names = torch.randint(20, (2000,))
    frames = centres[names] + 0.1 * torch.randn(2000, 5)
    quantizer = KMeansQuantizer(dim=5, num_codes=20)
    error = quantizer.fit(frames, seed=4)
    assert error == pytest.approx(5 * 0.01, rel=0.2)
    indices = quantizer(frames[None], torch.tensor([2000])).indices_BTQ[0, :, 0]
    assert len(set(zip(names.tolist(), indices.tolist()))) == 20, "clusters and codes are one to one"
    for code in range(20):
        torch.testing.assert_close(quantizer.means_KD[code], frames[indices == code].mean(0))
    again = KMeansQuantizer(dim=5, num_codes=20)
    again.fit(frames, seed=4)
    assert torch.equal(again.means_KD, quantizer.means_KD)
    again.fit(frames, seed=5)
    assert not torch.equal(again.means_KD, quantizer.means_KD)


def test_means_are_no_worse_than_those_of_scikit_learn() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    frames = torch.randn(800, 6, generator=torch.Generator().manual_seed(0))
    theirs = cluster.KMeans(16, n_init=1, random_state=0).fit(frames.numpy()).inertia_ / 800
    errors = [KMeansQuantizer(dim=6, num_codes=16).fit(frames, seed=seed) for seed in range(4)]
    assert min(errors) < 1.02 * theirs
    assert max(errors) < 1.1 * theirs


def test_a_mean_that_nobody_chooses_moves() -> None:
    frames = torch.tensor([[0.0], [0.0], [0.0], [1.0], [5.0]])
    quantizer = KMeansQuantizer(dim=1, num_codes=3)
    for seed in range(5):
        assert quantizer.fit(frames, seed=seed) == 0.0
        assert sorted(quantizer.means_KD[:, 0].tolist()) == [0.0, 1.0, 5.0]
    with pytest.raises(ValueError, match="num_codes=4, but there are only 3 different frames among 5"):
        KMeansQuantizer(dim=1, num_codes=4).fit(frames)
    with pytest.raises(ValueError, match="only 0 different frames among 0"):
        quantizer.fit(frames[:0])
    with pytest.raises(ValueError, match="not finite"):
        quantizer.fit(frames / 0.0)


def test_means_behave_as_a_quantiser() -> None:
    torch.manual_seed(0)
    quantizer = KMeansQuantizer(dim=4, num_codes=6)
    quantizer.fit(torch.randn(100, 4))
    z, lens = torch.randn(3, 5, 4), torch.tensor([5, 2, 0])
    z[1, 2:], z[2] = float("nan"), float("nan")
    out = quantizer(z, lens)
    distances = (z[0][:, None] - quantizer.means_KD).square().sum(2)
    assert torch.equal(out.indices_BTQ[0, :, 0], distances.argmin(1))
    assert (out.indices_BTQ[1, 2:] == -1).all()
    assert (out.indices_BTQ[2] == -1).all()
    assert torch.equal(quantizer.decode(out.indices_BTQ), out.quantised_BTD)
    assert out.quantised_BTD[2].abs().sum() == 0
    assert quantizer(z[:, :0], torch.zeros(3, dtype=torch.long)).indices_BTQ.shape == (3, 0, 1)


@pytest.mark.parametrize("kind", ["means", "vector", "finite"])
def test_ids_do_not_depend_on_padding_or_mates(kind: str) -> None:
    tokenizer = build(kind)
    left = tokenizer.fit([waves(seed=1), waves(seed=2)], num_steps=60)
    assert 0 < left < 1.5
    wave_BN, lens_B = waves()
    ids_BT, id_lens_B = tokenizer(torch.nn.functional.pad(wave_BN, (0, 900)), lens_B)
    assert id_lens_B.tolist() == [13, 5, 10, 1, 0]
    assert int(ids_BT.max()) < tokenizer.num_codes
    for row, length in enumerate(LENS):
        ids, lens = tokenizer(wave_BN[row : row + 1, :length], lens_B[row : row + 1])
        assert torch.equal(ids[0, : int(lens)], ids_BT[row, : int(lens)])
        assert (ids_BT[row, : int(lens)] >= 0).all()
        assert (ids_BT[row, int(lens) :] == -1).all()
    assert tokenizer.frame_shift == pytest.approx(0.04)
    assert tokenizer.sample_rate == 8000


@pytest.mark.parametrize("kind", ["means", "vector"])
def test_fitting_repeats(kind: str) -> None:
    first, second, other = build(kind), build(kind), build(kind)
    for tokenizer, seed in ((first, 5), (second, 5), (other, 6)):
        tokenizer.fit([waves(seed=1), waves(seed=2)], seed=seed, num_steps=60, max_frames=50)
    assert int(first.num_fitted) == 50
    states = [tokenizer.quantizer.state_dict() for tokenizer in (first, second, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_frames_are_those_of_the_layer() -> None:
    own = encoder().eval()
    taken = {}

    def tap(layer: int, x_BTD: Tensor, lens_B: Tensor) -> Tensor:
        taken[layer] = x_BTD
        return x_BTD

    wave_BN, lens_B = waves([4000])
    own(*FEATURES(wave_BN, lens_B), tap=tap)
    for layer in (1, 2, 3):
        tokenizer = build(layer=layer)
        tokenizer.fit([(wave_BN, lens_B)])
        ids_BT, id_lens_B = tokenizer(wave_BN, lens_B)
        normalised = (taken[layer] - tokenizer.mean_D) / tokenizer.std_D
        assert torch.equal(tokenizer.quantizer(normalised, id_lens_B).indices_BTQ[..., 0], ids_BT)
    assert len(own.layers) == 3, "the encoder that was given stays whole"


def test_it_stays_as_it_is_in_a_model_in_training() -> None:
    tokenizer = build()
    holder = nn.ModuleDict({"semantic": tokenizer}).train()
    assert holder.training
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    quantised = build("vector")
    quantised.fit([waves()], num_steps=2)
    assert not any(parameter.requires_grad for parameter in quantised.parameters())


@pytest.mark.parametrize("kind", ["means", "vector"])
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    tokenizer = build(kind)
    tokenizer.fit([waves()], num_steps=5)
    path = tmp_path / "semantic.safetensors"
    tokenizer.save(path)
    loaded = build(kind)
    for parameter in loaded.parameters():
        parameter.data.zero_()
    loaded.load(path)
    assert torch.equal(loaded(*waves())[0], tokenizer(*waves())[0])
    with pytest.raises(ValueError, match="layer is 2, here it is 3"):
        build(kind, layer=3).load(path)
    with pytest.raises(ValueError, match="quantizer is"):
        build("finite").load(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged"):
        loaded.load(path)


def test_units_of_a_shipped_recogniser_agree_with_phones(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    prepare_demo(tmp_path, num_train=40, num_dev=0, num_test=15, num_text=1, num_workers=1)
    spoken = {split: list(read_manifest(tmp_path / f"{split}.jsonl")) for split in ("train", "test")}
    recognizer = speechkit.load("demo-ctc", device="cpu")
    quantizer = KMeansQuantizer(dim=128, num_codes=64)
    parts = {"features": recognizer.features, "encoder": recognizer.model.encoder}
    tokenizer = SemanticTokenizer(**parts, layer=2, quantizer=quantizer)

    def wave(utterance: Utterance) -> tuple[Tensor, Tensor]:
        wave_N = torch.from_numpy(soundfile.read(utterance.audio_path, dtype="float32")[0])
        return wave_N[None], torch.tensor([len(wave_N)])

    tokenizer.fit(map(wave, spoken["train"]))
    units, phones = [], []
    for utterance in spoken["test"]:
        [ids_T], [length] = tokenizer(*wave(utterance))
        units.append(ids_T[:length].numpy())
        phones.append(phones_at(utterance.extra["phonemes"], np.arange(int(length)) * tokenizer.frame_shift))
    quality = purity(np.concatenate(units), np.concatenate(phones))
    assert quality.phone_purity > 0.45, "of voices and sentences that the codebook never met"
    shuffled = purity(np.random.default_rng(0).permutation(np.concatenate(units)), np.concatenate(phones))
    assert shuffled.phone_purity < 0.6 * quality.phone_purity
    assert shuffled.pnmi < 0.6 * quality.pnmi


def test_what_does_not_fit_is_refused() -> None:
    parts = {"features": FEATURES, "encoder": encoder()}
    for layer in (0, 4):
        with pytest.raises(ValueError, match=f"layer={layer}: this encoder has layers 1 to 3"):
            SemanticTokenizer(**parts, layer=layer, quantizer=KMeansQuantizer(dim=16, num_codes=4))
    with pytest.raises(ValueError, match=r"1 codebook\(s\) for frames of 8 channels: give it one codebook and dim=16"):
        SemanticTokenizer(**parts, layer=1, quantizer=KMeansQuantizer(dim=8, num_codes=4))
    residual = ResidualVectorQuantizer(dim=16, num_codebooks=2, num_codes=4)
    with pytest.raises(ValueError, match="2 codebook"):
        SemanticTokenizer(**parts, layer=1, quantizer=residual)
    with pytest.raises(ValueError, match="num_fitted=0"):
        build()(*waves())
    with pytest.raises(ValueError, match="waves hold 1 frames"):
        build().fit([waves([1])])
    with pytest.raises(ValueError, match="num_codes=0 must be at least 1"):
        KMeansQuantizer(dim=3, num_codes=0)

"""Codec: frame arithmetic, round trips, independence of padding and mates, gradients, learning, codebooks that stay alive."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.model import CodecModel
from speechkit.nn.istft_head import IstftHead
from speechkit.nn.quantizers import FiniteScalarQuantizer, ResidualVectorQuantizer, ScalarQuantizer
from speechkit.types import TtsBatch

MEL = MelSpectrogram(sample_rate=8000, n_fft=128, win_length=128, hop_length=32, num_mels=12, f_max=4000.0)
KINDS = ["rvq", "fsq", "scalar"]


def quantizer(kind: str, **options: float) -> nn.Module:
    if kind == "rvq":
        return ResidualVectorQuantizer(dim=16, num_codebooks=3, num_codes=8, code_dim=4, **options)  # type: ignore[arg-type]
    return FiniteScalarQuantizer(dim=16, levels=(5, 4, 3)) if kind == "fsq" else ScalarQuantizer(dim=6)


def build(
    kind: str = "rvq",
    *,
    head: bool = False,
    stride: int = 2,
    revive_every: int = 3,
    segment_frames: int | None = None,
    **options: float,
) -> CodecModel:
    torch.manual_seed(0)
    model = CodecModel(
        num_mels=12,
        quantizer=quantizer(kind, **options),
        wave_head=IstftHead(dim=24, mel=MEL) if head else None,
        dim=24,
        intermediate_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        kernel_size=3,
        stride=stride,
        revive_every=revive_every,
        segment_frames=segment_frames,
    )
    model.mel_norm.mean.fill_(-3.0)
    model.mel_norm.std.fill_(2.0)
    return model


def waves(lens: list[int], extra: int = 0) -> TtsBatch:
    """Harmonics that begin somewhere, with padding that must not be read."""
    time = torch.arange(max(lens, default=0) + extra) / MEL.sample_rate
    rows = [
        sum(torch.sin(2 * math.pi * (150 + 40 * row) * k * time + k) / (5 * k) for k in range(1, 6)) for row in range(len(lens))
    ]
    wave_BN, lens_B = torch.stack(rows), torch.tensor(lens)  # type: ignore[arg-type]
    wave_BN[torch.arange(wave_BN.shape[1]) >= lens_B[:, None]] = float("nan")
    none_B = torch.zeros(len(lens), dtype=torch.long)
    names = tuple(str(row) for row in range(len(lens)))
    return TtsBatch(wave_BN, lens_B, none_B[:, None][:, :0], none_B, none_B, none_B, names, names, names)


def mels(lens: list[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth mels, with padding that must not be read."""
    time = torch.arange(max(lens, default=0) + extra)[:, None]
    rows = [-3 + 2 * torch.sin(0.3 * time * (1 + 0.1 * row) + torch.arange(12) * (0.5 + row)) for row in range(len(lens))]
    mel_BTF, lens_B = torch.stack(rows), torch.tensor(lens)
    mel_BTF[torch.arange(mel_BTF.shape[1]) >= lens_B[:, None]] = float("nan")
    return mel_BTF, lens_B


@settings(max_examples=25, deadline=None)
@given(stride=st.integers(1, 4), lens=st.lists(st.integers(0, 13), min_size=1, max_size=4), extra=st.integers(0, 5))
def test_frame_arithmetic(stride: int, lens: list[int], extra: int) -> None:
    model = build("fsq", head=True, stride=stride).eval()
    mel_BTF, mel_lens_B = mels(lens, extra)
    codes_BSQ, code_lens_B = model.encode(mel_BTF, mel_lens_B)
    assert code_lens_B.tolist() == [math.ceil(length / stride) for length in lens]
    assert codes_BSQ.shape == (len(lens), math.ceil(mel_BTF.shape[1] / stride), 1)
    out = model.decode(codes_BSQ, code_lens_B, mel_lens_B=mel_lens_B)
    assert out.mel_lens_B.tolist() == lens
    assert out.mel_BTF.shape == (len(lens), max(lens), 12)
    assert out.wave_lens_B is not None
    assert out.wave_BN is not None
    assert out.wave_lens_B.tolist() == [32 * length for length in lens]
    assert out.wave_BN.shape == (len(lens), 32 * max(lens))
    whole = model.decode(codes_BSQ, code_lens_B)  # not told T
    assert whole.mel_lens_B.tolist() == (code_lens_B * stride).tolist()
    assert whole.wave_BN is not None
    for row, length in enumerate(lens):
        assert (codes_BSQ[row, : code_lens_B[row]] >= 0).all()
        assert (codes_BSQ[row, code_lens_B[row] :] == -1).all()
        assert torch.equal(out.mel_BTF[row, :length], whole.mel_BTF[row, :length])
        assert out.mel_BTF[row, length:].abs().sum() == 0
        assert torch.equal(out.wave_BN[row, : 32 * length], whole.wave_BN[row, : 32 * length])
        assert out.wave_BN[row, 32 * length :].abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_padding_or_mates(kind: str) -> None:
    model = build(kind, head=True).eval()
    lens = [11, 4, 1, 0, 8]
    mel_BTF, mel_lens_B = mels(lens, extra=3)
    codes_BSQ, code_lens_B = model.encode(mel_BTF, mel_lens_B)
    out = model.decode(codes_BSQ.masked_fill(codes_BSQ < 0, 2), code_lens_B, mel_lens_B=mel_lens_B)
    for row, length in enumerate(lens):
        alone_lens = torch.tensor([length])
        codes, code_lens = model.encode(mel_BTF[row : row + 1, :length], alone_lens)
        assert torch.equal(codes[0], codes_BSQ[row, : int(code_lens)])
        alone = model.decode(codes, code_lens, mel_lens_B=alone_lens)
        torch.testing.assert_close(alone.mel_BTF[0], out.mel_BTF[row, :length], atol=1e-5, rtol=1e-5)
        assert alone.wave_BN is not None
        assert out.wave_BN is not None
        torch.testing.assert_close(alone.wave_BN[0], out.wave_BN[row, : 32 * length], atol=1e-5, rtol=1e-5)
    assert len(model.encode(mel_BTF[:0], mel_lens_B[:0])[0]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_sum_over_frames_of_its_rows(kind: str) -> None:
    model = build(kind, head=True).eval()
    batch = waves([352, 130, 33, 0], extra=50)
    mel_BTF, mel_lens_B = MEL(batch.wave_BN.nan_to_num(), batch.wave_lens_B)
    together = model.loss(mel_BTF, mel_lens_B, batch)
    assert int(together.num_targets) == int(mel_lens_B.sum())
    total = {"mel_l1": 0.0, "mel_l2": 0.0, "codebook": 0.0, "commitment": 0.0, "wave_mel": 0.0}
    for row, length in enumerate(mel_lens_B.tolist()):
        samples = int(batch.wave_lens_B[row])
        own = batch._replace(wave_BN=batch.wave_BN[row : row + 1, :samples], wave_lens_B=batch.wave_lens_B[row : row + 1])
        alone = model.loss(mel_BTF[row : row + 1, :length], mel_lens_B[row : row + 1], own)
        assert alone.loss.isfinite()
        for name in total:
            count = math.ceil(length / 2) if name in ("codebook", "commitment") else length
            total[name] += float(alone.parts[name]) * count
    codes = sum(math.ceil(length / 2) for length in mel_lens_B.tolist())
    for name, value in total.items():
        count = codes if name in ("codebook", "commitment") else int(mel_lens_B.sum())
        assert float(together.parts[name]) == pytest.approx(value / count, rel=1e-4, abs=1e-6), name
    assert "wave_convergence" in together.parts
    assert together.parts["perplexity_1"] >= 1


@pytest.mark.parametrize("num_samples", [0, 1])
def test_batches_of_nothing_and_of_one_sample(num_samples: int) -> None:
    model = build("rvq", head=True).train()
    batch = waves([num_samples, 0], extra=1 - num_samples)._replace(wave_BN=torch.zeros(2, num_samples))
    output = model.loss(*MEL(batch.wave_BN, batch.wave_lens_B), batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert int(output.num_targets) == num_samples
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_parameters(kind: str) -> None:
    model = build(kind, head=True).train()
    batch = waves([640, 300])
    mel_BTF, mel_lens_B = MEL(batch.wave_BN.nan_to_num(), batch.wave_lens_B)
    model.loss(mel_BTF, mel_lens_B, batch).loss.backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or parameter.grad.abs().sum() == 0
    ]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_gradients_pass_the_quantiser_as_if_nothing_were_rounded() -> None:
    model = build("scalar").eval()
    mel_BTF, mel_lens_B = mels([9, 6])
    mel_BTF = mel_BTF.nan_to_num().requires_grad_()

    def gradient(rounded: bool) -> Tensor:
        latent_BSD, lens_B = model.latents(mel_BTF, mel_lens_B)
        assert isinstance(model.quantizer, ScalarQuantizer)
        snapped = model.quantizer.snap(latent_BSD) if rounded else latent_BSD
        # Linear in what comes out, so that the place where it is evaluated does not matter.
        return torch.autograd.grad(model.from_latent(snapped).masked_fill(lens_B[:, None, None] == 0, 0).sum(), mel_BTF)[0]

    torch.testing.assert_close(gradient(True), gradient(False))
    assert gradient(True).abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: str) -> None:
    model = build(kind, revive_every=10).train()
    mel_BTF, mel_lens_B = mels([30, 17])
    batch = waves([1, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = float(model.loss(mel_BTF, mel_lens_B, batch).parts["mel_l2"])
    for _ in range(100):
        output = model.loss(mel_BTF, mel_lens_B, batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert float(output.parts["mel_l2"]) < 0.1 * first
    model.eval()
    out = model.decode(*model.encode(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B)
    valid = mel_BTF.isfinite()
    assert (out.mel_BTF - mel_BTF)[valid].square().mean() < 0.1 * mel_BTF[valid].var()


def test_the_waveform_learns() -> None:
    model = build("fsq", head=True).train()
    batch = waves([1024, 700])
    mel_BTF, mel_lens_B = MEL(batch.wave_BN.nan_to_num(), batch.wave_lens_B)
    model.mel_norm.fit([(mel_BTF, mel_lens_B)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        output = model.loss(mel_BTF, mel_lens_B, batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(sum(float(output.parts[name]) for name in ("wave_convergence", "wave_magnitude", "wave_mel")))
    assert losses[-1] < 0.6 * losses[0]


def test_pairs_for_discriminators() -> None:
    model = build("fsq", head=True, segment_frames=5)
    batch = waves([640, 100, 7, 0], extra=9)
    inputs = MEL(batch.wave_BN.nan_to_num(), batch.wave_lens_B)
    whole = model.eval().adversarial_pair(*inputs, batch)
    assert whole.real_BN.shape == whole.fake_BN.shape == (4, 640)
    assert whole.wave_lens_B.tolist() == [640, 100, 7, 0]
    torch.manual_seed(5)
    pair = model.train().adversarial_pair(*inputs, batch)
    assert pair.real_BN.shape == pair.fake_BN.shape == (4, 5 * 32)
    assert pair.wave_lens_B.tolist() == [160, 100, 7, 0]
    for row, length in enumerate(pair.wave_lens_B.tolist()):
        assert pair.real_BN[row, length:].abs().sum() == 0
        assert pair.fake_BN[row, length:].abs().sum() == 0
        # a stretch of the recording, and the same one of what was made
        starts = [i for i in range(641 - length) if torch.equal(whole.real_BN[row, i : i + length], pair.real_BN[row, :length])]
        assert any(
            torch.allclose(whole.fake_BN[row, i : i + length], pair.fake_BN[row, :length], atol=1e-5) for i in starts
        ), row
    assert torch.equal(pair.reconstruction.parts["mel"], pair.reconstruction.parts["wave_mel"])
    torch.manual_seed(5)
    assert torch.equal(model.loss(*inputs, batch).loss, pair.reconstruction.loss)
    pair.fake_BN.square().sum().backward()
    assert model.encoder.embed.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="wave_head=null: a codec of mels has no waveform to judge"):
        build("fsq").adversarial_pair(*inputs, batch)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_codes_round_trip(kind: str) -> None:
    """What `decode` makes of the codes is what the loss compared."""
    model = build(kind).eval()
    mel_BTF, mel_lens_B = mels([10, 7])
    out = model.decode(*model.encode(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B)
    errors = ((out.mel_BTF - mel_BTF) / 2.0)[mel_BTF.isfinite()]
    parts = model.loss(mel_BTF, mel_lens_B, waves([1, 1])).parts
    assert float(errors.abs().mean()) == pytest.approx(float(parts["mel_l1"]), rel=1e-4)
    assert float(errors.square().mean()) == pytest.approx(float(parts["mel_l2"]), rel=1e-4)


def test_first_codebooks_alone_and_codes_of_none() -> None:
    model = build("rvq", quantizer_dropout=1.0).train()
    mel_BTF, mel_lens_B = mels([10, 7])
    codes_BSQ, code_lens_B = model.encode(mel_BTF, mel_lens_B)
    assert (codes_BSQ[0] >= 0).all(), "encode uses all codebooks, also in training"
    first = model.decode(codes_BSQ[..., :1], code_lens_B).mel_BTF
    dropped_BSQ = codes_BSQ.clone()
    dropped_BSQ[..., 1:] = -1
    assert torch.equal(model.decode(dropped_BSQ, code_lens_B).mel_BTF, first)
    assert not torch.allclose(model.decode(codes_BSQ, code_lens_B).mel_BTF, first)


def test_the_latent_snaps_to_the_codes() -> None:
    model = build("scalar").eval()
    mel_BTF, mel_lens_B = mels([10, 7, 0])
    latent_BSD, code_lens_B = model.latents(mel_BTF, mel_lens_B)
    assert latent_BSD.shape == (3, 5, 6)
    assert latent_BSD.abs().max() <= 1
    assert latent_BSD[1, 4:].abs().sum() == 0
    expected = model.decode(*model.encode(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B)
    noise = (latent_BSD * 9).round() / 9 + (torch.rand_like(latent_BSD) - 0.5) * 0.99 / 9
    for latent in (latent_BSD, noise):
        found = model.decode_latents(latent, code_lens_B, mel_lens_B=mel_lens_B)
        torch.testing.assert_close(found.mel_BTF, expected.mel_BTF)
    beyond = model.decode_latents(torch.full((1, 3, 6), 7.0), torch.tensor([3]))
    torch.testing.assert_close(beyond.mel_BTF, model.decode(torch.full((1, 3, 6), 18), torch.tensor([3])).mel_BTF)
    for call in (model.latents, model.decode_latents):
        with pytest.raises(ValueError, match="quantizer=FiniteScalarQuantizer has no continuous latent"):
            getattr(build("fsq"), call.__name__)(latent_BSD, code_lens_B)


def step(model: CodecModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    mel_BTF, mel_lens_B = mels([20, 14])
    output = model.loss(mel_BTF * (1 + 0.1 * torch.rand(())), mel_lens_B, waves([1, 1]))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    return output.parts


def test_codes_begin_at_frames_of_the_first_batch() -> None:
    model = build("rvq").train()
    parts = step(model, torch.optim.SGD(model.parameters(), lr=0.0))
    assert float(parts["usage_1"]) > 0.7
    assert float(parts["usage_3"]) > 0.5
    fixed = build("rvq", revive_every=0).train()
    before = fixed.quantizer.layers[0].codebook.weight.clone()  # type: ignore[union-attr, index, operator]
    for _ in range(4):
        step(fixed, torch.optim.SGD(fixed.parameters(), lr=0.0))
    assert torch.equal(fixed.quantizer.layers[0].codebook.weight, before)  # type: ignore[union-attr, index]


def test_codes_that_nobody_uses_are_revived() -> None:
    model = build("rvq", revive_every=4).train()
    assert isinstance(model.quantizer, ResidualVectorQuantizer)
    first = model.quantizer.layers[0]
    with torch.no_grad():
        first.codebook.weight.copy_(torch.eye(8)[:, :4] * 0.0 + torch.tensor([1.0, 0, 0, 0]))  # all the same: one is used
    model.care.num_steps.fill_(1)  # before the first step all codes are moved
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(3):
        assert float(step(model, optimizer)["usage_1"]) == pytest.approx(1 / 8)
    assert int(model.care.num_steps) == 4
    assert (model.care.counts_QK.sum(1) == 3 * 17).all()
    for _ in range(4):
        parts = step(model, optimizer)
    assert float(parts["usage_1"]) > 0.5
    assert float(parts["perplexity_1"]) > 1.5
    assert (model.care.before_QK.sum(1) == 3 * 17).all(), "figures reach back over the last revival"
    before = copy.deepcopy(model.state_dict())
    model.eval()
    step(model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "evaluation counts nothing"


@pytest.mark.parametrize("kind", ["rvq", "fsq"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(kind: str) -> None:
    options = {"quantizer_dropout": 0.5} if kind == "rvq" else {}

    def train(model: CodecModel, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
        for _ in range(num_steps):
            step(model, optimizer)

    model = build(kind, **options).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    train(model, optimizer, 5)  # between two revivals
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    before = copy.deepcopy(model.quantizer.state_dict())
    train(model, optimizer, 5)
    again = build(kind, **options).train()
    other = torch.optim.Adam(again.parameters(), lr=1e-2)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    train(again, other, 5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in again.quantizer.state_dict().items())
    assert int(again.care.num_steps) == 10


def test_halves_and_autocast() -> None:
    model = build("rvq", head=True).eval()
    mel_BTF, mel_lens_B = mels([12, 5])
    exact = model.decode(*model.encode(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.decode(*model.encode(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B)
        assert model.loss(mel_BTF, mel_lens_B, waves([384, 160])).loss.dtype == torch.float32
    assert rough.mel_BTF.dtype == torch.float32
    half = build("rvq", head=True).eval().bfloat16()
    out = half.decode(*half.encode(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B)
    assert (out.mel_BTF.dtype, out.wave_BN.dtype) == (torch.float32, torch.float32)  # type: ignore[union-attr]
    assert out.mel_BTF.shape == exact.mel_BTF.shape


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="stride=0 must be at least 1"):
        build(stride=0)
    with pytest.raises(ValueError, match="revive_every=-1 must be"):
        build(revive_every=-1)
    with pytest.raises(ValueError, match="segment_frames=0 must be at least 1, or null"):
        build(segment_frames=0)
    with pytest.raises(ValueError, match="commitment_weight=-1"):
        CodecModel(num_mels=12, quantizer=quantizer("fsq"), commitment_weight=-1)
    with pytest.raises(ValueError, match="wave_head has dim=24 and 12 mel bins: give it those of the codec, 32 and 12"):
        CodecModel(num_mels=12, quantizer=quantizer("fsq"), wave_head=IstftHead(dim=24, mel=MEL), dim=32)
    model = build("fsq").eval()
    codes = torch.tensor([[[60]]])
    with pytest.raises(ValueError, match="codes from 60 to 60: they must be from 0 to 59"):
        model.decode(codes, torch.tensor([1]))
    with pytest.raises(ValueError, match=r"mel_lens_B=\[3\] do not fit code_lens_B=\[1\]: a code stands for 2 mel frames"):
        model.decode(codes - 1, torch.tensor([1]), mel_lens_B=torch.tensor([3]))


def test_lengths_past_the_codes_are_refused() -> None:
    """An error of masks that do not broadcast was all one saw."""
    codes_BSQ, lens_B = torch.zeros(2, 20, 6, dtype=torch.long), torch.tensor([5, 21])
    model = build("scalar").eval()
    for call, frames_BSQ in ((model.decode, codes_BSQ), (model.decode_latents, codes_BSQ.float())):
        for mel_lens_B in (None, lens_B * 2):
            with pytest.raises(ValueError, match=r"code_lens_B=\[5, 21\]: there are 20 code frames"):
                call(frames_BSQ, lens_B, mel_lens_B=mel_lens_B)
        assert call(frames_BSQ, lens_B - 1).mel_lens_B.tolist() == [8, 40]
        assert call(frames_BSQ[:0], lens_B[:0]).mel_lens_B.tolist() == []

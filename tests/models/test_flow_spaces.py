"""Flows in the latent of a codec: round trips, lengths, what is frozen, waveforms, learning to speak, misuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.model import CodecModel
from speechkit.models.flow.duration import duration_loss
from speechkit.models.flow.infer import FlowOptions, infer
from speechkit.models.flow.model import F5Model
from speechkit.models.flow.spaces import LatentSpace, MelSpace
from speechkit.nn.masks import valid_mask
from speechkit.nn.mel_norm import MelNorm
from speechkit.nn.quantizers import FiniteScalarQuantizer
from speechkit.types import TtsBatch, TtsInputs
from tests.models.flow_parts import LATENTS, MEL, scalar_codec

VOCAB = 9


def model(codec: CodecModel, **settings: Any) -> F5Model:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "dim": 32, "num_layers": 2, "num_heads": 2, "text_dim": 16, "text_layers": 1, "dropout": 0.0,
        "text_upsampling": "durations",
    }  # fmt: skip
    return F5Model(vocab_size=VOCAB, num_mels=MEL.output_dim, codec=codec, **(sizes | settings))


def test_mels_come_back_as_they_were() -> None:
    norm = MelNorm()
    norm.mean.fill_(-3.0)
    norm.std.fill_(2.0)
    space, lens_B = MelSpace(norm, 6), torch.tensor([5, 0, 3])
    mel_BTF = torch.randn(3, 5, 6)
    assert torch.equal(space.lengths(lens_B), lens_B)
    x_BTC = space.enter(mel_BTF, lens_B)
    torch.testing.assert_close(x_BTC, (mel_BTF + 3.0) / 2.0)
    out = space.leave(x_BTC, lens_B)
    torch.testing.assert_close(out.mel_BTF, mel_BTF.masked_fill(~valid_mask(lens_B, 5)[..., None], 0.0))
    assert out.wave_BN is None


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_latents_leave_as_the_codes_do(stride: int) -> None:
    codec = scalar_codec(stride=stride).eval()
    space, mel_lens_B = LatentSpace(codec), torch.tensor([9, 4, 1, 0])
    mel_BTF = torch.randn(4, 9, 6)
    lens_B = space.lengths(mel_lens_B)
    assert lens_B.tolist() == [-(-frames // stride) for frames in mel_lens_B.tolist()]
    x_BTC = space.enter(mel_BTF, mel_lens_B)
    assert x_BTC.shape == (4, int(lens_B.max()), LATENTS)
    assert x_BTC.abs().max() <= 1.0
    expected = codec.decode(*codec.encode(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B).mel_BTF
    grid_BTC = (9 * x_BTC).round() / 9
    almost_BTC = grid_BTC + (torch.rand_like(grid_BTC) - 0.5) * 0.98 / 9
    for points_BTC in (x_BTC, grid_BTC, almost_BTC):
        out = space.leave(points_BTC, mel_lens_B)
        assert torch.equal(out.mel_BTF, expected), "small errors are rounded away"
        assert torch.equal(out.mel_lens_B, mel_lens_B)
    ends = space.leave(7.0 * grid_BTC.sign(), mel_lens_B).mel_BTF
    torch.testing.assert_close(ends, space.leave(grid_BTC.sign(), mel_lens_B).mel_BTF)


def test_the_codec_is_frozen_and_travels_with_the_model() -> None:
    codec = scalar_codec().train()
    speaker = model(codec)
    assert not codec.training
    assert speaker.train().training
    assert not codec.training
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert speaker.mel_norm is None
    names = set(speaker.state_dict())
    assert {f"codec.{name}" for name in codec.state_dict()} < names
    assert not any(name.startswith("mel_norm") for name in names)


@pytest.mark.parametrize("upsampling", ["durations", "average", "filler"])
def test_frames_are_the_latents_and_lengths_the_mels(upsampling: str) -> None:
    speaker = model(scalar_codec(), text_upsampling=upsampling, duration_predictor=True, drop_all=0.0).eval()
    seen: list[Any] = []
    speaker.decoder.register_forward_hook(lambda _, args, output: seen.append(args[0].shape))
    mel_BTF, mel_lens_B = torch.randn(2, 11, 6), torch.tensor([11, 6])
    batch = batch_of(torch.tensor([[3, 1, 2], [4, 5, 0]]), torch.tensor([3, 2]), torch.tensor([[5, 2, 4], [3, 3, 0]]))
    loss = speaker.loss(mel_BTF, mel_lens_B, batch)
    assert seen == [(2, 6, LATENTS)]
    assert loss.num_targets <= 6 + 3
    assert speaker.durations is not None
    assert batch.durations_BP is not None
    log_durations_BP = speaker.durations(speaker.text(batch.phones_BP, batch.phone_lens_B), batch.phone_lens_B)
    expected = duration_loss(log_durations_BP, batch.durations_BP, valid_mask(batch.phone_lens_B, 3))
    torch.testing.assert_close(loss.parts["duration"], expected.detach(), msg="predictors count mel frames")


def batch_of(phones_BP: torch.Tensor, phone_lens_B: torch.Tensor, durations_BP: torch.Tensor) -> TtsBatch:
    size = len(phones_BP)
    nothing_B, names = torch.zeros(size, dtype=torch.int64), tuple(f"utt-{row}" for row in range(size))
    return TtsBatch(
        wave_BN=torch.zeros(size, 0),
        wave_lens_B=nothing_B,
        phones_BP=phones_BP,
        phone_lens_B=phone_lens_B,
        speakers_B=nothing_B,
        languages_B=nothing_B,
        ids=names,
        texts=names,
        langs=names,
        durations_BP=durations_BP,
    )


def inputs_of(phones_BP: torch.Tensor, phone_lens_B: torch.Tensor) -> TtsInputs:
    nothing_B = torch.zeros(len(phones_BP), dtype=torch.int64)
    return TtsInputs(phones_BP, phone_lens_B, nothing_B, nothing_B, tuple(f"utt-{row}" for row in range(len(phones_BP))))


def test_codecs_with_a_waveform_head_make_waveforms() -> None:
    speaker = model(scalar_codec(head=True)).eval()
    inputs = inputs_of(torch.tensor([[1, 2, 3], [4, 0, 0], [0, 0, 0]]), torch.tensor([3, 1, 0]))
    out = infer(speaker, inputs, mel=MEL, options=FlowOptions(num_steps=2, length="total"))
    assert out.wave_BN is not None
    assert out.wave_lens_B is not None
    assert torch.equal(out.wave_lens_B, MEL.num_samples(out.mel_lens_B))
    assert out.wave_BN[1, int(out.wave_lens_B[1]) :].abs().sum() == 0
    assert out.wave_BN[0].abs().max() > 0
    other = MelSpectrogram(sample_rate=8000, n_fft=128, win_length=128, hop_length=64, num_mels=6, f_max=4000.0)
    with pytest.raises(ValueError, match="hop_length"):
        infer(speaker, inputs, mel=other)


def test_it_learns_to_speak() -> None:
    """Speech whose frames are functions of their phones; the codec, that nobody trained, hears and speaks it in its own way."""
    codec = scalar_codec().eval()
    voices = 2.0 * torch.randn(VOCAB, 6, generator=torch.Generator().manual_seed(5)) - 3.0
    phones_BP = torch.stack([torch.randperm(VOCAB - 1, generator=torch.Generator().manual_seed(row))[:5] + 1 for row in range(6)])
    durations_BP = 2 + 2 * (phones_BP % 2)
    mels = [voices[phones].repeat_interleave(own, 0) for phones, own in zip(phones_BP, durations_BP)]
    mel_BTF, mel_lens_B = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True), durations_BP.sum(1)
    speaker, phone_lens_B = model(codec, drop_given=0.9, drop_all=0.0, min_span=1.0), torch.full((6,), 5)
    optimizer = torch.optim.Adam((each for each in speaker.parameters() if each.requires_grad), lr=5e-3)
    batch = batch_of(phones_BP, phone_lens_B, durations_BP)
    for _ in range(250):
        optimizer.zero_grad()
        speaker.train().loss(mel_BTF, mel_lens_B, batch).loss.backward()
        optimizer.step()
    out = infer(speaker.eval(), inputs_of(phones_BP, phone_lens_B), mel=MEL, options=FlowOptions(num_steps=8))
    assert torch.equal(out.durations_BP, durations_BP)
    assert torch.equal(out.mel_lens_B, mel_lens_B)
    expected = codec.decode_latents(*codec.latents(mel_BTF, mel_lens_B), mel_lens_B=mel_lens_B).mel_BTF
    spread = (expected - expected.mean((0, 1))).abs().mean()
    assert (out.mel_BTF - expected).abs().mean() < 0.25 * spread


def test_codecs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_mels=80, but the codec has 6"):
        F5Model(vocab_size=VOCAB, num_mels=80, codec=scalar_codec())
    levels = CodecModel(num_mels=6, quantizer=FiniteScalarQuantizer(dim=16, levels=(5, 4, 3)), dim=16, intermediate_dim=16)
    with pytest.raises(ValueError, match="quantizer=FiniteScalarQuantizer has no continuous latent"):
        model(levels)

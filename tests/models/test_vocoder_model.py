"""Trained vocoders: lengths, the same bits in any batch, segments, losses, learning; discriminators and their padding."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.adversarial import Judgement
from speechkit.models.vocoder.discriminators import (
    Discriminators,
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    MultiScaleDiscriminator,
)
from speechkit.models.vocoder.hifigan import HifiGanGenerator
from speechkit.models.vocoder.model import Vocoder
from speechkit.models.vocoder.vocos import VocosGenerator
from speechkit.types import TtsBatch

VOCOS = partial(VocosGenerator, dim=16, intermediate_dim=24, num_layers=2)
HIFIGAN = partial(
    HifiGanGenerator,
    dim=16,
    upsample_rates=(4, 2, 2),
    upsample_kernels=(8, 4, 4),
    block_kernels=(3, 5),
    block_dilations=((1, 3), (1, 2)),
)
GENERATORS = {"vocos": VOCOS, "vocos center": VOCOS, "hifigan": HIFIGAN, "hifigan V3": partial(HIFIGAN, num_convs=1)}


def build(name: str = "vocos", **options: Any) -> Vocoder:
    """A vocoder of a few thousand parameters; weights large enough that neighbours matter."""
    torch.manual_seed(0)
    padding = "center" if name.endswith("center") else "same"
    mel = MelSpectrogram(
        sample_rate=8000,
        n_fft=64,
        win_length=64,
        hop_length=16,
        num_mels=8,
        f_max=4000.0,
        padding=padding,  # type: ignore[arg-type]
    )
    vocoder = Vocoder(mel=mel, generator=GENERATORS[name], **options)
    for key, parameter in vocoder.generator.named_parameters():
        if key.endswith("original0"):
            nn.init.constant_(parameter, 1.5)  # length of a normalised weight
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return vocoder.eval()


def make_batch(*lens: int, seed: int = 0) -> TtsBatch:
    generator = torch.Generator().manual_seed(seed)
    lens_B = torch.tensor(lens)
    phases_BN = torch.arange(max(lens, default=0)) * torch.rand(len(lens), 1, generator=generator)
    wave_BN = 0.3 * phases_BN.sin() * (torch.arange(max(lens, default=0)) < lens_B[:, None])
    nothing, zeros_B = torch.zeros(len(lens), 0, dtype=torch.long), torch.zeros(len(lens), dtype=torch.long)
    return TtsBatch(wave_BN, lens_B, nothing, zeros_B, zeros_B, zeros_B, tuple("abcdef"[: len(lens)]), (), ())


def inputs(vocoder: Vocoder, batch: TtsBatch) -> tuple[Tensor, Tensor, TtsBatch]:
    return *vocoder.mel(batch.wave_BN, batch.wave_lens_B), batch


@pytest.mark.parametrize("name", GENERATORS)
def test_an_utterance_alone_and_in_a_batch_has_the_same_bits(name: str) -> None:
    vocoder = build(name)
    lens_B = torch.tensor([31, 12, 2, 1, 0])
    mel_BTF = torch.randn(5, 40, 8)
    mel_BTF[torch.arange(40) >= lens_B[:, None]] = torch.nan
    wave_BN, wave_lens_B = vocoder.vocode(mel_BTF, lens_B)
    assert wave_BN.dtype == torch.float32
    assert torch.equal(wave_lens_B, vocoder.mel.num_samples(lens_B))
    assert wave_BN.shape == (5, int(wave_lens_B.max()))
    for row, (frames, samples) in enumerate(zip(lens_B.tolist(), wave_lens_B.tolist())):
        alone, _ = vocoder.vocode(mel_BTF[row : row + 1, :frames], lens_B[row : row + 1], seeds=[7])
        assert torch.equal(wave_BN[row, :samples], alone[0])
        assert (wave_BN[row, samples:] == 0).all()
    assert wave_BN[0].std() > 1e-3


@pytest.mark.parametrize("name", GENERATORS)
def test_batches_of_training_do_not_mix_rows(name: str) -> None:
    vocoder = build(name)
    lens_B = torch.tensor([20, 9, 1, 0])
    mel_BTF = torch.randn(4, 20, 8)
    mel_BTF[torch.arange(20) >= lens_B[:, None]] = torch.nan
    wave_BN = vocoder.generator(mel_BTF, lens_B)
    assert wave_BN.shape == (4, int(vocoder.mel.num_samples(torch.tensor(20))))
    for row, frames in enumerate(lens_B.tolist()):
        alone = vocoder.generator(mel_BTF[row : row + 1, :frames], lens_B[row : row + 1])[0]
        torch.testing.assert_close(wave_BN[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
        assert (wave_BN[row, len(alone) :] == 0).all()


@pytest.mark.parametrize("name", ["vocos", "hifigan"])
def test_no_rows_and_no_frames(name: str) -> None:
    vocoder = build(name)
    for rows, frames in ((0, 5), (2, 0)):
        wave_BN, wave_lens_B = vocoder.vocode(torch.zeros(rows, frames, 8), torch.zeros(rows, dtype=torch.long))
        assert wave_BN.shape == (rows, 0)
        assert wave_lens_B.tolist() == [0] * rows


def test_wrong_mels_are_refused() -> None:
    vocoder, mel_BTF = build(), torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match=r"give \(B, T, 8\) and \(B,\)"):
        vocoder.vocode(mel_BTF[..., :7], torch.tensor([5, 5]))
    with pytest.raises(ValueError, match=r"mel_lens_B=\[5, 6\]"):
        vocoder.vocode(mel_BTF, torch.tensor([5, 6]))
    mel_BTF[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"not finite in rows \[1\]"):
        vocoder.vocode(mel_BTF, torch.tensor([5, 5]))


def test_without_weight_norm_waveforms_are_the_same() -> None:
    vocoder, mel_BTF, lens_B = build("hifigan"), torch.randn(1, 12, 8), torch.tensor([12])
    before, _ = vocoder.vocode(mel_BTF, lens_B)
    vocoder.fold_weight_norm()
    vocoder.fold_weight_norm()
    assert not any("original" in name for name in vocoder.state_dict())
    torch.testing.assert_close(vocoder.vocode(mel_BTF, lens_B)[0], before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["vocos", "vocos center", "hifigan"])
def test_training_segments_belong_together(name: str) -> None:
    """A generator that writes down the first band of each frame meets recordings whose samples are their own frame."""
    vocoder = build(name, segment_frames=4).train()
    hop, lens = 16, (16 * 20 + 5, 16 * 2, 3, 0)
    batch = make_batch(*lens)._replace(wave_BN=(torch.arange(max(lens)) // hop).float().expand(4, -1) / 100)
    mel_lens_B = vocoder.mel.num_frames(batch.wave_lens_B)
    mel_BTF = (torch.arange(21.0)[:, None].expand(4, 21, 8) / 100).clone()

    class Writer(nn.Module):
        def forward(self, mel_BTF: Tensor, mel_lens_B: Tensor) -> Tensor:
            num_samples = int(vocoder.mel.num_samples(torch.tensor(mel_BTF.shape[1])))
            return mel_BTF[..., 0].repeat_interleave(hop, dim=1)[:, :num_samples]

    vocoder.generator = Writer()
    begins = set()
    for _ in range(40):
        pair = vocoder.adversarial_pair(mel_BTF, mel_lens_B, batch)
        torch.testing.assert_close(pair.fake_BN, pair.real_BN, atol=1e-6, rtol=0.0)
        begins.add(round(float(pair.real_BN[0, 0]) * 100))
        longest = 4 * hop if name != "vocos center" else 3 * hop
        assert pair.wave_lens_B[0] > longest - hop
        assert pair.wave_lens_B[1:].tolist() == ([32, 3, 0] if name != "vocos center" else [32, 0, 0])
        assert (pair.real_BN[torch.arange(longest) >= pair.wave_lens_B[:, None]] == 0).all()
    assert min(begins) == 0
    assert max(begins) == 17
    assert pair.reconstruction.num_targets == min(4, int(mel_lens_B[0])) + mel_lens_B[1:].sum()


def test_validation_is_on_whole_utterances_and_repeats() -> None:
    vocoder, batch = build(segment_frames=4), make_batch(400, 100)
    first, again = (vocoder.adversarial_pair(*inputs(vocoder, batch)) for _ in range(2))
    assert first.wave_lens_B.tolist() == [400, 100]
    assert torch.equal(first.fake_BN, again.fake_BN)
    assert torch.equal(first.real_BN, batch.wave_BN)
    assert set(first.reconstruction.parts) == {"mel", "stft"}
    assert first.reconstruction.num_targets == 25 + 7


@pytest.mark.parametrize("name", ["vocos", "vocos center"])
def test_losses_depend_on_no_padding_and_frames_count_equally(name: str) -> None:
    vocoder = build(name)
    batch = make_batch(400, 96)
    both = vocoder.loss(*inputs(vocoder, batch))
    padded = vocoder.loss(*inputs(vocoder, batch._replace(wave_BN=functional.pad(batch.wave_BN, (0, 200)))))
    torch.testing.assert_close(padded.loss, both.loss)
    rows = [batch._replace(wave_BN=batch.wave_BN[i : i + 1], wave_lens_B=batch.wave_lens_B[i : i + 1]) for i in range(2)]
    alone = [vocoder.loss(*inputs(vocoder, row)) for row in rows]
    total = sum(row.parts["mel"] * row.num_targets for row in alone)
    torch.testing.assert_close(total / both.num_targets, both.parts["mel"])


@pytest.mark.parametrize("name", ["vocos", "vocos center", "hifigan"])
def test_batches_of_nothing_have_a_loss_and_gradients(name: str) -> None:
    vocoder = build(name).train()
    for batch in (make_batch(0, 0), make_batch(1, 0)):
        loss = vocoder.loss(*inputs(vocoder, batch)).loss
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in vocoder.parameters())


@pytest.mark.parametrize("name", ["vocos", "hifigan"])
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(mel=build(name).mel, generator=GENERATORS[name], segment_frames=16, stft_weight=0.5).train()
    batch = make_batch(480, 320, 200)
    optimizer = torch.optim.AdamW(vocoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = vocoder.loss(*inputs(vocoder, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="segment_frames=1"):
        build(segment_frames=1)
    with pytest.raises(ValueError, match=r"stft_weight=0\.0, mel_weight=0\.0"):
        build(stft_weight=0.0, mel_weight=0.0)
    with pytest.raises(ValueError, match=r"loss_mel\.sample_rate=16000"):
        build(loss_mel=MelSpectrogram.preset(16000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upsample_rates": (4, 2, 4)}, "make 32 samples of a frame: mel.hop_length=16"),
        ({"upsample_kernels": (8, 4, 3)}, "upsample_kernels=.8, 4, 3."),
        ({"dim": 12}, "dim=12 must be divisible by 8"),
        ({"block_kernels": (3, 4)}, "block_kernels=.3, 4.: must be odd"),
        ({"num_convs": 3}, "num_convs=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    mel = build().mel
    with pytest.raises(ValueError, match=message):
        HIFIGAN(mel=mel, **settings)


def test_hifigan_wants_whole_frames() -> None:
    with pytest.raises(ValueError, match=r"mel\.padding='center'"):
        HIFIGAN(mel=build("vocos center").mel)


def build_discriminators() -> Discriminators:
    torch.manual_seed(0)
    parts = [
        MultiPeriodDiscriminator(periods=(2, 5), dim=4, weight=0.5),
        MultiScaleDiscriminator(num_scales=3, dim=16),
        MultiResolutionDiscriminator(resolutions=((64, 16, 64), (32, 8, 32)), dim=4),
    ]
    return Discriminators(parts=parts).eval()  # spectral norm takes a step in each training pass


def test_judgements_of_a_row_are_its_own() -> None:
    discriminators = build_discriminators()
    lens = (700, 333, 1)
    wave_BN, lens_B = torch.randn(3, 700), torch.tensor(lens)
    wave_BN[torch.arange(700) >= lens_B[:, None]] = torch.nan
    judgements = discriminators(wave_BN, lens_B)
    assert [judgement.weight for judgement in judgements] == [0.5] * 2 + [1.0] * 3 + [0.1] * 2
    for row, length in enumerate(lens):
        alone: list[Judgement] = discriminators(wave_BN[row : row + 1, :length], torch.tensor([length]))
        for whole, part in zip(judgements, alone, strict=True):
            assert whole.maps_BCTE[-1].shape[1] == 1
            for map_BCTE, lens_B, own_BCTE, own_lens_B in zip(*whole[:2], *part[:2], strict=True):
                places = int(lens_B[row])
                assert int(own_lens_B) == places == own_BCTE.shape[2]
                torch.testing.assert_close(map_BCTE[row, :, :places], own_BCTE[0], atol=1e-5, rtol=1e-4)
                assert (map_BCTE[row, :, places:] == 0).all()


def test_judging_nothing() -> None:
    for wave_BN in (torch.zeros(2, 0), torch.zeros(2, 9)):
        for judgement in build_discriminators()(wave_BN, torch.tensor([0, 0])):
            assert all((map_BCTE == 0).all() for map_BCTE in judgement.maps_BCTE)
            assert all((lens_B == 0).all() for lens_B in judgement.lens_B)


def test_discriminators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parts=\[\]"):
        Discriminators(parts=[])
    with pytest.raises(ValueError, match="dim=24"):
        MultiScaleDiscriminator(dim=24)

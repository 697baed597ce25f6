"""Speaker encoder: stretches, windows, the same embedding in any batch, learning to tell voices apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.losses.ge2e import ge2e_loss
from speechkit.metrics.speaker import equal_error_rate, score_pairs
from speechkit.models.speaker.infer import embed, window_begins
from speechkit.models.speaker.model import SpeakerModel
from speechkit.types import TtsBatch

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
SMALL = {"num_mels": 6, "hidden_dim": 12, "num_layers": 2, "embedding_dim": 7, "segment_frames": 10}


def build(**options: Any) -> SpeakerModel:
    """A model of a few thousand parameters; weights large enough that each frame matters."""
    torch.manual_seed(0)
    model = SpeakerModel(**{**SMALL, **options})
    for parameter in model.lstm.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def make_batch(*speakers: int, waves: Tensor | None = None) -> TtsBatch:
    """Of which only the speakers and the waves are looked at."""
    rows = len(speakers)
    wave_BN = torch.zeros(rows, 0) if waves is None else waves
    lens_B, nothing_B = torch.full((rows,), wave_BN.shape[1]), torch.zeros(rows, dtype=torch.long)
    names = tuple(f"u{i}" for i in range(rows))
    return TtsBatch(
        wave_BN, lens_B, torch.zeros(rows, 0, dtype=torch.long), nothing_B, torch.tensor(speakers), nothing_B, names, names, names
    )


def make_feats(*lens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random log-mels, zero past each length."""
    feats = torch.randn(len(lens), max(lens), 6, generator=torch.Generator().manual_seed(seed))
    lens_B = torch.tensor(lens)
    return feats * (torch.arange(max(lens)) < lens_B[:, None])[..., None], lens_B


@pytest.mark.parametrize("projection_dim", [None, 5])
def test_padding_and_mates_change_nothing(projection_dim: int | None) -> None:
    model = build(projection_dim=projection_dim)
    feats, lens = make_feats(37, 10, 1, 23, 0, 9)
    padded = F.pad(feats, (0, 0, 0, 30), value=math.nan)
    padded[1, 10:], padded[2, 1:], padded[4] = 1e4, -1e4, math.nan
    together = embed(model, padded, lens)
    assert together.shape == (6, 7)
    for row, frames in enumerate(lens.tolist()):
        alone = embed(model, feats[row : row + 1, :frames], lens[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), (lens > 0).float())
    torch.testing.assert_close(embed(model, feats, lens)[[5, 0]], embed(model, feats[[5, 0]], lens[[5, 0]]))


def test_an_embedding_is_the_mean_over_windows() -> None:
    model = build()
    feats, lens = make_feats(23)
    windows = torch.stack([feats[0, begin : begin + 10] for begin in (0, 5, 10, 13)])
    with torch.no_grad():
        mean = model(windows, torch.full((4,), 10)).mean(dim=0)
    torch.testing.assert_close(embed(model, feats, lens)[0], mean / mean.norm())


@pytest.mark.parametrize(
    ("frames", "begins"),
    [(0, []), (1, [0]), (10, [0]), (11, [0, 1]), (15, [0, 5]), (16, [0, 5, 6]), (25, [0, 5, 10, 15])],
)
def test_windows_cover_all_frames(frames: int, begins: list[int]) -> None:
    assert window_begins(frames, size=10) == begins
    assert {begin + t for begin in begins for t in range(min(10, frames))} == set(range(frames))


def test_more_windows_than_fit_at_once() -> None:
    model = build(segment_frames=2)
    feats, lens = make_feats(700, 3)
    pieces = [embed(model, feats[:1, begin : begin + 2], torch.tensor([2]))[0] for begin in range(699)]
    found = embed(model, feats, lens)
    torch.testing.assert_close(found[0], F.normalize(torch.stack(pieces).mean(0), dim=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], embed(model, feats[1:], lens[1:]), atol=1e-5, rtol=1e-5)


def test_the_loss_is_that_of_stretches() -> None:
    """Drawn ones in training, the middles in evaluation; all of what is shorter."""
    model, batch = build(), make_batch(4, 1, 4, 1, 7, 1)
    feats, lens = make_feats(30, 10, 17, 4, 12, 0)
    middles = [feats[0, 10:20], feats[1, :10], feats[2, 3:13], feats[3, :4]]
    with torch.no_grad():
        embeddings = torch.cat([model(x[None], torch.tensor([len(x)])) for x in middles])
    expected = ge2e_loss(embeddings, batch.speakers_B[:4], model.scale, model.bias)
    found = model.loss(feats, lens, batch)
    torch.testing.assert_close(found.loss, expected.loss)
    assert found.num_targets == 4  # speaker 7 has one utterance, and the last one holds nothing
    assert {name: part.requires_grad for name, part in found.parts.items()} == {"ge2e": False, "accuracy": False, "scale": False}
    model.train()
    torch.manual_seed(1)
    drawn = [model.loss(feats, lens, batch).loss.item() for _ in range(5)]
    torch.manual_seed(1)
    assert drawn == [model.loss(feats, lens, batch).loss.item() for _ in range(5)]
    assert len(set(drawn)) > 1


def test_stretches_begin_anywhere() -> None:
    model = build().train()
    feats = torch.arange(14.0)[None, :, None].expand(400, 14, 6)
    torch.manual_seed(0)
    cut_BTF, lens = model._draw_segments(feats, torch.full((400,), 14))
    assert cut_BTF.shape == (400, 10, 6)
    assert (lens == 10).all()
    assert cut_BTF[:, 0, 0].unique().tolist() == [0, 1, 2, 3, 4]
    assert (cut_BTF.diff(dim=1) == 1).all()


@pytest.mark.parametrize("speakers", [(), (1,), (1, 1), (1, 2, 3)])
def test_a_batch_that_teaches_nothing(speakers: tuple[int, ...]) -> None:
    model = build().train()
    output = model.loss(torch.randn(len(speakers), 12, 6), torch.full((len(speakers),), 12), make_batch(*speakers))
    assert output.loss == output.num_targets == 0
    output.loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_every_parameter_learns_and_padding_is_not_seen() -> None:
    model, batch = build(projection_dim=5).train(), make_batch(0, 1, 0, 1)
    feats, lens = make_feats(6, 5, 9, 8)
    gradients = []
    for filler in (0.0, math.nan):
        padding = torch.arange(9) >= lens[:, None]
        loss = model.loss(feats.masked_fill(padding[..., None], filler), lens, batch).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, each in zip(names, gradients[0]) if each.abs().max() < 1e-9] == ["bias"]  # no part in a softmax


def test_autocast_and_halves_change_next_to_nothing() -> None:
    model, batch = build(), make_batch(0, 1, 0, 1)
    feats, lens = make_feats(10, 13, 20, 8)
    feats = feats.bfloat16().float()
    exact = model.loss(feats, lens, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.loss(feats.bfloat16(), lens, batch)
        embeddings = embed(model, feats.bfloat16(), lens)
    torch.testing.assert_close(found.loss, exact.loss)
    torch.testing.assert_close(embeddings, embed(model, feats, lens))
    found.loss.backward()


def test_it_learns_voices() -> None:
    """Spectra of unknown level in noise: a few steps suffice to tell voices apart that have not been heard."""
    model = build(num_mels=8, hidden_dim=24, num_layers=1, embedding_dim=8)
    generator = torch.Generator().manual_seed(0)
    voices = torch.randn(16, 1, 8, generator=generator)

    def speak(speakers: list[int]) -> tuple[Tensor, Tensor]:
        level_B11 = 2.0 * torch.randn(len(speakers), 1, 1, generator=generator)
        noise_BTF = torch.randn(len(speakers), 12, 8, generator=generator)
        return voices[speakers] + level_B11 + 0.8 * noise_BTF, torch.randint(8, 13, (len(speakers),), generator=generator)

    def error_rate() -> float:
        unheard = [*range(10, 16)] * 6
        return equal_error_rate(*score_pairs(embed(model.eval(), *speak(unheard)).numpy(), unheard)).rate

    heard, losses = [*range(10)] * 4, []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = error_rate()
    for _ in range(60):
        output = model.train().loss(*speak(heard), make_batch(*heard))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]
    assert error_rate() < 0.6 * before


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match="num_layers=0: must be at least 1"):
        SpeakerModel(num_layers=0)
    with pytest.raises(ValueError, match=r"projection_dim=256: must be in 1\.\.255, or None"):
        SpeakerModel(projection_dim=256)
    model = build()
    with pytest.raises(ValueError, match=r"feats has shape \(2, 5, 80\); give log-mels with 6 bins"):
        embed(model, torch.zeros(2, 5, 80), torch.tensor([5, 5]))
    with pytest.raises(ValueError, match=r"feat_lens has shape \(1,\); give \(2,\)"):
        model(torch.zeros(2, 5, 6), torch.tensor([5]))
    with pytest.raises(ValueError, match="feats has 2 rows; expected the batch's 3 utterances"):
        model.loss(torch.zeros(2, 5, 6), torch.tensor([5, 5]), make_batch(0, 0, 1))

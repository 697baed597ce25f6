"""Normalisation of log-mels: measured over valid frames alone, inverted exactly, refused on silence."""

from __future__ import annotations

import pytest
import torch

from speechkit.nn.mel_norm import MelNorm


def test_fit_measures_valid_frames_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    mels = [(torch.randn(2, 9, 4, generator=generator) * 3 - 5, torch.tensor([9, 4])) for _ in range(3)]
    norm = MelNorm()
    norm.fit(mels)
    values = torch.cat([row[:n].flatten() for mel, lens in mels for row, n in zip(mel, lens.tolist())]).double()
    assert float(norm.mean) == pytest.approx(float(values.mean()), rel=1e-6)
    assert float(norm.std) == pytest.approx(float(values.std(correction=0)), rel=1e-6)
    assert int(norm.count) == values.numel()
    torch.testing.assert_close(norm.denormalize(norm.normalize(mels[0][0])), mels[0][0])


def test_identity_before_it_is_fitted_and_saved_with_the_weights() -> None:
    norm, x = MelNorm(), torch.randn(1, 3, 2)
    assert torch.equal(norm.normalize(x), x)
    norm.fit([(x, torch.tensor([3]))])
    other = MelNorm()
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other.normalize(x), norm.normalize(x))


@pytest.mark.parametrize(
    ("mels", "reason"),
    [
        ([], "no frame"),
        ([(torch.zeros(1, 0, 4), torch.tensor([0]))], "no frame"),
        ([(torch.full((1, 5, 4), -11.5), torch.tensor([5]))], "silent"),
    ],
)
def test_nothing_to_measure(mels: list[tuple[torch.Tensor, torch.Tensor]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MelNorm().fit(mels)

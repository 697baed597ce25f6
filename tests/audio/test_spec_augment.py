"""SpecAugment: widths, places, padding, warp, generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.audio.spec_augment import SpecAugment


def feats(lens: list[int], num_bins: int = 20, padding: int = 3) -> tuple[Tensor, Tensor]:
    """Features without zeros among the valid ones; padding holds 7 to show whether it is touched."""
    generator = torch.Generator().manual_seed(0)
    out = torch.full((len(lens), max(lens) + padding, num_bins), 7.0)
    for row, n in zip(out, lens):
        row[:n] = 1.0 + torch.rand(n, num_bins, generator=generator)
    return out, torch.tensor(lens)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(
    lens=st.lists(st.integers(0, 200), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    warp=st.sampled_from([0, 1, 5, 40]),
    value=st.sampled_from(["zero", "mean"]),
)
def test_padding_is_never_touched_and_lengths_stay(lens: list[int], seed: int, warp: int, value: str) -> None:
    x, lens_B = feats(lens)
    module = SpecAugment(time_warp=warp, mask_value=value, max_freq_width=30, max_time_ratio=0.2)
    y = module(x, lens_B, seeded(seed))
    assert y.shape == x.shape
    assert y.isfinite().all()
    for i, n in enumerate(lens):
        assert torch.equal(y[i, n:], x[i, n:])
    assert torch.equal(y, module(x, lens_B, seeded(seed)))


def test_identity_in_eval_mode() -> None:
    x, lens_B = feats([50])
    assert SpecAugment(time_warp=10).eval()(x, lens_B) is x


def test_widths_follow_each_length() -> None:
    lens = [1000] * 150 + [100] * 150
    x, lens_B = feats(lens, num_bins=30)
    y = SpecAugment(num_freq_masks=0, num_time_masks=1, max_time_ratio=0.05)(x, lens_B, seeded(1))
    widths = (y == 0).all(2).sum(1)
    assert widths[:150].max() == 50
    assert widths[150:].max() == 5
    assert widths.min() == 0
    assert len(set(widths[150:].tolist())) == 6
    starts = [int(row.nonzero()[0]) for row in (y == 0).all(2)[150:] if row.any()]
    assert min(starts) < 10
    assert max(starts) > 85
    z = SpecAugment(num_freq_masks=1, max_freq_width=8, num_time_masks=0)(x, lens_B, seeded(1))
    bins = (z[:, :100] == 0).all(1).sum(1)
    assert set(bins.tolist()) == set(range(9))
    edges = (z[:, :100] == 0).all(1).float().mean(0)
    assert edges.min() > 0  # every bin gets masked now and then


def test_rows_are_masked_differently_and_union_of_masks_is_applied() -> None:
    x, lens_B = feats([400] * 8)
    y = SpecAugment(num_freq_masks=2, max_freq_width=5, num_time_masks=4)(x.clone(), lens_B, seeded(0))
    masked = y == 0
    assert len({tuple(row.flatten().tolist()) for row in masked[:, :400]}) == 8
    assert torch.equal(y[~masked], x[~masked])


def test_mean_value_is_the_mean_of_valid_frames() -> None:
    x, lens_B = feats([60, 30])
    y = SpecAugment(num_freq_masks=1, num_time_masks=2, max_time_ratio=0.3, mask_value="mean")(x, lens_B, seeded(3))
    for i, n in enumerate([60, 30]):
        mean_F = x[i, :n].mean(0)
        changed = (y[i, :n] != x[i, :n]).nonzero()
        assert len(changed)
        for frame, band in changed.tolist():
            assert y[i, frame, band] == pytest.approx(float(mean_F[band]), abs=1e-5)


def reference_warp(x_TF: np.ndarray, source_T: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(source_T, np.arange(len(x_TF)), column) for column in x_TF.T], axis=1)


def test_time_warp_is_piecewise_linear() -> None:
    reach, lens = 10, [100, 64, 21, 20]
    x, lens_B = feats(lens)
    ramp = torch.arange(x.shape[1], dtype=torch.float32)
    for row, n in zip(x, lens):
        row[:n, 0] = ramp[:n]  # the first bin tells where a frame came from
    module = SpecAugment(num_freq_masks=0, num_time_masks=0, time_warp=reach)
    moved = 0.0
    for seed in range(20):
        y = module(x, lens_B, seeded(seed))
        for i, n in enumerate(lens):
            source_T = y[i, :n, 0].double().numpy()
            np.testing.assert_allclose(y[i, :n], reference_warp(x[i, :n].numpy(), source_T), atol=1e-3)
            assert source_T[0] == 0
            assert source_T[-1] == pytest.approx(n - 1, abs=1e-3)
            steps = np.diff(source_T)
            assert (steps > 0).all()
            assert len(np.unique(np.round(steps, 2))) <= 4  # two slopes, and the frame between them
            moved = max(moved, float(np.abs(source_T - np.arange(n)).max()))
            if n <= 2 * reach:
                np.testing.assert_array_equal(source_T, np.arange(n))
    assert 5 < moved <= reach + 1


def test_half_precision_and_views() -> None:
    x, lens_B = feats([50, 40])
    y = SpecAugment(time_warp=5)(x.half(), lens_B, seeded(0))
    assert y.dtype == torch.float16
    views = SpecAugment()(torch.cat([x, x]), torch.cat([lens_B, lens_B]), seeded(0))
    assert not torch.equal(views[:2], views[2:])


@pytest.mark.parametrize("options", [{"num_freq_masks": -1}, {"max_time_ratio": 1.5}, {"time_warp": -3}, {"mask_value": "noise"}])
def test_errors_name_the_option(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SpecAugment(**options)

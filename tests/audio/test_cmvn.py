"""Normalisation: masked statistics, padding, fitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio.cmvn import GlobalCmvn, UtteranceCmvn


@settings(max_examples=30, deadline=None)
@given(lens=st.lists(st.integers(1, 40), min_size=1, max_size=4), padding=st.integers(0, 30), variance=st.booleans())
def test_utterance_statistics_cover_valid_frames(lens: list[int], padding: int, variance: bool) -> None:
    rng = np.random.default_rng(sum(lens))
    rows = [rng.normal(-7.0, 3.0, (n, 5)).astype(np.float32) for n in lens]
    feats_BTF = torch.full((len(rows), max(lens) + padding, 5), 1e4)  # padding must not matter, whatever it is
    for i, row in enumerate(rows):
        feats_BTF[i, : len(row)] = torch.from_numpy(row)
    out_BTF = UtteranceCmvn(normalize_variance=variance)(feats_BTF, torch.tensor(lens))
    for i, row in enumerate(rows):
        wide = row.astype(np.float64)
        expected = wide - wide.mean(0)
        if variance:
            expected /= wide.std(0) + 1e-5
        np.testing.assert_allclose(out_BTF[i, : len(row)], expected, atol=1e-3 if len(row) > 1 else 0.2)
        assert not out_BTF[i, len(row) :].any()
        alone = UtteranceCmvn(normalize_variance=variance)(torch.from_numpy(row)[None], torch.tensor([len(row)]))
        assert torch.equal(alone[0], out_BTF[i, : len(row)])


def test_one_frame_and_constant_bins_become_zero() -> None:
    out = UtteranceCmvn()(torch.full((2, 3, 4), -5.5), torch.tensor([1, 3]))
    assert not out.any()
    assert torch.equal(UtteranceCmvn()(torch.ones(1, 3, 4), torch.tensor([0])), torch.zeros(1, 3, 4))


def test_global_statistics_are_those_of_all_frames() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.normal(1000.0, [0.5, 2.0, 5.0], (n, 3)).astype(np.float32) for n in (7, 1, 500, 33)]
    batches = []
    for x in frames:
        padded = torch.full((1, len(x) + 4, 3), 1e6)
        padded[0, : len(x)] = torch.from_numpy(x)
        batches.append((padded, torch.tensor([len(x)])))
    cmvn = GlobalCmvn(dim=3).fit(batches)
    together = np.concatenate(frames).astype(np.float64)
    np.testing.assert_allclose(cmvn.mean, together.mean(0), rtol=1e-6)
    np.testing.assert_allclose(cmvn.std, together.std(0), rtol=1e-5)
    assert int(cmvn.count) == len(together)
    out = cmvn(*batches[2])
    np.testing.assert_allclose(out[0, :500], (frames[2] - together.mean(0)) / together.std(0), atol=1e-3)
    assert not out[0, 500:].any()
    copy = GlobalCmvn(dim=3)
    copy.load_state_dict(cmvn.state_dict())
    assert torch.equal(copy(*batches[2]), out)


def test_global_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="held no frame"):
        GlobalCmvn(dim=3).fit([])
    with pytest.raises(ValueError, match="NaN or infinite"):
        GlobalCmvn(dim=1).fit([(torch.tensor([[[float("nan")]]]), torch.tensor([1]))])
    with pytest.raises(ValueError, match="dim=0"):
        GlobalCmvn(dim=0)
    constant = GlobalCmvn(dim=2).fit([(torch.ones(1, 9, 2), torch.tensor([9]))])
    assert (constant.std > 0).all()

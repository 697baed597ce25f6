"""Trigger masks against a slow loop; the extractor against attention over each token's own frames."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.nn.positional import sinusoids
from speechkit.nn.token_acoustic import TokenAcousticExtractor, trigger_mask


def slow_mask(spikes: list[int], frames: int, places: int, width: int, left: int, right: int) -> Tensor:
    """One utterance, one place and one frame at a time."""
    mask = torch.zeros(places, width, dtype=torch.bool)
    if not frames:
        return mask
    owned = []
    begin = 0
    for spike in spikes:
        owned.append(range(begin, spike + 1))
        begin = spike + 1
    owned.append(range(begin, frames) if begin < frames else range(frames - 1, frames))
    for place, own in enumerate(owned):
        for t in own:
            mask[place, max(t - left, 0) : min(t + right + 1, frames)] = True
    return mask


rows_of_spikes = st.integers(0, 12).flatmap(
    lambda frames: st.tuples(st.just(frames), st.sets(st.integers(0, max(frames - 1, 0)), max_size=6 if frames else 0))
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(rows_of_spikes, min_size=1, max_size=5), left=st.integers(0, 2), right=st.integers(0, 2))
def test_masks_equal_a_slow_loop_and_partition_the_frames(rows: list[tuple[int, set[int]]], left: int, right: int) -> None:
    spikes = torch.full((len(rows), 6), -1)
    for row, (_, own) in enumerate(rows):
        spikes[row, : len(own)] = torch.tensor(sorted(own), dtype=torch.long)
    token_lens, lens = torch.tensor([len(own) for _, own in rows]), torch.tensor([frames for frames, _ in rows])
    mask = trigger_mask(spikes, token_lens, lens, 14, left=left, right=right)
    for row, (frames, own) in enumerate(rows):
        assert torch.equal(mask[row], slow_mask(sorted(own), frames, 7, 14, left, right))
    plain = trigger_mask(spikes, token_lens, lens, 14)
    for row, (frames, own) in enumerate(rows):
        shared = frames > 0 and frames - 1 in own  # by the last token and the end of sentence
        assert plain[row].sum(dim=0).tolist() == [1 + (shared and t == frames - 1) if t < frames else 0 for t in range(14)]
        assert plain[row, : len(own) + 1].any(dim=1).all() == (frames > 0)


def build(**settings: float) -> TokenAcousticExtractor:
    torch.manual_seed(0)
    return TokenAcousticExtractor(dim=8, num_heads=1, ff_dim=16, **{"dropout": 0.0, **settings})  # type: ignore[arg-type]


def test_each_token_attends_to_its_own_frames() -> None:
    extractor, source = build(), torch.randn(2, 9, 8)
    mask = trigger_mask(torch.tensor([[2, 6], [4, 0]]), torch.tensor([2, 1]), torch.tensor([9, 7]), 9, left=1)
    attention = extractor.attention
    out = extractor(*attention.keys_values(source), mask)
    places = sinusoids(torch.arange(3), 8)
    key, value = attention.key_value(source).chunk(2, dim=-1)
    for row, count in ((0, 3), (1, 2)):
        for place in range(count):
            own = mask[row, place]
            weights = (key[row, own] @ attention.query(places[place]) / math.sqrt(8)).softmax(dim=0)
            x = attention.out(weights @ value[row, own]) * math.sqrt(8) + places[place]
            torch.testing.assert_close(out[row, place], x + extractor.feed_forward(x), atol=1e-5, rtol=1e-5)
    assert out.isfinite().all()  # also where there is no token


def test_frames_of_others_change_nothing() -> None:
    extractor, source = build().eval(), torch.randn(1, 9, 8)
    mask = trigger_mask(torch.tensor([[2, 6]]), torch.tensor([2]), torch.tensor([9]), 9)
    changed = source.clone()
    changed[:, 3:7] += 1.0
    before, after = (extractor(*extractor.attention.keys_values(x), mask)[0] for x in (source, changed))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])

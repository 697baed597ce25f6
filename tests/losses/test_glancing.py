from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.losses.glancing import glance, random_positions

RATIOS = ["0", "0.2", "0.29", "0.4", "0.75", "1"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.sampled_from(RATIOS), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_shows_exactly_the_share_of_what_was_wrong(lens: list[int], ratio: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 4, (len(lens), max(lens)), generator=generator)
    predictions = torch.randint(0, 4, tokens.shape, generator=generator)
    shown = glance(predictions, tokens, torch.tensor(lens), ratio=float(ratio), generator=generator)
    assert shown.shape == tokens.shape
    for row, length in enumerate(lens):
        wrong = sum(int(predictions[row, u] != tokens[row, u]) for u in range(length))
        assert int(shown[row].sum()) == int(wrong * Fraction(ratio))
        assert not shown[row, length:].any()


@pytest.mark.parametrize("wrong", [29, 100])
def test_shares_are_not_rounded_down_by_floating_point(wrong: int) -> None:
    tokens = torch.ones(1, wrong, dtype=torch.long)
    shown = glance(tokens * 0, tokens, torch.tensor([wrong]), ratio=0.29)
    assert int(shown.sum()) == int(wrong * Fraction("0.29"))


def test_every_valid_position_is_as_likely() -> None:
    valid = torch.arange(8).expand(20_000, -1) < 6
    drawn = random_positions(valid, torch.full((20_000,), 2), generator=torch.Generator().manual_seed(0))
    assert (drawn.sum(1) == 2).all()
    torch.testing.assert_close(drawn.float().mean(0), valid[0] / 3, atol=0.015, rtol=0)
    pairs = drawn.float().T @ drawn.float() / len(drawn)  # P(both) = 1/3 * 1/5
    torch.testing.assert_close(pairs[0, 1:6], torch.full((5,), 1 / 15), atol=0.01, rtol=0)

"""The planning mathematics against slow references."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.plan import Budget, Columns, Layout, cut, make_plan, strip_levels

capacities = st.lists(st.integers(1, 40), max_size=80).map(lambda values: np.array(values, dtype=np.uint16))


def slow_cut(capacity: list[int], world_size: int) -> list[int]:
    """A step is as long as its first member allows and the least of the members that it would have then."""
    cuts = [0]
    while cuts[-1] < len(capacity):
        begin = cuts[-1]
        window = capacity[begin : begin + capacity[begin] * world_size]
        size = min(window) * world_size
        if begin + size > len(capacity):
            break
        cuts.append(begin + size)
    return cuts


@settings(max_examples=300, deadline=None)
@given(capacities, st.integers(1, 4))
def test_cut_agrees_with_a_loop_and_keeps_the_capacity(capacity, world_size):
    cuts = cut(capacity, world_size)
    assert cuts.tolist() == slow_cut(capacity.tolist(), world_size)
    for begin, end in pairwise(cuts.tolist()):
        assert world_size <= end - begin <= world_size * capacity[begin:end].min()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=30), st.floats(0.5, 500.0), st.sampled_from([None, 15.0]))
def test_capacity_is_the_largest_batch_under_the_budget(durations, max_batch_seconds, quadratic_duration):
    budget = Budget(max_batch_seconds, quadratic_duration)
    seconds = np.array(durations)
    for size, cost in zip(budget.capacity(seconds, None).tolist(), budget.cost(seconds).tolist()):
        assert size * cost <= max_batch_seconds
        assert (size + 1) * cost > max_batch_seconds * (1 - 1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.05, 3000.0), min_size=1, max_size=200), st.integers(1, 30))
def test_strip_levels_keep_the_order_of_durations(durations, num_strips):
    seconds = np.array(durations)
    capacity = Budget(3000.0).capacity(seconds, None)
    levels = strip_levels(seconds, capacity, num_strips=num_strips, min_batches=2.0)
    assert (np.diff(levels[np.argsort(seconds)].astype(int)) >= 0).all()


def test_strips_waste_less_than_equally_wide_and_equally_full_ones():
    rng = np.random.default_rng(0)
    seconds = np.concatenate([16.8 - np.abs(rng.normal(0, 1.9, 40_000)), rng.uniform(1.4, 12.5, 10_000)]).clip(1.3, 35)
    capacity = Budget(30.0).capacity(seconds, None)
    levels = strip_levels(seconds, capacity, num_strips=30, min_batches=8.0).astype(float)

    def waste(position: np.ndarray) -> float:
        """Padding when every strip is padded to its longest, positions in [0, 1]."""
        strip = np.minimum((position * 30).astype(int), 29)
        longest = np.zeros(30)
        np.maximum.at(longest, strip, seconds)
        return float((longest[strip] - seconds).sum())

    width = (seconds - seconds.min()) / np.ptp(seconds)
    fullness = np.argsort(np.argsort(seconds)) / len(seconds)
    assert waste(levels / 65536) < min(waste(width), waste(fullness))


@pytest.mark.parametrize("fixed_rows", [False, True])
@pytest.mark.parametrize("world_size", [1, 3])
def test_plan_covers_its_columns_and_bounds_its_pieces(fixed_rows, world_size):
    rng = np.random.default_rng(1)
    num = 4001
    strips = rng.integers(0, 5 if fixed_rows else 65536, num).astype(np.uint16)
    capacity = rng.integers(5, 9, num).astype(np.uint16)
    columns = Columns(capacity, strips, rng.integers(0, 50, num))
    layout = Layout(num_strips=5, fixed_rows=fixed_rows, window=2.0, shuffle=True, drop_last=False)
    plan = make_plan(columns, layout=layout, world_size=world_size, rng=np.random.default_rng(0))
    pieces = [(begin, end) for rank in range(world_size) for begin, end in zip(*plan.bounds(rank))]
    members = [plan.indices[begin:end] for begin, end in pieces]
    assert sorted(np.concatenate(members).tolist()) == list(range(num))
    assert all(len(batch) <= capacity[batch].min() for batch in members)
    if fixed_rows:
        assert all(len(np.unique(strips[batch])) == 1 for batch in members)


def test_empty_columns_make_an_empty_plan():
    nothing = np.empty(0, dtype=np.uint16)
    layout = Layout(num_strips=1, fixed_rows=False, window=1.0, shuffle=True, drop_last=False)
    plan = make_plan(Columns(nothing, nothing, None), layout=layout, world_size=2, rng=np.random.default_rng(0))
    assert len(plan) == 0

"""Mixing corpora: shares, cycles, nesting, determinism, and mixtures in the sampler."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.mixing import Group, Mixture, consecutive_groups, flatten
from speechkit.data.sampler import BucketBatchSampler


def test_weights_multiply_along_nested_groups():
    tree = Group(
        "",
        groups=[
            Group("read", weight=3.0, groups=[Group("a", range(10), weight=1.0), Group("b", range(10, 40), weight=1.0)]),
            Group("far", range(40, 50), weight=1.0),
        ],
    )
    assert [(name, share) for name, _, share in flatten(tree)] == [("read/a", 0.375), ("read/b", 0.375), ("far", 0.25)]


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, [0.9, 0.1]), (0.5, [0.75, 0.25]), (0.0, [0.5, 0.5])])
def test_temperature_lifts_small_corpora(temperature, shares):
    mixture = Mixture(groups=consecutive_groups({"large": 900, "small": 100}), temperature=temperature)
    assert mixture.shares_G == pytest.approx(shares)
    assert mixture.quotas_G.sum() == 1000


def test_temperature_of_a_nested_group_is_its_own():
    inner = Group("inner", groups=[Group("x", range(100, 116)), Group("y", range(116, 120))], temperature=0.5)
    mixture = Mixture(groups=[Group("outer", range(80)), inner])
    assert mixture.shares_G == pytest.approx([0.8, 0.2 * 4 / 6, 0.2 * 2 / 6])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.floats(0.5, 4.0), min_size=4, max_size=4),
    st.integers(20, 150),
    st.integers(0, 5),
)
def test_streams_use_every_utterance_equally_often(sizes, weights, epoch_size, seed):
    names = [f"c{number}" for number in range(len(sizes))]
    groups = consecutive_groups(dict(zip(names, sizes)), weights=dict(zip(names, weights)))
    mixture = Mixture(groups=groups, epoch_size=epoch_size, seed=seed)
    used: Counter[int] = Counter()
    for epoch in range(7):
        indices = mixture.epoch(epoch)
        assert len(indices) == epoch_size
        used.update(indices.tolist())
    for group in groups:
        counts = [used[index] for index in group.indices]
        assert max(counts) - min(counts) <= 1  # a corpus is used up before it is reshuffled
    assert np.abs(mixture.quotas_G - mixture.shares_G * epoch_size).max() < 1.0


def test_epochs_do_not_depend_on_those_before():
    groups = consecutive_groups({"a": 30, "b": 7}, weights={"a": 1.0, "b": 1.0})
    one, two = (Mixture(groups=groups, epoch_size=25, seed=3) for _ in range(2))
    in_order = [one.epoch(epoch).tolist() for epoch in range(4)]
    assert [two.epoch(epoch).tolist() for epoch in (3, 1)] == [in_order[3], in_order[1]]
    assert in_order[0] != Mixture(groups=groups, epoch_size=25, seed=4).epoch(0).tolist()


@pytest.mark.parametrize(("epoch_size", "quota"), [("all_once", 80), ("until_first_ends", 10), (None, 45), (30, 15)])
def test_epoch_sizes(epoch_size, quota):
    groups = consecutive_groups({"a": 80, "b": 10}, weights={"a": 1.0, "b": 1.0})
    assert Mixture(groups=groups, epoch_size=epoch_size).quotas_G.tolist() == [quota, quota]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group("x"), "either indices or groups"),
        (lambda: Group("x", range(3), weight=0.0), "weight is 0.0"),
        (lambda: Mixture(groups=[Group("a", range(3)), Group("b", range(2, 5))]), "utterance 2 is in more than one"),
        (lambda: Mixture(groups=[Group("a", range(0))]), "'a' is empty"),
        (lambda: Mixture(groups=consecutive_groups({"a": 1000, "b": 1}), epoch_size=5), "gives group 'b' no utterance"),
        (lambda: Mixture(groups=[Group("a", range(3))], epoch_size=0), "epoch_size is 0"),
        (lambda: consecutive_groups({"a": 1}, weights={"c": 1.0}), r"weights names \['c'\]"),
    ],
)
def test_wrong_groups_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mixture_in_the_sampler():
    rng = np.random.default_rng(0)
    durations = np.concatenate([rng.uniform(1, 4, 3000), rng.uniform(8, 20, 600)])
    groups = consecutive_groups({"short": 3000, "long": 600}, weights={"short": 1.0, "long": 1.0})
    ranks = [
        BucketBatchSampler(durations=durations, groups=groups, epoch_size=2000, rank=rank, world_size=2) for rank in range(2)
    ]
    drawn = Counter(index for sampler in ranks for batch in sampler for index in batch)
    assert drawn == Counter(Mixture(groups=groups, epoch_size=2000, seed=0).epoch(0).tolist())
    report = ranks[0].padding_report()
    assert [(share.name, share.utterances) for share in report.shares] == [("short", 1000), ("long", 1000)]
    assert report.shares[0].realised_seconds < 0.2
    assert "corpus short" in str(report)
    assert all(len(batch) * durations[batch].max() <= 360 for sampler in ranks for batch in sampler)
    state = ranks[0].state_dict(next_batch=3)
    remaining = list(ranks[0])[3:]
    ranks[0].load_state_dict(state)
    assert list(ranks[0]) == remaining


def test_excluded_utterances_leave_their_group():
    groups = consecutive_groups({"a": 3, "b": 2})
    sampler = BucketBatchSampler(durations=[1.0, 500.0, 1.0, 2.0, 2.0], groups=groups, too_long="exclude")
    assert sorted(index for batch in sampler for index in batch) == [0, 2, 3, 4]

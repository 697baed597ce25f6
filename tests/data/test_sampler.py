"""The sampler as its users meet it: budget, coverage, lock-step, epochs, resume, reports."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.buckets import BatchSizeRow, BatchSizeTable
from speechkit.data.sampler import BucketBatchSampler


def librispeech_like(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Durations and token counts of the distribution that the toolkit's padding figures are stated on."""
    rng = np.random.default_rng(seed)
    num_read = int(0.72 * num)
    read = 16.8 - np.abs(rng.normal(0.0, 1.9, num_read))
    durations = rng.permutation(np.concatenate([read, rng.uniform(1.4, 12.5, num - num_read)])).clip(1.3, 35.0)
    tokens = durations * rng.normal(3.2, 0.55, num).clip(1.5, 6.0)
    return durations.astype(np.float32), np.maximum(tokens, 1).astype(np.int32)


def pair_repeat(before: list[list[int]], after: list[list[int]]) -> float:
    """Part of the pairs that share a batch in `before` and share one again in `after`, by counting."""
    batch_after = {index: number for number, batch in enumerate(after) for index in batch}
    pairs = sum(len(batch) * (len(batch) - 1) for batch in before)
    again = sum(n * (n - 1) for batch in before for n in Counter(batch_after[index] for index in batch).values())
    return again / pairs


def padded(durations: np.ndarray, batch: list[int]) -> float:
    return len(batch) * float(np.max(durations[batch]))


duration_lists = st.one_of(
    st.lists(st.floats(0.1, 360.0), min_size=1, max_size=120),
    st.lists(st.sampled_from([0.3, 5.0, 359.0]), min_size=1, max_size=120),
    st.integers(1, 120).map(lambda num: [7.25] * num),
)


@settings(max_examples=120, deadline=None)
@given(
    duration_lists, st.sampled_from([1, 2, 3, 8]), st.booleans(), st.booleans(), st.integers(0, 3), st.sampled_from([None, 30])
)
def test_every_utterance_once_under_budget_on_ranks_in_step(durations, world_size, with_tokens, shuffle, epoch, num_buckets):
    seconds = np.array(durations)
    tokens = np.arange(len(seconds)) % 17 if with_tokens else None
    ranks = [
        BucketBatchSampler(
            durations=seconds, num_tokens=tokens, rank=rank, world_size=world_size, shuffle=shuffle, num_buckets=num_buckets
        )
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    lengths = [len(sampler) for sampler in ranks]
    batches = [list(sampler) for sampler in ranks]
    assert {len(own) for own in batches} == set(lengths) == {lengths[0]}
    for step in zip(*batches):
        assert all(step), "a rank without a batch"
        assert max(map(len, step)) - min(map(len, step)) <= 1
        assert all(padded(seconds, batch) <= 360.0 for batch in step)
    drawn = Counter(index for own in batches for batch in own for index in batch)
    report = ranks[0].padding_report()
    assert drawn - Counter(range(len(seconds))) == Counter(report.repeated)
    assert set(drawn) == set(range(len(seconds)))
    assert len(report.repeated) < world_size
    singles = all(len(batch) == 1 for own in batches for batch in own)
    assert not report.repeated or singles or len(seconds) < world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_hold_alike_batches_at_each_step(world_size):
    durations, tokens = librispeech_like(20_000)
    ranks = [
        BucketBatchSampler(durations=durations, num_tokens=tokens, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    longest = np.array([[durations[batch].max() for batch in sampler] for sampler in ranks])
    assert np.quantile(longest.max(axis=0) / longest.min(axis=0), 0.95) < 1.15
    assert ranks[0].padding_report().idle_percent < 2.0


def test_padding_shuffling_and_utilisation_on_librispeech_like_data():
    durations, tokens = librispeech_like(20_000)
    sampler = BucketBatchSampler(durations=durations, num_tokens=tokens, max_batch_seconds=100.0)
    report = sampler.padding_report()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert report.audio_percent <= 2.0
    assert report.token_percent is not None
    assert report.token_percent <= 5.0
    assert report.utilisation_percent >= 90.0  # six utterances of 15 s leave 10 of 100 s
    assert pair_repeat(first, second) <= 0.10
    assert len({tuple(batch) for batch in first} & {tuple(batch) for batch in second}) == 0


@pytest.mark.parametrize("num", [1_000, 5_000])
@pytest.mark.parametrize("num_buckets", [None, 30])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_batch_mates_change_on_small_data_too(num, num_buckets, with_tokens):
    durations, tokens = librispeech_like(num)
    sampler = BucketBatchSampler(
        durations=durations, num_tokens=tokens if with_tokens else None, max_batch_seconds=180.0, num_buckets=num_buckets
    )
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert np.mean([pair_repeat(a, b) for a, b in pairwise(epochs)]) <= 0.10


def test_batch_order_does_not_reveal_lengths():
    durations, tokens = librispeech_like(20_000)
    batches = list(BucketBatchSampler(durations=durations, num_tokens=tokens))
    longest = np.array([durations[batch].max() for batch in batches])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.15
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.15


def test_lists_arrays_and_memory_maps_give_the_same_plan(tmp_path):
    durations, tokens = librispeech_like(500)
    np.save(tmp_path / "durations.npy", durations)
    mapped = np.load(tmp_path / "durations.npy", mmap_mode="r")
    plans = [
        list(BucketBatchSampler(durations=seconds, num_tokens=counts, seed=3))
        for seconds, counts in ((durations, tokens), (durations.tolist(), tokens.tolist()), (mapped, tokens))
    ]
    assert plans[0] == plans[1] == plans[2]


def test_epochs_are_deterministic_and_differ():
    durations, tokens = librispeech_like(2_000)
    one, two, other = (BucketBatchSampler(durations=durations, num_tokens=tokens, seed=seed) for seed in (0, 0, 1))
    assert list(one) == list(one) == list(two) != list(other)
    zero = list(one)
    one.set_epoch(1)
    assert list(one) != zero
    one.set_epoch(0)
    assert list(one) == zero


def test_unshuffled_plan_is_sorted_and_constant():
    durations, tokens = librispeech_like(3_000)
    sampler = BucketBatchSampler(durations=durations, num_tokens=tokens, shuffle=False)
    batches = list(sampler)
    sampler.set_epoch(5)
    assert list(sampler) == batches
    longest = np.array([durations[batch].max() for batch in batches])
    assert np.corrcoef(longest, np.arange(len(longest)))[0, 1] < -0.8
    assert BucketBatchSampler(durations=durations, shuffle=False).padding_report().audio_percent < 2.0


@given(st.integers(1, 8), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_limits_on_size_tokens_and_quadratic_cost(max_batch_size, max_batch_tokens):
    durations, tokens = librispeech_like(300)
    tokens = np.minimum(tokens, max_batch_tokens)
    sampler = BucketBatchSampler(
        durations=durations, num_tokens=tokens, max_batch_seconds=200.0, max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens, quadratic_duration=15.0,
    )  # fmt: skip
    for batch in sampler:
        longest = float(durations[batch].max())
        assert len(batch) <= max_batch_size
        assert len(batch) * tokens[batch].max() <= max_batch_tokens
        assert len(batch) * (longest + longest**2 / 15.0) <= 200.0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_table_of_batch_sizes_is_honoured(world_size, tmp_path):
    durations, tokens = librispeech_like(3_000)
    table = BatchSizeTable(
        (BatchSizeRow(8.0, 25, 30), BatchSizeRow(8.0, 60, 20), BatchSizeRow(17.0, 50, 9), BatchSizeRow(17.0, 150, 5))
    )
    table.save(tmp_path / "sizes.yaml")
    used = Counter()
    for rank in range(world_size):
        sampler = BucketBatchSampler(
            durations=durations, num_tokens=tokens, batch_sizes=tmp_path / "sizes.yaml", rank=rank, world_size=world_size
        )
        rows = table.place(durations, tokens)
        for batch in sampler:
            in_one_row = len(set(rows[batch].tolist())) == 1
            assert in_one_row
            assert len(batch) <= table.rows[rows[batch[0]]].batch_size
            used.update(batch)
    assert used == Counter(range(3_000))
    assert sampler.padding_report().utilisation_percent > 95.0


def test_drop_last_reports_what_it_leaves_out_and_varies_it():
    durations, tokens = librispeech_like(1_000)
    left_out = []
    for epoch in range(20):
        sampler = BucketBatchSampler(durations=durations, num_tokens=tokens, world_size=2, drop_last=True)
        sampler.set_epoch(epoch)
        report = sampler.padding_report()
        assert report.num_utterances + len(report.left_out) == 1_000
        left_out.append(frozenset(report.left_out))
    assert len(set(left_out)) > 10
    assert not frozenset.intersection(*left_out)


def test_too_long_is_refused_by_name_or_excluded_with_report(caplog):
    durations = [5.0, 400.0, 6.0]
    with pytest.raises(ValueError, match=r"index 1 \(400\.00 s\).*too_long='exclude'"):
        BucketBatchSampler(durations=durations)
    sampler = BucketBatchSampler(durations=durations, too_long="exclude")
    assert "1 of 3 utterances are excluded" in caplog.text
    assert sorted(index for batch in sampler for index in batch) == [0, 2]
    report = sampler.padding_report()
    assert report.excluded == (1,)
    assert "1: indices 1" in str(report)


def test_rate_outliers_are_reported_and_only_excluded_on_demand():
    durations, tokens = librispeech_like(2_000)
    tokens[77] = 900
    sampler = BucketBatchSampler(durations=durations, num_tokens=tokens)
    assert 77 in sampler.padding_report().outliers
    assert 77 in {index for batch in sampler for index in batch}
    strict = BucketBatchSampler(durations=durations, num_tokens=tokens, max_tokens_per_second=20.0, outliers="exclude")
    assert strict.padding_report().outliers == strict.padding_report().excluded == (77,)
    assert 77 not in {index for batch in strict for index in batch}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durations": []}, "at least one"),
        ({"durations": [1.0, float("nan")]}, r"durations\[1\] is nan"),
        ({"durations": [1.0, 0.0]}, r"durations\[1\] is 0.0"),
        ({"durations": [1.0], "num_tokens": [1, 2]}, "num_tokens has shape"),
        ({"durations": [1.0], "num_tokens": [-1]}, r"num_tokens\[0\] is -1"),
        ({"durations": [1.0], "num_tokens": [1.5]}, "whole numbers"),
        ({"durations": [1.0], "rank": 2, "world_size": 2}, "rank is 2"),
        ({"durations": [1.0], "max_batch_seconds": 0}, "max_batch_seconds is 0"),
        ({"durations": [1.0], "num_buckets": 0}, "num_buckets is 0"),
        ({"durations": [1.0], "seed": -1}, "seed is -1"),
        ({"durations": [1.0], "pair_repeat": 0.0}, "pair_repeat is 0"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        BucketBatchSampler(**options)


def test_padding_report_agrees_with_counting():
    durations, tokens = librispeech_like(3_000)
    ranks = [BucketBatchSampler(durations=durations, num_tokens=tokens, rank=rank, world_size=3) for rank in range(3)]
    batches = [list(sampler) for sampler in ranks]
    flat = [batch for own in batches for batch in own]
    seconds = np.array([[padded(durations, batch) for batch in own] for own in batches])
    paid_tokens = sum(len(batch) * int(tokens[batch].max()) for batch in flat)
    report = ranks[1].padding_report()
    assert report.audio_percent == pytest.approx(100 * (1 - durations.sum(dtype=float) / seconds.sum()))
    assert report.token_percent == pytest.approx(100 * (1 - tokens.sum() / paid_tokens))
    assert report.mean_batch_seconds == pytest.approx(seconds.mean())
    assert report.mean_batch_size == pytest.approx(np.mean([len(batch) for batch in flat]))
    assert report.idle_percent == pytest.approx(100 * (1 - seconds.sum() / (3 * seconds.max(axis=0).sum())))
    assert report.utilisation_percent == pytest.approx(100 * seconds.mean() / 360.0)
    assert f"{report.audio_percent:.2f} %" in str(report)


def test_sampler_property_is_itself():
    sampler = BucketBatchSampler(durations=[1.0])
    assert sampler.sampler is sampler

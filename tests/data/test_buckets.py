"""Bin estimation, placing in tables, their files, and rate outliers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.buckets import BatchSizeRow, BatchSizeTable, Bin, Bins, estimate_bins


def corpus(num: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    durations = rng.gamma(4.0, 2.0, num).clip(0.5, 30.0)
    return durations, np.maximum(durations * rng.normal(4.0, 0.6, num), 1).astype(int)


def test_buckets_have_equal_duration_and_sub_buckets_equal_tokens():
    durations, _ = corpus()
    tokens = (durations * np.random.default_rng(1).normal(400.0, 60.0, len(durations))).astype(int)  # hardly any equal
    bins = estimate_bins(durations, tokens, num_buckets=10, num_sub_buckets=3)
    assert len(bins.rows) == 30
    assert bins.rows[-1].max_duration == durations.max()
    low = 0.0
    for bound in sorted({row.max_duration for row in bins.rows}):
        inside = (durations > low) & (durations <= bound)
        assert durations[inside].sum() == pytest.approx(durations.sum() / 10, rel=0.05)
        least, limits = -1, [row.max_tokens for row in bins.rows if row.max_duration == bound]
        for limit in limits:
            part = tokens[inside & (tokens > least) & (tokens <= limit)].sum()
            assert part == pytest.approx(tokens[inside].sum() / 3, rel=0.05)
            least = limit
        low = bound


def test_one_dimension_without_tokens():
    bins = estimate_bins([1.0] * 8 + [8.0], num_buckets=2)
    assert bins.rows == (Bin(1.0), Bin(8.0))


def test_mass_at_one_length_merges_buckets_and_keeps_their_sub_buckets():
    rng = np.random.default_rng(0)
    durations = np.concatenate([rng.uniform(1, 29, 500), np.full(2000, 30.0)])
    tokens = rng.integers(10, 150, 2500)
    bins = estimate_bins(durations, tokens, num_buckets=10, num_sub_buckets=2)
    chunks = [row for row in bins.rows if row.max_duration == 30.0]
    assert len({row.max_duration for row in bins.rows}) < 10
    assert len(chunks) >= 14


def test_outliers_do_not_shape_bounds_but_are_named():
    durations, tokens = corpus()
    tokens[42] = 5000
    bins = estimate_bins(durations, tokens, num_buckets=5)
    assert 42 in bins.outliers
    assert max(row.max_tokens for row in bins.rows) < 200
    assert all(row.max_tokens_per_second < 10 for row in bins.rows)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 100.0), st.integers(0, 200)), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_every_regular_utterance_has_a_bucket(utterances, num_buckets, num_sub_buckets):
    durations, tokens = (np.array(column) for column in zip(*utterances))
    bins = estimate_bins(durations, tokens, num_buckets=num_buckets, num_sub_buckets=num_sub_buckets)
    assert len(bins.rows) <= num_buckets * num_sub_buckets
    table = BatchSizeTable(tuple(BatchSizeRow(row.max_duration, row.max_tokens, 4) for row in bins.rows))
    placed = table.place(durations, tokens)
    regular = np.setdiff1d(np.arange(len(durations)), bins.outliers)
    assert (placed[regular] >= 0).all()
    for index in np.flatnonzero(placed >= 0):
        assert durations[index] <= table.rows[placed[index]].max_duration
        assert tokens[index] <= table.rows[placed[index]].max_tokens


def test_place_prefers_the_own_bucket_and_else_the_cheapest_that_holds():
    rows = (5.0, 10, 40), (5.0, 20, 30), (10.0, 30, 9), (10.0, 60, 8)
    table = BatchSizeTable(tuple(BatchSizeRow(*row) for row in rows))
    durations = np.array([5.0, 4.0, 4.0, 4.0, 9.0, 9.0, 11.0])
    tokens = np.array([10, 11, 25, 55, 30, 70, 1])
    assert table.place(durations, tokens).tolist() == [0, 1, 2, 3, 2, -1, -1]


def test_files(tmp_path):
    bins = estimate_bins(*corpus(200), num_buckets=3)
    bins.save(tmp_path / "deep" / "bins.yaml")
    assert Bins.load(tmp_path / "deep" / "bins.yaml") == bins
    table = BatchSizeTable((BatchSizeRow(5.0, None, 3),), measured={"device": "cpu"})
    table.save(tmp_path / "sizes.yaml")
    assert BatchSizeTable.load(tmp_path / "sizes.yaml") == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping"),
        ("rows: 3", "no list 'rows'"),
        ("rows: [{max_duration: 1.0, size: 3}]", r"rows\[0\] is .*expected the fields"),
        ("rows: [{max_duration: 1.0}]", "batch_size"),
        ("rows: []", "rows is empty"),
        ("rows: [{max_duration: 1.0, max_tokens: 5, batch_size: 0}]", r"rows\[0\].batch_size is 0"),
        (
            "rows: [{max_duration: 2.0, max_tokens: 5, batch_size: 1}, {max_duration: 1.0, max_tokens: 5, batch_size: 1}]",
            "sort by max_duration",
        ),
        ("rows: [", "cannot be read as YAML"),
    ],
)
def test_broken_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "sizes.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        BatchSizeTable.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durations": []}, "at least one"),
        ({"durations": [0.0]}, "positive"),
        ({"durations": [1.0], "num_buckets": 0}, "num_buckets is 0"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        estimate_bins(**options)


def test_tables_are_readable():
    lines = str(Bins((Bin(1.5, 7, 4.25), Bin(30.0, None, None)), outliers=(3,))).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["max_duration", "max_tokens", "max_tokens_per_second"],
        ["1.50", "7", "4.25"],
        ["30.00", "any", "any"],
    ]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3].startswith("1 tokens-per-second outliers")
    assert str(BatchSizeTable((BatchSizeRow(2.0, 5, 64),))).splitlines()[1].split() == ["2.00", "5", "64"]

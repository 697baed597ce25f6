"""Purities and shared information of units against tables computed by hand and against scikit-learn's definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.metrics.units import phones_at, purity, unit_quality


def test_a_table_by_hand() -> None:
    # unit 0: 4 a, 1 b; unit 1: 2 b; unit 2: 1 a, 2 c
    quality = unit_quality(np.array([[4, 1, 0], [0, 2, 0], [1, 0, 2]]))
    assert quality.phone_purity == pytest.approx((4 + 2 + 2) / 10)
    assert quality.cluster_purity == pytest.approx((4 + 2 + 2) / 10)
    phones = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    given_unit_0 = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    given_unit_2 = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    conditional = 0.5 * given_unit_0 + 0.3 * given_unit_2
    assert quality.pnmi == pytest.approx((phones - conditional) / phones)
    assert (quality.num_frames, quality.num_units, quality.num_phones) == (10, 3, 3)


def test_purities_differ_where_units_split_phones() -> None:
    split = unit_quality(np.array([[3, 0], [3, 0], [2, 0], [0, 8]]))  # three units for the first phone
    assert (split.phone_purity, split.pnmi) == (1.0, pytest.approx(1.0))
    assert split.cluster_purity == pytest.approx(11 / 16)
    merged = unit_quality(np.array([[3, 5, 2], [0, 0, 0]]))  # one unit for all
    assert (merged.phone_purity, merged.cluster_purity) == (0.5, 1.0)
    assert merged.pnmi == pytest.approx(0.0)
    assert (merged.num_units, merged.num_phones) == (1, 3)


def test_units_of_chance_share_nothing() -> None:
    quality = unit_quality(np.outer([3, 5, 2], [10, 7]))
    assert quality.pnmi == pytest.approx(0.0, abs=1e-12)
    assert quality.phone_purity == pytest.approx(10 / 17)
    assert quality.cluster_purity == pytest.approx(0.5)


def test_few_frames_seem_to_share_what_the_docstring_says() -> None:
    rng = np.random.default_rng(0)
    units, phones = rng.integers(0, 40, 20000), rng.integers(0, 20, 20000)
    expected = 39 * 19 / (2 * 20000) / math.log(20)
    assert purity(units, phones).pnmi == pytest.approx(expected, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcd")), max_size=40), names=st.permutations(range(6)))
def test_sequences_and_tables_agree_and_names_do_not_matter(pairs: list[tuple[int, str]], names: list[int]) -> None:
    units, phones = np.array([u for u, _ in pairs], dtype=int), np.array([p for _, p in pairs], dtype=str)
    table = np.zeros((6, 4), dtype=int)
    for unit, phone in pairs:
        table[unit, "abcd".index(phone)] += 1
    found, expected = purity(units, phones), unit_quality(table)
    renamed = purity(np.array(names)[units], phones)
    for field in ("phone_purity", "cluster_purity", "pnmi"):
        value = getattr(expected, field)
        assert getattr(found, field) == pytest.approx(value, nan_ok=True)
        assert getattr(renamed, field) == pytest.approx(value, nan_ok=True)
        assert math.isnan(value) or 0.0 <= value <= 1.0
    assert found.num_units == expected.num_units == len(set(units))


def test_information_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    phones = rng.integers(0, 12, 500)
    units = (phones * 3 + rng.integers(0, 7, 500)) % 30
    shared = metrics.mutual_info_score(phones, units)
    entropy = metrics.mutual_info_score(phones, phones)
    assert purity(units, phones).pnmi == pytest.approx(shared / entropy)
    assert purity(units, phones).pnmi == pytest.approx(metrics.homogeneity_score(phones, units))


def test_without_frames_or_with_one_phone_there_is_no_figure() -> None:
    empty = purity(np.zeros(0, dtype=int), np.zeros(0, dtype=str))
    assert math.isnan(empty.phone_purity)
    assert math.isnan(empty.pnmi)
    assert (empty.num_frames, empty.num_units, empty.num_phones) == (0, 0, 0)
    one = purity(np.array([0, 1]), np.array(["a", "a"]))
    assert (one.phone_purity, one.cluster_purity) == (1.0, 0.5)
    assert math.isnan(one.pnmi)


def test_phones_at_times() -> None:
    phones = [("a", 0.1, 0.2), ("b", 0.2, 0.25), ("c", 0.4, 0.5)]
    times = np.array([0.0, 0.1, 0.19, 0.2, 0.25, 0.39, 0.4, 0.5, 0.9])
    assert phones_at(phones, times).tolist() == ["|", "a", "a", "b", "|", "|", "c", "|", "|"]
    assert phones_at([], times, silence="sil").tolist() == ["sil"] * 9
    assert phones_at(phones, np.zeros(0)).shape == (0,)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one of each for every frame"):
        purity(np.zeros(3, dtype=int), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="none below 0"):
        unit_quality(np.array([[1, -1]]))
    with pytest.raises(ValueError, match="give \\(units, phones\\)"):
        unit_quality(np.array([1, 2]))

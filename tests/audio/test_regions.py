"""Stretches of speech of a recording, found page by page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio.regions import PAGE_SECONDS, hold_back_open_region, merge_regions, speech_regions

RATE = 16000


def talk(seconds: float, pauses: list[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """Noise whose level changes as speech does, with silence between the given times."""
    rng = np.random.default_rng(seed)
    clock = np.arange(round(seconds * RATE)) / RATE
    wave_N = rng.normal(0, 0.1, len(clock)) * (1.1 + np.sin(2 * np.pi * 4 * clock))
    for begin, end in pauses:
        wave_N[(clock >= begin) & (clock < end)] = 0.0
    return (wave_N + rng.normal(0, 1e-4, len(clock))).astype(np.float32)


def in_blocks(wave_N: np.ndarray, size: int) -> Iterator[np.ndarray]:
    yield from (wave_N[i : i + size] for i in range(0, len(wave_N), size))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), stride=st.sampled_from([1, 160, 640, 1280]), block=st.sampled_from([1.7, 10.0, 400.0]))
def test_regions_are_cut_out_on_the_grid_and_do_not_overlap(seed: int, stride: int, block: float) -> None:
    starts = np.sort(np.random.default_rng(seed).uniform(3, 260, size=14))
    recording = talk(270.37, [(begin, begin + 0.9) for begin in starts], seed)
    regions = list(speech_regions(in_blocks(recording, int(block * RATE)), RATE, whole=11.0, merge=8.0, stride=stride))
    assert len(regions) >= 2
    position = 0
    for region in regions:
        first = round(region.start * RATE)
        assert first % stride == 0
        assert first >= position
        assert np.array_equal(region.wave_N, recording[first : first + len(region.wave_N)])
        position = first + len(region.wave_N)
        assert position % stride == 0 or position == len(recording)
    assert max(len(region.wave_N) for region in regions) <= PAGE_SECONDS * RATE + int(block * RATE)


@pytest.mark.parametrize("seconds", [0.0, 4.0])
def test_short_recordings_are_one_region_if_there_is_speech(seconds: float) -> None:
    [region] = speech_regions([talk(5.0, [(0.0, seconds)])], RATE, whole=11.0, merge=8.0, stride=640)
    assert (region.start, len(region.wave_N)) == (0.0, 5 * RATE)
    assert not list(speech_regions([np.zeros(5 * RATE, np.float32)], RATE, whole=11.0, merge=8.0))
    assert not list(speech_regions([], RATE, whole=11.0, merge=8.0))


def test_regions_are_padded_merged_and_bounded() -> None:
    assert merge_regions([(0.1, 1.0), (1.5, 2.0)], 10.0, 30.0) == [(0.0, 2.25)]
    assert merge_regions([(1.0, 2.0), (5.0, 6.0)], 6.1, 30.0) == [(0.75, 2.25), (4.75, 6.1)]
    assert len(merge_regions([(i, i + 0.7) for i in range(100)], 100.0, 30.0)) == 4
    assert merge_regions([(1.0, 2.0), (2.2, 4.0)], 9.0, 3.0) == [(0.75, 2.1), (2.1, 4.25)], "the pause is shared"
    for (_, end), (begin, _) in zip(*[iter(merge_regions([(1.0, 25.0), (25.3, 40.0)], 50.0, 30.0))] * 2):
        assert begin >= end


def test_the_region_at_a_page_end_waits_for_the_next_page() -> None:
    assert hold_back_open_region([(1.0, 2.0), (110.0, 120.0)], 120 * RATE, RATE) == ([(1.0, 2.0)], int(109.75 * RATE))
    regions, keep = hold_back_open_region([(1.0, 2.0)], 120 * RATE, RATE)
    assert regions == [(1.0, 2.0)]
    assert keep == int(119.5 * RATE)
    assert hold_back_open_region([(3.0, 120.0)], 120 * RATE, RATE) == ([(3.0, 120.0)], 120 * RATE)

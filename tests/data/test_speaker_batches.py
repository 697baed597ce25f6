"""Batches of speakers: who is in them, chance by seed and epoch alone, ranks in step, exact resume."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.loader import ResumableLoader
from speechkit.data.speaker_batches import SpeakerBatchSampler


def build(counts: list[int], **options: Any) -> tuple[SpeakerBatchSampler, list[str]]:
    """So many utterances of each speaker, mixed; seconds from 1 to 3."""
    names = [f"s{speaker}" for speaker, count in enumerate(counts) for _ in range(count)]
    rng = np.random.default_rng(0)
    names = [names[place] for place in rng.permutation(len(names))]
    settings_ = {"speakers_per_batch": 3, "utterances_per_speaker": 4, **options}
    return SpeakerBatchSampler(durations=rng.uniform(1, 3, len(names)), speakers=names, **settings_), names


class Indices:
    """A dataset whose examples are their own numbers."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> int:
        return i

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on it."""


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=8).filter(lambda counts: sum(n > 1 for n in counts) > 1),
    epoch=st.integers(0, 3),
)
def test_every_batch_has_speakers_to_compare(counts: list[int], epoch: int) -> None:
    sampler, names = build(counts)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    for batch in batches:
        own = Counter(names[i] for i in batch)
        assert 2 <= len(own) <= 3
        assert all(2 <= count <= 4 for count in own.values())
    used = [i for batch in batches for i in batch]
    report = sampler.padding_report()
    assert sorted([*used, *report.excluded, *report.left_out]) == list(range(len(names)))  # each once
    assert {names[i] for i in report.excluded} == {f"s{speaker}" for speaker, count in enumerate(counts) if count == 1}
    assert report.num_utterances == len(used)
    assert 0 <= report.audio_percent < 100
    assert report.utilisation_percent == pytest.approx(100 * len(used) / len(batches) / 12)


def test_equal_speakers_fill_all_batches() -> None:
    sampler, names = build([8] * 6)
    assert sorted(i for batch in sampler for i in batch) == list(range(48))
    assert {len(batch) for batch in sampler} == {12}
    assert sampler.padding_report().left_out == ()
    assert all(set(Counter(names[i] for i in batch).values()) == {4} for batch in sampler)


def test_chance_comes_from_seed_and_epoch_alone() -> None:
    first, other, seeded = build([9, 7, 12, 5])[0], build([9, 7, 12, 5])[0], build([9, 7, 12, 5], seed=1)[0]
    plain = list(first)
    assert list(first) == plain == list(other)
    assert list(seeded) != plain
    first.set_epoch(2)
    assert list(first) != plain
    first.set_epoch(0)
    assert list(first) == plain


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_in_step(world_size: int) -> None:
    whole = build([20] * 7)[0]
    ranks = [list(build([20] * 7, rank=rank, world_size=world_size)[0]) for rank in range(world_size)]
    assert {len(own) for own in ranks} == {len(whole) // world_size}
    dealt = [batch for step in zip(*ranks) for batch in step]
    assert dealt == list(whole)[: len(dealt)]
    assert build([20] * 7, world_size=world_size)[0].padding_report().num_utterances == sum(map(len, dealt))


@pytest.mark.parametrize("taken", [0, 2, 5])
def test_a_loader_goes_on_with_the_exact_next_batch(taken: int) -> None:
    expected = []
    sampler = build([20] * 4)[0]
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        expected.append(list(sampler))
    loader = ResumableLoader(Indices(), build([20] * 4)[0], collate_fn=list)  # type: ignore[arg-type]
    loader.batches.set_epoch(1)
    reading = iter(loader)
    assert [next(reading) for _ in range(taken)] == expected[0][:taken]
    state = loader.state_dict()
    resumed = ResumableLoader(Indices(), build([20] * 4)[0], collate_fn=list)  # type: ignore[arg-type]
    resumed.load_state_dict(state)
    resumed.batches.set_epoch(1)  # as the trainer does: it is there already
    assert list(resumed) == expected[0][taken:]
    resumed.batches.set_epoch(2)
    assert list(resumed) == expected[1]


def test_a_state_of_other_data_is_refused() -> None:
    state = build([6, 6, 6])[0].state_dict()
    for options, named in (
        ({"seed": 3}, "seed: state 0, here 3"),
        ({"speakers_per_batch": 2}, "speakers_per_batch: state 3, here 2"),
    ):
        with pytest.raises(ValueError, match=named):
            build([6, 6, 6], **options)[0].load_state_dict(state)
    with pytest.raises(ValueError, match="data: state"):
        build([6, 5, 7])[0].load_state_dict(state)
    with pytest.raises(ValueError, match="next_batch is 3, but 0 batches of epoch 0 were drawn"):
        build([6, 6, 6])[0].state_dict(next_batch=3)


def test_the_beginning_of_an_epoch_may_go_to_other_ranks() -> None:
    begun = build([20] * 4)[0]
    begun.set_epoch(1)
    other = build([20] * 4, world_size=2)[0]
    other.load_state_dict(begun.state_dict())
    assert other.epoch == 1
    next(iter(begun))
    with pytest.raises(ValueError, match="world_size: state 1, here 2"):
        other.load_state_dict(begun.state_dict())


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match="speakers_per_batch=1: must be at least 2"):
        build([4, 4], speakers_per_batch=1)
    with pytest.raises(ValueError, match="1 of them have two utterances or more"):
        build([9, 1, 1])
    with pytest.raises(ValueError, match=r"durations has shape \(2,\) for 3 speakers"):
        SpeakerBatchSampler(durations=[1.0, 2.0], speakers=["a", "a", "b"])
    with pytest.raises(ValueError, match=r"rank is 2; with world_size=2 it must be in 0\.\.1"):
        build([4, 4], rank=2, world_size=2)
    with pytest.raises(ValueError, match="there are 1 batches for 4 processes: lower speakers_per_batch=3"):
        len(build([4, 4], world_size=4)[0])
    with pytest.raises(ValueError, match="epoch is -1"):
        build([4, 4])[0].set_epoch(-1)

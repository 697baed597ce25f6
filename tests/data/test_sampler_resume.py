"""State of the sampler: exact resume at every position, under workers, and refusal of states that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch.utils.data import DataLoader

from speechkit.data.mixing import Group
from speechkit.data.sampler import BucketBatchSampler


def columns(num: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"durations": rng.uniform(0.5, 20.0, num), "num_tokens": rng.integers(0, 80, num)}


OPTIONS = {"max_batch_seconds": 60.0, "seed": 5}


@pytest.mark.parametrize("world_size", [1, 3])
def test_resume_at_every_position(world_size):
    data = columns()
    reference = BucketBatchSampler(**data, **OPTIONS, world_size=world_size)
    reference.set_epoch(3)
    expected = list(reference)
    for position in range(len(expected) + 1):
        source = BucketBatchSampler(**data, **OPTIONS, world_size=world_size)
        source.set_epoch(3)
        drawn = iter(source)
        for _ in range(position):
            next(drawn)
        state = json.loads(json.dumps(source.state_dict()))
        restored = BucketBatchSampler(**data, **OPTIONS, world_size=world_size)
        restored.load_state_dict(state)
        restored.set_epoch(3)  # right after a restore: no effect
        assert restored.next_batch == restored.position == position
        assert len(restored) == len(expected)
        assert list(restored) == expected[position:]


def test_restored_position_lasts_until_the_epoch_was_drawn():
    sampler = BucketBatchSampler(**columns(), **OPTIONS)
    everything = list(sampler)
    state = sampler.state_dict(next_batch=4)
    sampler.load_state_dict(state)
    next(iter(sampler))  # an iterator that is made and thrown away, as trainers do
    assert list(sampler) == everything[4:]
    assert list(sampler) == everything
    sampler.load_state_dict(state)
    sampler.set_epoch(1)
    assert sampler.next_batch == 0
    assert len(list(sampler)) == len(sampler)


def test_abandoned_iterator_does_not_move_the_position():
    sampler = BucketBatchSampler(**columns(), **OPTIONS)
    old, new = iter(sampler), iter(sampler)
    next(new)
    for _ in range(5):
        next(old)
    assert sampler.position == 1


def test_workers_draw_ahead_and_the_trainer_counts():
    data = columns(400)
    dataset = list(range(400))
    options = {"num_workers": 2, "prefetch_factor": 4, "collate_fn": list}
    everything = list(BucketBatchSampler(**data, **OPTIONS))
    sampler = BucketBatchSampler(**data, **OPTIONS)
    loader = iter(DataLoader(dataset, batch_sampler=sampler, **options))
    consumed = [next(loader) for _ in range(3)]
    assert consumed == everything[:3]
    assert sampler.position > 3
    state = sampler.state_dict(next_batch=len(consumed))
    del loader
    restored = BucketBatchSampler(**data, **OPTIONS)
    restored.load_state_dict(state)
    assert list(DataLoader(dataset, batch_sampler=restored, **options)) == everything[3:]


def test_state_of_more_batches_than_drawn_is_refused():
    sampler = BucketBatchSampler(**columns(), **OPTIONS)
    with pytest.raises(ValueError, match="next_batch is 2, but 0 batches of epoch 0 were drawn"):
        sampler.state_dict(next_batch=2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_batch_seconds": 61.0}, "max_batch_seconds: state 60.0, here 61.0"),
        ({"seed": 6}, "seed: state 5, here 6"),
        ({"num_buckets": 7}, "num_buckets: state 30, here 7"),
        ({"world_size": 2}, "world_size: state 1, here 2"),
        ({"durations": columns(200, seed=1)["durations"]}, "data: state"),
        ({"num_tokens": None}, "data: state"),
        ({"groups": [Group("a", range(100)), Group("b", range(100, 200))]}, "mixture: state None"),
    ],
)
def test_what_differs_from_the_state_is_named(change, named):
    sampler = BucketBatchSampler(**columns(), **OPTIONS)
    next(iter(sampler))
    other = BucketBatchSampler(**{**columns(), **OPTIONS, **change})
    with pytest.raises(ValueError, match=named):
        other.load_state_dict(sampler.state_dict())


def test_world_size_and_rank_may_change_where_that_is_exact():
    fresh = BucketBatchSampler(**columns(), **OPTIONS)
    fresh.set_epoch(2)
    wider = BucketBatchSampler(**columns(), **OPTIONS, world_size=2)
    wider.load_state_dict(fresh.state_dict())  # the beginning of an epoch fits any number of ranks
    assert (wider.epoch, wider.next_batch) == (2, 0)
    first, second = (BucketBatchSampler(**columns(), **OPTIONS, world_size=2, rank=rank) for rank in (0, 1))
    next(iter(first))
    expected = list(second)[1:]
    second.load_state_dict(first.state_dict())  # the state of one rank serves all
    assert list(second) == expected


def test_foreign_state_is_refused():
    sampler = BucketBatchSampler(**columns(), **OPTIONS)
    with pytest.raises(ValueError, match="version"):
        sampler.load_state_dict({"epoch": 1})

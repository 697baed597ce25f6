"""Collation: lengths, padding, skipped examples."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.collate import collate_asr
from speechkit.data.dataset import Example


def example(name: str, num_samples: int, num_tokens: int) -> Example:
    rng = np.random.default_rng(num_samples)
    return Example(
        id=name,
        wave_N=rng.standard_normal(num_samples).astype(np.float32),
        tokens_U=rng.integers(4, 100, num_tokens),
        text=f"text of {name}",
        lang="de",
        speaker="",
    )


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 200), st.integers(0, 20))), max_size=6))
def test_rows_and_padding(sizes: list[tuple[int, int] | None]) -> None:
    examples = [None if size is None else example(f"e{i}", *size) for i, size in enumerate(sizes)]
    kept = [entry for entry in examples if entry is not None]
    batch = collate_asr(examples)
    assert batch.num_skipped == len(examples) - len(kept)
    assert batch.ids == tuple(entry.id for entry in kept)
    assert batch.texts == tuple(entry.text for entry in kept)
    assert batch.langs == ("de",) * len(kept)
    assert batch.wave_BN.dtype == torch.float32
    assert batch.tokens_BU.dtype == batch.wave_lens_B.dtype == batch.token_lens_B.dtype == torch.int64
    assert batch.wave_BN.shape == (len(kept), max((len(e.wave_N) for e in kept), default=0))
    assert batch.tokens_BU.shape == (len(kept), max((len(e.tokens_U) for e in kept), default=0))
    for i, entry in enumerate(kept):
        n, u = int(batch.wave_lens_B[i]), int(batch.token_lens_B[i])
        np.testing.assert_array_equal(batch.wave_BN[i, :n], entry.wave_N)
        np.testing.assert_array_equal(batch.tokens_BU[i, :u], entry.tokens_U)
        assert not batch.wave_BN[i, n:].any()
        assert not batch.tokens_BU[i, u:].any()


ids = st.lists(st.integers(4, 99), max_size=9).map(lambda row: np.array(row, dtype=np.int64))


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | ids, st.none() | ids, st.sampled_from(["", "de"])), max_size=5))
def test_tasks_and_prompts_are_there_if_one_has_them(rows: list[tuple[np.ndarray | None, np.ndarray | None, str]]) -> None:
    examples = [
        example(f"e{i}", 10, 3)._replace(task_tokens_U=wanted, prompt_tokens_U=prompt, task=task)
        for i, (wanted, prompt, task) in enumerate(rows)
    ]
    batch = collate_asr(examples)
    assert batch.tasks == (tuple(task for _, _, task in rows) if any(task for _, _, task in rows) else ())
    streams = [
        (batch.task_tokens_BU, batch.task_token_lens_B, [wanted for wanted, _, _ in rows], [e.tokens_U for e in examples]),
        (batch.prompt_tokens_BU, batch.prompt_token_lens_B, [prompt for _, prompt, _ in rows], [np.zeros(0)] * len(rows)),
    ]
    for tokens_BU, lens_B, given_rows, instead in streams:
        if all(row is None for row in given_rows):
            assert (tokens_BU, lens_B) == (None, None)
            continue
        assert tokens_BU is not None
        assert lens_B is not None
        expected = [other if row is None else row for row, other in zip(given_rows, instead)]
        assert lens_B.tolist() == [len(row) for row in expected]
        assert tokens_BU.shape == (len(rows), max(map(len, expected)))
        for i, row in enumerate(expected):
            np.testing.assert_array_equal(tokens_BU[i, : len(row)], row)
            assert not tokens_BU[i, len(row) :].any()

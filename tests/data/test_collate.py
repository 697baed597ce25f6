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

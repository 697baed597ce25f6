"""CTC alignment against enumeration of all paths and against torchaudio."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.search.ctc_align import Alignment, ctc_align


def random_log_probs(seed: int, batch: int, frames: int, vocab: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, frames, vocab))).float().log_softmax(dim=-1)


def align_one(log_probs_TV: torch.Tensor, tokens: list[int], blank: int = 0) -> Alignment | None:
    lens = torch.tensor([len(log_probs_TV)])
    targets = torch.tensor([tokens], dtype=torch.int64).reshape(1, -1)
    return ctc_align(log_probs_TV[None], lens, targets, torch.tensor([len(tokens)]), blank)[0]


def collapse(path: tuple[int, ...], blank: int) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != blank]


def frame_labels(alignment: Alignment, tokens: list[int], frames: int, blank: int) -> tuple[int, ...]:
    labels = [blank] * frames
    for token, start, end in zip(tokens, alignment.start_frames, alignment.end_frames, strict=True):
        labels[start:end] = [token] * (end - start)
    return tuple(labels)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), frames=st.integers(0, 5), tokens=st.lists(st.integers(1, 2), max_size=4))
def test_is_the_best_of_all_paths(seed: int, frames: int, tokens: list[int]) -> None:
    log_probs = random_log_probs(seed, 1, frames, 3)[0]
    scores = {
        path: sum(float(log_probs[t, token]) for t, token in enumerate(path))
        for path in itertools.product(range(3), repeat=frames)
        if collapse(path, 0) == tokens
    }
    alignment = align_one(log_probs, tokens)
    if not scores:
        assert alignment is None
        return
    assert alignment is not None
    assert alignment.score == pytest.approx(max(scores.values()), abs=1e-5)
    labels = frame_labels(alignment, tokens, frames, 0)
    assert scores[labels] == pytest.approx(alignment.score, abs=1e-5)
    for token, start, end, confidence in zip(
        tokens, alignment.start_frames, alignment.end_frames, alignment.confidences, strict=True
    ):
        assert confidence == pytest.approx(float(log_probs[start:end, token].exp().mean()), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_parity_with_torchaudio(seed: int) -> None:
    functional = pytest.importorskip("torchaudio.functional")
    rng = np.random.default_rng(seed)
    lens, token_lens = rng.integers(40, 80, size=6), rng.integers(1, 20, size=6)
    lens[0], token_lens[0] = 1, 1
    log_probs = random_log_probs(seed, 6, 80, 5)
    tokens = torch.from_numpy(rng.integers(1, 5, size=(6, 20)))  # few symbols: many repeats
    ours = ctc_align(log_probs, torch.from_numpy(lens), tokens, torch.from_numpy(token_lens))
    for i, (length, num_tokens) in enumerate(zip(lens, token_lens, strict=True)):
        target = tokens[i : i + 1, :num_tokens]
        path, scores = functional.forced_align(log_probs[i : i + 1, :length], target)
        alignment = ours[i]
        assert alignment is not None
        assert alignment.score == pytest.approx(float(scores.sum()), abs=1e-3)
        assert frame_labels(alignment, target[0].tolist(), int(length), 0) == tuple(path[0].tolist())


def test_batch_equals_single_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    lens, token_lens = [0, 1, 30, 50, 3], [0, 1, 8, 0, 9]
    log_probs, tokens = random_log_probs(2, 5, 64, 6), torch.from_numpy(rng.integers(1, 6, size=(5, 12)))
    together = ctc_align(log_probs, torch.tensor(lens), tokens, torch.tensor(token_lens))
    alone = [align_one(log_probs[i, :n], tokens[i, :u].tolist()) for i, (n, u) in enumerate(zip(lens, token_lens))]
    assert together == alone
    assert [alignment is None for alignment in together] == [False, False, False, False, True]


@pytest.mark.parametrize("blank", [0, 2])
def test_repeats_are_kept_apart(blank: int) -> None:
    log_probs = torch.full((1, 3, 3), math.log(0.25))
    log_probs[0, :, 1] = math.log(0.5)
    alignment = align_one(log_probs[0], [1, 1], blank)
    assert alignment is not None
    assert (alignment.start_frames, alignment.end_frames) == ((0, 2), (1, 3))
    assert alignment.confidences == pytest.approx((0.5, 0.5))
    assert alignment.score == pytest.approx(math.log(0.5 * 0.25 * 0.5))


def test_impossible_token_is_infeasible() -> None:
    log_probs = random_log_probs(0, 1, 5, 4)
    log_probs[..., 3] = -math.inf
    assert align_one(log_probs[0], [1, 3]) is None
    assert align_one(log_probs[0], [1, 2]) is not None


@pytest.mark.parametrize(("token", "message"), [(0, "id 0"), (4, "id 4"), (-1, "id -1")])
def test_wrong_tokens_are_named(token: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        align_one(random_log_probs(0, 1, 5, 4)[0], [1, token])


def test_wrong_shapes_are_named() -> None:
    log_probs, lens = random_log_probs(0, 2, 5, 4), torch.tensor([5, 5])
    with pytest.raises(ValueError, match="tokens has shape"):
        ctc_align(log_probs, lens, torch.ones(1, 2, dtype=torch.int64), torch.tensor([2]))
    with pytest.raises(ValueError, match="token_lens has values from 2 to 3"):
        ctc_align(log_probs, lens, torch.ones(2, 2, dtype=torch.int64), torch.tensor([2, 3]))

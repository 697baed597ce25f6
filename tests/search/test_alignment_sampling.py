"""Sampled alignments against enumeration of all paths that the coins allow, and against greedy decoding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.search.alignment_sampling import Alignments, sample_alignments, token_starts
from speechkit.search.ctc_greedy import ctc_greedy

Run = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def random_log_probs(seed: int, batch: int, frames: int, vocab: int, *, scale: float = 3.0) -> Tensor:
    logits = np.random.default_rng(seed).normal(scale=scale, size=(batch, frames, vocab))
    return torch.from_numpy(logits).float().log_softmax(dim=-1)


def runs_of(path: list[int], blank: int = 0) -> Run:
    """Tokens, first frames and frames after the last of a path, one frame at a time."""
    tokens, starts, ends = [], [], []
    for t, label in enumerate(path):
        if label == blank:
            continue
        if t == 0 or path[t - 1] != label:
            tokens.append(label)
            starts.append(t)
            ends.append(t + 1)
        else:
            ends[-1] = t + 1
    return tuple(tokens), tuple(starts), tuple(ends)


def found_runs(alignments: Alignments, row: int) -> list[Run]:
    """What is known of an utterance's alignments, in order."""
    runs = []
    for r in (alignments.rows_R == row).nonzero()[:, 0].tolist():
        n = int(alignments.token_lens_R[r])
        tokens, starts, ends = (x[r] for x in (alignments.tokens_RU, alignments.starts_RU, alignments.ends_RU))
        assert (tokens[n:] == 0).all()
        assert (starts[n:] == 0).all()
        assert (ends[n:] == 0).all()
        runs.append((tuple(tokens[:n].tolist()), tuple(starts[:n].tolist()), tuple(ends[:n].tolist())))
    return runs


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32), lens=st.lists(st.integers(0, 12), min_size=1, max_size=5), num_samples=st.sampled_from([1, 2, 70])
)
def test_samples_are_among_the_allowed_paths_and_differ(seed: int, lens: list[int], num_samples: int) -> None:
    log_probs = random_log_probs(seed, len(lens), 12, 4)
    alignments = sample_alignments(log_probs, torch.tensor(lens), num_samples=num_samples, threshold=0.6, seed=seed)
    assert alignments.rows_R.tolist() == sorted(alignments.rows_R.tolist())
    for row, (length, greedy) in enumerate(zip(lens, ctc_greedy(log_probs, torch.tensor(lens)))):
        runs = found_runs(alignments, row)
        assert runs[0] == (greedy.tokens, greedy.start_frames, greedy.end_frames)
        assert 1 <= len(runs) <= num_samples
        assert len({run[:2] for run in runs}) == len(runs)
        choices = []
        for frame in log_probs[row, :length].exp():
            order = frame.argsort(descending=True).tolist()
            choices.append(order[:2] if frame[order[0]] < 0.6 else order[:1])
        assert set(runs) <= {runs_of(list(path)) for path in itertools.product(*choices)}


def test_many_samples_find_every_path() -> None:
    log_probs = torch.full((1, 6, 4), 0.01).log()
    for t, label in enumerate([1, 1, 0, 2, 2, 3]):
        log_probs[0, t, label] = np.log(0.97)
    for t, rival in ((1, 2), (2, 1), (4, 0)):  # three frames in doubt
        log_probs[0, t] = torch.tensor([0.05] * 4).log()
        log_probs[0, t, [1, 0, 2][[1, 2, 4].index(t)]] = np.log(0.6)
        log_probs[0, t, rival] = np.log(0.3)
    allowed = {runs_of([1, a, b, 2, c, 3])[:2] for a in (1, 2) for b in (0, 1) for c in (2, 0)}
    alignments = sample_alignments(log_probs, torch.tensor([6]), num_samples=100)
    assert {run[:2] for run in found_runs(alignments, 0)} == allowed
    assert len(alignments.rows_R) == len(allowed) < 8  # some of the eight paths differ in the ends of runs alone
    assert len(sample_alignments(log_probs, torch.tensor([6]), num_samples=100, threshold=0.5).rows_R) == 1


def test_samples_do_not_depend_on_mates_padding_or_number() -> None:
    log_probs, lens = random_log_probs(5, 6, 40, 5, scale=1.0), torch.tensor([40, 0, 1, 17, 33, 40])
    together = sample_alignments(log_probs, lens, num_samples=16, seed=3)
    fewer = sample_alignments(log_probs, lens, num_samples=5, seed=3)
    other = sample_alignments(log_probs, lens, num_samples=16, seed=4)
    for row in range(6):
        alone = sample_alignments(log_probs[row : row + 1, : lens[row]], lens[row : row + 1], num_samples=16, seed=3)
        runs = found_runs(together, row)
        assert runs == found_runs(alone, 0)
        short = found_runs(fewer, row)
        assert runs[: len(short)] == short
        if lens[row] > 1:
            assert len(runs) == 16
            assert runs[1:] != found_runs(other, row)[1:]
    last_two = sample_alignments(log_probs[4:], lens[4:], num_samples=16, seed=3)
    assert found_runs(last_two, 1) == found_runs(together, 5)


def test_token_starts_count_tokens() -> None:
    labels = torch.tensor([[1, 1, 0, 1, 2, 2], [2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0]])
    assert token_starts(labels, torch.tensor([6, 3, 0])).sum(1).tolist() == [3, 1, 0]
    assert token_starts(labels[:1], torch.tensor([6]), blank=2)[0].tolist() == [True, False, True, True, False, False]


def test_empty_batches_and_wrong_numbers() -> None:
    nothing = sample_alignments(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.long), num_samples=4)
    assert len(nothing.rows_R) == 0
    no_frames = sample_alignments(torch.zeros(2, 0, 4), torch.tensor([0, 0]), num_samples=4)
    assert no_frames.token_lens_R.tolist() == [0, 0]
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        sample_alignments(torch.zeros(1, 3, 4), torch.tensor([3]), num_samples=0)

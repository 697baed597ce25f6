"""The alignment kernel against all paths, against a slow loop over one utterance, and against torchaudio."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.kernels.ctc_align import CtcAlignment, ctc_viterbi


def random_log_probs(seed: int, batch: int, frames: int, vocab: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, frames, vocab))).float().log_softmax(dim=-1)


def align_one(log_probs_TV: Tensor, tokens: list[int], blank: int = 0) -> CtcAlignment:
    row = torch.tensor(tokens, dtype=torch.long)[None]
    return ctc_viterbi(log_probs_TV[None], torch.tensor([len(log_probs_TV)]), row, torch.tensor([len(tokens)]), blank=blank)


def collapse(path: tuple[int, ...], blank: int = 0) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != blank]


def slow_viterbi(log_probs_TV: Tensor, tokens: list[int], blank: int) -> tuple[float, list[int]]:
    """Score and state of each frame, one utterance and one state at a time, in fp64."""
    labels = [blank]
    for token in tokens:
        labels += [token, blank]
    if not len(log_probs_TV):
        return (0.0 if not tokens else -np.inf), []
    best = [{s: (float(log_probs_TV[0, labels[s]]), [s]) for s in range(min(2, len(labels)))}]
    for frame in log_probs_TV[1:]:
        row = {}
        for state, label in enumerate(labels):
            origins = [state, state - 1]
            if label != blank and state > 1 and labels[state - 2] != label:
                origins.append(state - 2)
            known = [best[-1][s] for s in origins if s in best[-1]]
            if known:
                score, path = max(known, key=lambda entry: entry[0])
                row[state] = (score + float(frame[label]), [*path, state])
        best.append(row)
    ends = [best[-1][s] for s in (len(labels) - 1, len(labels) - 2) if s in best[-1]]
    return max(ends, key=lambda entry: entry[0]) if ends else (-np.inf, [])


def check_row(alignment: CtcAlignment, row: int, length: int, tokens: list[int], blank: int) -> None:
    """The tensors of a feasible row say the same thing, and the path spells the tokens."""
    labels, index, spikes = (getattr(alignment, name)[row] for name in ("labels_BT", "token_index_BT", "spikes_BU"))
    assert collapse(tuple(labels[:length].tolist()), blank) == tokens
    assert (labels[length:] == blank).all()
    assert (index[length:] == -1).all()
    assert [tokens[i] if i >= 0 else blank for i in index[:length].tolist()] == labels[:length].tolist()
    assert sorted(set(index.tolist()) - {-1}) == list(range(len(tokens)))
    assert spikes[: len(tokens)].tolist() == [index.tolist().index(i) for i in range(len(tokens))]
    assert (spikes[len(tokens) :] == -1).all()


def check_infeasible_row(alignment: CtcAlignment, row: int, blank: int) -> None:
    assert not alignment.feasible_B[row]
    assert alignment.scores_B[row] == -torch.inf
    assert (alignment.labels_BT[row] == blank).all()
    assert (alignment.token_index_BT[row] == -1).all()
    assert (alignment.spikes_BU[row] == -1).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), frames=st.integers(0, 5), tokens=st.lists(st.integers(1, 2), max_size=4))
def test_is_the_best_of_all_paths(seed: int, frames: int, tokens: list[int]) -> None:
    log_probs = random_log_probs(seed, 1, frames, 3)[0]
    scores = {
        path: sum(float(log_probs[t, token]) for t, token in enumerate(path))
        for path in itertools.product(range(3), repeat=frames)
        if collapse(path) == tokens
    }
    alignment = align_one(log_probs, tokens)
    if not scores:
        check_infeasible_row(alignment, 0, 0)
        return
    assert float(alignment.scores_B) == pytest.approx(max(scores.values()), abs=1e-5)
    assert scores[tuple(alignment.labels_BT[0].tolist())] == pytest.approx(max(scores.values()), abs=1e-5)
    check_row(alignment, 0, frames, tokens, 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    blank=st.sampled_from([0, 2]),
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=5),
)
def test_batches_equal_a_slow_loop(seed: int, blank: int, rows: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(seed)
    log_probs = random_log_probs(seed, len(rows), 22, 4)
    tokens = torch.from_numpy(rng.choice([i for i in range(4) if i != blank], size=(len(rows), 9)))  # few: many repeats
    lens, token_lens = (torch.tensor(column) for column in zip(*rows))
    alignment = ctc_viterbi(log_probs, lens, tokens, token_lens, blank=blank)
    for row, (length, count) in enumerate(rows):
        target = tokens[row, :count].tolist()
        score, states = slow_viterbi(log_probs[row, :length], target, blank)
        assert float(alignment.scores_B[row]) == pytest.approx(score, abs=1e-4)
        if score == -np.inf:
            check_infeasible_row(alignment, row, blank)
            continue
        check_row(alignment, row, length, target, blank)
        assert alignment.token_index_BT[row, :length].tolist() == [s // 2 if s % 2 else -1 for s in states]


def test_padding_and_mates_change_no_bit() -> None:
    rng = np.random.default_rng(1)
    lens, token_lens = [0, 1, 30, 50, 3, 0, 64], [0, 1, 8, 0, 9, 2, 12]
    log_probs, tokens = random_log_probs(2, 7, 64, 6), torch.from_numpy(rng.integers(1, 6, size=(7, 12)))
    together = ctc_viterbi(log_probs, torch.tensor(lens), tokens, torch.tensor(token_lens))
    assert together.feasible_B.tolist() == [True, True, True, True, False, False, True]
    hidden = torch.where(torch.arange(64)[None, :, None] < torch.tensor(lens)[:, None, None], log_probs, torch.nan)
    beyond = torch.where(torch.arange(12) < torch.tensor(token_lens)[:, None], tokens, -7)
    for padded in (together, ctc_viterbi(hidden, torch.tensor(lens), beyond, torch.tensor(token_lens))):
        for row, (length, count) in enumerate(zip(lens, token_lens)):
            alone = align_one(log_probs[row, :length], tokens[row, :count].tolist())
            assert torch.equal(padded.labels_BT[row, :length], alone.labels_BT[0])
            assert torch.equal(padded.token_index_BT[row, :length], alone.token_index_BT[0])
            assert torch.equal(padded.spikes_BU[row, :count], alone.spikes_BU[0])
            assert torch.equal(padded.scores_B[row : row + 1], alone.scores_B)


@pytest.mark.parametrize("seed", range(3))
def test_parity_with_torchaudio(seed: int) -> None:
    functional = pytest.importorskip("torchaudio.functional")
    rng = np.random.default_rng(seed)
    lens, token_lens = rng.integers(40, 80, size=6), rng.integers(1, 20, size=6)
    lens[0], token_lens[0] = 1, 1
    log_probs = random_log_probs(seed, 6, 80, 5)
    tokens = torch.from_numpy(rng.integers(1, 5, size=(6, 20)))
    ours = ctc_viterbi(log_probs, torch.from_numpy(lens), tokens, torch.from_numpy(token_lens))
    for row, (length, count) in enumerate(zip(lens, token_lens)):
        path, scores = functional.forced_align(log_probs[row : row + 1, :length], tokens[row : row + 1, :count])
        assert float(ours.scores_B[row]) == pytest.approx(float(scores.sum()), abs=1e-3)
        assert torch.equal(ours.labels_BT[row, :length], path[0].long())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_computes_in_fp32_and_has_no_gradient(dtype: torch.dtype) -> None:
    log_probs = random_log_probs(3, 2, 20, 6).to(dtype)
    lens, tokens, token_lens = torch.tensor([20, 13]), torch.tensor([[1, 2, 2], [4, 3, 0]]), torch.tensor([3, 2])
    alignment = ctc_viterbi(log_probs.clone().requires_grad_(), lens, tokens, token_lens)
    assert not alignment.scores_B.requires_grad
    assert alignment.scores_B.dtype == torch.float32
    for ours, theirs in zip(alignment, ctc_viterbi(log_probs.float(), lens, tokens, token_lens)):
        assert torch.equal(ours, theirs)


def test_a_label_of_no_probability_is_infeasible() -> None:
    log_probs = random_log_probs(0, 1, 5, 4)[0]
    log_probs[:, 3] = -torch.inf
    check_infeasible_row(align_one(log_probs, [1, 3]), 0, 0)
    assert align_one(log_probs, [1, 2]).feasible_B.all()


def test_no_tokens_and_no_rows() -> None:
    log_probs = random_log_probs(0, 2, 4, 3)
    empty = ctc_viterbi(log_probs, torch.tensor([4, 0]), torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0]))
    assert empty.spikes_BU.shape == (2, 0)
    torch.testing.assert_close(empty.scores_B, torch.stack([log_probs[0, :, 0].sum(), torch.tensor(0.0)]))
    none = torch.zeros(0, dtype=torch.long)
    assert ctc_viterbi(log_probs[:0], none, none.reshape(0, 3), none).scores_B.shape == (0,)

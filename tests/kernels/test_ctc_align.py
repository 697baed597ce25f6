"""The alignment kernel against all paths, against a slow loop over one utterance, and against torchaudio; every backend alike."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.kernels import ctc_align as package
from speechkit.kernels.case import Arguments, check_against_fp64
from speechkit.kernels.ctc_align import CtcAlignment, ctc_viterbi
from speechkit.kernels.ctc_align.cases import OPS, torchaudio
from speechkit.kernels.dispatch import HAS_NUMBA

OP = OPS[0]
BACKENDS = tuple(
    pytest.param(name, marks=pytest.mark.skipif(name == "numba" and not HAS_NUMBA, reason="numba is not installed"))
    for name in OP.backends
)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_log_probs(seed: int, batch: int, frames: int, vocab: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, frames, vocab))).float().log_softmax(dim=-1)


def align(log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor, *, blank: int = 0, backend: str) -> CtcAlignment:
    """On the device under test; the result on the CPU."""
    arguments = (x.to(DEVICE) for x in (log_probs, lens, tokens, token_lens))
    return CtcAlignment(*(x.cpu() for x in ctc_viterbi(*arguments, blank=blank, backend=backend)))


def align_one(log_probs_TV: Tensor, tokens: list[int], *, blank: int = 0, backend: str = "reference") -> CtcAlignment:
    row, length = torch.tensor(tokens, dtype=torch.long)[None], torch.tensor([len(log_probs_TV)])
    return align(log_probs_TV[None], length, row, torch.tensor([len(tokens)]), blank=blank, backend=backend)


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


@every_backend
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), frames=st.integers(0, 5), tokens=st.lists(st.integers(1, 2), max_size=4))
def test_is_the_best_of_all_paths(backend: str, seed: int, frames: int, tokens: list[int]) -> None:
    log_probs = random_log_probs(seed, 1, frames, 3)[0]
    scores = {
        path: sum(float(log_probs[t, token]) for t, token in enumerate(path))
        for path in itertools.product(range(3), repeat=frames)
        if collapse(path) == tokens
    }
    alignment = align_one(log_probs, tokens, backend=backend)
    if not scores:
        check_infeasible_row(alignment, 0, 0)
        return
    assert float(alignment.scores_B) == pytest.approx(max(scores.values()), abs=1e-5)
    assert scores[tuple(alignment.labels_BT[0].tolist())] == pytest.approx(max(scores.values()), abs=1e-5)
    check_row(alignment, 0, frames, tokens, 0)


@every_backend
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    blank=st.sampled_from([0, 2]),
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=5),
)
def test_batches_equal_a_slow_loop(backend: str, seed: int, blank: int, rows: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(seed)
    log_probs = random_log_probs(seed, len(rows), 22, 4)
    tokens = torch.from_numpy(rng.choice([i for i in range(4) if i != blank], size=(len(rows), 9)))  # few: many repeats
    lens, token_lens = (torch.tensor(column) for column in zip(*rows))
    alignment = align(log_probs, lens, tokens, token_lens, blank=blank, backend=backend)
    for row, (length, count) in enumerate(rows):
        target = tokens[row, :count].tolist()
        score, states = slow_viterbi(log_probs[row, :length], target, blank)
        assert float(alignment.scores_B[row]) == pytest.approx(score, abs=1e-4)
        if score == -np.inf:
            check_infeasible_row(alignment, row, blank)
            continue
        check_row(alignment, row, length, target, blank)
        assert alignment.token_index_BT[row, :length].tolist() == [s // 2 if s % 2 else -1 for s in states]


@every_backend
def test_padding_and_mates_change_no_bit(backend: str) -> None:
    rng = np.random.default_rng(1)
    lens, token_lens = [0, 1, 25, 33, 3, 0, 40], [0, 1, 8, 0, 9, 2, 12]
    log_probs, tokens = random_log_probs(2, 7, 40, 6), torch.from_numpy(rng.integers(1, 6, size=(7, 12)))
    together = align(log_probs, torch.tensor(lens), tokens, torch.tensor(token_lens), backend=backend)
    assert together.feasible_B.tolist() == [True, True, True, True, False, False, True]
    hidden = torch.where(torch.arange(40)[None, :, None] < torch.tensor(lens)[:, None, None], log_probs, torch.nan)
    beyond = torch.where(torch.arange(12) < torch.tensor(token_lens)[:, None], tokens, -7)
    for padded in (together, align(hidden, torch.tensor(lens), beyond, torch.tensor(token_lens), backend=backend)):
        for row, (length, count) in enumerate(zip(lens, token_lens)):
            alone = align_one(log_probs[row, :length], tokens[row, :count].tolist(), backend=backend)
            assert torch.equal(padded.labels_BT[row, :length], alone.labels_BT[0])
            assert torch.equal(padded.token_index_BT[row, :length], alone.token_index_BT[0])
            assert torch.equal(padded.spikes_BU[row, :count], alone.spikes_BU[0])
            assert torch.equal(padded.scores_B[row : row + 1], alone.scores_B)


@every_backend
@pytest.mark.parametrize("seed", range(3))
def test_parity_with_torchaudio(seed: int, backend: str) -> None:
    functional = pytest.importorskip("torchaudio.functional")
    rng = np.random.default_rng(seed)
    lens, token_lens = rng.integers(30, 50, size=3), rng.integers(1, 12, size=3)
    lens[0], token_lens[0] = 1, 1
    log_probs = random_log_probs(seed, 3, 50, 5)
    tokens = torch.from_numpy(rng.integers(1, 5, size=(3, 12)))
    ours = align(log_probs, torch.from_numpy(lens), tokens, torch.from_numpy(token_lens), backend=backend)
    for row, (length, count) in enumerate(zip(lens, token_lens)):
        path, scores = functional.forced_align(log_probs[row : row + 1, :length], tokens[row : row + 1, :count])
        assert float(ours.scores_B[row]) == pytest.approx(float(scores.sum()), abs=1e-3)
        assert torch.equal(ours.labels_BT[row, :length], path[0].long())


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_computes_in_fp32_and_has_no_gradient(dtype: torch.dtype, backend: str) -> None:
    log_probs = random_log_probs(3, 2, 20, 6).to(dtype)
    lens, tokens, token_lens = torch.tensor([20, 13]), torch.tensor([[1, 2, 2], [4, 3, 0]]), torch.tensor([3, 2])
    alignment = align(log_probs.clone().requires_grad_(), lens, tokens, token_lens, backend=backend)
    assert not alignment.scores_B.requires_grad
    assert alignment.scores_B.dtype == torch.float32
    for ours, theirs in zip(alignment, align(log_probs.float(), lens, tokens, token_lens, backend="reference")):
        assert torch.equal(ours, theirs)


@every_backend
def test_a_label_of_no_probability_is_infeasible(backend: str) -> None:
    log_probs = random_log_probs(0, 1, 5, 4)[0]
    log_probs[:, 3] = -torch.inf
    check_infeasible_row(align_one(log_probs, [1, 3], backend=backend), 0, 0)
    assert align_one(log_probs, [1, 2], backend=backend).feasible_B.all()


@every_backend
def test_no_tokens_and_no_rows(backend: str) -> None:
    log_probs = random_log_probs(0, 2, 4, 3)
    empty = align(log_probs, torch.tensor([4, 0]), torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0]), backend=backend)
    assert empty.spikes_BU.shape == (2, 0)
    torch.testing.assert_close(empty.scores_B, torch.stack([log_probs[0, :, 0].sum(), torch.tensor(0.0)]))
    none = torch.zeros(0, dtype=torch.long)
    assert align(log_probs[:0], none, none.reshape(0, 3), none, backend=backend).scores_B.shape == (0,)


def draw(shape: str, dtype: torch.dtype = torch.float32) -> Arguments:
    return OP.draw(OP.test_shapes[shape], dtype=dtype, device=DEVICE, seed=0)


def assert_same(ours: CtcAlignment, theirs: CtcAlignment) -> None:
    for name, mine, other in zip(CtcAlignment._fields, ours, theirs):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", OP.test_shapes)
@every_backend
def test_shapes_and_dtypes(backend: str, shape: str, dtype: torch.dtype) -> None:
    arguments = draw(shape, dtype)
    check_against_fp64(OP, arguments, backend)
    assert_same(ctc_viterbi(**arguments, backend=backend), ctc_viterbi(**arguments, backend="reference"))


@every_backend
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), frames=st.integers(0, 9), tokens=st.integers(0, 5), other=st.sampled_from([-1.0, -torch.inf]))
def test_ties_are_broken_alike(backend: str, seed: int, frames: int, tokens: int, other: float) -> None:
    rng = np.random.default_rng(seed)
    log_probs = torch.from_numpy(rng.choice([0.0, -1.0, other], size=(2, 9, 3))).float()
    lens, token_lens = torch.tensor([frames, 9]), torch.tensor([tokens, 5])
    arguments = (log_probs, lens, torch.from_numpy(rng.integers(1, 3, size=(2, 5))), token_lens)
    alignment = align(*arguments, backend=backend)
    assert_same(alignment, align(*arguments, backend="reference"))
    _, states = slow_viterbi(log_probs[0, :frames], arguments[2][0, :tokens].tolist(), 0)
    if alignment.feasible_B[0]:
        assert alignment.token_index_BT[0, :frames].tolist() == [s // 2 if s % 2 else -1 for s in states]


def test_of_equal_paths_the_one_that_stays_longest_is_taken() -> None:
    level = torch.zeros(1, 6, 4)
    labels = align(level, torch.tensor([6]), torch.tensor([[1, 2, 2]]), torch.tensor([3]), backend="reference").labels_BT
    assert labels.tolist() == [[1, 2, 0, 2, 0, 0]]


@every_backend
def test_nan_makes_a_row_infeasible(backend: str) -> None:
    log_probs = random_log_probs(0, 2, 8, 4)
    log_probs[0, 3] = torch.nan
    tokens, lens, token_lens = torch.tensor([[1, 2], [3, 1]]), torch.tensor([8, 8]), torch.tensor([2, 2])
    alignment = align(log_probs, lens, tokens, token_lens, backend=backend)
    assert alignment.feasible_B.tolist() == [False, True]
    assert (alignment.token_index_BT[0] == -1).all()
    assert_same(
        align(log_probs[1:], lens[1:], tokens[1:], token_lens[1:], backend=backend), CtcAlignment(*(x[1:] for x in alignment))
    )


@every_backend
def test_strided_inputs(backend: str) -> None:
    arguments = draw("repeats")
    plain = ctc_viterbi(**arguments, backend=backend)
    log_probs, tokens = arguments["log_probs_BTV"], arguments["tokens_BU"]
    wide = torch.stack((tokens, torch.full_like(tokens, -9)), dim=2).reshape(len(tokens), -1)[:, ::2]
    for view in (log_probs.transpose(0, 1).contiguous().transpose(0, 1), log_probs.mT.contiguous().mT):
        strided = arguments | {"log_probs_BTV": view, "tokens_BU": wide, "lens_B": arguments["lens_B"].int()}
        assert_same(ctc_viterbi(**strided, backend=backend), plain)


@every_backend
@pytest.mark.filterwarnings("ignore")
def test_compiles_whole(backend: str) -> None:
    arguments = draw("plain")
    compiled = torch.compile(lambda a: ctc_viterbi(**a, backend=backend), fullgraph=True, backend="aot_eager")
    assert_same(CtcAlignment(*compiled(arguments)), ctc_viterbi(**arguments, backend=backend))


@every_backend
def test_the_operator_is_declared_right(backend: str) -> None:
    torch.library.opcheck(torch.ops.speechkit.ctc_align.default, (*draw("plain").values(), backend))


def test_autocast_changes_nothing() -> None:
    arguments = draw("plain")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside = ctc_viterbi(**arguments)
    assert_same(inside, ctc_viterbi(**arguments))


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_many_rows_on_several_threads() -> None:
    arguments = OP.draw({"B": 40, "T": 200, "U": 40, "V": 12}, dtype=torch.float32, device="cpu", seed=0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same(ctc_viterbi(**arguments, backend="numba"), ctc_viterbi(**arguments, backend="reference"))
    finally:
        torch.set_num_threads(before)


def test_auto_starts_numba_once_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(package, "pays_to_start", lambda seconds: asked.append(seconds) or False)
    monkeypatch.setattr(package.dispatch, "HAS_NUMBA", True)
    small, large = (OP.draw({"B": b, "T": 50, "U": 5, "V": 9}, dtype=torch.float32, device="cpu", seed=0) for b in (1, 9))
    for arguments in (small, large):
        ctc_viterbi(**arguments)
        ctc_viterbi(**arguments, backend="reference")
    assert 0.0 < asked[0] < asked[1]
    assert len(asked) == 2


def test_baseline_equals_ours() -> None:
    pytest.importorskip("torchaudio.functional")
    arguments = OP.draw({"B": 3, "T": 30, "U": 6, "V": 7}, dtype=torch.float32, device="cpu", seed=0)
    torch.testing.assert_close(torchaudio(arguments)[0], OP.run(arguments, "reference")[0])
    with pytest.raises(NotImplementedError, match="no bf16"):
        torchaudio(arguments | {"log_probs_BTV": arguments["log_probs_BTV"].bfloat16()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_probs_BTV": torch.zeros(2, 3)}, r"log_probs has shape \(2, 3\)"),
        ({"lens_B": torch.tensor([1])}, r"have shapes \[\(1,\), \(3, 4\), \(3,\)\]; give \(3,\), \(3, U\) and \(3,\)"),
        ({"blank": 11}, "blank=11 is not in the vocabulary; give an id from 0 to 10"),
        ({"backend": "cuda"}, "backend='cuda' is unknown to ctc_align"),
        ({"tokens_BU": torch.ones(3, 2048).long(), "backend": "triton"}, "tokens has 2048 columns; Triton takes up to 2047"),
    ],
)
def test_what_does_not_fit_is_refused(change: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ctc_viterbi(**draw("plain") | change)


@pytest.mark.parametrize("backend", [each for each in BACKENDS if each.values[0] != "triton"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lens_B": torch.tensor([3, 15, 2])}, "lens has values from 2 to 15; give values from 0 to 14"),
        ({"token_lens_B": torch.tensor([3, -1, 2])}, "token_lens has values from -1 to 3; give values from 0 to 4"),
        ({"tokens_BU": torch.full((3, 4), 11)}, "tokens holds id 11; give ids from 0 to 10"),
    ],
)
def test_values_out_of_range_are_refused(change: Arguments, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        ctc_viterbi(**draw("plain") | change, backend=backend)


def test_triton_reads_nothing_out_of_range() -> None:
    arguments = draw("plain")
    arguments["tokens_BU"][0, 0] = 11
    arguments["lens_B"][1] = 99
    found = ctc_viterbi(**arguments, backend="triton")
    assert not found.feasible_B[0]
    arguments["lens_B"][1] = 14
    assert torch.equal(found.labels_BT[1], ctc_viterbi(**arguments, backend="triton").labels_BT[1])

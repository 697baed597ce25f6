"""Monotonic alignment search against all paths and against loops; every backend alike, to the bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.kernels import mas as package
from speechkit.kernels.case import Arguments, check_against_fp64
from speechkit.kernels.dispatch import HAS_NUMBA
from speechkit.kernels.mas import MasOutput, mas
from speechkit.kernels.mas.cases import OPS, loop_over_cells, loop_over_rows

OP = OPS[0]
BACKENDS = tuple(
    pytest.param(name, marks=pytest.mark.skipif(name == "numba" and not HAS_NUMBA, reason="numba is not installed"))
    for name in OP.backends
)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(shape: str, dtype: torch.dtype = torch.float32) -> Arguments:
    return OP.draw(OP.test_shapes[shape], dtype=dtype, device=DEVICE, seed=0)


def align(likelihood: Tensor, frame_lens: list[int], phone_lens: list[int], backend: str) -> MasOutput:
    """On the device under test; the result on the CPU."""
    lens = (torch.tensor(x, dtype=torch.long, device=DEVICE) for x in (frame_lens, phone_lens))
    return MasOutput(*(x.cpu() for x in mas(likelihood.to(DEVICE), *lens, backend=backend)))


def assert_same(ours: MasOutput, theirs: MasOutput) -> None:
    for name, mine, other in zip(MasOutput._fields, ours, theirs):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other), name


def all_durations(frames: int, phones: int) -> list[tuple[int, ...]]:
    """Every way to give each phone at least one frame."""
    cuts = itertools.combinations(range(1, frames), phones - 1) if phones else ()
    return [tuple(np.diff([0, *cut, frames]).tolist()) for cut in cuts] if frames >= phones else []


@every_backend
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), frames=st.integers(1, 7), phones=st.integers(1, 5), levels=st.integers(1, 3))
def test_is_the_best_of_all_paths_and_stays_longest(backend: str, seed: int, frames: int, phones: int, levels: int) -> None:
    whole = np.random.default_rng(seed).integers(0, levels, size=(frames, phones))  # few levels: many equal paths
    found = align(torch.from_numpy(whole).float()[None], [frames], [phones], backend)
    paths = all_durations(frames, phones)
    if not paths:
        assert not found.feasible_B.any()
        return
    scores = {d: int(whole[np.arange(frames), np.repeat(np.arange(phones), d)].sum()) for d in paths}
    best = max(scores.values())
    expected = max((d for d in paths if scores[d] == best), key=lambda d: d[::-1])
    assert found.scores_B.tolist() == [best]
    assert tuple(found.durations_BP[0].tolist()) == expected
    assert found.frame_phone_BT[0].tolist() == np.repeat(np.arange(phones), expected).tolist()


def test_of_equal_paths_the_one_with_long_last_phones_is_taken() -> None:
    found = align(torch.zeros(1, 6, 3), [6], [3], "reference")
    assert found.durations_BP.tolist() == [[1, 1, 4]]
    assert found.frame_phone_BT.tolist() == [[0, 1, 2, 2, 2, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", OP.test_shapes)
@every_backend
def test_shapes_and_dtypes(backend: str, shape: str, dtype: torch.dtype) -> None:
    arguments = draw(shape, dtype)
    check_against_fp64(OP, arguments, backend)
    assert_same(mas(**arguments, backend=backend), mas(**arguments, backend="reference"))


@every_backend
@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    coarse=st.booleans(),
)
def test_any_lengths(backend: str, rows: list[tuple[int, int]], seed: int, coarse: bool) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(rows), 12, 6))).float()
    values = values.round() if coarse else values
    frame_lens, phone_lens = ([*column] for column in zip(*rows))
    found = align(values, frame_lens, phone_lens, backend)
    assert_same(found, align(values, frame_lens, phone_lens, "reference"))
    for row, (frames, phones) in enumerate(rows):
        feasible = frames >= phones and (phones > 0 or frames == 0)
        assert bool(found.feasible_B[row]) == feasible
        assert int(found.durations_BP[row].sum()) == (frames if feasible else 0)
        assert (found.durations_BP[row, :phones] >= (1 if feasible else 0)).all()
        assert (found.durations_BP[row, phones:] == 0).all()
        assert (found.frame_phone_BT[row, frames if feasible else 0 :] == -1).all()
        if feasible:
            own = found.frame_phone_BT[row, :frames]
            assert torch.equal(own, torch.arange(6).repeat_interleave(found.durations_BP[row]))
            along = values[row, torch.arange(frames), own].double().sum()
            assert float(found.scores_B[row]) == pytest.approx(float(along), abs=1e-4)
        else:
            assert found.scores_B[row] == -torch.inf


@every_backend
def test_padding_and_mates_change_no_bit(backend: str) -> None:
    frame_lens, phone_lens = [0, 1, 30, 25, 3, 0, 40], [0, 1, 8, 0, 9, 2, 12]
    values = torch.randn(7, 40, 12, generator=torch.Generator().manual_seed(0))
    beyond = torch.arange(40)[None, :, None] >= torch.tensor(frame_lens)[:, None, None]
    beyond = beyond | (torch.arange(12) >= torch.tensor(phone_lens)[:, None, None])
    before = torch.arange(12) > torch.arange(40)[:, None]  # phones that no path reaches so early
    together = align(values, frame_lens, phone_lens, backend)
    assert together.feasible_B.tolist() == [True, True, True, False, False, False, True]
    for junk in (torch.nan, 7.0):
        assert_same(align(values.masked_fill(beyond | before, junk), frame_lens, phone_lens, backend), together)
    for row, (frames, phones) in enumerate(zip(frame_lens, phone_lens)):
        alone = align(values[row : row + 1, :frames, :phones], [frames], [phones], backend)
        assert torch.equal(together.durations_BP[row, :phones], alone.durations_BP[0])
        assert torch.equal(together.frame_phone_BT[row, :frames], alone.frame_phone_BT[0])
        assert torch.equal(together.scores_B[row : row + 1], alone.scores_B)


@every_backend
def test_no_likelihood_and_nan_are_infeasible(backend: str) -> None:
    values = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
    values[0, :, 1] = -torch.inf
    values[1, 2] = torch.nan
    found = align(values, [6, 6, 6], [3, 3, 3], backend)
    assert found.feasible_B.tolist() == [False, False, True]
    assert (found.frame_phone_BT[:2] == -1).all()
    assert (found.durations_BP[:2] == 0).all()
    assert found.scores_B[0] == -torch.inf


@every_backend
def test_strided_inputs(backend: str) -> None:
    arguments = draw("plain")
    values = arguments["log_likelihood_BTP"]
    plain = mas(**arguments, backend=backend)
    for view in (values.mT.contiguous().mT, torch.stack((values, -values), dim=3)[..., 0], values.double()):
        strided = arguments | {"log_likelihood_BTP": view, "frame_lens_B": arguments["frame_lens_B"].int()}
        assert_same(mas(**strided, backend=backend), plain)


@every_backend
@pytest.mark.filterwarnings("ignore")
def test_compiles_whole(backend: str) -> None:
    arguments = draw("plain")
    compiled = torch.compile(lambda a: mas(**a, backend=backend), fullgraph=True, backend="aot_eager")
    assert_same(MasOutput(*compiled(arguments)), mas(**arguments, backend=backend))


@every_backend
def test_the_operator_is_declared_right(backend: str) -> None:
    torch.library.opcheck(torch.ops.speechkit.mas.default, (*draw("plain").values(), backend))


def test_autocast_changes_nothing_and_there_is_no_gradient() -> None:
    arguments = draw("plain")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside = mas(**arguments | {"log_likelihood_BTP": arguments["log_likelihood_BTP"].clone().requires_grad_()})
    assert not inside.scores_B.requires_grad
    assert_same(inside, mas(**arguments))


def test_auto_starts_numba_once_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(package, "pays_to_start", lambda seconds: asked.append(seconds) or False)
    monkeypatch.setattr(package.dispatch, "HAS_NUMBA", True)
    for batch in (1, 9):
        arguments = OP.draw({"B": batch, "T": 50, "P": 5}, dtype=torch.float32, device="cpu", seed=0)
        mas(**arguments)
        mas(**arguments, backend="reference")
    assert 0.0 < asked[0] < asked[1]
    assert len(asked) == 2


def test_baselines_equal_ours() -> None:
    arguments = OP.draw({"B": 3, "T": 30, "P": 6}, dtype=torch.float32, device="cpu", seed=0)
    ours = OP.run(arguments, "reference")[0]
    for loop in (loop_over_cells, loop_over_rows):
        assert torch.equal(loop(arguments)[0], ours)
        with pytest.raises(NotImplementedError, match="no infeasible rows"):
            loop(arguments | {"phone_lens_B": torch.tensor([0, 1, 2])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_likelihood_BTP": torch.zeros(2, 3)}, r"log_likelihood has shape \(2, 3\)"),
        ({"frame_lens_B": torch.tensor([1])}, r"have shapes \[\(1,\), \(3,\)\]; give \(3,\) twice"),
        ({"backend": "cuda"}, "backend='cuda' is unknown to mas"),
        ({"log_likelihood_BTP": torch.zeros(3, 1, 2049), "backend": "triton"}, "has 2049 columns; Triton takes up to 2048"),
    ],
)
def test_what_does_not_fit_is_refused(change: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mas(**draw("plain") | change)


@pytest.mark.parametrize("backend", [each for each in BACKENDS if each.values[0] != "triton"])
def test_lengths_out_of_range_are_refused(backend: str) -> None:
    for change in ({"frame_lens_B": torch.tensor([3, 15, 2])}, {"phone_lens_B": torch.tensor([3, -1, 2])}):
        with pytest.raises(ValueError, match=r"lens has values from (2 to 15|-1 to 3); give values from 0 to (14|5)"):
            mas(**draw("plain") | change, backend=backend)

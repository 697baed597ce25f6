from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.kernels import backend as forced_backend
from speechkit.kernels.attention import RelativePositions, Visibility, attention, reference
from speechkit.kernels.attention.cases import OP, draw, run
from speechkit.kernels.attention.torch_impl import rotate
from speechkit.kernels.case import check_against_fp64

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL = {"frames": 20, "heads": 1, "head_dim": 16, "lens": (20, 13)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", OP.test_shapes)
def test_kernels_are_as_exact_as_torch(shape: str, dtype: torch.dtype) -> None:
    check_against_fp64(OP, draw(OP.test_shapes[shape], dtype=dtype, device=DEVICE), "triton")


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_scaled_dot_product_attention_equals_the_reference(shape: str) -> None:
    check_against_fp64(OP, draw(OP.test_shapes[shape], dtype=torch.float32, device=DEVICE), "torch")


@given(
    st.integers(1, 40),
    st.lists(st.integers(0, 40), min_size=1, max_size=2),
    st.sampled_from([8, 20, 40]),
    st.sampled_from(
        [{}, {"causal": True}, {"chunk_size": 6, "left_chunks": 0}, {"chunk_size": 9}, {"reach": 3, "num_global": 1}]
    ),
    st.sampled_from(["none", "relative"]),
)
@settings(max_examples=5, deadline=None)
def test_any_shape(frames: int, lens: list[int], head_dim: int, limits: dict[str, Any], position: str) -> None:
    shape = {"frames": frames, "heads": 1, "head_dim": head_dim, "lens": [min(n, frames) for n in lens], "position": position}
    check_against_fp64(OP, draw(shape | limits, dtype=torch.float32, device=DEVICE), "triton")


@pytest.mark.parametrize("limits", [{}, {"causal": True}, {"chunk_size": 3, "left_chunks": 1}, {"reach": 2, "num_global": 1}])
@pytest.mark.parametrize("position", ["none", "rope", "relative"])
def test_gradients_of_the_reference(position: str, limits: dict[str, Any]) -> None:
    arguments = draw(
        {"frames": 5, "heads": 2, "head_dim": 4, "lens": (5, 3), "position": position} | limits, dtype=torch.float64, device="cpu"
    )
    names = [name for name in OP.differentiable if name in arguments]
    leaves = [arguments[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *x: run(arguments | dict(zip(names, x)), "reference"), leaves)


def evaluate(arguments: dict[str, Any], backend: str) -> tuple[Tensor, ...]:
    """Output and gradients by q, k and v under the same upstream gradient for equal frames."""
    leaves = {name: arguments[name].clone().requires_grad_() for name in "qkv"}
    (out,) = run(arguments | leaves, backend)
    upstream = torch.arange(out.shape[1], device=out.device)[None, :, None, None] % 7 - 3.0
    return (out.detach(), *torch.autograd.grad((out * upstream).sum(), list(leaves.values())))


@pytest.mark.parametrize(
    "limits", [{"position": "relative"}, {"position": "rope"}, {"chunk_size": 7, "left_chunks": 1}, {"reach": 5}]
)
def test_padding_and_mates_change_no_bit(limits: dict[str, Any]) -> None:
    together = draw({"frames": 70, "heads": 1, "head_dim": 16, "lens": (70, 37)} | limits, dtype=torch.float32, device=DEVICE)
    for name in "qkv":
        together[name] = together[name].clone()
        together[name][1, 37:] = 99.0
    alone = {name: value[1:, :37] if name in "qkv" else value for name, value in together.items()}
    alone |= {"lens_B": together["lens_B"][1:]} | {name: together[name][:37] for name in ("cos", "sin") if name in together}
    if "r" in together:
        alone["r"] = together["r"][33:-33]
    for found, expected in zip(evaluate(together, "triton"), evaluate(alone, "triton")):
        assert torch.equal(found[1:, :37], expected)
        assert (found[1, 37:] == 0).all()


def test_gradients_by_the_relative_term_repeat_bit_for_bit() -> None:
    arguments = draw(SMALL | {"position": "relative", "lens": (9, 7, 8, 9, 1), "frames": 9}, dtype=torch.float32, device=DEVICE)
    leaves = [arguments[name].clone().requires_grad_() for name in "ruw"]
    first, second = (
        torch.autograd.grad(run(arguments | dict(zip("ruw", leaves)), "triton")[0].square().sum(), leaves) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_parts_of_a_projection_are_read_as_they_lie() -> None:
    projection = torch.randn(2, 20, 6, 16, device=DEVICE)
    parts = projection.chunk(3, dim=2)
    assert not parts[0].is_contiguous()
    whole = attention(*(x.contiguous() for x in parts), backend="triton")
    assert torch.equal(attention(*parts, backend="triton"), whole)
    turned = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in parts)  # channels far apart are copied
    assert torch.equal(attention(*turned, backend="triton"), whole)


def test_upstream_gradients_may_be_expanded() -> None:
    q, k, v = (torch.randn(1, 9, 1, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    expected = torch.autograd.grad(attention(q, k, v, backend="reference").sum(), (q, k, v))
    for ours, theirs in zip(torch.autograd.grad(attention(q, k, v, backend="triton").sum(), (q, k, v)), expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["rope", "relative"])
def test_compiles_whole(position: str) -> None:
    arguments = draw(SMALL | {"position": position}, dtype=torch.float32, device=DEVICE)
    names = [name for name in OP.differentiable if name in arguments]

    def step(*values: Tensor) -> Tensor:
        given = arguments | dict(zip(names, values))
        rope = (given["cos"], given["sin"]) if position == "rope" else None
        relative = RelativePositions(given["r"], given["u"], given["w"]) if position == "relative" else None
        visible = Visibility(lens_B=given["lens_B"], query_lens_B=given["lens_B"])
        return attention(*values[:3], visible=visible, rope=rope, relative=relative, backend="triton").square().sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [arguments[name].clone().requires_grad_() for name in names]
        loss = function(*leaves)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_custom_operations_are_sound() -> None:
    from speechkit.kernels.attention import triton_impl, triton_rotary

    given = draw(
        {"frames": 6, "heads": 1, "head_dim": 16, "lens": (6, 4), "position": "relative"}, dtype=torch.float32, device=DEVICE
    )
    leaves = [given[name].clone().requires_grad_() for name in "qkv"]
    terms = [given[name].clone().requires_grad_() for name in "ruw"]
    for extra in ([None, None, None, None, None, None], [given["lens_B"], given["lens_B"], None, *terms]):
        torch.library.opcheck(triton_impl._forward.overload, (*leaves, *extra, 0, 0, 0, 0.25))
    table = torch.rand(6, 8, device=DEVICE)
    torch.library.opcheck(triton_rotary.rotate.overload, (*leaves[:2], table, table, 1.0))


def test_autocast_casts_queries_keys_and_values() -> None:
    q, k, v = (torch.randn(1, 9, 1, 16, device=DEVICE) for _ in range(3))
    exact = attention(q, k, v, backend="reference")
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        outs = [attention(q, k, v, backend=backend) for backend in ("torch", "triton")]
    for out in outs:
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), exact, atol=3e-2, rtol=3e-2)


def test_rotation_equals_the_definition() -> None:
    arguments = draw(SMALL | {"position": "rope"}, dtype=torch.float32, device="cpu")
    table = arguments["cos"], arguments["sin"]
    for x in (arguments["q"], arguments["q"].double()):
        torch.testing.assert_close(rotate(x, table), reference.rotate(x, table))


def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient() -> None:
    arguments = draw(SMALL, dtype=torch.float32, device=DEVICE)
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool, device=DEVICE)
    mask[0, 0, 3] = False
    for backend in ("reference", "triton"):
        out, *gradients = evaluate(arguments | {"mask": mask, "lens_B": None}, backend)
        assert (out[0, 3] == 0).all()
        assert (gradients[0][0, 3] == 0).all()
        assert all(each.isfinite().all() for each in (out, *gradients))


@pytest.mark.parametrize("backend", ["torch", "reference", "triton"])
def test_no_rows_and_no_frames(backend: str) -> None:
    for batch, frames in ((0, 5), (2, 0)):
        q, k, v = (torch.randn(batch, frames, 2, 16, device=DEVICE) for _ in range(3))
        assert attention(q, k, v, backend=backend).shape == (batch, frames, 2, 16)


def test_dropout_is_left_to_torch() -> None:
    q, k, v = (torch.randn(1, 9, 1, 16) for _ in range(3))
    torch.manual_seed(0)
    with forced_backend("triton"):
        out = attention(q, k, v, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(out, attention(q, k, v, dropout=0.5, backend="torch"))
    with pytest.raises(ValueError, match=r"backend='triton': dropout=0\.5 on the weights"):
        attention(q, k, v, dropout=0.5, backend="triton")


def test_what_does_not_fit_is_refused() -> None:
    q, k = torch.randn(2, 9, 1, 16), torch.randn(2, 7, 1, 16)
    table = torch.rand(9, 8), torch.rand(9, 8)
    with pytest.raises(ValueError, match=r"keys of shape \(2, 7, 1, 16\) and values of shape \(2, 9, 1, 16\) do not fit"):
        attention(q, k, q)
    for wrong in ({"rope": table}, {"visible": Visibility(causal=True)}):
        with pytest.raises(ValueError, match="9 queries and 7 keys: rope, relative, causal, chunk_size and reach"):
            attention(q, k, k, **wrong)
    with pytest.raises(ValueError, match=r"rope of shape \(9, 8\) does not fit; expected \(7, 8\)"):
        attention(k, k, k, rope=table)
    with pytest.raises(ValueError, match=r"relative.r_RHK of shape \(17, 1, 16\) does not fit; expected \(13, 1, 16\)"):
        attention(k, k, k, relative=RelativePositions(torch.rand(17, 1, 16), torch.rand(1, 16), torch.rand(1, 16)))
    for x, reason in ((torch.rand(1, 2, 1, 160), "heads of 160 channels"), (k.double(), "torch.float64 has no kernel")):
        with pytest.raises(ValueError, match=reason):
            attention(x, x, x, backend="triton")
    with pytest.raises(ValueError, match="give them one type"):
        attention(k, k.half(), k.half(), backend="triton")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"causal": True, "reach": 3}, "causal and reach exclude one another"),
        ({"mask": torch.ones(1, 1, 2, 2), "causal": True}, "mask stands alone"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"left_chunks": 2}, "left_chunks=2 needs chunk_size"),
        ({"reach": -1}, "reach=-1"),
    ],
)
def test_visibility_that_makes_no_sense_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Visibility(**attributes)


def test_selected_rows_see_what_they_saw() -> None:
    rows, lens = torch.tensor([2, 0, 0]), torch.tensor([4, 3, 1])
    for visible in (
        Visibility(lens_B=lens, chunk_size=2),
        Visibility(lens_B=lens),
        Visibility(mask=torch.rand(3, 1, 4, 4) < 0.5),
    ):
        before = visible.select(rows).dense(4, lens.device)
        mask = visible.dense(4, lens.device)
        assert mask is visible.dense(4, lens.device)  # made once
        after = visible.select(rows).dense(4, lens.device)
        assert mask is not None
        assert before is not None
        assert after is not None
        assert torch.equal(before, mask[rows])
        assert torch.equal(after, mask[rows])
    assert Visibility().select(rows).dense(4, lens.device) is None

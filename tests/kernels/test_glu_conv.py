"""The convolution module's kernels against plain torch in fp64, and what they promise besides."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels import backend as forced_backend
from speechkit.kernels.case import Arguments, check_against_fp64
from speechkit.kernels.glu_conv import Norm, glu_conv
from speechkit.kernels.glu_conv.cases import LONG_SHAPES, OPS, TEST_SHAPES, draw, run
from speechkit.kernels.glu_conv.torch_impl import depthwise
from speechkit.nn.conv_module import ConvModule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ("reference", "torch", "triton")
SMALL = {"B": 2, "T": 6, "D": 4, "K": 3}


def leaves(arguments: Arguments) -> dict[str, Tensor]:
    return {name: arguments[name].detach().clone().requires_grad_() for name in OPS[0].differentiable if name in arguments}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", TEST_SHAPES)
def test_triton_against_fp64(shape: str, dtype: torch.dtype) -> None:
    check_against_fp64(OPS[0], draw(TEST_SHAPES[shape], dtype=dtype, device=DEVICE, seed=1), "triton", tiny=1e-6)


@pytest.mark.parametrize("shape", LONG_SHAPES)
def test_triton_over_several_blocks(shape: str) -> None:
    check_against_fp64(OPS[0], draw(LONG_SHAPES[shape], dtype=torch.float32, device=DEVICE, seed=1), "triton")


@pytest.mark.parametrize("norm", [True, False])
def test_no_frames_at_all(norm: bool) -> None:
    arguments = draw(SMALL | {"T": 0, "norm": norm}, dtype=torch.float32, device=DEVICE, seed=0)
    inputs = leaves(arguments)
    out = run(arguments | inputs, "triton")[0]
    assert out.shape == (2, 0, 4)
    for grad, leaf in zip(torch.autograd.grad(out.sum(), tuple(inputs.values())), inputs.values()):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 6), st.sampled_from([1, 3, 5]), st.booleans(), st.booleans())
@settings(max_examples=5, deadline=None)
def test_any_shape_against_fp64(rows: int, frames: int, dim: int, taps: int, causal: bool, norm: bool) -> None:
    shape = {"B": rows, "T": frames, "D": dim, "K": taps, "causal": causal, "norm": norm and dim > 1}
    arguments = draw(shape, dtype=torch.float32, device=DEVICE, seed=frames)
    check_against_fp64(OPS[0], arguments, "triton")


@pytest.mark.parametrize("shape", ["plain", "causal", "without norm"])
def test_gradient_of_the_reference_equals_finite_differences(shape: str) -> None:
    arguments = draw(TEST_SHAPES[shape] | {"B": 1, "D": 4}, dtype=torch.float64, device="cpu", seed=0)
    inputs = leaves(arguments)
    assert torch.autograd.gradcheck(
        lambda *values: run(arguments | dict(zip(inputs, values)), "reference"), tuple(inputs.values())
    )


@pytest.mark.parametrize("shape", TEST_SHAPES)
def test_torch_equals_the_reference(shape: str) -> None:
    check_against_fp64(OPS[0], draw(TEST_SHAPES[shape], dtype=torch.float64, device=DEVICE, seed=1), "torch", tiny=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_torch_on_a_cpu_is_what_a_module_of_torch_layers_is(causal: bool) -> None:
    torch.manual_seed(0)
    module = ConvModule(dim=6, kernel_size=5, norm="layer", causal=causal, dropout=0.0)
    x, valid = torch.randn(2, 9, 6), torch.arange(9) < torch.tensor([[9], [7]])
    gated = F.glu(module.gate(module.norm(x)), dim=-1) * valid[..., None].float()
    convolved = depthwise(gated, module.depthwise.weight, module.depthwise.bias, causal=causal)
    with forced_backend("torch"):
        assert torch.equal(module(x, valid), module.out(F.silu(module.conv_norm(convolved))))
    padded = F.pad(gated.transpose(1, 2), (4, 0) if causal else (2, 2))
    torch.testing.assert_close(convolved, module.depthwise(padded).transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_module_trains_alike_on_every_backend(norm: str) -> None:
    torch.manual_seed(0)
    first = ConvModule(dim=6, kernel_size=5, norm=norm, causal=False, dropout=0.0).to(DEVICE)  # type: ignore[arg-type]
    x, valid = torch.randn(2, 9, 6, device=DEVICE), torch.arange(9, device=DEVICE) < torch.tensor([[9], [7]], device=DEVICE)
    results = []
    for backend in BACKENDS:
        module, leaf = copy.deepcopy(first), x.clone().requires_grad_()
        with forced_backend(backend):
            out = module(leaf, valid)[valid]
        results.append((out, *torch.autograd.grad(out.square().sum(), (leaf, *module.parameters()))))
    for other in results[1:]:
        for expected, found in zip(results[0], other):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", [True, False])
def test_padding_and_batch_mates_change_nothing(norm: bool) -> None:
    arguments = draw(
        {"B": 3, "T": 70, "D": 4, "K": 3, "lens": (70, 5, 9), "norm": norm}, dtype=torch.float32, device=DEVICE, seed=0
    )
    x, valid = arguments["x_BTC"], arguments["valid_BT"]
    x = torch.where(valid[..., None], x, float("nan")).requires_grad_()
    together = run(arguments | {"x_BTC": x}, "triton")[0]
    grad = torch.randn_like(together).masked_fill(~valid[..., None], 0.0)
    (by_x,) = torch.autograd.grad(together, x, grad)
    assert together.isfinite().all()
    assert (by_x[~valid] == 0).all()
    for row, length in ((1, 5), (2, 9)):
        own = x[row : row + 1, :length].detach().requires_grad_()
        alone = run(arguments | {"x_BTC": own, "valid_BT": None}, "triton")[0]
        assert torch.equal(alone[0], together[row, :length])
        (by_own,) = torch.autograd.grad(alone, own, grad[row : row + 1, :length])
        assert torch.equal(by_own[0], by_x[row, :length])


@pytest.mark.parametrize("norm", [True, False])
def test_strides_do_not_matter(norm: bool) -> None:
    arguments = draw(SMALL | {"norm": norm}, dtype=torch.float32, device=DEVICE, seed=0)
    x = arguments["x_BTC"]
    wide = torch.cat((x, x), dim=2)[..., :8]
    results = []
    for laid_out in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT, wide):
        inputs = leaves(arguments) | {"x_BTC": laid_out.detach().requires_grad_()}
        turned = {"weight_D1K": inputs["weight_D1K"].permute(2, 1, 0).contiguous().permute(2, 1, 0)}
        valid_BT = arguments["valid_BT"].t().contiguous().t()
        out = run(arguments | inputs | turned | {"valid_BT": valid_BT}, "triton")[0]
        grad = torch.ones(4, 2, 6, device=DEVICE).permute(1, 2, 0)
        results.append((out, *torch.autograd.grad(out, tuple(inputs.values()), grad)))
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], other))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_into_one_graph(backend: str, norm: bool) -> None:
    arguments = draw(SMALL | {"norm": norm}, dtype=torch.float32, device=DEVICE, seed=0)
    names = list(leaves(arguments))
    constants = {name: value for name, value in arguments.items() if name not in names}

    def loss(*values: Tensor) -> Tensor:
        return run(constants | dict(zip(names, values)), backend)[0].square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        inputs = tuple(leaves(arguments).values())
        value = function(*inputs)
        results.append((value, *torch.autograd.grad(value, inputs)))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, atol=0.0 if backend == "triton" else 1e-6, rtol=0.0)


@pytest.mark.parametrize("norm", [True, False])
def test_operators_keep_the_rules_of_torch_library(norm: bool) -> None:
    from speechkit.kernels.glu_conv.triton_impl import glu_conv_fused, glu_conv_norm_fused

    arguments = draw(SMALL | {"T": 3, "norm": norm}, dtype=torch.float32, device=DEVICE, seed=0)
    x, *rest = leaves(arguments).values()
    if norm:
        torch.library.opcheck(glu_conv_norm_fused.overload, (x, arguments["valid_BT"], *rest, 1e-5, False, True))
    else:
        torch.library.opcheck(glu_conv_fused.overload, (x, None, *rest, False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_comes_out_in_the_dtype_of_the_input_under_autocast(backend: str) -> None:
    arguments = draw(SMALL, dtype=torch.float32, device=DEVICE, seed=0)
    exact = run(arguments, "reference")[0]
    arguments["x_BTC"] = arguments["x_BTC"].bfloat16()
    inputs = leaves(arguments)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        out = run(arguments | inputs, backend)[0]
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert {leaf.grad.dtype for name, leaf in inputs.items() if name != "x_BTC"} == {torch.float32}  # type: ignore[union-attr]
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.05)


def test_nothing_is_kept_without_gradients() -> None:
    from speechkit.kernels.glu_conv.triton_impl import glu_conv_norm_fused

    arguments = draw(SMALL, dtype=torch.float32, device=DEVICE, seed=0)
    tensors = [arguments[name] for name in ("x_BTC", "valid_BT", "weight_D1K", "bias_D", "norm_weight_D", "norm_bias_D")]
    (out, kept), (same, full) = (glu_conv_norm_fused(*tensors, 1e-5, False, keep) for keep in (False, True))
    assert torch.equal(out, same)
    assert kept.numel() == 0
    assert full.shape == out.shape


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = torch.ones(1, 5, 8), torch.ones(4, 1, 3), torch.ones(4)
    with pytest.raises(ValueError, match=r"x of shape \(1, 5, 7\), .* expected \(B, T, 8\)"):
        glu_conv(x[..., :7], weight, bias)
    with pytest.raises(ValueError, match=r"valid of shape \(1, 4\)"):
        glu_conv(x, weight, bias, valid_BT=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="K=2 taps"):
        glu_conv(x, weight[..., :2], bias)
    with pytest.raises(ValueError, match="norm has weights"):
        glu_conv(x, weight, bias, norm=Norm(bias[:3], bias))
    with pytest.raises(ValueError, match="takes no float64"):
        glu_conv(x.double(), weight.double(), bias.double(), backend="triton")
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        ConvModule(dim=4, kernel_size=4, norm="layer", causal=False, dropout=0.0)

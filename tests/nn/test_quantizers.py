from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from speechkit.nn.quantizers import (
    FiniteScalarQuantizer,
    ResidualVectorQuantizer,
    ScalarQuantizer,
    VectorQuantizer,
    code_counts,
    code_usage,
)

DIM = 6
Quantizer = VectorQuantizer | ResidualVectorQuantizer | FiniteScalarQuantizer | ScalarQuantizer
KINDS = ["vector", "residual", "finite", "scalar"]


def build(kind: str) -> Quantizer:
    torch.manual_seed(0)
    if kind == "vector":
        return VectorQuantizer(dim=DIM, num_codes=16, code_dim=3)
    if kind == "residual":
        return ResidualVectorQuantizer(dim=DIM, num_codebooks=4, num_codes=8, code_dim=3, quantizer_dropout=0.5)
    if kind == "finite":
        return FiniteScalarQuantizer(dim=DIM, levels=(4, 3, 5))
    return ScalarQuantizer(dim=DIM)


def batch(lens: list[int], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames whose padding must not be read."""
    z = 2 * torch.randn(len(lens), max(lens) + extra, DIM)
    for row, length in enumerate(lens):
        z[row, length:] = float("nan")
    return z, torch.tensor(lens)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(lens=st.lists(st.integers(0, 9), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_rows_do_not_depend_on_padding_or_mates_and_decoding_is_exact(kind: str, lens: list[int], extra: int) -> None:
    module = build(kind).eval()
    z, lens_B = batch(lens, extra)
    z.requires_grad_()
    out = module(z, lens_B)
    assert out.quantised_BTD.shape == z.shape
    assert out.indices_BTQ.shape == (*z.shape[:2], module.num_codebooks)
    assert torch.equal(module.decode(out.indices_BTQ), out.quantised_BTD)
    loss_B = out.quantised_BTD.square().sum((1, 2)) + out.codebook_loss_B + out.commitment_loss_B
    (gradient,) = torch.autograd.grad(loss_B.sum(), z)
    counts = torch.zeros(module.num_codebooks, module.num_codes, dtype=torch.long)
    for row, length in enumerate(lens):
        assert (out.indices_BTQ[row, length:] == -1).all()
        assert out.quantised_BTD[row, length:].abs().sum() == 0
        assert gradient[row, length:].abs().sum() == 0
        alone = module(z[row : row + 1, :length], lens_B[row : row + 1])
        assert torch.equal(alone.indices_BTQ[0], out.indices_BTQ[row, :length])
        torch.testing.assert_close(alone.quantised_BTD[0], out.quantised_BTD[row, :length])
        torch.testing.assert_close(alone.codebook_loss_B[0], out.codebook_loss_B[row])
        torch.testing.assert_close(alone.commitment_loss_B[0], out.commitment_loss_B[row])
        counts += code_counts(alone.indices_BTQ, module.num_codes)
    assert gradient.isfinite().all()
    assert torch.equal(code_counts(out.indices_BTQ, module.num_codes), counts)
    assert (counts.sum(1) == sum(lens)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind: str) -> None:
    module = build(kind).eval()
    z, lens_B = batch([7, 4])
    expected = module(z, lens_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(z, lens_B)
        decoded = module.decode(out.indices_BTQ)
    assert torch.equal(out.indices_BTQ, expected.indices_BTQ)
    assert torch.equal(out.quantised_BTD, expected.quantised_BTD)
    assert torch.equal(decoded, expected.quantised_BTD)
    half = module(z.bfloat16(), lens_B)
    assert torch.equal(half.indices_BTQ, module(z.bfloat16().float(), lens_B).indices_BTQ)
    assert half.quantised_BTD.dtype == torch.float32


def test_vector_quantizer_takes_the_code_of_largest_cosine_and_counts_its_error() -> None:
    torch.manual_seed(0)
    module = VectorQuantizer(dim=DIM, num_codes=16, code_dim=3)
    z, lens_B = batch([5, 3])
    out = module(z, lens_B)
    for row, length in enumerate(lens_B.tolist()):
        projected = module.project_in(z[row, :length])
        cosines = F.cosine_similarity(projected[:, None], module.codebook.weight[None], dim=2)
        assert torch.equal(out.indices_BTQ[row, :length, 0], cosines.argmax(1))
        codes = module.codebook.weight[cosines.argmax(1)]
        torch.testing.assert_close(out.quantised_BTD[row, :length], module.project_out(codes))
        error = (codes - projected).square().mean(1).sum()
        torch.testing.assert_close(out.codebook_loss_B[row], error)
        torch.testing.assert_close(out.commitment_loss_B[row], error)


def test_gradients_of_the_vector_quantizer() -> None:
    torch.manual_seed(0)
    module = VectorQuantizer(dim=DIM, num_codes=16, code_dim=3)
    z = torch.randn(2, 5, DIM, requires_grad=True)
    out = module(z, torch.tensor([5, 5]))
    weight = torch.randn_like(z)
    through, codes = torch.autograd.grad(
        (out.quantised_BTD * weight).sum(), (z, module.codebook.weight), retain_graph=True, allow_unused=True
    )
    # straight through: as if the two linear layers followed each other
    torch.testing.assert_close(through, weight @ module.project_out.weight @ module.project_in.weight)
    assert codes is None, "the decoder does not move the codes"
    frames, codes = torch.autograd.grad(
        out.codebook_loss_B.sum(), (z, module.codebook.weight), retain_graph=True, allow_unused=True
    )
    assert frames is None, "the codebook loss does not move the frames"
    assert codes.abs().sum() > 0
    unused = torch.ones(16, dtype=torch.bool)
    unused[out.indices_BTQ.flatten()] = False
    assert codes[unused].abs().sum() == 0
    frames, codes = torch.autograd.grad(out.commitment_loss_B.sum(), (z, module.codebook.weight), allow_unused=True)
    assert frames.abs().sum() > 0
    assert codes is None, "the commitment loss does not move the codes"


def test_residual_quantizer_quantises_what_is_left() -> None:
    module = build("residual").eval()
    assert isinstance(module, ResidualVectorQuantizer)
    z, lens_B = torch.randn(2, 5, DIM), torch.tensor([5, 5])
    out, left, losses = module(z, lens_B), z, torch.zeros(2)
    for q, layer in enumerate(module.layers):
        part = layer(left, lens_B)
        assert torch.equal(part.indices_BTQ[..., 0], out.indices_BTQ[..., q])
        left, losses = left - part.quantised_BTD, losses + part.commitment_loss_B
        first = module(z, lens_B, codebooks_B=torch.tensor([q + 1, q + 1]))
        torch.testing.assert_close(first.quantised_BTD, z - left)
        assert torch.equal(module.decode(out.indices_BTQ[..., : q + 1]), first.quantised_BTD)
        torch.testing.assert_close(first.commitment_loss_B, losses)


def test_quantizer_dropout_is_drawn_for_each_row() -> None:
    module = build("residual").train()
    assert isinstance(module, ResidualVectorQuantizer)
    drawn = module.draw_codebooks(8000, generator=torch.Generator().manual_seed(0))
    shares = drawn.bincount(minlength=5)[1:] / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=0.02, rtol=0)
    z, lens_B = batch([3] * 40)
    torch.manual_seed(1)
    out = module(z, lens_B)
    used = (out.indices_BTQ >= 0).sum(2)
    assert torch.equal(used, used[:, :1].expand_as(used)), "all frames of a row use as many"
    assert len(used.unique()) == 4
    given_counts = module(z, lens_B, codebooks_B=used[:, 0])
    assert torch.equal(given_counts.quantised_BTD, out.quantised_BTD)
    assert torch.equal(module.decode(out.indices_BTQ), out.quantised_BTD)
    assert (module.eval()(z, lens_B).indices_BTQ >= 0).all()
    none = module(z, lens_B, codebooks_B=torch.zeros(40, dtype=torch.long))
    assert none.quantised_BTD.abs().sum() == none.codebook_loss_B.sum() == 0


@settings(max_examples=40, deadline=None)
@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4))
def test_finite_scalar_codes_and_indices_are_one_to_one(levels: list[int]) -> None:
    module = FiniteScalarQuantizer(dim=2, levels=levels)
    indices = torch.arange(math.prod(levels))
    assert module.num_codes == len(indices)
    codes = module.indices_to_codes(indices)
    assert torch.equal(module.codes_to_indices(codes), indices)
    assert len(codes.unique(dim=0)) == len(indices)
    for channel, count in enumerate(levels):
        steps = torch.arange(count) - count // 2
        assert torch.equal(codes[:, channel].unique(), steps / (count // 2))


@pytest.mark.parametrize("levels", [3, 4, 5, 8])
def test_finite_scalar_rounds_a_bounded_channel(levels: int) -> None:
    module = FiniteScalarQuantizer(dim=1, levels=[levels])
    with torch.no_grad():
        for layer in (module.project_in, module.project_out):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    z = torch.linspace(-30, 30, 6001)[None, :, None].requires_grad_()
    out = module(z, torch.tensor([6001]))
    assert torch.equal(out.indices_BTQ.unique(), torch.arange(levels)), "every level is reached, no other"
    assert (out.quantised_BTD[0].diff(dim=0) >= 0).all()
    assert out.quantised_BTD[0, 3000].item() == 0
    assert out.quantised_BTD.abs().max().item() == 1
    (gradient,) = torch.autograd.grad(out.quantised_BTD.sum(), z)
    half = 0.5 * (levels - 1) * 0.999
    shift = math.atanh(0.5 / half) if levels % 2 == 0 else 0.0
    expected = (1 - torch.tanh(z.detach() + shift).square()) * half / (levels // 2)
    torch.testing.assert_close(gradient, expected)


def test_scalar_quantizer_snaps_near_misses_back() -> None:
    module = ScalarQuantizer(dim=DIM, scale=9)
    z = torch.randn(2, 50, DIM, requires_grad=True)
    out = module(z, torch.tensor([50, 50]))
    latent = torch.tanh(z.detach())
    assert torch.equal(out.quantised_BTD, (9 * latent).round() / 9)
    assert torch.equal(module.snap(out.quantised_BTD + 0.05 * (2 * torch.rand_like(z) - 1)), out.quantised_BTD)
    (gradient,) = torch.autograd.grad(out.quantised_BTD.sum(), z)
    torch.testing.assert_close(gradient, 1 - latent.square())
    grid = torch.arange(module.num_codes)[None, :, None].expand(1, -1, DIM)
    assert torch.equal(module.decode(grid)[0, :, 0], (torch.arange(19) - 9) / 9)


def test_usage_and_perplexity() -> None:
    indices = torch.tensor([[[0, 3], [1, 3], [-1, -1]], [[2, 3], [3, -1], [-1, -1]]])
    counts = code_counts(indices, 8)
    assert counts.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 3, 0, 0, 0, 0]]
    usage = code_usage(counts)
    torch.testing.assert_close(usage.usage_Q, torch.tensor([0.5, 0.125]))
    torch.testing.assert_close(usage.perplexity_Q, torch.tensor([4.0, 1.0]))
    nothing = code_usage(torch.zeros(1, 8, dtype=torch.long))
    assert nothing.usage_Q.item() == 0
    assert nothing.perplexity_Q.item() == 1


def test_dead_codes_become_frames_of_the_batch() -> None:
    torch.manual_seed(0)
    module = VectorQuantizer(dim=DIM, num_codes=16, code_dim=3)
    z, lens_B = batch([6, 3])
    out = module(z, lens_B)
    counts, before = code_counts(out.indices_BTQ, 16), module.codebook.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    assert not module.revive(z, lens_B, counts, max_idle=2, generator=generator).any()
    moved = module.revive(z, lens_B, counts, max_idle=2, generator=generator)
    dead = counts[0] == 0
    assert moved.sum() == min(int(dead.sum()), 9), "no frame serves twice"
    assert not (moved[0] & ~dead).any()
    assert torch.equal(module.codebook.weight[~moved[0]], before[~moved[0]])
    frames = module.project_in(torch.cat((z[0, :6], z[1, :3])))
    distances = torch.cdist(module.codebook.weight[moved[0]], frames)
    assert distances.min(1).values.max() < 1e-5
    assert len(distances.argmin(1).unique()) == moved.sum()
    assert (module.idle_K[moved[0]] == 0).all()
    revived = code_counts(module(z, lens_B).indices_BTQ, 16)[0]
    assert (revived[moved[0]] > 0).all(), "a revived code is the nearest of its frame"


@pytest.mark.parametrize("kind", ["vector", "residual"])
def test_revival_is_the_same_on_every_rank_and_after_a_resume(kind: str) -> None:
    z, lens_B = batch([6, 3])
    weights = []
    for resumed in (False, True):
        module = build(kind).eval()
        assert isinstance(module, (VectorQuantizer, ResidualVectorQuantizer))
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            counts = code_counts(module(z, lens_B).indices_BTQ, module.num_codes)
            module.revive(z, lens_B, counts, max_idle=2, generator=generator)
            if resumed:
                state, module = module.state_dict(), build(kind).eval()
                module.load_state_dict(state)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_revival_brings_a_collapsed_residual_quantizer_back() -> None:
    module = build("residual").eval()
    assert isinstance(module, ResidualVectorQuantizer)
    with torch.no_grad():
        for layer in module.layers:
            layer.codebook.weight[1:] = -100.0
            layer.codebook.weight[0] = 1.0
    z, lens_B = torch.randn(4, 30, DIM), torch.tensor([30] * 4)
    counts = code_counts(module(z, lens_B).indices_BTQ, 8)
    assert ((counts > 0).sum(1) <= 2).all()
    moved = module.revive(z, lens_B, counts, max_idle=1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moved, counts == 0)
    after = code_usage(code_counts(module(z, lens_B).indices_BTQ, 8))
    assert (after.usage_Q >= 6 / 8).all()
    empty = torch.zeros_like(counts)
    nobody = module.revive(z, torch.zeros(4, dtype=torch.long), empty, max_idle=1, generator=torch.Generator())
    assert not nobody.any(), "without frames the dead wait"


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="num_codes=0 must be at least 1"):
        VectorQuantizer(dim=DIM, num_codes=0)
    with pytest.raises(ValueError, match=r"quantizer_dropout=1\.5 must be"):
        ResidualVectorQuantizer(dim=DIM, num_codebooks=2, num_codes=4, quantizer_dropout=1.5)
    with pytest.raises(ValueError, match=r"levels=\(8, 2\) must name"):
        FiniteScalarQuantizer(dim=DIM, levels=(8, 2))
    with pytest.raises(ValueError, match="scale=0 must be"):
        ScalarQuantizer(dim=DIM, scale=0)
    with pytest.raises(ValueError, match=r"last axis of \(1, 2, 3\) must be 6"):
        ScalarQuantizer(dim=DIM)(torch.zeros(1, 2, 3), torch.tensor([2]))
    with pytest.raises(ValueError, match="must be 1 to 4 codebooks"):
        build("residual").decode(torch.zeros(1, 2, 5, dtype=torch.long))
    module, z, lens_B = build("vector"), torch.zeros(1, 2, DIM), torch.tensor([2])
    assert isinstance(module, VectorQuantizer)
    with pytest.raises(ValueError, match=r"counts of shape \(2, 16\)"):
        module.revive(z, lens_B, torch.zeros(2, 16), max_idle=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="max_idle=0 must be"):
        module.revive(z, lens_B, torch.zeros(1, 16), max_idle=0, generator=torch.Generator())

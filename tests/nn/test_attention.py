from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechkit.kernels import backend
from speechkit.kernels.attention import Visibility
from speechkit.nn.attention import Position, SelfAttention, position_table
from speechkit.nn.positional import sinusoids

DIM, HEADS, FRAMES = 12, 3, 7


def slow_attention(module: SelfAttention, x_TD: Tensor, mask_TT: Tensor | None) -> Tensor:
    """One utterance, head by head and pair by pair of frames, straight from the definitions."""
    head = DIM // HEADS
    q_TD, k_TD, v_TD = module.qkv(x_TD).chunk(3, dim=-1)
    heads = []
    for h in range(HEADS):
        q, k, v = (z[:, h * head : (h + 1) * head] for z in (q_TD, k_TD, v_TD))
        scores = torch.empty(FRAMES, FRAMES)
        for i in range(FRAMES):
            for j in range(FRAMES):
                if module.position == "relative":
                    r = module.distance(sinusoids(torch.tensor([i - j]), DIM))[0, h * head : (h + 1) * head]
                    score = (q[i] + module.u_HK[h]) @ k[j] + (q[i] + module.v_HK[h]) @ r
                elif module.position == "rope":
                    score = rotate(q[i], i) @ rotate(k[j], j)
                else:
                    score = q[i] @ k[j]
                hidden = mask_TT is not None and not mask_TT[i, j]
                scores[i, j] = float("-inf") if hidden else score / math.sqrt(head)
        heads.append(scores.softmax(-1) @ v)
    return module.out(torch.cat(heads, -1))


def rotate(x: Tensor, position: int) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(-1, 2).contiguous())
    angles = torch.tensor([position / 10000 ** (2 * k / len(x)) for k in range(len(pairs))])
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


def build(position: Position, dropout: float = 0.0) -> SelfAttention:
    torch.manual_seed(0)
    module = SelfAttention(dim=DIM, num_heads=HEADS, position=position, dropout=dropout).eval()
    if position == "relative":
        torch.nn.init.normal_(module.u_HK)
        torch.nn.init.normal_(module.v_HK)
    return module


@pytest.mark.parametrize("position", ["rope", "relative", "none", "absolute"])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_equals_slow_reference(position: Position, masked: bool) -> None:
    module = build(position)
    x = torch.randn(2, FRAMES, DIM)
    mask = (torch.rand(2, 1, FRAMES, FRAMES) < 0.6) | torch.eye(FRAMES, dtype=torch.bool) if masked else None
    table = position_table(position, FRAMES, dim=DIM, num_heads=HEADS, device=x.device)
    out = module(x, None if mask is None else Visibility(mask=mask), table)
    for row in range(2):
        expected = slow_attention(module, x[row], None if mask is None else mask[row, 0])
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["rope", "relative"])
def test_content_attention_depends_on_distance_only(position: Position) -> None:
    module = build(position)
    x = torch.randn(1, 6, DIM)
    silence = torch.zeros(1, 4, DIM)
    late, mask = torch.cat([silence, x], 1), torch.zeros(1, 1, 10, 10, dtype=torch.bool)
    mask[..., 4:] = True
    tables = [position_table(position, t, dim=DIM, num_heads=HEADS, device=x.device) for t in (6, 10)]
    moved = module(late, Visibility(mask=mask), tables[1])[:, 4:]
    torch.testing.assert_close(module(x, None, tables[0]), moved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["rope", "relative", "none"])
def test_gradients_reach_everything_and_dropout_runs(position: Position) -> None:
    module = build(position, dropout=0.3).train()
    x = torch.randn(2, FRAMES, DIM, requires_grad=True)
    table = position_table(position, FRAMES, dim=DIM, num_heads=HEADS, device=x.device)
    module(x, None, table).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert x.grad is not None


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads=5 must divide dim=12"):
        SelfAttention(dim=12, num_heads=5)
    with pytest.raises(ValueError, match="must be even for position=rope"):
        SelfAttention(dim=12, num_heads=4)
    with pytest.raises(ValueError, match="position='alibi' is unknown"):
        SelfAttention(dim=12, num_heads=3, position="alibi")  # type: ignore[arg-type]


@pytest.mark.parametrize("position", ["none", "rope", "relative"])
def test_fused_kernels_change_nothing_but_rounding(position: Position) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, x = build(position).to(device), torch.randn(2, FRAMES, DIM, device=device)
    lens = torch.tensor([FRAMES, FRAMES - 3], device=device)
    table = position_table(position, FRAMES, dim=DIM, num_heads=HEADS, device=device)
    valid = torch.arange(FRAMES, device=device) < lens[:, None]
    results = []
    for name in ("torch", "triton"):
        with backend(name):
            out = module(x, Visibility(lens_B=lens, query_lens_B=lens), table)[valid]
        results.append((out, *torch.autograd.grad(out.square().sum(), list(module.parameters()))))
    for theirs, ours in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

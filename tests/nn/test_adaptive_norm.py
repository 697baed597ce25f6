"""Adaptive norms and embeddings of time: formulae, beginnings, precision."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from speechkit.nn.adaptive_norm import AdaptiveNorm, zero_linear
from speechkit.nn.time_embedding import TimeEmbedding


def test_norm_begins_as_a_layer_norm_and_a_gate_begins_closed() -> None:
    torch.manual_seed(0)
    x_BTD, condition_BC = torch.randn(2, 5, 8), torch.randn(2, 3)
    norm = AdaptiveNorm(dim=8, condition_dim=3)
    torch.testing.assert_close(norm(x_BTD, condition_BC), F.layer_norm(x_BTD, (8,), eps=1e-6))
    assert zero_linear(3, 8)(condition_BC).abs().sum() == 0


def test_norm_is_scaled_and_shifted_row_by_row() -> None:
    torch.manual_seed(0)
    x_BTD, condition_BC = torch.randn(2, 5, 8), torch.randn(2, 3)
    norm = AdaptiveNorm(dim=8, condition_dim=3)
    torch.nn.init.normal_(norm.modulation.weight)
    torch.nn.init.normal_(norm.modulation.bias)
    scale_BD, shift_BD = norm.modulation(condition_BC).chunk(2, dim=1)
    for row in range(2):
        expected_TD = F.layer_norm(x_BTD[row], (8,), eps=1e-6) * (1 + scale_BD[row]) + shift_BD[row]
        torch.testing.assert_close(norm(x_BTD, condition_BC)[row], expected_TD)
        torch.testing.assert_close(norm(x_BTD[row : row + 1], condition_BC[row : row + 1])[0], expected_TD)
    halved = norm.bfloat16()(x_BTD.bfloat16(), condition_BC.bfloat16())
    assert halved.dtype == torch.bfloat16


def test_times_are_told_apart() -> None:
    torch.manual_seed(0)
    embed = TimeEmbedding(dim=16, num_sinusoids=32)
    t_B = torch.linspace(0, 1, 1001)
    x_BD = embed(t_B)
    assert x_BD.shape == (1001, 16)
    assert torch.cdist(x_BD, x_BD).fill_diagonal_(1.0).min() > 1e-3, "steps of a thousandth"
    torch.testing.assert_close(embed(t_B[7:8]), x_BD[7:8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(embed(t_B).float(), x_BD, atol=0.03, rtol=0.1)
    assert embed.bfloat16()(t_B).dtype == torch.bfloat16

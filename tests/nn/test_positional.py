from __future__ import annotations

import math

import pytest
import torch

from speechkit.kernels.attention.torch_impl import relative_shift
from speechkit.kernels.attention.torch_impl import rotate as apply_rotary
from speechkit.nn.positional import relative_sinusoids, rotary_table, sinusoids


def test_sinusoids_values() -> None:
    table = sinusoids(torch.tensor([0, 3, -2]), 6)
    assert table.shape == (3, 6)
    for row, position in enumerate([0, 3, -2]):
        for k in range(3):
            angle = position / 10000 ** (2 * k / 6)
            assert table[row, k].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[row, 3 + k].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_odd_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="dim=5 must be even"):
        sinusoids(torch.arange(3), 5)


def test_rotary_turns_each_pair_by_its_angle() -> None:
    x = torch.randn(2, 5, 3, 8)
    turned = apply_rotary(x, rotary_table(5, 8, x.device))
    for t in range(5):
        for k in range(4):
            angle = t / 10000 ** (2 * k / 8)
            first, second = x[:, t, :, 2 * k], x[:, t, :, 2 * k + 1]
            torch.testing.assert_close(turned[:, t, :, 2 * k], first * math.cos(angle) - second * math.sin(angle))
            torch.testing.assert_close(turned[:, t, :, 2 * k + 1], second * math.cos(angle) + first * math.sin(angle))


def test_rotary_products_depend_on_distance_only() -> None:
    q, k = torch.randn(16).double().float(), torch.randn(16)
    table = rotary_table(40, 16, torch.device("cpu"))
    turned_q = apply_rotary(q.expand(1, 40, 1, 16), table)[0, :, 0]
    turned_k = apply_rotary(k.expand(1, 40, 1, 16), table)[0, :, 0]
    scores = turned_q @ turned_k.T
    for distance in (-7, 0, 1, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[0, 0], scores[0, 5], atol=1e-3)


def test_rotary_on_a_slice_of_a_projection_has_gradients_and_half_precision() -> None:
    projection = torch.randn(2, 6, 9, 4, requires_grad=True)
    table = rotary_table(6, 4, projection.device)
    turned = apply_rotary(projection[:, :, :6], table)
    turned.square().sum().backward()
    assert projection.grad is not None
    # turning keeps lengths, so the gradient of the squared length is twice the input
    torch.testing.assert_close(projection.grad[:, :, :6], 2 * projection[:, :, :6].detach())
    half = apply_rotary(projection[:, :, :6].bfloat16(), table)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), turned, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
def test_relative_shift_closed_form_and_gradient(num_frames: int) -> None:
    scores = torch.randn(2, 3, num_frames, 2 * num_frames - 1, requires_grad=True)
    shifted = relative_shift(scores)
    assert shifted.shape == (2, 3, num_frames, num_frames)
    for i in range(num_frames):
        for j in range(num_frames):
            assert torch.equal(shifted[:, :, i, j], scores[:, :, i, num_frames - 1 - i + j])
    weights = torch.randn_like(shifted)
    (shifted * weights).sum().backward()
    expected = torch.zeros_like(scores)
    for i in range(num_frames):
        for j in range(num_frames):
            expected[:, :, i, num_frames - 1 - i + j] += weights[:, :, i, j]
    torch.testing.assert_close(scores.grad, expected)


def test_relative_shift_of_a_transposed_input() -> None:
    scores = torch.randn(5, 2, 3, 9).permute(1, 2, 0, 3)
    assert not scores.is_contiguous()
    assert torch.equal(relative_shift(scores), relative_shift(scores.contiguous()))


def test_relative_sinusoids_run_from_far_right_to_far_left() -> None:
    table = relative_sinusoids(4, 6, torch.device("cpu"))
    torch.testing.assert_close(table, sinusoids(torch.tensor([3, 2, 1, 0, -1, -2, -3]), 6))

from __future__ import annotations

import torch

from speechkit.losses.consistency import symmetric_kl


def test_value_equals_the_definition_and_gradient_sees_fixed_targets() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 5, requires_grad=True), torch.randn(2, 6, 5, requires_grad=True)
    lens = torch.tensor([6, 4])
    kl_B = symmetric_kl(a, b, lens)
    p, q = a.softmax(-1), b.softmax(-1)
    for row, length in enumerate(lens.tolist()):
        pr, qr = p[row, :length], q[row, :length]
        expected = 0.5 * ((pr * (pr / qr).log()).sum() + (qr * (qr / pr).log()).sum())
        torch.testing.assert_close(kl_B[row], expected)
    gradient_a, gradient_b = torch.autograd.grad(kl_B.sum(), (a, b))
    # cross-entropy against a constant target q has gradient p - q
    expected = 0.5 * (p - q).detach()
    expected[1, 4:] = 0
    torch.testing.assert_close(gradient_a, expected)
    torch.testing.assert_close(gradient_b, -expected)
    assert gradient_a[1, 4:].abs().max() == 0


def test_equal_views_agree() -> None:
    a = torch.randn(1, 3, 4)
    assert symmetric_kl(a, a + 2.0, torch.tensor([3])).abs().max() < 1e-6

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechkit.nn.masks import valid_mask
from speechkit.nn.norm import MaskedBatchNorm

LENS = torch.tensor([5, 0, 9, 2])


def test_equals_batch_norm_on_the_valid_frames() -> None:
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm(dim=6), nn.BatchNorm1d(6)
    for module in (ours, theirs):
        with torch.no_grad():
            module.weight.copy_(torch.linspace(0.5, 2.0, 6))
            module.bias.copy_(torch.linspace(-1.0, 1.0, 6))
    valid = valid_mask(LENS, 9)
    for _ in range(3):
        x = torch.randn(4, 9, 6) * 3 + 1
        x[~valid] = 1e6
        x1, x2 = x.clone().requires_grad_(), x[valid].clone().requires_grad_()
        y1, y2 = ours(x1, valid)[valid], theirs(x2)
        torch.testing.assert_close(y1, y2, atol=1e-5, rtol=1e-5)
        weight = torch.randn_like(y1)
        (y1 * weight).sum().backward()
        (y2 * weight).sum().backward()
        assert x1.grad is not None
        torch.testing.assert_close(x1.grad[valid], x2.grad, atol=1e-5, rtol=1e-4)
        assert x1.grad[~valid].abs().max() == 0
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_valid", [0, 1])
def test_too_few_frames_stay_finite(num_valid: int) -> None:
    module = MaskedBatchNorm(dim=3)
    before = module.running_mean.clone(), module.running_var.clone()
    y = module(torch.randn(1, 4, 3), valid_mask(torch.tensor([num_valid]), 4))
    assert y.isfinite().all()
    assert module.running_var.isfinite().all()
    if num_valid == 0:
        assert torch.equal(before[0], module.running_mean)
        assert torch.equal(before[1], module.running_var)


def test_half_precision_in_and_out() -> None:
    y = MaskedBatchNorm(dim=3)(torch.randn(2, 4, 3).bfloat16())
    assert y.dtype == torch.bfloat16


def _rank_statistics(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        x = _examples()[rank : rank + 1].requires_grad_()
        module = MaskedBatchNorm(dim=3)
        y = module(x, valid_mask(torch.tensor([5 - 2 * rank]), 5))
        (y[:, :3] ** 3).sum().backward()
        torch.save((y.detach(), x.grad, module.running_var), f"{folder}/rank{rank}")
    finally:
        dist.destroy_process_group()


def _examples() -> Tensor:
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
def test_statistics_are_those_of_all_ranks(tmp_path: Path) -> None:
    other = torch.multiprocessing.get_context("spawn").Process(target=_rank_statistics, args=(1, str(tmp_path)))
    other.start()
    _rank_statistics(0, str(tmp_path))
    other.join()
    x = _examples().requires_grad_()
    module = MaskedBatchNorm(dim=3)
    y = module(x, valid_mask(torch.tensor([5, 3]), 5))
    (y[:, :3] ** 3).sum().backward()
    for rank in range(2):
        got, grad, var = torch.load(tmp_path / f"rank{rank}", weights_only=True)
        assert x.grad is not None
        torch.testing.assert_close(got, y[rank : rank + 1].detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grad, x.grad[rank : rank + 1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(var, module.running_var)

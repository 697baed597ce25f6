"""ConvNeXt blocks against their formula; padding, mates and empty rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.nn.convnext import ConvNextBackbone, ConvNextBlock
from speechkit.nn.masks import valid_mask


def build(**sizes: int) -> ConvNextBackbone:
    torch.manual_seed(0)
    backbone = ConvNextBackbone(**{"input_dim": 5, "dim": 8, "intermediate_dim": 12, "num_layers": 3, **sizes})
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.5)
    return backbone


@pytest.mark.parametrize("layer_scale", [None, 0.25])
def test_block_is_its_formula(layer_scale: float | None) -> None:
    torch.manual_seed(0)
    block = ConvNextBlock(dim=6, intermediate_dim=9, kernel_size=5, layer_scale=layer_scale).double()
    for parameter in (block.depthwise.weight, block.depthwise.bias, block.norm.weight, block.norm.bias):
        nn.init.normal_(parameter)

    def formula(x: Tensor) -> Tensor:
        h = functional.conv1d(x.transpose(1, 2), block.depthwise.weight, block.depthwise.bias, padding=2, groups=6)
        h = functional.layer_norm(h.transpose(1, 2), (6,), block.norm.weight, block.norm.bias, 1e-6)
        return x + (1.0 if layer_scale is None else layer_scale) * block.down(functional.gelu(block.up(h)))

    x = torch.randn(2, 11, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(block(x), formula(x))
    weight = torch.randn(2, 11, 6, dtype=torch.float64)
    found, expected = (torch.autograd.grad((f(x) * weight).sum(), [x, block.depthwise.weight]) for f in (block, formula))
    torch.testing.assert_close(found, expected)


def test_frames_outside_the_mask_are_not_read() -> None:
    torch.manual_seed(0)
    block = ConvNextBlock(dim=6, intermediate_dim=9)
    x = torch.randn(2, 12, 6)
    lens = torch.tensor([12, 7])
    padded = x.masked_fill(~valid_mask(lens, 12)[..., None], torch.nan)
    found = block(padded, valid_mask(lens, 12))
    torch.testing.assert_close(found[0], block(x[:1])[0])
    torch.testing.assert_close(found[1, :7], block(x[1:, :7])[0])


def test_backbone_of_a_row_is_its_own() -> None:
    backbone, x, lens = build(), torch.randn(4, 20, 5), torch.tensor([20, 9, 1, 0])
    padded = x.masked_fill(~valid_mask(lens, 20)[..., None], torch.nan)
    found = backbone(padded, lens)
    for row, length in enumerate(lens.tolist()):
        alone = backbone(x[row : row + 1, :length], torch.tensor([length]))
        assert alone.shape == (1, length, 8)
        torch.testing.assert_close(found[row, :length], alone[0], atol=1e-5, rtol=1e-5)


def test_empty_batches_and_rows() -> None:
    backbone = build()
    assert backbone(torch.zeros(2, 0, 5), torch.tensor([0, 0])).shape == (2, 0, 8)
    assert backbone(torch.zeros(0, 4, 5), torch.zeros(0, dtype=torch.long)).shape == (0, 4, 8)
    assert ConvNextBlock(dim=6, intermediate_dim=9)(torch.zeros(2, 0, 6)).shape == (2, 0, 6)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        ConvNextBlock(dim=6, intermediate_dim=9, kernel_size=4)


def test_runs_under_autocast() -> None:
    backbone, x, lens = build(), torch.randn(2, 10, 5), torch.tensor([10, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = backbone(x, lens)
    torch.testing.assert_close(half[0].float(), backbone(x, lens)[0], atol=0.1, rtol=0.1)

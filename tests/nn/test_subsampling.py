from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from speechkit.nn.subsampling import ConvSubsampling, Subsampling

KINDS: list[Subsampling] = ["conv2d4", "dw4", "dw8"]


def build(kind: Subsampling) -> ConvSubsampling:
    torch.manual_seed(0)
    return ConvSubsampling(input_dim=17, dim=8, kind=kind, channels=6).eval()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(lens=st.lists(st.integers(0, 41), min_size=1, max_size=4), extra=st.integers(0, 9))
@torch.no_grad()
def test_rows_do_not_depend_on_padding_or_mates(kind: Subsampling, lens: list[int], extra: int) -> None:
    module = build(kind)
    feats = torch.randn(len(lens), max(lens) + extra, 17)
    for row, length in enumerate(lens):
        feats[row, length:] = float("nan")  # whatever lies there must not be read
    x, x_lens = module(feats, torch.tensor(lens))
    assert x.shape[1] == max(1, module.output_lengths(torch.tensor([max(lens) + extra])).item())
    assert x_lens.tolist() == [-(-length // module.factor) for length in lens]
    for row, length in enumerate(lens):
        alone, alone_lens = module(feats[row : row + 1, :length], torch.tensor([length]))
        assert alone_lens.item() == x_lens[row]
        torch.testing.assert_close(x[row, : x_lens[row]], alone[0, : x_lens[row]], atol=1e-5, rtol=1e-5)


def test_conv2d4_is_two_strided_convolutions_and_a_linear_layer() -> None:
    module = build("conv2d4")
    feats = torch.randn(1, 23, 17)
    first, second = (conv for conv in module.convs if isinstance(conv, nn.Conv2d))
    y = F.conv2d(feats[:, None], first.weight, first.bias, stride=2, padding=1).relu()
    y = F.conv2d(y, second.weight, second.bias, stride=2, padding=1).relu()
    expected = F.linear(torch.cat([y[:, c] for c in range(6)], dim=-1), module.out.weight, module.out.bias)
    torch.testing.assert_close(module(feats, torch.tensor([23]))[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_output_frames_are_centred_on_the_factor(kind: Subsampling) -> None:
    module = build(kind)
    feats = torch.randn(1, 64, 17, requires_grad=True)
    module(feats, torch.tensor([64]))[0][0, 4].sum().backward()
    assert feats.grad is not None
    seen = feats.grad[0].abs().sum(-1).nonzero().flatten()
    assert (seen.min() + seen.max()).item() == 2 * 4 * module.factor


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="subsampling='stack6' is unknown"):
        ConvSubsampling(input_dim=80, dim=8, kind="stack6")  # type: ignore[arg-type]

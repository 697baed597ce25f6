"""ConvNeXt blocks over frames: the backbone of vocoders and codecs, and of text encoders of synthesis.

Sources: Liu et al. 2022, "A ConvNet for the 2020s", section 2; in one dimension and with layer norm before the linear layers
as in Siuzdak 2023, "Vocos", section 3.

Shape legend: B batch, T frames, C channels of the blocks, F channels of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.nn.masks import padding_mask

_INIT_STD = 0.02
_EPS = 1e-6


class ConvNextBlock(nn.Module):
    """Depthwise convolution over time, layer norm, linear, GELU, linear, a learned scale per channel, residual.

    Args:
        dim: C.
        intermediate_dim: channels between the linear layers; 3 C or 4 C in the papers.
        kernel_size: frames under the convolution, odd.
        layer_scale: initial value of the scale per channel, small so that deep stacks begin as the identity; None for no
            scale.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(self, *, dim: int, intermediate_dim: int, kernel_size: int = 7, layer_scale: float | None = None) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, so that the convolution is centred")
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.up = nn.Linear(dim, intermediate_dim)
        self.down = nn.Linear(intermediate_dim, dim)
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        for layer in (self.depthwise, self.up, self.down):
            _init(layer)

    def forward(self, x_BTC: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Maps (B, T, C) to (B, T, C).

        Args:
            x_BTC: frames.
            valid_BT: which frames are valid, as `speechkit.nn.masks.padding_mask` makes it; the convolution reads zeros in
                place of the others, so that a row is its own whatever its padding and its mates, to rounding. None for all.

        Returns:
            Frames; those outside `valid_BT` hold nothing of use.
        """
        if x_BTC.shape[1] == 0:
            return x_BTC
        h_BTC = x_BTC if valid_BT is None else x_BTC.masked_fill(~valid_BT[..., None], 0.0)
        h_BTC = self.norm(_convolve_depthwise(h_BTC, self.depthwise))
        h_BTC = self.down(functional.gelu(self.up(h_BTC)))
        return x_BTC + (h_BTC if self.scale is None else self.scale * h_BTC)


class ConvNextBackbone(nn.Module):
    """A convolution from the input's channels, layer norm, blocks, layer norm.

    A row is its own whatever its padding and its mates, to rounding.

    Args:
        input_dim: F.
        dim: C.
        intermediate_dim: channels between the linear layers of the blocks.
        num_layers: blocks; their scales start at 1 / num_layers, as those of Vocos.
        kernel_size: frames under each convolution, odd.
    """

    def __init__(self, *, input_dim: int, dim: int, intermediate_dim: int, num_layers: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.embed = nn.Conv1d(input_dim, dim, kernel_size, padding=kernel_size // 2)
        _init(self.embed)
        self.embed_norm = nn.LayerNorm(dim, eps=_EPS)
        self.blocks = nn.ModuleList(
            ConvNextBlock(dim=dim, intermediate_dim=intermediate_dim, kernel_size=kernel_size, layer_scale=1.0 / num_layers)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, x_BTF: Tensor, lens_B: Tensor) -> Tensor:
        """Frames in context.

        Args:
            x_BTF: input, anything past each length, shape (B, T, F).
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            Shape (B, T, C); what lies past a length holds nothing of use.
        """
        num_frames = x_BTF.shape[1]
        if num_frames == 0:
            x_BTF = functional.pad(x_BTF, (0, 0, 0, 1))  # convolutions refuse what is empty
        valid_BT = padding_mask(lens_B, x_BTF.shape[1])
        if valid_BT is not None:
            x_BTF = x_BTF.masked_fill(~valid_BT[..., None], 0.0)
        x_BTC = self.embed_norm(self.embed(x_BTF.transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x_BTC = block(x_BTC, valid_BT)
        return self.norm(x_BTC)[:, :num_frames]


def _convolve_depthwise(x_BTC: Tensor, conv: nn.Conv1d) -> Tensor:
    """The convolution with zeros at both ends, channels last throughout: on a CPU 20 times as fast as channels first."""
    half = conv.kernel_size[0] // 2
    image_BC1T = x_BTC.transpose(1, 2).unsqueeze(2)
    y_BC1T = functional.conv2d(image_BC1T, conv.weight.unsqueeze(2), conv.bias, padding=(0, half), groups=conv.groups)
    return y_BC1T.squeeze(2).transpose(1, 2)


def _init(layer: nn.Conv1d | nn.Linear) -> None:
    """As ConvNeXt starts."""
    nn.init.trunc_normal_(layer.weight, std=_INIT_STD)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)

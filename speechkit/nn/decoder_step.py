"""Decoder layers in search: the arithmetic of `DecoderLayer` in eval mode for a few tokens at a time, behind a cache.

A step of one token of one utterance is bound by the number of calls and by what it reads from memory, not by arithmetic. So
the weights are taken out of their modules once per search, the wide matrices are laid out in the order in which a CPU reads
them fastest for few rows, and what all layers need is sliced once per step. On two cores a step of 6 layers of 256 takes two
thirds of the time that the modules take (docs/benchmarks.md).

Shape legend: B batch, T source frames, J new tokens, R = B J, L room in a cache, M tokens held, D model, H heads, K head
dimension, N = 2 for keys and values, I input and O output width of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.kernels.attention import Visibility, decode_attention
from speechkit.nn.positional import sinusoids


class Affine(NamedTuple):
    """A linear layer as `torch.addmm` takes it."""

    bias_O: Tensor
    weight_IO: Tensor


class Norm(NamedTuple):
    """A layer norm as `torch.layer_norm` takes it."""

    shape: Sequence[int]
    weight_D: Tensor
    bias_D: Tensor
    eps: float


class StepLayer(NamedTuple):
    """The weights of one decoder layer; those of cross-attention are None for a language model."""

    self_norm: Norm
    query_key_value: Affine
    self_out: Affine
    cross_norm: Norm | None
    query: Affine | None
    cross_out: Affine | None
    ff_norm: Norm
    up: Affine
    activation: Callable[[Tensor], Tensor]
    down: Affine


class Places(NamedTuple):
    """Where J new tokens belong in a cache of what came before.

    Attributes:
        first: the first new one in every row, if rows hold equally many; else anything.
        held: tokens that the longest row holds with the new ones, M.
        index_BJ: each new one, int64, shape (B, J); None if rows hold equally many.
        mask: bool, broadcastable to (B, 1, J, M), True where a new one may see another; None for everywhere.
    """

    first: int
    held: int
    index_BJ: Tensor | None
    mask: Tensor | None

    @classmethod
    def after(cls, lens_B: Tensor, num_new: int) -> Places:
        """Behind the `lens_B` tokens of each row, int64, shape (B,). Waits for the device."""
        lens = lens_B.tolist()
        first, held, device = min(lens), max(lens) + num_new, lens_B.device
        if first + num_new == held:  # rows of equal length, the usual case, need no scattered writing, and one token no mask
            mask = torch.ones(num_new, held, dtype=torch.bool, device=device).tril(first) if num_new > 1 else None
            return cls(first, held, None, mask)
        index_BJ = lens_B[:, None] + torch.arange(num_new, device=device)
        return cls(first, held, index_BJ, (torch.arange(held, device=device) <= index_BJ[..., None])[:, None])


@dataclass
class DecoderCache:
    """Keys and values of the tokens that each row has read, and the weights that make them.

    Attributes:
        memory: keys and values of all layers, shape (layers, 2, B, H, L, K); anything past a row's length.
        lens_B: tokens that each row holds, int64, shape (B,). Making one smaller gives tokens back.
        positions_LD: sinusoids of all positions for which there is room, shape (L, D).
        layers: weights of each layer, as they were when the search began.
    """

    memory: Tensor
    lens_B: Tensor
    positions_LD: Tensor
    layers: tuple[StepLayer, ...]

    def select(self, rows_R: Tensor) -> DecoderCache:
        """A cache of rows `rows_R` (int64, shape (R,)), which may repeat; the memory is its own."""
        return DecoderCache(self.memory.index_select(2, rows_R), self.lens_B[rows_R], self.positions_LD, self.layers)

    def fresh(self, num_rows: int, *, room: int) -> DecoderCache:
        """An empty cache of other rows of the same decoder."""
        layers, pair, _, heads, _, head_dim = self.memory.shape
        memory = self.memory.new_zeros(layers, pair, num_rows, heads, room, head_dim)
        return DecoderCache(memory, self.lens_B.new_zeros(num_rows), position_table(room, self.positions_LD), self.layers)

    def reserve(self, num_tokens: int) -> None:
        """Makes room for rows of `num_tokens` tokens; doubles, so that growing costs little."""
        room = self.memory.shape[4]
        if num_tokens > room:
            more = max(num_tokens, 2 * room) - room
            self.memory = F.pad(self.memory, (0, 0, 0, more))
            self.positions_LD = position_table(room + more, self.positions_LD)


def position_table(num_positions: int, like: Tensor) -> Tensor:
    """Sinusoids of the first positions, dtype and device and last dimension of `like`, shape (num_positions, D)."""
    return sinusoids(torch.arange(num_positions, device=like.device), like.shape[-1]).to(like.dtype)


def pack_layer(layer: Any, dtype: torch.dtype) -> StepLayer:
    """The weights of a `speechkit.nn.decoder.DecoderLayer`, matrices in the type that attention is computed in."""
    attention, cross, ff = layer.self_attention, layer.cross_attention, layer.feed_forward
    return StepLayer(
        self_norm=_norm(layer.self_norm),
        query_key_value=_affine(attention.qkv, dtype, wide=True),
        self_out=_affine(attention.out, dtype),
        cross_norm=None if cross is None else _norm(layer.cross_norm),
        query=None if cross is None else _affine(cross.query, dtype),
        cross_out=None if cross is None else _affine(cross.out, dtype),
        ff_norm=_norm(ff.norm),
        up=_affine(ff.up, dtype, wide=True),
        activation=ff.activation,
        down=_affine(ff.down, dtype),
    )


def _affine(linear: nn.Linear, dtype: torch.dtype, *, wide: bool = False) -> Affine:
    """A matrix with more outputs than inputs is `wide`: few rows go through it nearly twice as fast if laid out by inputs."""
    weight_IO = linear.weight.detach().t()
    if wide and weight_IO.device.type == "cpu":
        weight_IO = weight_IO.contiguous()
    return Affine(linear.bias.detach().to(dtype), weight_IO.to(dtype))


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps)


class Step:
    """One call of a decoder: new tokens of all rows, layer by layer.

    Args:
        cache: has room for the new tokens; `see_tokens` writes their keys and values.
        places: where they belong.
    """

    def __init__(self, cache: DecoderCache, places: Places) -> None:
        self.layers, self.places, self.memory = cache.layers, places, cache.memory
        self._visible = None if places.mask is None else Visibility(mask=places.mask)
        _, pair, rows, heads, _, head_dim = cache.memory.shape
        self._split, self._perm = (rows, -1, pair + 1, heads, head_dim), (2, 0, 3, 1, 4)
        self._seen = cache.memory[..., : places.held, :].flatten(0, 1).unbind(0)
        self._new = cache.memory[..., places.first : places.held, :].unbind(0) if places.index_BJ is None else ()

    def see_tokens(self, number: int, x_RD: Tensor) -> Tensor:
        """What self-attention of a layer adds to the new tokens, shape (R, D)."""
        layer, places = self.layers[number], self.places
        bias_O, weight_IO = layer.query_key_value
        qkv_RO = torch.addmm(bias_O, torch.layer_norm(x_RD, *layer.self_norm), weight_IO)
        parts = qkv_RO.view(self._split)  # B, J; query, key, value; H, K
        new = parts.permute(self._perm)[1:]  # key, value; B, H, J, K
        if places.index_BJ is None:
            self._new[number].copy_(new)
        else:
            self.memory[number].scatter_(3, places.index_BJ[:, None, :, None].expand_as(new), new)
        key_BHMK, value_BHMK = self._seen[2 * number], self._seen[2 * number + 1]
        out_BJHK = decode_attention(parts.select(2, 0), key_BHMK, value_BHMK, visible=self._visible)
        return torch.addmm(layer.self_out.bias_O, out_BJHK.reshape(len(x_RD), -1), layer.self_out.weight_IO)

    def see_source(self, number: int, x_RD: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, visible: Visibility | None) -> Tensor:
        """What cross-attention of a layer adds, shape (R, D); a source may serve several rows in turn."""
        layer = self.layers[number]
        assert layer.cross_norm is not None
        assert layer.query is not None
        assert layer.cross_out is not None
        query_RD = torch.addmm(layer.query.bias_O, torch.layer_norm(x_RD, *layer.cross_norm), layer.query.weight_IO)
        sources, heads, _, head_dim = key_BHTK.shape
        out_BUHK = decode_attention(query_RD.view(sources, -1, heads, head_dim), key_BHTK, value_BHTK, visible=visible)
        return torch.addmm(layer.cross_out.bias_O, out_BUHK.reshape(len(x_RD), -1), layer.cross_out.weight_IO)

    def feed_forward(self, number: int, x_RD: Tensor) -> Tensor:
        """What the feed-forward layer adds, shape (R, D)."""
        layer = self.layers[number]
        hidden_RO = torch.addmm(layer.up.bias_O, torch.layer_norm(x_RD, *layer.ff_norm), layer.up.weight_IO)
        return torch.addmm(layer.down.bias_O, layer.activation(hidden_RO), layer.down.weight_IO)

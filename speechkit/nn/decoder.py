"""Transformer decoder: all tokens at once in training, a few at a time behind caches in search.

Pre-norm layers of self-attention, cross-attention to a source and feed-forward (Vaswani et al. 2017, section 3.1; pre-norm,
Xiong et al. 2020). The keys and values of the source are computed once per utterance. Those of the tokens so far are
kept in a cache in which every row has a length of its own, so that rows may take in or give back different numbers of
tokens, as speculative decoding does. Without a source it is a language model.

Shape legend: B batch, T source frames, U tokens, J new tokens, L room in the cache, D model, V vocab, H heads, K head
dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.kernels.attention import Visibility, attention
from speechkit.nn.attention import SelfAttention
from speechkit.nn.decoder_step import DecoderCache, Places, Step, pack_layer, position_table
from speechkit.nn.dropout import Dropout
from speechkit.nn.feed_forward import Activation, FeedForward
from speechkit.nn.masks import hide_padding


class Source(NamedTuple):
    """What decoder layers attend to, ready to be attended to.

    Attributes:
        keys: of each layer, shape (B, H, T, K).
        values: of each layer, shape (B, H, T, K).
        visible: which frames a token sees, the same for all tokens of a row; None for all.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    visible: Visibility | None

    def select(self, rows_R: Tensor) -> Source:
        """The source of rows `rows_R` (int64, shape (R,)), which may repeat."""
        visible = None if self.visible is None else self.visible.select(rows_R)
        return Source(tuple(key[rows_R] for key in self.keys), tuple(value[rows_R] for value in self.values), visible)


class CrossAttention(nn.Module):
    """Attention of tokens to a source.

    Args:
        dim: D of the tokens.
        num_heads: H; must divide `dim`.
        source_dim: width of the source; None for `dim`.
        dropout: rate on the attention weights in training.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(self, *, dim: int, num_heads: int, source_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim}")
        self.num_heads, self.head_dim, self.dropout = num_heads, dim // num_heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim if source_dim is None else source_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def keys_values(self, source_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a source, each of shape (B, H, T, K)."""
        key_value = self.key_value(source_BTD).unflatten(-1, (2 * self.num_heads, self.head_dim)).transpose(1, 2)
        key, value = key_value.chunk(2, dim=1)
        return key, value

    def forward(self, x_BUD: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, visible: Visibility | None = None) -> Tensor:
        """Attends.

        Args:
            x_BUD: shape (B, U, D); or (N * B, U, D), N rows of tokens in turn for each row of the source, which then is
                read once for all of them. All tokens of a row must then see the same frames.
            key_BHTK: from `keys_values`.
            value_BHTK: from `keys_values`.
            visible: which frames each token sees; None for all.

        Returns:
            shape of `x_BUD`.
        """
        query_BUHK = self._queries(x_BUD, len(key_BHTK))
        key_BTHK, value_BTHK = key_BHTK.transpose(1, 2), value_BHTK.transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        out_BUHK = attention(query_BUHK, key_BTHK, value_BTHK, visible=visible, dropout=dropout)
        return self.out(out_BUHK.reshape(x_BUD.shape))

    def weights(self, x_BUD: Tensor, key_BHTK: Tensor, visible: Visibility | None = None) -> Tensor:
        """How much each token looks at each frame, averaged over heads, fp32, shape (B, U, T); arguments as `forward`."""
        query_BHUK = self._queries(x_BUD, len(key_BHTK)).transpose(1, 2)
        scores = (query_BHUK @ key_BHTK.transpose(2, 3)).float() * self.head_dim**-0.5
        mask = None if visible is None else visible.dense(key_BHTK.shape[2], key_BHTK.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1).mean(dim=1).reshape(*x_BUD.shape[:2], -1)

    def _queries(self, x_BUD: Tensor, num_sources: int) -> Tensor:
        """Queries, those of all rows that read one source side by side, shape (num_sources, U, H, K)."""
        return self.query(x_BUD).reshape(num_sources, -1, self.num_heads, self.head_dim)


def read_source(readers: Iterable[Any], source_BTD: Tensor, source_lens_B: Tensor) -> Source:
    """Prepares a source for the layers that attend to it.

    Args:
        readers: the `CrossAttention` of each layer.
        source_BTD: encoder output, zero in padding, shape (B, T, D).
        source_lens_B: valid frames of each row, int64, shape (B,).
    """
    pairs = [reader.keys_values(source_BTD) for reader in readers]
    visible = hide_padding(source_lens_B, source_BTD.shape[1], of_queries=False)
    return Source(tuple(key for key, _ in pairs), tuple(value for _, value in pairs), visible)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each behind a layer norm and a residual; arguments as those of
    `TransformerDecoder`."""

    cross_attention: CrossAttention | None

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ff_dim: int,
        source_dim: int | None = None,
        cross_attention: bool = True,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = SelfAttention(dim=dim, num_heads=num_heads, position="none", dropout=attention_dropout)
        self.cross_attention = None
        if cross_attention:
            self.cross_norm = nn.LayerNorm(dim)
            self.cross_attention = CrossAttention(dim=dim, num_heads=num_heads, source_dim=source_dim, dropout=attention_dropout)
        self.feed_forward = FeedForward(dim=dim, ff_dim=ff_dim, dropout=dropout, activation=activation)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BUD: Tensor,
        visible: Visibility | None,
        key_BHTK: Tensor | None = None,
        value_BHTK: Tensor | None = None,
        source_visible: Visibility | None = None,
    ) -> Tensor:
        """Maps (B, U, D) to (B, U, D), all tokens at once; for a few behind a cache see `speechkit.nn.decoder_step`.

        Args:
            x_BUD: tokens.
            visible: which tokens each token sees; None for all.
            key_BHTK: of the source, from this layer's `cross_attention.keys_values`; none without cross-attention.
            value_BHTK: of the source.
            source_visible: which frames of the source each token sees; None for all.
        """
        x_BUD = x_BUD + self.dropout(self.self_attention(self.self_norm(x_BUD), visible))
        return self._read_source(x_BUD, key_BHTK, value_BHTK, source_visible)

    def _read_source(
        self, x_BUD: Tensor, key_BHTK: Tensor | None, value_BHTK: Tensor | None, visible: Visibility | None
    ) -> Tensor:
        if self.cross_attention is not None:
            x_BUD = x_BUD + self.dropout(self.cross_attention(self.cross_norm(x_BUD), key_BHTK, value_BHTK, visible))
        return x_BUD + self.feed_forward(x_BUD)


class TransformerDecoder(nn.Module):
    """Autoregressive decoder over tokens.

    Args:
        vocab_size: V.
        dim: D.
        num_layers: layers.
        num_heads: attention heads.
        ff_dim: hidden width of the feed-forward layers.
        source_dim: width of what it attends to; None for `dim`.
        cross_attention: whether it attends to a source at all; without, it takes None for one.
        dropout: rate in training on embeddings, hidden layers and residual branches.
        attention_dropout: rate on the attention weights in training.
        activation: of the feed-forward layers: "relu", "silu" or "gelu".
        tie_embeddings: whether the output layer shares the weights of the embedding.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 4,
        ff_dim: int = 2048,
        source_dim: int | None = None,
        cross_attention: bool = True,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation: Activation = "relu",
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.num_heads, self.vocab_size = dim, num_heads, vocab_size
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(
                dim=dim,
                num_heads=num_heads,
                ff_dim=ff_dim,
                source_dim=source_dim,
                cross_attention=cross_attention,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation=activation,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size)
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    def read(self, source_BTD: Tensor, source_lens_B: Tensor) -> Source:
        """Prepares a source for `forward` and `extend`.

        Args:
            source_BTD: encoder output, shape (B, T, source_dim).
            source_lens_B: valid frames of each row, int64, shape (B,).
        """
        source = read_source([layer.cross_attention for layer in self.layers], source_BTD, source_lens_B)
        if torch.is_grad_enabled():
            return source
        keys, values = (tuple(each.contiguous() for each in part) for part in (source.keys, source.values))
        return Source(keys, values, source.visible)  # in the order in which search reads them for every token

    def forward(self, tokens_BU: Tensor, source: Source | None) -> Tensor:
        """Scores of the token that follows each prefix, teacher-forced.

        Args:
            tokens_BU: token ids, beginning with the prompt; padding may hold any id, for no token sees what follows it.
            source: from `read`, of B rows or of B / N: each is then that of N rows in turn, as of N-best lists. None
                without cross-attention.

        Returns:
            logits, shape (B, U, V).
        """
        x_BUD = self._embed(tokens_BU, position_table(tokens_BU.shape[1], self.embedding.weight))
        visible = Visibility(causal=True)
        for i, layer in enumerate(self.layers):
            x_BUD = layer(x_BUD, visible, *(() if source is None else _of_layer(source, i)))
        return self.head(self.norm(x_BUD))

    def start(self, num_rows: int, *, room: int = 32) -> DecoderCache:
        """An empty cache for `num_rows` rows, with room for so many tokens to begin with."""
        weight, kind = self.embedding.weight, self.embedding.weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        shape = (len(self.layers), 2, num_rows, self.num_heads, room, self.dim // self.num_heads)
        return DecoderCache(
            memory=weight.new_zeros(shape, dtype=dtype),
            lens_B=torch.zeros(num_rows, dtype=torch.long, device=weight.device),
            positions_LD=position_table(room, weight),
            layers=tuple(pack_layer(layer, dtype) for layer in self.layers),
        )

    @torch.no_grad()
    def extend(
        self, tokens_BJ: Tensor, cache: DecoderCache, source: Source | None, *, attention: list[Tensor] | None = None
    ) -> Tensor:
        """Reads J more tokens per row, puts them into the cache, and scores what follows each.

        Equal to the last J positions of `forward` on each row's whole prefix. In eval mode only: nothing is dropped.

        Args:
            tokens_BJ: new token ids, shape (B, J).
            cache: what the rows have read so far; grows by J tokens in every row.
            source: from `read`, of B rows or of B / N: each is then that of N rows in turn, as in a beam of N. None without
                cross-attention.
            attention: takes from every layer the weights of the source, averaged over heads, fp32, shape (B, J, T).

        Returns:
            logits, shape (B, J, V).
        """
        places = Places.after(cache.lens_B, tokens_BJ.shape[1])
        cache.reserve(places.held)
        index = slice(places.first, places.held) if places.index_BJ is None else places.index_BJ
        x_RD = self._embed(tokens_BJ, cache.positions_LD[index]).flatten(0, 1)
        step = Step(cache, places)
        for i in range(len(cache.layers)):
            x_RD = x_RD + step.see_tokens(i, x_RD)
            if source is not None:
                if attention is not None:
                    attention.append(self._looks(i, x_RD.unflatten(0, tokens_BJ.shape), source))
                x_RD = x_RD + step.see_source(i, x_RD, *_of_layer(source, i))
            x_RD = x_RD + step.feed_forward(i, x_RD)
        cache.lens_B = cache.lens_B + tokens_BJ.shape[1]
        return self.head(self.norm(x_RD)).unflatten(0, tokens_BJ.shape)

    def _looks(self, number: int, x_BJD: Tensor, source: Source) -> Tensor:
        """How much tokens look at each frame in a layer, averaged over heads, shape (B, J, T)."""
        layer: DecoderLayer = self.layers[number]  # type: ignore[assignment]
        assert layer.cross_attention is not None
        return layer.cross_attention.weights(layer.cross_norm(x_BJD), source.keys[number], source.visible)

    def _embed(self, tokens_BU: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings and sinusoids of their positions, shape (U, D) or (B, U, D)."""
        return self.dropout(torch.add(positions, self.embedding(tokens_BU), alpha=math.sqrt(self.dim)))


def _of_layer(source: Source, layer: int) -> tuple[Tensor, Tensor, Visibility | None]:
    """Keys and values that one layer attends to, and which of them it sees."""
    return source.keys[layer], source.values[layer], source.visible

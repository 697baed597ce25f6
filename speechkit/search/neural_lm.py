"""Neural language models in a search: any number of growing prefixes at once, behind one cache that they share.

A search holds states of prefixes and asks what a token adds to each. The network reads a prefix only when something is
asked about what follows it, all prefixes asked about together, so that candidates which the beam drops at once cost
nothing. What it has read stays as keys and values of single tokens in one pool; a prefix knows which of them are its own
and its ancestors' (paging with pages of one token: Kwon et al. 2023, "Efficient memory management for large language model
serving with PagedAttention", section 4). Copying a state copies a reference, prefixes share their beginnings, and a
token's place is free again when no prefix that contains it is left.

Shape legend: R prefixes, M longest of them, S places in the pool, N layers, V vocab, H heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from speechkit.text.tokenizers import Tokenizer

MAX_TOKENS_AT_ONCE = 2**15  # tokens whose keys and values are gathered for one pass of the network
_FIRST_SIZE = 256  # places in a new pool


class TokenCache(Protocol):
    """Keys and values of R rows in N layers, shape (N, 2, R, H, L, K), and how many are valid in each row, shape (R,)."""

    memory: Tensor
    lens_B: Tensor

    def fresh(self, num_rows: int, *, room: int) -> Any:
        """An empty cache of other rows of the same decoder, with room for so many tokens."""


class CausalDecoder(Protocol):
    """A network that reads tokens behind a cache; `speechkit.nn.decoder.TransformerDecoder` without cross-attention is
    one."""

    def start(self, num_rows: int, *, room: int) -> Any:
        """An empty `TokenCache` with room for so many tokens."""

    def extend(self, tokens_BJ: Tensor, cache: Any, source: None) -> Tensor:
        """Reads J more tokens in every row; logits of what follows each, shape (B, J, V)."""


class NeuralLm:
    """A trained language model as decode options take it; `speechkit.pretrained.load_language_model` makes one.

    Args:
        decoder: the network, in eval mode, on the device where it is to run.
        tokenizer: the tokenizer that it was trained with.
        name: how it is called in messages.
    """

    def __init__(self, *, decoder: CausalDecoder, tokenizer: Tokenizer, name: str) -> None:
        self.decoder, self.tokenizer, self.name = decoder, tokenizer, name

    def __repr__(self) -> str:
        return f"NeuralLm({self.name})"

    def scorer(self, tokenizer: Tokenizer, *, weight: float = 0.5, token_bonus: float = 0.0) -> NeuralScorer:
        """The model as a search takes it.

        Args:
            tokenizer: the tokenizer of the recogniser.
            weight: factor on the model's log-probabilities.
            token_bonus: added for every token, against the model's liking for few tokens.

        Raises:
            ValueError: the two tokenizers differ.
        """
        if tokenizer.fingerprint() != self.tokenizer.fingerprint():
            raise ValueError(
                f"lm={self.name} has another tokenizer ({self.tokenizer.vocab_size} tokens) than the recogniser "
                f"({tokenizer.vocab_size} tokens); train it with tokenizer=pretrained tokenizer.name=<the recogniser>"
            )
        return NeuralScorer(
            decoder=self.decoder, sos=tokenizer.sos_id, eos=tokenizer.eos_id, weight=weight, token_bonus=token_bonus
        )


class _Token:
    """A token that the network has read: its place in the pool, and those of the prefix that it ends.

    The place is given back when no state and no later token holds on to this one.
    """

    __slots__ = ("before", "places", "pool")

    def __init__(self, pool: _Pool, before: _Token | None, place: int) -> None:
        self.pool, self.before = pool, before
        self.places: np.ndarray = np.append(np.empty(0, np.int64) if before is None else before.places, place)

    def __del__(self) -> None:
        self.pool.free.append(int(self.places[-1]))


class _State:
    """A prefix: its last token and, once the network has read that, what may follow."""

    __slots__ = ("before", "log_probs_V", "read", "token")

    def __init__(self, before: _Token | None, token: int) -> None:
        self.before, self.token = before, token
        self.read: _Token | None = None
        self.log_probs_V: np.ndarray | None = None


class _Pool:
    """Keys and values of single tokens, shape (N, 2, S, H, K); grows by doubling."""

    def __init__(self, cache: TokenCache) -> None:
        layers, pair, _, heads, _, head_dim = cache.memory.shape
        self.memory = cache.memory.new_zeros(layers, pair, _FIRST_SIZE, heads, head_dim)
        self.free = list(range(_FIRST_SIZE))

    def take(self, num: int) -> list[int]:
        """Free places."""
        while len(self.free) < num:
            size = self.memory.shape[2]
            self.memory = torch.cat((self.memory, torch.zeros_like(self.memory)), dim=2)
            self.free += range(size, 2 * size)
        return [self.free.pop() for _ in range(num)]

    def fill(self, cache: TokenCache, places_RM: Tensor, lens_R: Tensor) -> None:
        """Puts the tokens of R prefixes into an empty cache."""
        cache.memory[..., : places_RM.shape[1], :] = self.memory[:, :, places_RM].transpose(3, 4)
        cache.lens_B = lens_R

    def put(self, cache: TokenCache, rows_R: Tensor, lens_R: Tensor, places_R: Tensor) -> None:
        """Keeps the token of each row of the cache that stands behind `lens_R` others."""
        self.memory[:, :, places_R] = cache.memory.transpose(3, 4)[:, :, rows_R, lens_R]


class NeuralScorer:
    """A `BatchScorer` (see `speechkit.search.lm`) that asks a network.

    Args:
        decoder: the network, in eval mode.
        sos: id that sentences begin with.
        eos: id that they end with.
        weight: factor on the network's log-probabilities.
        token_bonus: added for every token.
    """

    def __init__(self, *, decoder: CausalDecoder, sos: int, eos: int, weight: float = 0.5, token_bonus: float = 0.0) -> None:
        self._decoder, self._eos = decoder, eos
        self._weight, self._token_bonus = weight, token_bonus
        self._cache: TokenCache = decoder.start(1, room=1)
        self._device = self._cache.memory.device
        self._pool: _Pool | None = None
        self._root = _State(None, sos)

    def initial_state(self) -> _State:
        """The beginning of a sentence; all searches share it."""
        return self._root

    def score(self, state: _State, token: int) -> tuple[float, _State]:
        """The weighted log-probability of the token, and the bonus."""
        return self.score_batch([state], [token])[0]

    def score_batch(self, states: Sequence[_State], tokens: Sequence[int]) -> list[tuple[float, _State]]:
        """`score` of each (state, token) pair; prefixes that the network has not read yet are read together."""
        self._read(states)
        scored = []
        for state, token in zip(states, tokens, strict=True):
            assert state.log_probs_V is not None
            added = self._weight * float(state.log_probs_V[token]) + self._token_bonus
            scored.append((added, _State(state.read, token)))
        return scored

    def final(self, state: _State) -> float:
        """The end of the sentence."""
        return self.final_batch([state])[0]

    def final_batch(self, states: Sequence[_State]) -> list[float]:
        """`final` of each state."""
        self._read(states)
        ends = []
        for state in states:
            assert state.log_probs_V is not None
            ends.append(self._weight * float(state.log_probs_V[self._eos]))
        return ends

    def _read(self, states: Sequence[_State]) -> None:
        """Lets the network read the last tokens of those prefixes whose last token it has not read."""
        new = list({id(state): state for state in states if state.log_probs_V is None}.values())
        new.sort(key=_num_before)  # neighbours of equal length waste nothing
        while new:
            longest = _num_before(new[-1]) + 1
            size = max(1, MAX_TOKENS_AT_ONCE // longest)
            self._read_together(new[-size:])
            new = new[:-size]

    @torch.inference_mode()
    def _read_together(self, states: Sequence[_State]) -> None:
        lens = [_num_before(state) for state in states]
        lens_R, rows_R = torch.tensor(lens, device=self._device), torch.arange(len(states), device=self._device)
        cache = self._cache.fresh(len(states), room=max(lens) + 1)
        if self._pool is None:
            self._pool = _Pool(cache)
        places_RM = np.zeros((len(states), max(lens)), np.int64)
        for row_M, state in zip(places_RM, states):
            if state.before is not None:
                row_M[: len(state.before.places)] = state.before.places
        self._pool.fill(cache, torch.from_numpy(places_RM).to(self._device), lens_R)
        tokens_R1 = torch.tensor([[state.token] for state in states], device=self._device)
        logits_RV = self._decoder.extend(tokens_R1, cache, None)[:, -1]
        log_probs_RV = logits_RV.float().log_softmax(dim=-1).cpu().numpy()
        places = self._pool.take(len(states))
        self._pool.put(cache, rows_R, lens_R, torch.tensor(places, device=self._device))
        for state, place, log_probs_V in zip(states, places, log_probs_RV):
            state.read = _Token(self._pool, state.before, place)
            state.log_probs_V = log_probs_V.copy()  # a view would keep the whole batch


def _num_before(state: _State) -> int:
    """Tokens before a prefix's last one, the start included."""
    return 0 if state.before is None else len(state.before.places)

"""Hotwords: words and phrases that a search should favour.

A trie over token ids gives a boost for every token of a phrase while it is being spelled, so that the first tokens
survive the beam, and takes the boost back when the phrase is not completed. Failure links lead to where the tokens
read since would have led by themselves (Aho and Corasick 1975, "Efficient string matching: an aid to bibliographic
search"), so that what a text earns in the end is the boost of its leftmost longest phrases, which do not overlap.
Phrases match whole words only: they begin where a word begins and count once the next word begins or the text ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechkit.text.tokenizers import Tokenizer


@dataclass(eq=False, slots=True)
class _Node:
    """A place in the trie.

    Attributes:
        boost: what the tokens up to here were given.
        kept: what of it stays when the match fails here, apart from the fallback's own boost: phrases completed within.
        complete: whether a phrase ends here.
        fallback: where to go on when the match fails; None at the root.
        children: next node by token id.
    """

    boost: float = 0.0
    kept: float = 0.0
    complete: bool = False
    fallback: _Node | None = None
    children: dict[int, _Node] = field(default_factory=dict)


class HotwordScorer:
    """A `Scorer` that favours given phrases.

    The boost of a phrase is its weight times its number of tokens, a natural log-probability like the search's own
    scores. Where phrases begin alike, the larger weight counts for the tokens they share.

    Args:
        hotwords: the phrases, each with its weight or all with `weight`.
        tokenizer: spells the phrases and tells where words begin.
        weight: weight per token of phrases given without their own.

    Raises:
        ValueError: a phrase is empty or cannot be spelled, or a weight is not above 0.
    """

    def __init__(self, hotwords: Mapping[str, float] | Sequence[str], *, tokenizer: Tokenizer, weight: float = 2.0) -> None:
        self._starts_word = [tokenizer.starts_word(i) for i in range(tokenizer.vocab_size)]
        # Tokens of white space alone begin a word that the next token spells.
        self._opens_word = [starts and not tokenizer.split_words([i]) for i, starts in enumerate(self._starts_word)]
        self._root = _Node()
        weights = hotwords if isinstance(hotwords, Mapping) else dict.fromkeys(hotwords, weight)
        for phrase, own_weight in weights.items():
            ids = tokenizer.encode(phrase)
            if not ids or tokenizer.unk_id in ids:
                raise ValueError(f"hotwords holds {phrase!r}, which the tokenizer cannot spell; remove or respell it")
            if not own_weight > 0.0:
                raise ValueError(f"the weight of hotword {phrase!r} is {own_weight}; give a number above 0")
            self._add(ids, own_weight)
        self._link()

    def initial_state(self) -> tuple[_Node, bool]:
        """The node reached, and whether the next token begins a word."""
        return self._root, True

    def score(self, state: tuple[_Node, bool], token: int) -> tuple[float, tuple[_Node, bool]]:
        """The boost that a token earns, less what a failed match gives back."""
        node, opened = state
        begins = self._starts_word[token]
        added = 0.0
        while token not in node.children or (node is self._root and not (begins or opened)):
            fallback = node.fallback
            if fallback is None:
                return added, (node, self._opens_word[token])
            if node.complete and begins:
                node = self._root
                continue
            added += node.kept - node.boost + fallback.boost
            node = fallback
        child = node.children[token]
        return added + child.boost - node.boost, (child, self._opens_word[token])

    def final(self, state: tuple[_Node, bool]) -> float:
        """Gives back the boost of a phrase left unfinished."""
        node, added = state[0], 0.0
        while (fallback := node.fallback) is not None and not node.complete:
            added += node.kept - node.boost + fallback.boost
            node = fallback
        return added

    def _add(self, ids: Sequence[int], weight: float) -> None:
        """Put a phrase into the trie; boosts hold weights per token until `_link`."""
        node = self._root
        for token in ids:
            node = node.children.setdefault(token, _Node())
            node.boost = max(node.boost, weight)
        node.complete = True

    def _link(self) -> None:
        """Sum the boosts along the trie and find what a failure at each node leaves.

        That is what the scorer makes of the same tokens when it does not begin at the first one: it goes on after the
        longest phrase completed on the way, else at the second token. It meets shallower nodes only, done before.
        """
        level: list[tuple[tuple[int, ...], int, _Node]] = [((), 0, self._root)]  # path, tokens completed, node
        while level:
            below = []
            for path, completed, node in level:
                for token, child in node.children.items():
                    child.boost += node.boost
                    own_completed = len(path) if node.complete and self._starts_word[token] else completed
                    child_path = (*path, token)
                    self._set_fallback(child, child_path, own_completed)
                    below.append((child_path, own_completed, child))
            level = below

    def _set_fallback(self, node: _Node, path: tuple[int, ...], completed: int) -> None:
        begin = completed or 1
        state = self._root, self._opens_word[path[begin - 1]]
        kept = self._boost_of(path[:completed])
        for token in path[begin:]:
            added, state = self.score(state, token)
            kept += added
        node.fallback = state[0]
        node.kept = kept - node.fallback.boost

    def _boost_of(self, path: tuple[int, ...]) -> float:
        node = self._root
        for token in path:
            node = node.children[token]
        return node.boost

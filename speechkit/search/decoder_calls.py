"""Counts what decoding asks of a decoder, whatever the search and the family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class DecoderCalls:
    """What was asked so far.

    Attributes:
        num_calls: calls of the decoder, each for all rows still running. With one utterance at a time this is the number of
            decoder calls that it takes.
        num_rows: rows (utterances, or hypotheses of them) in all these calls together.
        num_positions: tokens read in all these rows together, padding included.
    """

    num_calls: int = 0
    num_rows: int = 0
    num_positions: int = 0


@contextmanager
def count_calls(decoder: nn.Module) -> Iterator[DecoderCalls]:
    """Counts the calls of a decoder's `forward` and, where it has one, `extend` within the context.

    Args:
        decoder: takes tokens or what stands for them, shape (rows, tokens, ...), as the first tensor among its arguments.

    Yields:
        the counts, which grow as the decoder is used.
    """
    calls = DecoderCalls()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tokens = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            calls.num_calls += 1
            calls.num_rows += len(tokens)
            calls.num_positions += tokens.shape[0] * tokens.shape[1]
            return function(*args, **kwargs)

        return call

    names = [name for name in ("forward", "extend") if hasattr(decoder, name)]
    for name in names:
        setattr(decoder, name, counting(getattr(decoder, name)))
    try:
        yield calls
    finally:
        for name in names:
            delattr(decoder, name)

"""Operators that torch knows: autocast, `torch.compile`, `torch.export` and distributed training see them as their own.

`torch.library.custom_op` declares the same, but its first call imports torch.compile, which takes seconds that a run which
compiles nothing has no use for; and every call costs more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Operator:
    """A function as torch has it under `speechkit::<name>`, on every device.

    Args:
        name: name of the operator.
        function: takes tensors, numbers, strings and None; changes none of its arguments, and returns none of them. Its
            annotations are the schema.

    Attributes:
        overload: what `torch.ops` has for it.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = f"speechkit::{name}"
        torch.library.define(self.name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(self.name, "CompositeExplicitAutograd")(function)
        self.overload = getattr(torch.ops.speechkit, name).default

    def __call__(self, *arguments: Any) -> Any:
        """Calls the operator."""
        return self.overload(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Declares what shapes and dtypes come out, for tracing. Use as a decorator."""
        torch.library.register_fake(self.name)(function)
        return function

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """Declares the gradient, as `torch.library.register_autograd` does."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that makes a function an `Operator`."""
    return lambda function: Operator(name, function)

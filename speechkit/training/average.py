"""Mean of several sets of weights (checkpoint averaging), with the checks that make its errors readable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def average_states(states: Iterable[tuple[str, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Mean of state dicts, summed in double precision; entries that are not floating-point come from the first.

    Args:
        states: (label for messages, state dict) pairs, read one at a time: only one and the sums are in memory.

    Returns:
        The mean, in the dtypes of the first state dict, on the CPU.

    Raises:
        ValueError: there is none, or two differ in their keys, shapes or kinds of numbers.
    """
    first: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    first_label, count = "", 0
    for label, state in states:
        if count == 0:
            first_label, first = label, {name: tensor.detach().cpu() for name, tensor in state.items()}
            sums = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
        else:
            _check_alike(first, state, first_label, label)
            for name, total in sums.items():
                sums[name] = total + state[name].detach().cpu().double()
        count += 1
    if not first:
        raise ValueError("there are no weights to average")
    with torch.no_grad():
        mean = {name: (total / count).to(first[name].dtype) for name, total in sums.items()}
    return {name: mean.get(name, tensor) for name, tensor in first.items()}


def _check_alike(first: Mapping[str, Tensor], other: Mapping[str, Tensor], first_label: str, label: str) -> None:
    if first.keys() != other.keys():
        missing, added = sorted(first.keys() - other.keys()), sorted(other.keys() - first.keys())
        parts = [f"lacks {missing[0]!r} and {len(missing) - 1} more" if missing else ""]
        parts += [f"has {added[0]!r} and {len(added) - 1} more besides" if added else ""]
        raise ValueError(f"{label} {' and '.join(p for p in parts if p)}, unlike {first_label}: not the same model")
    for name, tensor in first.items():
        if tensor.shape != other[name].shape:
            shapes = f"{tuple(other[name].shape)} in {label}, {tuple(tensor.shape)} in {first_label}"
            raise ValueError(f"{name!r} has shape {shapes}: not the same model")
        if tensor.is_floating_point() != other[name].is_floating_point():
            raise ValueError(f"{name!r} is {other[name].dtype} in {label}, {tensor.dtype} in {first_label}")

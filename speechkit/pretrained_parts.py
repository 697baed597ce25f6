"""Trained parts inside a new model: what a configuration borrows from pretrained folders.

A node `{_pretrained_: <folder or name>, part: model.encoder}` of a model's configuration stands for that part of the folder:
its configuration takes the node's place, so that the new model's own folder needs no other one, and its weights are loaded
once the model is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from speechkit.pretrained_folder import find_folder, read_config, read_weights

_NODE, _PART = "_pretrained_", "part"


class Borrowed(NamedTuple):
    """A part of a model that was trained elsewhere.

    Attributes:
        path: where it is in the new model, as "semantic.encoder".
        folder: where it comes from.
        part: which part of that folder, as "model.encoder".
    """

    path: str
    folder: Path
    part: str


def fill_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[Borrowed]]:
    """Puts configurations in the place of nodes that name pretrained folders.

    Args:
        config: of a model, plain values.

    Returns:
        the configuration without such nodes, and what is borrowed.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is damaged, or has no such part.
    """
    borrowed: list[Borrowed] = []

    def fill(node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            if _NODE in node:
                found = Borrowed(path, find_folder(node[_NODE]), str(node.get(_PART, "model")))
                borrowed.append(found)
                return _part_of(found)
            return {key: fill(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        return [fill(value, f"{path}.{place}") for place, value in enumerate(node)] if isinstance(node, list) else node

    return fill(config, ""), borrowed


def load_borrowed(model: nn.Module, borrowed: list[Borrowed]) -> None:
    """Loads the weights of parts that were trained elsewhere; what a part holds beyond its original keeps its values.

    Raises:
        ValueError: a weight has another shape, or none of them is there.
    """
    for path, folder, part in borrowed:
        module, prefix = model.get_submodule(path), f"{part}."
        found = {name.removeprefix(prefix): value for name, value in read_weights(folder).items() if name.startswith(prefix)}
        own = module.state_dict()
        shared = found.keys() & own.keys()
        if own and not shared:
            raise ValueError(f"model.{path}: {folder} has no weight of {part}")
        for name in sorted(shared):
            if own[name].shape != found[name].shape:
                shapes = f"{tuple(own[name].shape)} here and {tuple(found[name].shape)} in {folder}"
                raise ValueError(f"model.{path}: {name} has shape {shapes}; give both the same sizes")
        module.load_state_dict({name: found[name].to(own[name].dtype) for name in shared}, strict=False)


def _part_of(wanted: Borrowed) -> Any:
    node: Any = read_config(wanted.folder)
    for name in wanted.part.split("."):
        if not isinstance(node, Mapping) or name not in node:
            raise ValueError(f"model.{wanted.path}: the config of {wanted.folder} has no part {wanted.part!r}")
        node = node[name]
    return node

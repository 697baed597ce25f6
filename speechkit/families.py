"""What families of recognisers there are, what each supports, and in which ways it decodes.

Told from the code of the families and from the configurations in conf/decode, so that a new one is listed as soon as it is
there.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from speechkit import models


@dataclass(frozen=True, slots=True)
class FamilyInfo:
    """A family of recognisers and what it supports.

    Attributes:
        name: the package in speechkit.models, and the end of the names of its recipes.
        description: one line.
        non_autoregressive: whether all tokens are found at once.
        decode: its decoding configurations, for `decode=<name>`.
        timestamps: what times it can give.
        long_form: how windows of a long recording are joined: by their "frames", or by their "words".
        languages: "identified" by the model, "told" to it, or "one" for models that have no tokens for languages.
        streaming: whether it transcribes while it listens.
        kind: "family".
    """

    name: str
    description: str
    non_autoregressive: bool
    decode: tuple[str, ...]
    timestamps: tuple[str, ...]
    long_form: str
    languages: str
    streaming: bool = False  # no family has a search that does
    kind: str = "family"


def list_families() -> list[FamilyInfo]:
    """The families of recognisers that can be trained, by name; told from their code and the configurations in conf/decode."""
    found = []
    for name in sorted(module.name for module in pkgutil.iter_modules(models.__path__)):
        if importlib.util.find_spec(f"{models.__name__}.{name}.infer") is None:
            continue
        infer, model = (importlib.import_module(f"{models.__name__}.{name}.{part}") for part in ("infer", "model"))
        options = [each for key, each in vars(infer).items() if key.endswith("DecodeOptions")]
        if not options:
            continue  # no recogniser
        hints = typing.get_type_hints(options[0])
        says_language = any(hasattr(own, "num_prefix_frames") for own in vars(model).values())
        found.append(
            FamilyInfo(
                name=name,
                description=(importlib.import_module(f"{models.__name__}.{name}").__doc__ or "").splitlines()[0],
                non_autoregressive=not hasattr(model, "TransformerDecoder"),
                decode=tuple(sorted(mode for mode in decode_names() if _family_of(mode) == name)),
                timestamps=typing.get_args(typing.get_args(hints["timestamps"])[0]),
                long_form="frames" if hasattr(infer, "decode_log_probs") else "words",
                languages="identified" if says_language else "told" if "language" in hints else "one",
            )
        )
    return found


def decode_names() -> list[str]:
    """Names of the decoding configurations of recognisers, conf/decode/<name>.yaml; synthesisers have options there too."""
    return [name for name in _names() if str(decode_config(name)["options"].get("_target_")).endswith("DecodeOptions")]


def _names() -> list[str]:
    """Names of all files in conf/decode."""
    return sorted(path.stem for path in _conf().glob("decode/*.yaml"))


def decode_config(name: str) -> dict[str, Any]:
    """A decoding configuration with those that it builds on; what `decode=<name>` stands for.

    Raises:
        ValueError: there is none of this name.
    """
    path = _conf() / "decode" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"decode={name} is not known; choose one of {', '.join(_names())}")
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    merged: dict[str, Any] = {"options": {}}
    for config in [*map(decode_config, own.pop("defaults", [])), own]:
        merged |= {**config, "options": merged["options"] | config.get("options", {})}
    return merged


def _family_of(mode: str) -> str:
    """The family that a decoding configuration is for."""
    return str(decode_config(mode)["_target_"]).removeprefix(f"{models.__name__}.").split(".")[0]


def _conf() -> Path:
    """The folder of configurations: inside the installed package, or beside it in the checkout."""
    package = Path(__file__).parent
    return next((folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir()), package / "conf")

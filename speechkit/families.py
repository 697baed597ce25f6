"""What families of recognisers and of synthesis there are, what each supports, and in which ways it decodes.

Told from the code of the families and from the configurations in conf, so that a new one is listed as soon as it is there.
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


@dataclass(frozen=True, slots=True)
class SynthesisFamilyInfo:
    """A family of synthesisers, codecs or vocoders.

    Attributes:
        name: the package in speechkit.models.
        description: one line.
        trains: what its recipes make: "synthesizer", "codec" or "vocoder".
        models: its configurations, for `model=<name>`.
        experiments: its recipes, for `experiment=<name>`.
        decode: its configurations of synthesis, for `decode=<name>`, with what each lets be chosen.
        kind: "synthesis_family".
    """

    name: str
    description: str
    trains: str
    models: tuple[str, ...]
    experiments: tuple[str, ...]
    decode: dict[str, tuple[str, ...]]
    kind: str = "synthesis_family"


def list_synthesis_families() -> list[SynthesisFamilyInfo]:
    """The families that speak, code speech or make waveforms, by name; told from the recipes in conf/experiment."""
    package_of = {name: _package(_named("model", name)["_target_"]) for name in _names("model")}
    found: dict[str, dict[str, Any]] = {}
    for experiment in _names("experiment"):
        config = _named("experiment", experiment)
        if config.get("kind") not in ("synthesizer", "codec", "vocoder"):
            continue
        family = package_of[config["override /model"]]
        own = found.setdefault(family, {"trains": config["kind"], "experiments": [], "decode": set()})
        own["experiments"].append(experiment)
        own["decode"] |= {config["override /decode"]} if "override /decode" in config else set()
    return [
        SynthesisFamilyInfo(
            name=name,
            description=_description(name),
            trains=own["trains"],
            models=tuple(model for model, package in package_of.items() if package == name),
            experiments=tuple(own["experiments"]),
            decode={mode: _controls(mode) for mode in sorted(own["decode"])},
        )
        for name, own in sorted(found.items())
    ]


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
                description=_description(name),
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
    return [name for name in _names("decode") if str(decode_config(name)["options"].get("_target_")).endswith("DecodeOptions")]


def _names(group: str) -> list[str]:
    """Names of all files in conf/<group>."""
    return sorted(path.stem for path in _conf().glob(f"{group}/*.yaml"))


def _named(group: str, name: str) -> dict[str, Any]:
    """The outermost settings of a configuration with those that it builds on, and what it chooses of other groups."""
    own = yaml.safe_load((_conf() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    merged: dict[str, Any] = {}
    for default in own.pop("defaults", []):
        merged |= default if isinstance(default, dict) else _named(group, default) if default != "_self_" else {}
    return {**merged, **own}


def _description(family: str) -> str:
    """The first line of a family's documentation."""
    return (importlib.import_module(f"{models.__name__}.{family}").__doc__ or "").splitlines()[0]


def _controls(mode: str) -> tuple[str, ...]:
    """What a decoding configuration lets be chosen."""
    return tuple(key for key in decode_config(mode)["options"] if key not in ("_target_", "seed"))


def decode_config(name: str) -> dict[str, Any]:
    """A decoding configuration with those that it builds on; what `decode=<name>` stands for.

    Raises:
        ValueError: there is none of this name.
    """
    path = _conf() / "decode" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"decode={name} is not known; choose one of {', '.join(_names('decode'))}")
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    merged: dict[str, Any] = {"options": {}}
    for config in [*map(decode_config, own.pop("defaults", [])), own]:
        merged |= {**config, "options": merged["options"] | config.get("options", {})}
    return merged


def _family_of(mode: str) -> str:
    """The family that a decoding configuration is for."""
    return _package(decode_config(mode)["_target_"])


def _package(target: str) -> str:
    """The package in speechkit.models that a `_target_` is in."""
    return target.removeprefix(f"{models.__name__}.").split(".")[0]


def _conf() -> Path:
    """The folder of configurations: inside the installed package, or beside it in the checkout."""
    package = Path(__file__).parent
    return next((folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir()), package / "conf")

"""Pretrained folders on disk: where they are, what they hold, and how they are written and read.

A folder holds::

    config.yaml          what to build: features, model, decode, as `_target_` and arguments, plus facts about the training;
                         for a language model, the model alone
    model.safetensors    weights, keys "features.*" and "model.*"
    tokenizer.json (+ tokenizer.model)
    README.md            model card with the figures

`speechkit.pretrained` makes models of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechkit.text.tokenizers import Tokenizer

ASSETS = Path(__file__).parent / "assets"
CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "README.md"
PARTS = {  # of a config, by kind
    "recognizer": ("features", "model", "decode"),
    "language_model": ("model",),
    "synthesizer": ("features", "frontend", "model", "decode"),
    "vocoder": ("features", "model"),
    "codec": ("features", "model"),
    "speaker_encoder": ("features", "model"),
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A shipped model: the name to load it by, what it is, and the size of its weights in bytes."""

    name: str
    kind: str
    family: str
    languages: tuple[str, ...]
    description: str
    num_bytes: int


def save_pretrained(
    directory: str | Path,
    *,
    config: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    card: str,
) -> Path:
    """Writes a pretrained folder.

    Args:
        directory: made when absent; files of the same names are replaced.
        config: plain values only: "kind", the `PARTS` of this kind, and facts such as "languages" or "metrics".
        state_dict: weights and buffers, keys starting with "features." or "model.".
        tokenizer: saved beside the weights; None for models without text.
        card: text of the model card (Markdown).

    Returns:
        The directory.

    Raises:
        ValueError: a needed part of `config` is missing, a key of `state_dict` has another prefix, or a value is no plain one.
    """
    directory = Path(directory)
    missing = _missing(config)
    if missing:
        raise ValueError(f"config lacks {', '.join(missing)}: a pretrained folder could not be loaded again")
    strangers = [key for key in state_dict if not key.startswith(("features.", "model."))]
    if strangers:
        raise ValueError(f"state_dict key {strangers[0]!r} starts with neither 'features.' nor 'model.'")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        raise ValueError(
            f"config holds a value that is not plain data: {error.args[-1]!r}; resolve it first"
        ) from error
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state_dict.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(text, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(directory)
    (directory / CARD).write_text(card, encoding="utf-8")
    return directory


def read_config(directory: Path) -> dict[str, Any]:
    """The config of a pretrained folder.

    Raises:
        FileNotFoundError: no such folder, or no config in it.
        ValueError: the config is not a mapping with the parts that are needed.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} has no {CONFIG}: give a pretrained folder (a training run leaves one in <run>/pretrained)"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    missing = _missing(config)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is not the config of a pretrained folder")
    return config


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The weights of a pretrained folder.

    Raises:
        FileNotFoundError: they are missing.
        ValueError: they are damaged.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the pretrained folder is not complete")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): copy the folder again") from error


def list_models() -> list[ModelInfo]:
    """The models that ship with the package, by name."""
    models = []
    for path in sorted(ASSETS.glob(f"*/{CONFIG}")):
        config = read_config(path.parent)
        models.append(
            ModelInfo(
                name=path.parent.name,
                kind=config["kind"],
                family=config["model"]["_target_"].split(".")[2],
                languages=tuple(config.get("languages", ())),
                description=config.get("description", ""),
                num_bytes=(path.parent / WEIGHTS).stat().st_size,
            )
        )
    return models


def _missing(config: Any) -> list[str]:
    """What a config of its kind would need in addition."""
    known: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    return [key for key in ("kind", *PARTS.get(str(known.get("kind")), PARTS["recognizer"])) if key not in known]


def find_folder(name: str | Path) -> Path:
    """The folder of a name: a directory, a shipped model, or a snapshot of a hub repository.

    Raises:
        FileNotFoundError: there is none.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    shipped = ASSETS / str(name)
    if "/" not in str(name) and (shipped / CONFIG).is_file():
        return shipped
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return _download(str(name))
    names = ", ".join(sorted(path.parent.name for path in ASSETS.glob(f"*/{CONFIG}"))) or "none"
    raise FileNotFoundError(f"no model {str(name)!r}: it is neither a folder nor a shipped model ({names})")


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f'no folder {name!r}; to load it from the Hugging Face Hub: pip install "speechkit[hub]"'
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, CARD, "tokenizer.*"]))
    except Exception as error:  # the hub raises many kinds: network, permissions, no such name
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{name!r} is no folder here, and the Hugging Face Hub did not give it: {reason}"
        ) from error

"""Models of pretrained folders: what `speechkit.load` makes of what a training run leaves behind.

Nothing in a folder (`speechkit.pretrained_folder` has its layout) is trusted: weights are safetensors, and a config can only
name objects that are defined in speechkit's own `audio`, `text`, `nn`, `search` and `models` packages (checked on the resolved
object, not on its name).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechkit.audio.settings import differing_settings
from speechkit.codec import Codec
from speechkit.models.aed.model import AedModel
from speechkit.models.aed.ranker import AedRanker
from speechkit.pretrained_folder import (
    ASSETS,
    CONFIG,
    PARTS,
    WEIGHTS,
    find_folder,
    list_models,
    read_config,
    read_weights,
    save_pretrained,
)
from speechkit.recognizer import Recognizer
from speechkit.search.neural_lm import NeuralLm
from speechkit.speaker_encoder import SpeakerEncoder
from speechkit.synthesizer import Synthesizer
from speechkit.text.tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "ASSETS",
    "find_folder",
    "init_from",
    "instantiate",
    "list_models",
    "load",
    "load_codec",
    "load_language_model",
    "load_ranker",
    "load_recognizer",
    "load_speaker_encoder",
    "load_synthesizer",
    "load_vocoder",
    "read_config",
    "read_weights",
    "save_pretrained",
    "tokenizer_of",
]

ALLOWED_PACKAGES = ("speechkit.audio.", "speechkit.text.", "speechkit.nn.", "speechkit.search.", "speechkit.models.")


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    vocoder: str | Path | None = None,
) -> Any:
    """Loads a model to use: a shipped name ("demo-ctc"), a pretrained folder, or a Hugging Face Hub name ("org/model").

    Args:
        name: shipped names and folders need no network; hub names need `pip install "speechkit[hub]"`.
        device: "cpu", "cuda", ...; None takes the GPU when there is one.
        dtype: what the model computes in: "float32", "bfloat16" or "float16"; features are always computed in float32, and so
            are codecs and speaker encoders.
        vocoder: of a synthesiser or codec: folder or name of a trained one; None for Griffin-Lim.

    Returns:
        A `speechkit.recognizer.Recognizer`, ready for `transcribe`, a `speechkit.synthesizer.Synthesizer`, ready for
        `synthesize`, a `speechkit.codec.Codec`, ready for `copy`, or a `speechkit.speaker_encoder.SpeakerEncoder`, ready for
        `embed`.

    Raises:
        FileNotFoundError: there is no such folder or shipped model.
        ValueError: the folder is damaged, or names code that it may not name, or torch knows no such device.
    """
    directory = find_folder(name)
    kind = read_config(directory)["kind"]
    if kind == "synthesizer":
        return load_synthesizer(name, device=device, dtype=dtype, vocoder=vocoder)
    if kind in ("codec", "speaker_encoder") and _dtype(dtype) != torch.float32:
        raise ValueError(f"dtype={dtype}: {directory} holds a {kind}, which computes in float32; leave dtype out")
    if kind == "codec":
        return load_codec(name, device=device, vocoder=vocoder)
    if vocoder is not None:
        raise ValueError(f"vocoder={vocoder}: {directory} holds a {kind}, which makes no speech")
    if kind == "speaker_encoder":
        return load_speaker_encoder(name, device=device)
    return load_recognizer(name, device=device, dtype=dtype)


def load_recognizer(
    name: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32"
) -> Recognizer:
    """Loads a recogniser; arguments and errors as in `load`."""
    directory = find_folder(name)
    config = read_config(directory)
    if config["kind"] == "language_model":
        raise ValueError(f"{directory} holds a language model: name it in a recogniser's decode options, as lm={name}")
    if config["kind"] == "vocoder":
        raise ValueError(f"{directory} holds a vocoder: name it where a synthesiser or codec is loaded, as vocoder={name}")
    if config["kind"] != "recognizer":
        raise ValueError(f"{directory / CONFIG}: kind {config['kind']!r} is not a recogniser of this version of speechkit")
    tokenizer = load_tokenizer(directory)
    features, model, infer = _parts(directory, config, device, dtype)
    return Recognizer(
        features=features,
        model=model,
        tokenizer=tokenizer,
        infer=infer.func,
        options=infer.keywords["options"],
        languages=config.get("languages", ()),
        name=str(name),
        window_seconds=config.get("window_seconds", 30.0),
        merge_seconds=config.get("merge_seconds"),
        load_named=_load_named,
        normalizer=config.get("normalizer", "none"),
    )


def load_synthesizer(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    vocoder: str | Path | None = None,
) -> Synthesizer:
    """Loads a synthesiser; arguments and errors as in `load`."""
    directory = find_folder(name)
    config = read_config(directory)
    if config["kind"] != "synthesizer":
        raise ValueError(f"{directory / CONFIG}: kind {config['kind']!r} is not a synthesiser")
    mel, model, infer = _parts(directory, config, device, dtype)
    return Synthesizer(
        mel=mel,
        model=model,
        frontend=instantiate(config["frontend"], where=f"{directory / CONFIG}: frontend"),
        tokenizer=load_tokenizer(directory),
        infer=infer.func,
        options=infer.keywords["options"],
        vocoder=None if vocoder is None else load_vocoder(vocoder, device=device),
        speakers=config.get("speakers", ("",)),
        languages=config.get("languages", ("",)),
        log_f0_mean=config.get("log_f0_mean"),
        log_f0_std=config.get("log_f0_std"),
        name=str(name),
        max_chars=config.get("max_chars", 200),
    )


def load_vocoder(name: str | Path, *, device: str | torch.device | None = None) -> Any:
    """Loads a trained vocoder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is damaged, or holds no vocoder.
    """
    directory = find_folder(name)
    config = read_config(directory)
    if config["kind"] != "vocoder":
        raise ValueError(f"vocoder={name} is a folder with a {config['kind']}; give that of a vocoder")
    mel, model, _ = _parts(directory, config, device, "float32")
    model.mel.check_same(mel, name=f"the model in {directory}", other_name="its features")
    model.fold_weight_norm()
    return model.eval()


def load_codec(
    name: str | Path, *, device: str | torch.device | None = None, vocoder: str | Path | None = None
) -> Codec:
    """Loads a trained codec; arguments and errors as in `load`."""
    directory = find_folder(name)
    config = read_config(directory)
    if config["kind"] != "codec":
        raise ValueError(f"{directory / CONFIG}: kind {config['kind']!r} is not a codec")
    mel, model, _ = _parts(directory, config, device, "float32")
    trained = None if vocoder is None else load_vocoder(vocoder, device=device)
    return Codec(mel=mel, model=model, vocoder=trained, name=str(name))


def load_speaker_encoder(name: str | Path, *, device: str | torch.device | None = None) -> SpeakerEncoder:
    """Loads a speaker encoder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is damaged, or holds no speaker encoder.
    """
    directory = find_folder(name)
    config = read_config(directory)
    if config["kind"] != "speaker_encoder":
        raise ValueError(f"speaker encoder {name} is a folder with a {config['kind']}; give that of a speaker encoder")
    features, model, _ = _parts(directory, config, device, "float32")
    return SpeakerEncoder(features=features, model=model, name=str(name))


def _parts(
    directory: Path, config: Mapping[str, Any], device: str | torch.device | None, dtype: str | torch.dtype
) -> tuple[Any, Any, Any]:
    """Features, model with its weights, and a partial of `infer` (None where the kind has none), of a pretrained folder."""
    where = directory / CONFIG
    features = instantiate(config["features"], where=f"{where}: features")
    if features.fingerprint() != config.get("features_fingerprint", features.fingerprint()):
        differing = differing_settings(features.settings(), config.get("features_settings", features.settings()))
        raise ValueError(
            f"{where}: the features built from it are not those that the model was trained on ("
            + (differing or f"fingerprint {features.fingerprint()}, trained on {config['features_fingerprint']}")
            + "): settings were edited, or the model comes from another version of speechkit"
        )
    model = instantiate(config["model"], where=f"{where}: model")
    infer = None
    if "decode" in PARTS[config["kind"]]:
        infer = instantiate({**config["decode"], "_partial_": True}, where=f"{where}: decode")
    _load_weights(directory, nn.ModuleDict({"features": features, "model": model}))
    target = _device(device)
    return features.to(target), model.to(target, dtype=_dtype(dtype)), infer


def load_ranker(name: str | Path, recognizer: Recognizer) -> AedRanker:
    """Loads an attention encoder-decoder to rank transcripts of another recogniser, as CASS-NAT's decode options take it.

    A `Recognizer` does this by itself where its options name a folder. The language is that of the model's own options.

    Args:
        name: as in `load`.
        recognizer: whose transcripts are ranked; the ranker goes where it is.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is damaged, holds no attention encoder-decoder, or one with other tokens or features.
    """
    target = read_config(find_folder(name))["model"].get("_target_")
    if target != f"{AedModel.__module__}.AedModel":
        raise ValueError(f"ranker={name} is a {target}; give the folder of an attention encoder-decoder (AedModel)")
    ranker = load_recognizer(name, device=recognizer.device, dtype=recognizer.dtype)
    for what, own, other in (
        ("tokenizer", ranker.tokenizer.fingerprint(), recognizer.tokenizer.fingerprint()),
        ("features", ranker.features.fingerprint(), recognizer.features.fingerprint()),
    ):
        if own != other:
            raise ValueError(f"ranker={name} has other {what} ({own}) than the recogniser ({other}); train both with the same")
    statistics = recognizer.features.state_dict()
    if any(not torch.equal(value, statistics[key]) for key, value in ranker.features.state_dict().items()):
        raise ValueError(
            f"ranker={name} normalises features by other means and deviations than the recogniser; train both with the same"
        )
    return AedRanker(model=ranker.model, language=ranker.options.language, name=str(name))


def load_language_model(name: str | Path, *, device: str | torch.device | None = None) -> NeuralLm:
    """Loads a neural language model, to be given as `lm` to decode options.

    A `Recognizer` does this by itself where its options name a folder.

    Args:
        name: pretrained folder of a language model, or a hub name.
        device: where it is to run; None takes the GPU when there is one.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is damaged, or holds no language model.
    """
    directory = find_folder(name)
    config = read_config(directory)
    if config["kind"] != "language_model":
        raise ValueError(f"lm={name} is a folder with a {config['kind']}; give that of a language model, or an n-gram file")
    model = instantiate(config["model"], where=f"{directory / CONFIG}: model")
    _load_weights(directory, nn.ModuleDict({"model": model}))
    decoder = model.decoder.to(_device(device)).eval().requires_grad_(False)
    return NeuralLm(decoder=decoder, tokenizer=load_tokenizer(directory), name=str(name))


def tokenizer_of(texts: Iterable[str], *, name: str | Path) -> Tokenizer:
    """The tokenizer of a trained model; the same call as the training of one, but nothing is learnt from the texts."""
    del texts
    return load_tokenizer(find_folder(name))


def init_from(module: nn.Module, name: str | Path, *, prefix: str = "model.encoder.") -> str:
    """Starts a module from the weights of a trained model, for example an encoder from that of a CTC model.

    Args:
        module: holds the parameters under the names of pretrained folders ("model.encoder.layers.0...").
        name: as in `load`.
        prefix: of the weights that are taken; "model." takes the output layers too.

    Returns:
        One line on what was taken and what starts afresh.

    Raises:
        FileNotFoundError: there is no such folder or shipped model.
        ValueError: a weight has another shape, or there is none with this prefix on one of the sides.
    """
    directory = find_folder(name)
    found = {
        key: tensor
        for key, tensor in read_weights(directory).items()
        if key.startswith(prefix) and not {"step", "mel_norm"} & {*key.split(".")}  # trainings count and measure themselves
    }
    own = {key: tensor for key, tensor in module.state_dict().items() if key.startswith(prefix)}
    shared = found.keys() & own.keys()
    if not shared:
        sizes = f"{len(found)} weights {prefix}* there, {len(own)} in the model to train"
        raise ValueError(f"init_from={name}: {sizes}, none in common")
    for key in sorted(shared):
        if found[key].shape != own[key].shape:
            raise ValueError(
                f"init_from={name}: {key} has shape {tuple(found[key].shape)} there and {tuple(own[key].shape)} in the model "
                "to train; give both the same sizes"
            )
    module.load_state_dict({key: found[key].to(own[key].dtype) for key in shared}, strict=False)
    left_out, fresh = len(found.keys() - shared), len(module.state_dict()) - len(shared)
    return f"init_from {name}: took {len(shared)} weights {prefix}*, left out {left_out}; {fresh} others start afresh"


def _load_named(options: Any, recognizer: Recognizer) -> Any:
    """Decode options with the models loaded that they name by folders: a language model (not n-gram files), a ranker."""
    lm, ranker = (getattr(options, name, None) for name in ("lm", "ranker"))
    if isinstance(lm, str) and Path(lm).is_dir():
        options = dataclasses.replace(options, lm=load_language_model(lm, device=recognizer.device))
    if isinstance(ranker, str):
        options = dataclasses.replace(options, ranker=load_ranker(ranker, recognizer))
    return options


def instantiate(node: Any, *, where: str) -> Any:
    """Builds the object that a config node describes; a small, strict stand-in for Hydra at inference time.

    A mapping with `_target_` becomes a call of that object with the other entries as keyword arguments (`_partial_: true`
    gives a `functools.partial` instead); lists and other mappings are walked through.

    Raises:
        ValueError: the target is not one of speechkit's own model parts, or the arguments do not fit its signature.
    """
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [instantiate(child, where=where) for child in node]
    if not isinstance(node, Mapping):
        return node
    arguments = {
        key: instantiate(value, where=f"{where}.{key}") for key, value in node.items() if not str(key).startswith("_")
    }
    if "_target_" not in node:
        return arguments
    target = _resolve(node["_target_"], where)
    try:
        if node.get("_partial_"):
            inspect.signature(target).bind_partial(**arguments)
            return functools.partial(target, **arguments)
        return target(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {node['_target_']} does not take these arguments: {error}") from error


def _resolve(path: Any, where: str) -> Any:
    """The object named by a dotted path, when it is defined in an allowed package: a class, or a family's `infer`."""
    if not isinstance(path, str) or not path.startswith(ALLOWED_PACKAGES):
        raise ValueError(f"{where}: _target_ {path!r} is refused: only parts of speechkit's models can be named")
    module_name, _, attribute = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: _target_ {path!r} does not exist in this version of speechkit") from error
    home = f"{getattr(target, '__module__', '')}."
    is_part = inspect.isclass(target) or (inspect.isfunction(target) and target.__name__ == "infer")  # others may write files
    if not is_part or not home.startswith(ALLOWED_PACKAGES):
        raise ValueError(f"{where}: _target_ {path!r} is refused: it is {home[:-1]}, not a part of speechkit's models")
    return target


def _load_weights(directory: Path, modules: nn.Module) -> None:
    try:
        modules.load_state_dict(read_weights(directory))
    except RuntimeError as error:
        raise ValueError(f"{directory / WEIGHTS} does not fit {CONFIG}: {' '.join(str(error).split())[:300]}") from error


def _device(device: str | torch.device | None) -> torch.device:
    try:
        return torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is none that torch knows; name cpu, cuda, cuda:1 or mps") from error


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(known)}")
    return known[dtype]

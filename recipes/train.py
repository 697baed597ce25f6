"""Train a model: `speechkit train experiment=<corpus>_<family> [key=value ...]`, or `python recipes/train.py ...`.

Composes the configuration, builds the parts it names, fits, averages the kept weights, validates them and exports a
pretrained folder to <run_dir>/pretrained. Returns the metric of the exported weights, which sweeps (-m) minimise.
"""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.data.datamodule import BucketDataModule, DataSource
from speechkit.data.speech_data import training_texts
from speechkit.data.text_data import training_sentences
from speechkit.pretrained import find_folder, init_from, read_config, save_pretrained
from speechkit.pretrained import instantiate as rebuild
from speechkit.pretrained_parts import fill_config, load_borrowed
from speechkit.text.tokenizers import Tokenizer
from speechkit.training.evaluation import Verification
from speechkit.training.lit_module import LitModule
from speechkit.training.resume import Checkpointer
from speechkit.training.run import (
    claim_run_dir,
    model_card,
    obtain_tokenizer,
    one_line_errors,
    quiet_lightning,
    set_threads,
    write_json,
)

LEAST_MAX_CHARS = 100  # of a piece of text in synthesis, however short the texts of training are
build = functools.partial(instantiate, _convert_="all")  # nothing we call sees a DictConfig


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Entry point; the work is in `train`."""
    with one_line_errors():
        return train(cfg)


def train(cfg: DictConfig) -> float:
    """Trains what the configuration names.

    Returns:
        The value of `cfg.metric` on the validation data, of the exported weights.
    """
    OmegaConf.set_readonly(cfg, True)
    if cfg.kind not in PARTS:
        raise ValueError(f"kind={cfg.kind!r}: choose one of {', '.join(PARTS)}")
    job_dir = Path(cfg.job_dir)
    checkpoint = claim_run_dir(job_dir, resume=cfg.resume)
    set_threads(cfg.threads)
    quiet_lightning()
    pl.seed_everything(cfg.seed, verbose=False)
    job = PARTS[cfg.kind](cfg)
    make_module = LitModule if cfg.get("adversarial") is None else build(cfg.adversarial)
    module = make_module(
        **job.parts,
        optimizer=build(cfg.optim.optimizer),
        scheduler=build(cfg.optim.scheduler),
        on_nonfinite=cfg.on_nonfinite,
    )
    if cfg.init_from is not None and checkpoint is None:
        if isinstance(module.features, MelSpectrogram):
            check_features(module.features, find_folder(cfg.init_from))
        print(init_from(module, cfg.init_from, prefix=cfg.init_prefix), flush=True)
    datamodule = BucketDataModule(job.source)
    callbacks = [callback for callback in build(cfg.callbacks).values() if callback is not None]
    trainer = build(cfg.trainer, callbacks=callbacks)
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)

    checkpointer = next(callback for callback in callbacks if isinstance(callback, Checkpointer))
    checkpointer.keep_final(trainer, module, datamodule)
    module.load_state_dict(checkpointer.averaged_weights(), strict=False)
    [metrics] = trainer.validate(module, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        facts = job.facts(cfg, module, datamodule)
        took = {"steps": trainer.global_step, "cpu_minutes": round(checkpointer.cpu_seconds() / 60, 1)}
        export(cfg, module, metrics, took=took, model=job.model, facts=facts)
        write_json(job_dir / "result.json", metrics)
        print(f"{job_dir / 'pretrained'}: " + " ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return float(metrics[cfg.metric])


class Job(NamedTuple):
    """What a kind of training is made of.

    Attributes:
        source: where the data come from.
        parts: arguments of `LitModule`.
        model: the configuration of the model, as it is exported.
        facts: what else the exported configuration holds.
    """

    source: DataSource
    parts: dict[str, Any]
    model: dict[str, Any]
    facts: Callable[[DictConfig, LitModule, BucketDataModule], dict[str, Any]]


def recognizer(cfg: DictConfig) -> Job:
    """Speech to text: features, augmentation, model and search."""
    tokenizer = text_tokenizer(cfg, takes_transcripts=cfg.tokenizer_texts is None)
    features = build(cfg.features)
    sizes = {"vocab_size": tokenizer.vocab_size, "encoder": {"input_dim": features.output_dim}}
    parts = {
        "features": features,
        "augment": build(cfg.augment.feats),
        "model": build(cfg.model, **sizes),
        "tokenizer": tokenizer,
        "infer": build(cfg.decode),
    }
    return Job(build(cfg.data, tokenizer=tokenizer), parts, with_sizes(cfg.model, sizes), recognizer_facts)


def language_model(cfg: DictConfig) -> Job:
    """Text alone."""
    tokenizer = text_tokenizer(cfg, takes_transcripts=False)
    sizes = {"vocab_size": tokenizer.vocab_size}
    parts = {"model": build(cfg.model, **sizes), "tokenizer": tokenizer}
    return Job(build(cfg.data, tokenizer=tokenizer), parts, with_sizes(cfg.model, sizes), lambda *_: {})


def synthesizer(cfg: DictConfig) -> Job:
    """Text to speech: front end, mel and model."""
    frontend, mel = build(cfg.frontend), build(cfg.features)
    source = build(cfg.data, frontend=frontend, mel=mel)
    settings = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("tokenizer", "frontend")}
    settings |= {"train": {name: str(path) for name, path in source.train_manifests.items()}, "text_field": source.text_field}
    directory = Path(cfg.job_dir) / "tokenizer"
    source.tokenizer = obtain_tokenizer(directory, build(cfg.tokenizer), source.texts, settings=settings)
    known = {
        "vocab_size": source.tokenizer.vocab_size,
        "num_mels": mel.output_dim,
        "num_speakers": len(source.speakers),
        "num_languages": len(source.languages),
    }
    if source.stats is not None:
        known["log_f0_std"] = source.stats.log_f0_std
    config, model = build_borrowing(cfg, known, mel)
    parts = {"features": mel, "model": model, "tokenizer": source.tokenizer}
    return Job(source, parts, config, synthesizer_facts)


def sound(cfg: DictConfig) -> Job:
    """Speech alone: vocoders and codecs, which learn to make waveforms, or mels, of mels."""
    mel = build(cfg.features)
    source = build(cfg.data, mel=mel)
    features: Any = OmegaConf.to_container(cfg.features, resolve=True)
    config, model = build_borrowing(cfg, {"num_mels": mel.output_dim, "mel": features}, mel)
    parts = {"features": mel, "model": model}
    return Job(source, parts, config, sound_facts)


def speaker_encoder(cfg: DictConfig) -> Job:
    """Speech of many speakers: features, and a model that tells who speaks."""
    features = build(cfg.features)
    sizes = {"num_mels": features.output_dim}
    parts = {"features": features, "model": build(cfg.model, **sizes), "evaluation": Verification()}
    return Job(build(cfg.data), parts, with_sizes(cfg.model, sizes), sound_facts)


def build_borrowing(cfg: DictConfig, known: dict[str, Any], mel: MelSpectrogram) -> tuple[dict[str, Any], Any]:
    """A model that may hold trained parts: its plain configuration, with what it takes of what is known, and itself.

    Raises:
        ValueError: a part was trained on another mel, or on features of audio at another rate; it names the fields.
    """
    taken = inspect.signature(get_class(cfg.model._target_)).parameters
    plain: Any = OmegaConf.to_container(cfg.model, resolve=True)
    config, borrowed = fill_config({**plain, **{name: value for name, value in known.items() if name in taken}})
    for folder in dict.fromkeys(part.folder for part in borrowed):
        check_features(mel, folder)
    model = build(config)
    load_borrowed(model, borrowed)
    return config, model


def check_features(mel: MelSpectrogram, folder: Path) -> None:
    """Makes sure that a trained model hears as the one does that is to take of it.

    Raises:
        ValueError: it was trained on another mel, or on features of audio at another rate.
    """
    lent = rebuild(read_config(folder)["features"], where=f"{folder}: features")
    if isinstance(lent, MelSpectrogram):
        mel.check_same(lent, name="features", other_name=str(folder))
    elif lent.sample_rate != mel.sample_rate:
        rates = f"{mel.sample_rate}, but {folder} hears audio at {lent.sample_rate} Hz"
        raise ValueError(f"features.sample_rate={rates}; use one rate")


PARTS = {
    "recognizer": recognizer,
    "language_model": language_model,
    "synthesizer": synthesizer,
    "vocoder": sound,
    "codec": sound,
    "speaker_encoder": speaker_encoder,
}


def text_tokenizer(cfg: DictConfig, *, takes_transcripts: bool) -> Tokenizer:
    """The tokenizer of transcripts, or of sentences."""
    read_texts, texts = tokenizer_texts(cfg, takes_transcripts=takes_transcripts)
    return obtain_tokenizer(
        Path(cfg.job_dir) / "tokenizer",
        build(cfg.tokenizer),
        lambda: read_texts(**texts),
        settings={"tokenizer": OmegaConf.to_container(cfg.tokenizer, resolve=True), **texts},
    )


def with_sizes(node: DictConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    """A configuration as plain values, with what the data decided."""
    plain: Any = OmegaConf.to_container(node, resolve=True)
    for name, value in sizes.items():
        plain[name] = {**plain[name], **value} if isinstance(value, dict) else value
    return plain


def tokenizer_texts(cfg: DictConfig, *, takes_transcripts: bool) -> tuple[Callable[..., Iterable[str]], dict[str, Any]]:
    """What reads the texts that the tokenizer is trained on, and its arguments: plain values."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    data, own = settings["data"], settings["tokenizer_texts"]
    data["train"] = data["train"] if own is None else own
    names = ("train", "normalizer", "target_field" if takes_transcripts else "column")
    read = training_texts if takes_transcripts else training_sentences
    return read, {name: data[name] for name in names if data.get(name) is not None}


def export(
    cfg: DictConfig,
    module: LitModule,
    metrics: dict[str, float],
    *,
    took: dict[str, float],
    model: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Writes the pretrained folder: plain configuration, weights of features and model, tokenizer, model card."""
    training_only: tuple[str, ...] = getattr(module.model, "training_only", ())
    config: dict[str, Any] = {
        "kind": cfg.kind,
        "model": {name: value for name, value in model.items() if name not in training_only},
        "languages": list(cfg.languages),
        **facts,
        "description": cfg.description,
        "metrics": dict(metrics),
        "training": took,
    }

    def kept(name: str) -> bool:
        """Whether a weight is exported."""
        return name.startswith(("features.", "model.")) and name.split(".")[1] not in training_only

    tokenizer = getattr(module, "tokenizer", None)
    card = model_card(
        kind=cfg.kind,
        name=cfg.name,
        command=shlex.join(["speechkit", "train", *HydraConfig.get().overrides.task]),
        metrics=metrics,
        num_parameters=sum(tensor.numel() for name, tensor in module.model.named_parameters() if kept(f"model.{name}")),
        facts={
            "description": cfg.description,
            "optimizer steps": f"{took['steps']:,}",
            "CPU minutes": f"{took['cpu_minutes']:,}",
            "torch": torch.__version__,
        },
    )
    weights = {name: tensor for name, tensor in module.state_dict().items() if kept(name)}
    save_pretrained(Path(cfg.job_dir) / "pretrained", config=config, state_dict=weights, tokenizer=tokenizer, card=card)


def recognizer_facts(cfg: DictConfig, module: LitModule, datamodule: BucketDataModule) -> dict[str, Any]:
    """What the configuration of a recogniser holds beside its model."""
    durations: np.ndarray = datamodule.train_dataset.durations  # seconds
    return {
        "normalizer": cfg.data.normalizer,
        "decode": OmegaConf.to_container(cfg.decode, resolve=True),
        **sound_facts(cfg, module, datamodule),
        "window_seconds": cfg.window_seconds or round(float(durations.max()), 2),
        "merge_seconds": round(float(np.median(durations)), 2),
    }


def synthesizer_facts(cfg: DictConfig, module: LitModule, datamodule: BucketDataModule) -> dict[str, Any]:
    """What the configuration of a synthesiser holds beside its model."""
    source: Any = datamodule.source
    stats = source.stats
    return {
        "decode": OmegaConf.to_container(cfg.decode, resolve=True),
        **sound_facts(cfg, module, datamodule),
        "frontend": {"_target_": cfg.frontend._target_, **source.frontend.settings()},  # as it was, on any machine
        "max_chars": max(LEAST_MAX_CHARS, source.longest_text),
        "languages": list(source.languages),
        "speakers": list(source.speakers),
        "log_f0_mean": None if stats is None else {name: round(mean, 4) for name, mean in stats.log_f0_mean.items()},
        "log_f0_std": None if stats is None else round(stats.log_f0_std, 4),
    }


def sound_facts(cfg: DictConfig, module: LitModule, datamodule: BucketDataModule) -> dict[str, Any]:
    """What the configuration of a vocoder, codec or speaker encoder holds beside its model."""
    return {
        "features": OmegaConf.to_container(cfg.features, resolve=True),
        "features_fingerprint": module.features.fingerprint(),
        "features_settings": module.features.settings(),
    }


if __name__ == "__main__":
    main()

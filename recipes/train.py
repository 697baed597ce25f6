"""Train a model: `speechkit train experiment=<corpus>_<family> [key=value ...]`, or `python recipes/train.py ...`.

Composes the configuration, builds the parts it names, fits, averages the kept weights, validates them and exports a
pretrained folder to <run_dir>/pretrained. Returns the metric of the exported weights, which sweeps (-m) minimise.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from speechkit.data.datamodule import BucketDataModule
from speechkit.data.speech_data import training_texts
from speechkit.data.text_data import training_sentences
from speechkit.pretrained import init_from, save_pretrained
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
    job_dir = Path(cfg.job_dir)
    checkpoint = claim_run_dir(job_dir, resume=cfg.resume)
    set_threads(cfg.threads)
    quiet_lightning()
    pl.seed_everything(cfg.seed, verbose=False)
    is_speech = cfg.features is not None
    read_texts, texts = tokenizer_texts(cfg, is_speech=is_speech)
    tokenizer = obtain_tokenizer(
        job_dir / "tokenizer",
        build(cfg.tokenizer),
        lambda: read_texts(**texts),
        settings={"tokenizer": OmegaConf.to_container(cfg.tokenizer, resolve=True), **texts},
    )
    features = build(cfg.features)
    inputs = {"encoder": {"input_dim": features.output_dim}} if is_speech else {}
    model = build(cfg.model, vocab_size=tokenizer.vocab_size, **inputs)
    module = LitModule(
        features=features,
        augment=build(cfg.augment.feats) if is_speech else None,
        model=model,
        tokenizer=tokenizer,
        optimizer=build(cfg.optim.optimizer),
        scheduler=build(cfg.optim.scheduler),
        infer=build(cfg.decode),
        on_nonfinite=cfg.on_nonfinite,
    )
    if cfg.init_from is not None and checkpoint is None:
        print(init_from(module, cfg.init_from, prefix=cfg.init_prefix), flush=True)
    datamodule = BucketDataModule(build(cfg.data, tokenizer=tokenizer))
    callbacks = [callback for callback in build(cfg.callbacks).values() if callback is not None]
    trainer = build(cfg.trainer, callbacks=callbacks)
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)

    checkpointer = next(callback for callback in callbacks if isinstance(callback, Checkpointer))
    checkpointer.keep_final(trainer, module, datamodule)
    module.load_state_dict(checkpointer.averaged_weights(), strict=False)
    [metrics] = trainer.validate(module, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        facts = speech_facts(cfg, module, datamodule.train_dataset.durations) if is_speech else {}
        export(cfg, module, metrics, steps=trainer.global_step, facts=facts)
        write_json(job_dir / "result.json", metrics)
        print(f"{job_dir / 'pretrained'}: " + " ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return float(metrics[cfg.metric])


def tokenizer_texts(cfg: DictConfig, *, is_speech: bool) -> tuple[Callable[..., Iterable[str]], dict[str, Any]]:
    """What reads the texts that the tokenizer is trained on, and its arguments: plain values."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    data, own = settings["data"], settings["tokenizer_texts"]
    takes_transcripts = is_speech and own is None
    data["train"] = data["train"] if own is None else own
    names = ("train", "normalizer", "target_field" if takes_transcripts else "column")
    read = training_texts if takes_transcripts else training_sentences
    return read, {name: data[name] for name in names if data.get(name) is not None}


def export(cfg: DictConfig, module: LitModule, metrics: dict[str, float], *, steps: int, facts: dict[str, Any]) -> None:
    """Writes the pretrained folder: plain configuration, weights of features and model, tokenizer, model card."""
    kind = "recognizer" if "features" in facts else "language_model"
    config: dict[str, Any] = {
        "kind": kind,
        "model": OmegaConf.to_container(cfg.model, resolve=True),
        "normalizer": cfg.data.normalizer,
        "languages": list(cfg.languages),
        **facts,
        "description": cfg.description,
        "metrics": dict(metrics),
    }
    config["model"]["vocab_size"] = module.tokenizer.vocab_size
    if kind == "recognizer":
        config["model"]["encoder"]["input_dim"] = module.features.output_dim
    card = model_card(
        kind=kind,
        name=cfg.name,
        command=shlex.join(["speechkit", "train", *HydraConfig.get().overrides.task]),
        metrics=metrics,
        num_parameters=sum(parameter.numel() for parameter in module.model.parameters()),
        facts={"description": cfg.description, "optimizer steps": f"{steps:,}", "torch": torch.__version__},
    )
    weights = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(("features.", "model."))}
    save_pretrained(Path(cfg.job_dir) / "pretrained", config=config, state_dict=weights, tokenizer=module.tokenizer, card=card)


def speech_facts(cfg: DictConfig, module: LitModule, durations: np.ndarray) -> dict[str, Any]:
    """What the configuration of a recogniser holds beside its model; durations are those of training, in seconds."""
    return {
        **{name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("features", "decode")},
        "features_fingerprint": module.features.fingerprint(),
        "window_seconds": cfg.window_seconds or round(float(durations.max()), 2),
        "merge_seconds": round(float(np.median(durations)), 2),
    }


if __name__ == "__main__":
    main()

"""Train a model: `speechkit train experiment=<corpus>_<family> [key=value ...]`, or `python recipes/train.py ...`.

Composes the configuration, builds the parts it names, fits, averages the kept weights, validates them and exports a
pretrained folder to <run_dir>/pretrained. Returns the metric of the exported weights, which sweeps (-m) minimise.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as pl
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from speechkit.data.datamodule import training_texts
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
    data: Any = OmegaConf.to_container(cfg.data, resolve=True)
    texts = {name: data[name] for name in ("train", "normalizer")}
    tokenizer = obtain_tokenizer(
        job_dir / "tokenizer",
        build(cfg.tokenizer),
        lambda: training_texts(texts["train"], normalizer=texts["normalizer"]),
        settings={"tokenizer": OmegaConf.to_container(cfg.tokenizer, resolve=True), **texts},
    )
    features = build(cfg.features)
    model = build(cfg.model, vocab_size=tokenizer.vocab_size, encoder={"input_dim": features.output_dim})
    module = LitModule(
        features=features,
        augment=build(cfg.augment.feats),
        model=model,
        tokenizer=tokenizer,
        optimizer=build(cfg.optim.optimizer),
        scheduler=build(cfg.optim.scheduler),
        infer=build(cfg.decode),
        on_nonfinite=cfg.on_nonfinite,
    )
    if cfg.init_from is not None and checkpoint is None:
        print(init_from(module, cfg.init_from, prefix=cfg.init_prefix), flush=True)
    datamodule = build(cfg.data, tokenizer=tokenizer)
    callbacks = list(build(cfg.callbacks).values())
    trainer = build(cfg.trainer, callbacks=callbacks)
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)

    checkpointer = next(callback for callback in callbacks if isinstance(callback, Checkpointer))
    checkpointer.keep_final(trainer, module, datamodule)
    module.load_state_dict(checkpointer.averaged_weights(), strict=False)
    [metrics] = trainer.validate(module, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        durations = datamodule.train_dataset.durations
        lengths = {
            "window_seconds": cfg.window_seconds or round(float(durations.max()), 2),
            "merge_seconds": round(float(np.median(durations)), 2),
        }
        export(cfg, module, metrics, steps=trainer.global_step, lengths=lengths)
        write_json(job_dir / "result.json", metrics)
        print(f"{job_dir / 'pretrained'}: " + " ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return float(metrics[cfg.metric])


def export(cfg: DictConfig, module: LitModule, metrics: dict[str, float], *, steps: int, lengths: dict[str, float]) -> None:
    """Writes the pretrained folder: plain configuration, weights of features and model, tokenizer, model card."""
    parts: dict[str, Any] = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("features", "model", "decode")}
    parts["model"]["vocab_size"] = module.tokenizer.vocab_size
    parts["model"]["encoder"]["input_dim"] = module.features.output_dim
    command = shlex.join(["speechkit", "train", *HydraConfig.get().overrides.task])
    config = {
        "kind": "recognizer",
        **parts,
        "features_fingerprint": module.features.fingerprint(),  # type: ignore[operator]
        "normalizer": cfg.data.normalizer,
        "languages": list(cfg.languages),
        **lengths,
        "description": cfg.description,
        "metrics": dict(metrics),
    }
    card = model_card(
        name=cfg.name,
        command=command,
        metrics=metrics,
        num_parameters=sum(parameter.numel() for parameter in module.model.parameters()),
        facts={"description": cfg.description, "optimizer steps": f"{steps:,}", "torch": torch.__version__},
    )
    weights = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(("features.", "model."))}
    save_pretrained(Path(cfg.job_dir) / "pretrained", config=config, state_dict=weights, tokenizer=module.tokenizer, card=card)


if __name__ == "__main__":
    main()

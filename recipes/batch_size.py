"""Find the largest batch per bucket: `speechkit batch-size experiment=<name> output=<yaml> [key=value ...]`.

Runs training steps of the experiment's model and optimizer on noise, longest bucket first, until memory is full, and
writes a table that training takes as `data.sampler.batch_sizes=<yaml>`. For recognisers; batches of models of text, and of
speech synthesis, are bounded by one number.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from speechkit.data.batch_size import TrainStepProbe, find_batch_sizes
from speechkit.data.buckets import estimate_bins
from speechkit.data.speech_data import training_texts
from speechkit.training.run import obtain_tokenizer, one_line_errors, set_threads

PRECISIONS: dict[str, Literal["fp32", "bf16", "fp16"]] = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}
build = functools.partial(instantiate, _convert_="all")


@hydra.main(version_base="1.3", config_path="../conf", config_name="batch_size")
def main(cfg: DictConfig) -> None:
    """Entry point; the work is in `search`."""
    with one_line_errors():
        search(cfg)


def search(cfg: DictConfig) -> None:
    """Searches and writes the table."""
    if cfg.kind != "recognizer":
        budget = "data.max_batch_tokens" if cfg.features is None else "data.sampler.max_batch_seconds"
        raise ValueError(f"kind={cfg.kind}: speechkit batch-size measures recognisers; bound batches of this one by {budget}")
    if cfg.trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={cfg.trainer.precision!r} cannot be tried; choose one of {', '.join(PRECISIONS)}")
    set_threads(cfg.threads)
    data: Any = OmegaConf.to_container(cfg.data, resolve=True)
    texts = {name: data[name] for name in ("train", "normalizer", "target_field") if data.get(name) is not None}
    tokenizer = obtain_tokenizer(
        Path(cfg.job_dir) / "tokenizer",
        build(cfg.tokenizer),
        lambda: training_texts(**texts),
        settings={"tokenizer": OmegaConf.to_container(cfg.tokenizer, resolve=True), **texts},
    )
    dataset = build(cfg.data, tokenizer=tokenizer).train_loader(rank=0, world_size=1).dataset
    bins = estimate_bins(dataset.durations, dataset.num_tokens, num_buckets=cfg.num_buckets, num_sub_buckets=cfg.num_sub_buckets)
    features = build(cfg.features)
    probe = TrainStepProbe(
        features=features,
        model=build(cfg.model, vocab_size=tokenizer.vocab_size, encoder={"input_dim": features.output_dim}),
        optimizer=build(cfg.optim.optimizer),
        vocab_size=tokenizer.vocab_size,
        augment=build(cfg.augment.feats),
        device=cfg.device,
        precision=PRECISIONS[cfg.trainer.precision],
        memory_fraction=cfg.memory_fraction,
        languages=list(cfg.languages),
        with_targets=cfg.data.target_field is not None,
        with_prompts=cfg.data.prompt_field is not None,
        imitate_ddp=cfg.trainer.devices != 1,
    )
    table = find_batch_sizes(probe, bins)  # logs each bucket
    table.save(cfg.output)
    print(f"{cfg.output}: {len(table.rows)} buckets; train with data.sampler.batch_sizes={cfg.output}")


if __name__ == "__main__":
    main()

"""Every configuration composes, and every `_target_` in it can be called with the arguments that stand beside it."""

from __future__ import annotations

import importlib
import inspect
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPERIMENTS = sorted(CONF.rglob("experiment/**/*.yaml"))
GIVEN_LATER = {  # what recipes/train.py passes besides the configuration, where it is taken, by dotted path of the node
    "data": {"tokenizer", "mel"},
    "data.sampler": set(),
    "tokenizer": {"texts"},
    "model": {"vocab_size", "num_mels", "num_speakers", "num_languages", "mel"},
    "model.encoder": {"input_dim"},
    "trainer": {"callbacks"},
    "decode": {"model", "feats_BTF", "feat_lens_B", "tokenizer", "inputs", "mel"},
    "adversarial": {"model", "features", "optimizer", "scheduler"},
    "optim.optimizer": {"params"},
    "optim.scheduler": {"optimizer", "total_steps"},
}
NEEDS_PLUGIN = {"optuna": "optuna_sweeper", "submitit": "submitit_launcher"}


def _compose(root: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(root, overrides=[*overrides])


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _targets(value, f"{path}[{place}]")


def _resolve(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return getattr(_resolve(module), name)  # a class method


def _problems(cfg: DictConfig) -> list[str]:
    """Everything that does not fit, of all nodes."""
    found = []
    for path, node in _targets(OmegaConf.to_container(cfg, resolve=True)):
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        try:
            signature = inspect.signature(_resolve(node["_target_"]))
            later = dict.fromkeys(GIVEN_LATER.get(path, set()) & signature.parameters.keys())
            if node.get("_partial_"):
                signature.bind_partial(**later, **arguments)
            else:
                signature.bind(**later, **arguments)
        except (TypeError, ImportError, AttributeError) as error:
            found.append(f"{path}: {node['_target_']}: {error}")
    return found


def test_every_experiment_fits_the_signatures_it_names() -> None:
    problems = {}
    for path in EXPERIMENTS:
        cfg = _compose("train", f"experiment={path.stem}", "job_dir=/tmp/job")
        if found := _problems(cfg):
            problems[path.name] = found
        if cfg.name != path.stem:
            problems.setdefault(path.name, []).append(f"name is {cfg.name}")
    assert not problems, "\n".join(f"{name}: {line}" for name, lines in problems.items() for line in lines)


def test_the_experiments_are_those_in_git(repo_root: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "conf/experiment"]
    listed = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    assert sorted(listed.stdout.split()) == [str(path.relative_to(repo_root)) for path in EXPERIMENTS]
    assert len(EXPERIMENTS) >= 6


def test_every_group_file_fits() -> None:
    problems = []
    for path in sorted(CONF.glob("*/*.yaml")):
        group, name = path.parent.name, path.stem
        if group in ("experiment", "corpus") or name == "base" or NEEDS_PLUGIN.get(name):
            continue
        values = ["decode.options.lm=words.arpa"] if name == "ctc_beam_lm" else []
        cfg = _compose("train", f"{group}={name}", "job_dir=/tmp/job", *values)
        problems += [f"{group}/{name}: {problem}" for problem in _problems(cfg)]
    assert not problems, "\n".join(problems)


def test_every_corpus_fits() -> None:
    problems = []
    for path in sorted(CONF.glob("corpus/*.yaml")):
        cfg = _compose("prepare", f"corpus={path.stem}", *([] if path.stem == "demo" else ["corpus.src=here"]))
        problems += [f"{path.stem}: {problem}" for problem in _problems(cfg)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", sorted(NEEDS_PLUGIN))
def test_sweeps_of_plugins_compose_where_these_are_installed(name: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{NEEDS_PLUGIN[name]}")
    assert _compose("train", f"sweep={name}").name == "run"


def test_overfitting_switches_augmentation_off() -> None:
    cfg = _compose("train", "experiment=fsdd_ctc", "debug=overfit", "job_dir=/tmp/job")
    assert not _problems(cfg)
    assert not cfg.data.transforms
    assert (cfg.augment.feats.num_freq_masks, cfg.augment.feats.num_time_masks, cfg.model.encoder.dropout) == (0, 0, 0.0)


def test_batch_size_composes() -> None:
    cfg = _compose("batch_size", "experiment=fsdd_ctc", "output=table.yaml", "job_dir=/tmp/job")
    assert not _problems(cfg)
    assert (cfg.name, cfg.num_buckets) == ("fsdd_ctc", 30)


def test_decode_composes() -> None:
    cfg = _compose("decode", "checkpoint=a", "manifest=b", "output=c", "decode=ctc_beam")
    assert not _problems(cfg)
    assert cfg.decode.options.method == "beam"


def test_wrong_names_are_found() -> None:
    with pytest.raises(hydra.errors.ConfigCompositionException):
        _compose("train", "experiment=fsdd_ctc", "model.encoder.widht=3")
    cfg = _compose("train", "experiment=fsdd_ctc", "job_dir=/tmp/job", "+model.encoder.widht=3", "+data.sampler.bucket=1")
    problems = _problems(cfg)
    assert len(problems) == 2
    assert any(problem.startswith("model.encoder: ") and "'widht'" in problem for problem in problems)
    assert any(problem.startswith("data.sampler: ") and "'bucket'" in problem for problem in problems)
    cfg = _compose("train", "experiment=fsdd_ctc", "job_dir=/tmp/job", "model._target_=speechkit.models.ctc.model.CtcModle")
    assert "CtcModle" in "".join(_problems(cfg))

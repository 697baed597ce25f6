"""What every recipe needs around its work: the run directory, threads, seeds, the tokenizer, and errors in one line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

from speechkit.text.tokenizers import Tokenizer, load_tokenizer
from speechkit.training.guards import TrainingError
from speechkit.training.resume import LAST

TOKENIZER_PATIENCE = 600.0  # seconds that other ranks wait for rank 0 to train the tokenizer
USER_ERRORS = (ValueError, OSError, ImportError, TrainingError, OmegaConfBaseException)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line for errors that a user can mend; `HYDRA_FULL_ERROR=1` shows the traceback.

    These are unsuitable values, files and packages that are missing, training that broke off, configurations that do
    not fit together and arguments that a `_target_` does not take. Other faults keep their traceback.
    """
    try:
        yield
    except Exception as error:
        cause, key = error, re.search(r"full_key: (\S+)", str(error))
        while type(cause).__name__ == "InstantiationException" and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__  # Hydra's wrapping of an error in a constructor
        is_argument = isinstance(cause, TypeError) and cause is not error
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (isinstance(cause, USER_ERRORS) or is_argument):
            raise
        where = f" (config {key[1]})" if key else ""
        print(f"error: {(str(cause) or repr(cause)).splitlines()[0]}{where}", file=sys.stderr)
        raise SystemExit(1) from None


def quiet_lightning() -> None:
    """Silences messages that tell a user nothing: what hardware is absent, advertisements, advice against our settings."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # how many help is measured, not guessed
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*combination of `DataLoader.*",  # our loader is kept over epochs, not made anew
        ".*isinstance.treespec, LeafSpec.*",
        ".*module.s. in eval mode at the start of training.*",  # trained parts inside a model, and teachers
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def set_threads(num_threads: int | None) -> None:
    """Sets the number of CPU threads of torch's operations; None leaves torch's choice."""
    if num_threads is not None:
        if num_threads < 1:
            raise ValueError(f"threads={num_threads} must be at least 1; null leaves the choice to torch")
        torch.set_num_threads(num_threads)


def claim_run_dir(run_dir: str | Path, *, resume: bool) -> Path | None:
    """Makes the run directory and finds the checkpoint to go on from.

    Returns:
        The last checkpoint, or None for a fresh start.

    Raises:
        ValueError: the directory holds a run already and `resume` is not set.
    """
    last = Path(run_dir) / "checkpoints" / LAST
    if last.exists() and not resume:
        raise ValueError(f"{run_dir} already holds a run: pass resume=true to go on with it, or another run_dir=")
    last.parent.mkdir(parents=True, exist_ok=True)
    if resume and not last.exists():
        print(f"nothing to resume in {run_dir}: starting afresh")
    return last if last.exists() else None


def obtain_tokenizer(
    directory: str | Path,
    train: Callable[[Iterable[str]], Tokenizer],
    texts: Callable[[], Iterable[str]],
    *,
    settings: dict[str, Any],
) -> Tokenizer:
    """Loads the tokenizer of a run, after training it on rank 0 if it is not there yet.

    Args:
        directory: where it is or will be saved.
        train: makes a tokenizer from texts.
        texts: gives the training texts; called only when needed.
        settings: plain values that say what it is trained on and how; kept beside it.

    Raises:
        ValueError: the one that is there was trained with other settings, or rank 0 did not deliver in ten minutes.
    """
    directory = Path(directory)
    record = directory / "settings.json"
    if not directory.is_dir() and trainer_rank() == 0:
        partial = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        train(texts()).save(partial)
        write_json(partial / record.name, settings)
        partial.rename(directory)
    started = time.monotonic()
    while not directory.is_dir():
        if time.monotonic() - started > TOKENIZER_PATIENCE:
            raise ValueError(f"{directory} did not appear: the process of rank 0 should have trained the tokenizer")
        time.sleep(0.2)
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{directory} was trained with other settings (see {record}): remove it, or choose another run_dir")
    return load_tokenizer(directory)


def trainer_rank() -> int:
    """Rank of this process among those that a launcher started, known before there is a trainer."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Writes a small JSON file for people and tools to read."""
    Path(path).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


USES = {
    "recognizer": ("speech recogniser", ("import speechkit", 'speechkit.load("<this folder>").transcribe(["a.wav"])')),
    "synthesizer": ("speech synthesiser", ('speechkit synthesize "Good morning." --model "<this folder>" -o a.wav',)),
    "vocoder": ("vocoder", ('speechkit synthesize "Good morning." --vocoder "<this folder>" -o a.wav',)),
    "codec": ("speech codec", ('model.codec="{_pretrained_: <this folder>}" in the training of a synthesiser',)),
    "speaker_encoder": ("speaker encoder", ("import speechkit", 'speechkit.load("<this folder>").embed(["a.wav", "b.wav"])')),
    "language_model": ("language model", ('speechkit decode decode=ctc_beam_lm decode.options.lm="<this folder>" ...',)),
}  # what a model of a kind is, and lines that use it


def model_card(
    *, kind: str, name: str, command: str, metrics: dict[str, float], num_parameters: int, facts: dict[str, str]
) -> str:
    """The README.md of an exported model of one of the kinds in `USES`."""
    what, use = USES[kind]
    lines = [f"# {name}", "", f"A {what} trained with speechkit.", ""]
    lines += [f"- {key}: {value}" for key, value in {"parameters": f"{num_parameters:,}", **facts}.items()]
    lines += ["", "| metric (validation) | value |", "|---|---|"]
    lines += [f"| {metric} | {value:.4f} |" for metric, value in metrics.items()]
    lines += ["", "Trained by", "", f"    {command}", "", "Use", "", *(f"    {line}" for line in use), ""]
    return "\n".join(lines)

"""Averages the weights of several checkpoints of one training run.

    python scripts/average_checkpoints.py run/weights-*.safetensors --like run/pretrained --output averaged
    python scripts/average_checkpoints.py folder_a folder_b folder_c --output averaged
    python scripts/average_checkpoints.py a.ckpt b.ckpt --output mean.ckpt

Inputs are pretrained folders (model.safetensors), .safetensors files or Lightning .ckpt files. The output is what its name
says: a .safetensors file, a .ckpt file (the first input without its optimizer and callbacks) or a pretrained folder (config
and tokenizer of --like or of the first folder). Exit status: 0, or 2 for input that cannot be used.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CARD = "model.safetensors", "README.md"
_STATE_OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "native_amp_scaling_state")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="average_checkpoints.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, help="pretrained folders, .safetensors or .ckpt files")
    parser.add_argument("--output", required=True, type=Path, help="folder, .safetensors file or .ckpt file to write")
    parser.add_argument("--like", type=Path, metavar="DIR", help="pretrained folder to take config and tokenizer from")
    args = parser.parse_args(argv)
    try:
        average(args.inputs, args.output, like=args.like)
    except (ValueError, OSError) as error:
        print(f"average_checkpoints: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: mean of {len(args.inputs)} checkpoints")
    return 0


def average(inputs: Sequence[Path], output: Path, *, like: Path | None = None) -> None:
    """Writes the mean of the inputs.

    Args:
        inputs: two or more pretrained folders, .safetensors or .ckpt files.
        output: what to write; must not exist.
        like: pretrained folder that an output folder takes its other files from; the first input by default.

    Raises:
        ValueError: an input cannot be read, the inputs differ, or the output cannot be made from them.
    """
    from safetensors.torch import save_file

    from speechkit.training.average import average_states

    template = _check_request(inputs, output, like)
    mean = average_states(_states(inputs))
    if output.suffix == ".ckpt":
        _write_ckpt(inputs[0], output, mean)
        return
    if output.suffix == ".safetensors":
        target = output
    else:
        target = output / WEIGHTS
        shutil.copytree(template, output, ignore=shutil.ignore_patterns(WEIGHTS))
        _note_on_card(output, inputs)
    save_file({name: tensor.contiguous() for name, tensor in mean.items()}, target, metadata={"format": "pt"})


def _check_request(inputs: Sequence[Path], output: Path, like: Path | None) -> Path:
    """Checks what can be checked before reading weights; returns the folder that an output folder is made from."""
    if len(inputs) < 2:
        raise ValueError(f"{len(inputs)} checkpoint given; give two or more to average")
    if output.exists():
        raise ValueError(f"{output} exists; give --output another name or remove it")
    if output.suffix == ".ckpt" and inputs[0].suffix != ".ckpt":
        raise ValueError(f"{output} can only be made from .ckpt files, and {inputs[0]} is none")
    template = like or inputs[0]
    if output.suffix not in (".ckpt", ".safetensors") and not (template / "config.yaml").is_file():
        raise ValueError(f"{template} is no pretrained folder (no config.yaml); give --like a folder, or --output a file")
    return template


def _states(inputs: Sequence[Path]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for path in inputs:
        yield str(path), _read_state(path)


def _read_state(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".ckpt":
        return _read_ckpt(path)["state_dict"]
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected a folder with {WEIGHTS}, a .safetensors or a .ckpt file")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from error


def _read_ckpt(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever damaged bytes lead it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as plain weights ({reason}); it is damaged or holds code") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path}: has no state_dict; expected a checkpoint that Lightning wrote")
    return checkpoint


def _write_ckpt(first: Path, output: Path, mean: dict[str, Tensor]) -> None:
    import torch

    kept = {name: value for name, value in _read_ckpt(first).items() if name not in _STATE_OF_TRAINING}
    torch.save({**kept, "state_dict": mean}, output)


def _note_on_card(output: Path, inputs: Sequence[Path]) -> None:
    card = output / CARD
    names = "".join(f"- {path}\n" for path in inputs)
    text = card.read_text(encoding="utf-8").rstrip() + "\n\n" if card.is_file() else ""
    note = "## Averaged weights\n\nMean of the checkpoints below; figures above were not measured with these weights.\n\n"
    card.write_text(text + note + names, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

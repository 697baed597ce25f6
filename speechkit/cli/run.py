"""Running a recipe or a script of the package, and failing with one line."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

PASS_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}


def fail(message: object) -> NoReturn:
    """One line on standard error and exit code 1."""
    raise click.ClickException(str(message))


def run_file(folder: str, name: str, arguments: Sequence[str]) -> None:
    """Runs recipes/<name> or scripts/<name>, of the installed package or of the checkout, as `python <file>` would."""
    package = Path(__file__).parent.parent
    path = next((root / folder / name for root in (package, package.parent) if (root / folder / name).is_file()), None)
    if path is None:
        fail(f"{folder}/{name} is neither in the installed package nor in the checkout: install speechkit again")
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def recipe_command(name: str, recipe: str, short: str, text: str) -> click.Command:
    """A command that hands its arguments (Hydra overrides) to a recipe."""

    @click.command(name, help=text, context_settings=PASS_ON, short_help=short)
    @click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
    def run(overrides: tuple[str, ...]) -> None:
        try:
            import hydra  # noqa: F401
        except ImportError:
            fail(f'`speechkit {name}` needs the training extra: pip install "speechkit[train]"')
        run_file("recipes", recipe, overrides)

    return run


def script_command(name: str, script: str, short: str) -> click.Command:
    """A command that hands all its arguments, --help too, to a script."""

    @click.command(name, short_help=short, context_settings={**PASS_ON, "help_option_names": []})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(arguments: tuple[str, ...]) -> None:
        run_file("scripts", script, arguments)

    return run

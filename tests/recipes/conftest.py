"""Recipes run in this process, as a user runs them, on a corpus of tones."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

Run = Callable[[str, Sequence[str]], None]


@pytest.fixture(scope="session")
def tiny(repo_root: Path) -> ModuleType:
    """tests/training/tiny.py: the corpus of tones, and callbacks that configurations may name as `tiny.<class>`."""
    path = repo_root / "tests" / "training" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_recipe(repo_root: Path) -> Run:
    """`run_recipe("train.py", arguments)` runs recipes/train.py as the command line would."""

    def run(recipe: str, arguments: Sequence[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [recipe, *arguments])
            patch.syspath_prepend(str(repo_root / "tests" / "training"))
            runpy.run_path(str(repo_root / "recipes" / recipe), run_name="__main__")

    return run

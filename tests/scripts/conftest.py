"""Loads scripts as modules, so that tests can call their `main`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_script(repo_root: Path) -> Callable[[str], ModuleType]:
    """`load_script("score_wer")` is the module scripts/score_wer.py."""

    def load(name: str) -> ModuleType:
        path = repo_root / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"speechkit_script_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(path.parent))  # scripts share modules
            spec.loader.exec_module(module)
        return module

    return load

"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # Triton reads this when it is first imported, which torch may do in any test
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPO_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Root of the checkout."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Directory of real speech: $SPEECHKIT_DATA, or ../shared/data beside the checkout; skips when absent."""
    root = Path(os.environ.get("SPEECHKIT_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real speech not found at {root}; set SPEECHKIT_DATA to the data directory")
    return root


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded random generator."""
    return np.random.default_rng(0)

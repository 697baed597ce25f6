"""Settings of features as plain values: which of them differ between two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differing_settings(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Each field in which two `settings()` differ, with both values; "" where there is none."""
    pairs = [(field, here.get(field, "nothing"), there.get(field, "nothing")) for field in sorted({*here, *there})]
    return "; ".join(f"{field}={ours!r} against {theirs!r}" for field, ours, theirs in pairs if ours != theirs)

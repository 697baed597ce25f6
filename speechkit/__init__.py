"""speechkit: speech recognition, synthesis and translation, trained by recipe, used from Python or the shell.

Importing the package is cheap: torch is loaded by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "list_models", "load"]

if TYPE_CHECKING:
    from speechkit.pretrained import list_models, load


def __getattr__(name: str) -> Any:
    if name in ("load", "list_models"):
        from speechkit import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'speechkit' has no attribute {name!r}")

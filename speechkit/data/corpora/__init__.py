"""Speech corpora: a module `<name>` offers `prepare_<name>` and, where it may be fetched, `download_<name>`.

Every `prepare_<name>` writes `<out>/<split>.jsonl` and returns what it wrote and what it left out.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechkit.data.splits import PreparedCorpus


def corpus_names() -> list[str]:
    """Names that `prepare_corpus` takes."""
    modules = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), f"prepare_{name}"))


def prepare_corpus(name: str, src: str | Path | None, out: str | Path, **options: Any) -> PreparedCorpus:
    """Write the manifests of a corpus.

    Args:
        name: one of `corpus_names()`.
        src: where the corpus lies; None for one that is generated ("demo").
        out: directory for `<split>.jsonl`.
        options: further arguments of the corpus's own `prepare_<name>`.

    Raises:
        ValueError: the corpus or an option is unknown, or the source is missing.
        FileNotFoundError: the source lacks a file that the corpus has.
    """
    prepare = _function(name, "prepare")
    places = {"out": Path(out)}
    if "src" in inspect.signature(prepare).parameters:
        if src is None:
            raise ValueError(f"src=None: {name} needs the directory of the corpus; see download_corpus({name!r}, ...)")
        places["src"] = Path(src)
    elif src is not None:
        raise ValueError(f"src={str(src)!r}: {name} is generated and has no source; leave it out")
    _check_options(name, prepare, options, taken=set(places))
    return prepare(**places, **options)


def download_corpus(name: str, dest: str | Path, **options: Any) -> Path:
    """Download and unpack a corpus.

    Returns:
        The directory to give to `prepare_corpus` as its source.

    Raises:
        ValueError: the corpus or an option is unknown, or the corpus cannot be downloaded by a program.
        OSError: the download failed.
    """
    download = _function(name, "download")
    _check_options(name, download, options, taken={"dest"})
    return download(dest=Path(dest), **options)


def _function(name: str, verb: str) -> Callable[..., Any]:
    if name not in corpus_names():
        raise ValueError(f"name={name!r} is no known corpus: choose one of {', '.join(corpus_names())}")
    found = getattr(importlib.import_module(f"{__name__}.{name}"), f"{verb}_{name}", None)
    if found is None:
        raise ValueError(f"name={name!r}: there is nothing to {verb}; go on with prepare_corpus({name!r}, ...)")
    return found


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any], taken: set[str]) -> None:
    known = [parameter for parameter in inspect.signature(function).parameters if parameter not in taken]
    for option in options:
        if option not in known:
            raise ValueError(f"{option}={options[option]!r}: {name} has no such option; it takes {', '.join(known)}")

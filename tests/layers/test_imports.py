"""The layer rule: a module imports only from lines above its own, and from its own package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Bottom to top; names on one line do not import each other. See CONTRIBUTING.md.
LINES: list[set[str]] = [
    {"types"},
    {"audio", "text", "kernels"},
    {"nn", "losses", "search", "metrics", "data"},
    {"models"},
    {"training", "data.datamodule", "recognizer", "synthesizer", "speaker_encoder"}
    | {"codec", "aligner", "plots", "families", "transcripts", "doctor"},
    {"pretrained_folder"},
    {"pretrained", "pretrained_parts"},
    {"readers"},
    {"cli", "recipes", "scripts"},
    {"__main__"},
]
CONFINED = {  # third-party package -> where it may be imported
    "lightning": ("training", "data.datamodule", "recipes", "scripts"),
    "hydra": ("recipes",),
    "triton": ("kernels",),
    "torchaudio": ("scripts",),
}


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in ("speechkit", "recipes", "scripts"):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[1:] if folder == "speechkit" else parts)
            yield name.removesuffix(".__init__"), path


def _line_of(module: str) -> int:
    """The layer of a module named without its leading "speechkit."; the longest matching entry counts."""
    best, level = "", -1
    for number, names in enumerate(LINES):
        for name in names:
            if (module == name or module.startswith(f"{name}.")) and len(name) > len(best):
                best, level = name, number
    return level


def _imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Imported modules and whether the import runs at import time (type-checking blocks do not count)."""
    skipped = {id(child) for node in ast.walk(tree) if _is_type_checking(node) for child in ast.walk(node)}
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, id(node) not in inside
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in inside


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _family(module: str) -> tuple[str, str]:
    parts = module.split(".")
    return (parts[1], parts[2] if len(parts) > 2 else "") if parts[0] == "models" and len(parts) > 1 else ("", "")


def _violations(module: str, target: str) -> str | None:
    """Why `module` may not import speechkit module `target`, or None."""
    own, other = _line_of(module), _line_of(target)
    if other < 0:
        return None
    (own_family, own_file), (other_family, other_file) = _family(module), _family(target)
    if own_family and other_family:
        if own_family != other_family:
            return "one model family imports another"
        if own_file == "model" and other_file in ("infer", "convert"):
            return "model.py imports what stands above it"
        return None
    same_package = module.split(".")[0] == target.split(".")[0]
    if other > own or (other == own and not same_package):
        return f"line {own} imports from line {other}"
    return None


def test_modules_import_only_from_below(repo_root: Path) -> None:
    problems = []
    for module, path in _modules(repo_root):
        if module == "__init__":
            continue
        assert _line_of(module) >= 0, f"{module} stands on no line of the layer table"
        for target, _ in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            if target.startswith("speechkit."):
                reason = _violations(module, target.removeprefix("speechkit."))
                if reason:
                    problems.append(f"{path.relative_to(repo_root)}: {target}: {reason}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("package", sorted(CONFINED))
def test_heavy_packages_stay_where_they_belong(repo_root: Path, package: str) -> None:
    problems = []
    for module, path in _modules(repo_root):
        for target, at_import in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            allowed = any(module == place or module.startswith(f"{place}.") for place in CONFINED[package])
            if target.split(".")[0] == package and not allowed and (at_import or package in ("hydra", "lightning")):
                problems.append(f"{path.relative_to(repo_root)} imports {target}")
    known = {"speechkit/cli/run.py imports hydra"}  # only asks whether it is installed
    assert not set(problems) - known, "\n".join(problems)


def test_the_rule_catches_violations() -> None:
    assert _violations("types", "audio.io")
    assert _violations("audio.io", "text.tokenizers")
    assert _violations("data.sampler", "models.ctc.model")
    assert _violations("models.ctc.model", "models.aed.model")
    assert _violations("models.ctc.model", "models.ctc.infer")
    assert _violations("data.dataset", "data.datamodule")
    assert _violations("models.ctc.infer", "search.ctc_greedy") is None
    assert _violations("data.datamodule", "data.sampler") is None


def test_import_and_help_do_not_load_torch() -> None:
    code = "import sys, speechkit, speechkit.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

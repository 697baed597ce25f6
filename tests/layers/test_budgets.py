"""Size budgets: files and functions stay small enough to read; exceptions are listed with their reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}

# path -> why it may be longer
LONG_FILES: dict[str, str] = {}
# "path:function" -> why it may be longer
LONG_FUNCTIONS: dict[str, str] = {
}


def _sources(root: Path) -> Iterator[Path]:
    for folder in ("speechkit", "recipes", "scripts", "tests"):
        yield from sorted((root / folder).rglob("*.py"))


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, less its docstring."""
    first = node.body[0]
    is_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_files_are_short(repo_root: Path) -> None:
    long = {
        str(path.relative_to(repo_root)): lines
        for path in _sources(repo_root)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not set(long) - set(LONG_FILES), f"over {MAX_FILE_LINES} lines: {long}"
    assert not set(LONG_FILES) - set(long), "listed without need"


def test_functions_are_short(repo_root: Path) -> None:
    long = {}
    for path in _sources(repo_root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _code_lines(node) > MAX_FUNCTION_LINES:
                long[f"{path.relative_to(repo_root)}:{node.name}"] = _code_lines(node)
    assert not set(long) - set(LONG_FUNCTIONS), f"over {MAX_FUNCTION_LINES} lines: {long}"
    assert not set(LONG_FUNCTIONS) - set(long), "listed without need"


def test_no_drawer_modules(repo_root: Path) -> None:
    assert not [path for path in _sources(repo_root) if path.name in FORBIDDEN_NAMES]

"""Compiles every Triton kernel ahead of time for given GPUs, without one: `python -m speechkit.kernels.aot`.

What only the interpreter accepts is found here, and what a kernel takes of a multiprocessor is written down: registers and
spilled bytes of a thread, shared memory of a block.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from speechkit.kernels.dispatch import interpreting

CAPABILITIES = (80, 90)


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is compiled.

    Attributes:
        name: kernel and what is special, as "alpha_beta U=64".
        kernel: the `triton.jit` function.
        signature: type of each argument that is no constant: "*fp32", "*bf16", "*i64", "i32", "fp32", ..., "i32:16" for numbers
            that are multiples of 16, as strides are; a (named) tuple of them for a tuple.
        constants: `tl.constexpr` arguments.
        num_warps: warps of a block.
        num_stages: depth of software pipelines.
    """

    name: str
    kernel: Any
    signature: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3


class Usage(NamedTuple):
    """What a compiled kernel takes."""

    op: str
    kernel: str
    name: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    num_warps: int


def operations() -> list[str]:
    """Folders beside this file that have Triton kernels."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/triton_impl.py"))


def variants(op: str) -> list[Variant]:
    """What `triton_impl.compile_variants` of an operation lists."""
    return importlib.import_module(f"speechkit.kernels.{op}.triton_impl").compile_variants()


def compile_variant(op: str, variant: Variant, capability: int) -> Usage:
    """Compiles down to machine code, with pointers that are multiples of 16, as those of tensors are.

    Raises:
        RuntimeError: Triton runs its interpreter in this process, which replaces the compiler.
    """
    if interpreting():
        raise RuntimeError("kernels cannot be compiled under TRITON_INTERPRET=1; unset it")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = dict(variant.signature) | dict.fromkeys(variant.constants, "constexpr")
    ordered = {name: signature[name] for name in variant.kernel.arg_names}
    aligned: dict[tuple[int, ...], Any] = {}
    types = {name: _type(kind, (i,), aligned) for i, (name, kind) in enumerate(ordered.items())}
    source = ASTSource(variant.kernel, types, dict(variant.constants), aligned)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(compiled.asm["cubin"])
    name, shared = variant.kernel.__name__, int(compiled.metadata.shared)
    return Usage(op, name, variant.name, capability, registers, spilled, shared, variant.num_warps)


def _type(kind: Any, place: tuple[int, ...], aligned: dict[tuple[int, ...], Any]) -> Any:
    """What Triton calls the type of an argument; notes in `aligned` what is a multiple of 16, by place."""
    if isinstance(kind, tuple):
        parts = [_type(part, (*place, i), aligned) for i, part in enumerate(kind)]
        return type(kind)(*parts) if hasattr(kind, "_fields") else tuple(parts)
    if kind.startswith("*") or kind.endswith(":16"):
        aligned[place] = [["tt.divisibility", 16]]
    return kind.removesuffix(":16")


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, from the header of the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+)\s+STACK:(\d+)", listing)
    assert found, f"no resource usage in: {listing}"
    return int(found[1]), int(found[2])


def compile_all(ops: list[str], capabilities: tuple[int, ...] = CAPABILITIES) -> Iterator[Usage]:
    """Compiles every variant of the operations named."""
    for op in ops:
        for variant in variants(op):
            for capability in capabilities:
                yield compile_variant(op, variant, capability)


def markdown(rows: Sequence[Usage]) -> str:
    """A table with a row per variant and a group of columns per GPU generation."""
    generations = sorted({row.capability for row in rows})
    found = {(row.op, row.name, row.capability): row for row in rows}
    groups = " | ".join(f"sm_{each}: registers | spilled B | shared B" for each in generations)
    lines = [f"| op | kernel | warps | {groups} |", "|---" * (3 + 3 * len(generations)) + "|"]
    for op, name in dict.fromkeys((row.op, row.name) for row in rows):
        own = [found[op, name, each] for each in generations]
        cells = " | ".join(f"{row.registers} | {row.spilled_bytes} | {row.shared_bytes:,}" for row in own)
        lines.append(f"| {op} | {name} | {own[0].num_warps} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table, or writes JSON or markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--op", action="append", help="operation to compile; all when left out")
    parser.add_argument("--json", type=Path, help="write rows there")
    parser.add_argument("--markdown", type=Path, help="write a table there")
    arguments = parser.parse_args()
    rows: list[Usage] = []
    sys.stdout.write(f"{'op':<16}{'kernel':<44}{'sm':>4}{'warps':>6}{'registers':>10}{'spilled':>8}{'shared':>8}\n")
    for usage in compile_all(arguments.op or operations()):
        rows.append(usage)
        sys.stdout.write(
            f"{usage.op:<16}{usage.name:<44}{usage.capability:>4}{usage.num_warps:>6}{usage.registers:>10}"
            f"{usage.spilled_bytes:>8}{usage.shared_bytes:>8}\n"
        )
        sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

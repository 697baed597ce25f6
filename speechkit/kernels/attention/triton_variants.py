"""The attention kernels as they are compiled ahead of time: with lengths, and strides that are multiples of 16.

Shape legend: as in `speechkit.kernels.attention.triton_tiles`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from speechkit.kernels.aot import Variant
from speechkit.kernels.attention.triton_backward import distances_kernel, keys_kernel, queries_kernel
from speechkit.kernels.attention.triton_decode import KEYS, QUERIES, SPLIT, merge_kernel, split_kernel
from speechkit.kernels.attention.triton_forward import forward_kernel
from speechkit.kernels.attention.triton_impl import GROUP, Blocks, blocks
from speechkit.kernels.attention.triton_rotary import FRAMES, rotate_kernel
from speechkit.kernels.attention.triton_tiles import CHUNK, FULL, Heads, Relative, Seen

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TILED = {
    "forward": forward_kernel,
    "queries": queries_kernel,
    "keys": keys_kernel,
    "distances": distances_kernel,
}
SMALL = {
    "rotate": (rotate_kernel, Blocks(FRAMES, 0, 4, 3)),
    "split": (split_kernel, Blocks(QUERIES, KEYS, 4, 3)),
    "merge": (merge_kernel, Blocks(QUERIES, 0, 4, 3)),
}


def list_variants() -> list[Variant]:
    """Heads of 64, in both types and with and without the relative term; chunks, which take more registers than lengths."""
    listed = []
    for dtype in (torch.bfloat16, torch.float32):
        for name in ("forward", "queries", "keys"):
            listed += [variant(name, dtype, relative=relative) for relative in (False, True)]
        listed.append(variant("distances", dtype, relative=True))
        listed += [variant(name, dtype) for name in ("rotate", "split")]
    listed += [variant(name, torch.bfloat16, kind=CHUNK.value) for name in ("forward", "queries", "keys")]
    return [*listed, variant("merge", torch.bfloat16)]


def variant(name: str, dtype: torch.dtype, *, head_dim: int = 64, relative: bool = False, kind: int = FULL.value) -> Variant:
    """One kernel as it is launched for a type, a head dimension, a kind of visibility, and with or without a relative term."""
    function, how = SMALL[name] if name in SMALL else (TILED[name], blocks(name, dtype, head_dim, relative))
    types, constants = _types(name, TYPES[dtype]), _constants(how, head_dim, relative, kind)
    notes = [TYPES[dtype], *(["relative"] if relative else []), *(["chunks"] if kind == CHUNK.value else [])]
    return Variant(
        f"{name} K={head_dim} {' '.join(notes)}",
        function,
        {each: types[each] for each in function.arg_names if each in types},
        {each: constants[each] for each in function.arg_names if each in constants},
        how.num_warps,
        how.num_stages,
    )


def _types(name: str, dtype: str) -> dict[str, Any]:
    """Types of arguments by their names, which are the same in all kernels but for `out`."""
    heads = Heads(f"*{dtype}", "i32:16", "i32:16", "i32:16")
    return {
        **dict.fromkeys(("q", "k", "v", "grad"), heads),
        **dict.fromkeys(("dq", "dk", "dv", "q_out", "k_out"), f"*{dtype}"),
        **dict.fromkeys(("lse", "delta", "du", "dw", "dnear", "dfar", "cos", "sin", "parts", "sums"), "*fp32"),
        **dict.fromkeys(("B", "T", "S", "H", "J", "num_splits"), "i32"),
        **dict.fromkeys(("scale", "way"), "fp32"),
        "out": heads if name == "queries" else f"*{dtype}",
        "seen": Seen("*i64", "*i64", "*u8", "i32", "i32", "i32", "i32", "i32"),
        "relative": Relative(f"*{dtype}", f"*{dtype}", f"*{dtype}"),
    }


def _constants(how: Blocks, head_dim: int, relative: bool, kind: int) -> dict[str, Any]:
    """Constants by their names, which are the same in all kernels."""
    return {
        "KIND": kind,
        "HAS_LENS": True,
        "HAS_QUERY_LENS": True,
        "IS_ALONE": False,
        "RELATIVE": relative,
        "K": head_dim,
        "P": max(16, triton.next_power_of_2(head_dim)),
        "M": how.m,
        "N": how.n,
        "SPLIT": SPLIT,
        "ROWS": GROUP,
    }

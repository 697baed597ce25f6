"""From fp32 to the type of a result: what all Triton kernels store through."""

# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from speechkit.kernels.dispatch import interpreting

INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def narrow(x, kind: tl.constexpr):
    """The nearest values of a type to those in fp32."""
    if INTERPRETING and kind == tl.bfloat16:  # which the interpreter cuts off
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(kind)

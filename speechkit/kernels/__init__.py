"""Operations that are worth a kernel of their own: one signature each, several implementations.

Every operation is a folder: `__init__` (the public function), `reference` (plain torch, differentiable by autograd, in any
float dtype), `triton_impl` (CUDA, and any machine under `TRITON_INTERPRET=1`), `cases` (what tests and benchmarks run).
"""

from speechkit.kernels.dispatch import backend

__all__ = ["backend"]

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.kernels.attention import Visibility, decode_attention
from speechkit.kernels.attention.cases import DECODE, draw_decode
from speechkit.kernels.case import check_against_fp64

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", DECODE.test_shapes)
def test_equals_the_reference(shape: str, dtype: torch.dtype, backend: str) -> None:
    check_against_fp64(DECODE, draw_decode(DECODE.test_shapes[shape], dtype=dtype, device=DEVICE), backend)


@given(st.integers(1, 18), st.integers(1, 270), st.sampled_from([8, 20, 64]), st.integers(0, 270))
@settings(max_examples=5, deadline=None)
def test_any_shape(queries: int, keys: int, head_dim: int, length: int) -> None:
    shape = {"queries": queries, "keys": keys, "heads": 1, "head_dim": head_dim, "lens": (keys, min(length, keys))}
    check_against_fp64(DECODE, draw_decode(shape, dtype=torch.float32, device=DEVICE), "triton")


@pytest.mark.parametrize("length", [60, 200])
def test_padding_and_mates_change_no_bit(length: int) -> None:
    shape = {"queries": 2, "keys": 300, "heads": 2, "head_dim": 16, "lens": (300, length)}
    arguments = draw_decode(shape, dtype=torch.float32, device=DEVICE)
    q, k, v, lens = (arguments[name] for name in ("q", "k", "v", "lens_B"))
    k[1, :, length:], v[1, :, length:] = float("nan"), float("nan")
    together = decode_attention(q, k, v, visible=Visibility(lens_B=lens), backend="triton")
    alone = decode_attention(q[1:], k[1:, :, :length], v[1:, :, :length], backend="triton")
    assert torch.equal(together[1:], alone)
    one = decode_attention(q[1:, :1], k[1:], v[1:], visible=Visibility(lens_B=lens[1:]), backend="triton")
    assert torch.equal(together[1:, :1], one)


def test_part_of_a_cache_is_read_as_it_lies() -> None:
    cache = torch.randn(2, 1, 2, 64, 16, device=DEVICE)
    key, value = cache[..., :40, :]
    q = torch.randn(1, 1, 2, 16, device=DEVICE)
    expected = decode_attention(q, key, value, backend="reference")
    torch.testing.assert_close(decode_attention(q, key, value, backend="triton"), expected, atol=1e-5, rtol=1e-5)


def test_mask_without_rows() -> None:
    q, key = torch.randn(2, 3, 1, 16, device=DEVICE), torch.randn(2, 1, 5, 16, device=DEVICE)
    visible = Visibility(mask=torch.ones(3, 5, dtype=torch.bool, device=DEVICE).tril(2))
    expected = decode_attention(q, key, key, visible=visible, backend="torch")
    for backend in ("reference", "triton"):
        torch.testing.assert_close(
            decode_attention(q, key, key, visible=visible, backend=backend), expected, atol=1e-5, rtol=1e-5
        )


def test_custom_operation_is_sound() -> None:
    from speechkit.kernels.attention import triton_decode

    q, k = torch.randn(1, 2, 1, 16, device=DEVICE), torch.randn(1, 140, 1, 16, device=DEVICE)
    for lens in (None, torch.tensor([130], device=DEVICE)):
        torch.library.opcheck(triton_decode.decode.overload, (q, k, k, lens, None, 0.25))


def test_compiles_whole() -> None:
    q, key = torch.randn(1, 2, 1, 16, device=DEVICE), torch.randn(1, 1, 20, 16, device=DEVICE)
    lens = torch.tensor([17], device=DEVICE)

    def step(q: torch.Tensor) -> torch.Tensor:
        return decode_attention(q, key, key, visible=Visibility(lens_B=lens), backend="triton")

    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(q), step(q))


def test_what_depends_on_rows_is_refused() -> None:
    q, key = torch.randn(1, 2, 1, 16), torch.randn(1, 1, 2, 16)
    with pytest.raises(ValueError, match="decode_attention takes lengths or a mask"):
        decode_attention(q, key, key, visible=Visibility(causal=True), backend="reference")

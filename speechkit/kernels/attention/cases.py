"""What tests and benchmarks know of attention.

Shape legend: B batch, T queries, S keys, J few queries, H heads, K head dimension, R = 2T - 1 distances.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.attention import RelativePositions, Visibility, attention, decode_attention
from speechkit.kernels.attention.torch_impl import relative_shift, rotate
from speechkit.kernels.case import Arguments, Op, Shape

LIMITS = ("causal", "chunk_size", "left_chunks", "reach", "num_global")
BANDED = {"reach": 4, "num_global": 2}
CHUNKED = {"chunk_size": 5, "left_chunks": 1}


def draw(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> Arguments:
    """Arguments of `attention`: q, k and v are parts of one projection where there are as many queries as keys.

    Args:
        shape: frames, heads, head_dim; lens, one for each row; optionally keys, position ("rope" or "relative"), limits as those
            of `Visibility`, and mask, the share of an explicit mask that is seen.
        dtype: of all floating tensors.
        device: where they live.
        seed: of the values.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)

    batch, frames, heads, head_dim = len(shape["lens"]), shape["frames"], shape["heads"], shape["head_dim"]
    q, k, v = normal(batch, frames, 3 * heads, head_dim).chunk(3, dim=2)
    arguments: Arguments = {name: shape[name] for name in LIMITS if name in shape}
    if "keys" in shape:
        k, v = normal(batch, shape["keys"], 2 * heads, head_dim).chunk(2, dim=2)
    arguments |= {"q": q, "k": k, "v": v, "lens_B": torch.tensor(shape["lens"], device=device)}
    if "mask" in shape:
        seen = torch.rand(batch, 1, frames, k.shape[1], generator=generator) < shape["mask"]
        seen[..., 0] |= ~seen.any(dim=3)
        arguments |= {"lens_B": None, "mask": seen.to(device)}
    if shape.get("position") == "relative":
        arguments |= {"r": normal(2 * frames - 1, heads, head_dim)} | {name: normal(heads, head_dim) for name in "uw"}
    if shape.get("position") == "rope":
        angles = torch.rand(frames, head_dim // 2, generator=generator, dtype=torch.float64) * 6.28
        arguments |= {name: part.to(device, torch.float32) for name, part in (("cos", angles.cos()), ("sin", angles.sin()))}
    return arguments


def visibility(arguments: Arguments) -> Visibility:
    """Of self-attention: queries past a length are of no use."""
    lens_B, limits = arguments["lens_B"], {name: arguments[name] for name in LIMITS if name in arguments}
    own = arguments["q"].shape[1] == arguments["k"].shape[1]
    return Visibility(lens_B=lens_B, query_lens_B=lens_B if own else None, mask=arguments.get("mask"), **limits)


def run(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Output, zero where it is of no use."""
    visible, rope = visibility(arguments), (arguments["cos"], arguments["sin"]) if "cos" in arguments else None
    relative = RelativePositions(arguments["r"], arguments["u"], arguments["w"]) if "r" in arguments else None
    q, k, v = (arguments[name] for name in "qkv")
    return (_of_use(attention(q, k, v, visible=visible, rope=rope, relative=relative, backend=backend), visible),)


def sdpa(arguments: Arguments) -> tuple[Tensor, ...]:
    """torch's scaled dot-product attention, with the relative term as a bias of shape (B, H, T, T)."""
    return run(arguments, "torch")


def eager(arguments: Arguments) -> tuple[Tensor, ...]:
    """Scores, shift, softmax, product, each over all pairs, as most toolkits have it."""
    visible, (q, k, v) = visibility(arguments), _turned(arguments)
    scale = q.shape[3] ** -0.5
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if "r" in arguments:
        u, w = arguments["u"][:, None], arguments["w"][:, None]
        scores = ((q + u) @ k.transpose(2, 3) + relative_shift((q + w) @ arguments["r"].permute(1, 2, 0))) * scale
    else:
        scores = q @ k.transpose(2, 3) * scale
    mask = visible.dense(k.shape[2], k.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (_of_use((scores.softmax(dim=-1) @ v).transpose(1, 2), visible),)


def flex(arguments: Arguments) -> tuple[Tensor, ...]:
    """`torch.nn.attention.flex_attention`, compiled on a GPU; its relative scores of all pairs stay in memory."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    visible, (q, k, v) = visibility(arguments), _turned(arguments)
    if q.device.type != "cuda" or q.shape[3] < 16 or q.dtype == torch.float64:
        raise NotImplementedError("FlexAttention is compiled for heads of 16 channels or more on a GPU")
    scale, frames = q.shape[3] ** -0.5, q.shape[1]
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    change: Any = None
    if "r" in arguments:
        by_distance = (q + arguments["w"][:, None]) @ arguments["r"].permute(1, 2, 0) * scale
        q = q + arguments["u"][:, None]

        def change(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + by_distance[b, h, i, frames - 1 - i + j]

    dense, block_mask = visible.dense(k.shape[2], k.device), None
    if dense is not None:
        seen = dense.expand(len(q), 1, frames, k.shape[2])
        block_mask = create_block_mask(
            lambda b, h, i, j: seen[b, 0, i, j], len(q), None, frames, k.shape[2], device=str(q.device)
        )
    out: Any = torch.compile(flex_attention, dynamic=False)(q, k, v, score_mod=change, block_mask=block_mask, scale=scale)
    return (_of_use(out.transpose(1, 2), visible),)


def draw_decode(shape: Shape, *, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> Arguments:
    """Arguments of `decode_attention`: queries, keys, heads, head_dim; lens, one for each row; mask as in `draw`."""
    arguments = draw({**shape, "frames": shape["queries"]}, dtype=dtype, device=device, seed=seed)
    arguments |= {name: arguments[name].transpose(1, 2).contiguous() for name in "kv"}
    return arguments


def run_decode(arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
    """Output."""
    visible = Visibility(lens_B=arguments["lens_B"], mask=arguments.get("mask"))
    return (decode_attention(*(arguments[name] for name in "qkv"), visible=visible, backend=backend),)


def eager_decode(arguments: Arguments) -> tuple[Tensor, ...]:
    """Scores, softmax, product."""
    q, k, v = arguments["q"].transpose(1, 2), arguments["k"], arguments["v"]
    mask = Visibility(lens_B=arguments["lens_B"], mask=arguments.get("mask")).dense(k.shape[2], k.device)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return ((scores.softmax(dim=-1) @ v).transpose(1, 2),)


def sdpa_decode(arguments: Arguments) -> tuple[Tensor, ...]:
    """torch's scaled dot-product attention."""
    mask = Visibility(lens_B=arguments["lens_B"], mask=arguments.get("mask")).dense(
        arguments["k"].shape[2], arguments["k"].device
    )
    return (F.scaled_dot_product_attention(arguments["q"].transpose(1, 2), arguments["k"], arguments["v"], mask).transpose(1, 2),)


def _turned(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (arguments[name] for name in "qkv")
    if "cos" in arguments:
        table = arguments["cos"], arguments["sin"]
        q, k = rotate(q, table), rotate(k, table)
    return q, k, v


def _of_use(out_BTHK: Tensor, visible: Visibility) -> Tensor:
    if visible.query_lens_B is None:
        return out_BTHK
    idle_BT = torch.arange(out_BTHK.shape[1], device=out_BTHK.device) >= visible.query_lens_B[:, None]
    return out_BTHK.masked_fill(idle_BT[:, :, None, None], 0.0)


def _bench_shapes() -> dict[str, Shape]:
    """Encoders of a batch of 32 utterances of even lengths, 4 frames in 100 ms or less; a decoder over tokens."""
    shapes: dict[str, Shape] = {}
    for frames in (250, 750, 1500):
        batch = 32 if frames < 1500 else 8
        lens = [frames - (i % 8) * frames // 40 for i in range(batch)]  # 0 to 17 % of padding
        base = {"frames": frames, "heads": 8, "head_dim": 64, "lens": lens}
        shapes |= {f"rope T={frames}": base | {"position": "rope"}, f"relative T={frames}": base | {"position": "relative"}}
    base = {"frames": 1500, "heads": 4, "head_dim": 64, "lens": [1500] * 8}
    shapes["chunks T=1500"] = base | {"chunk_size": 16, "left_chunks": 8}
    shapes["relative chunks T=1500"] = base | {"chunk_size": 16, "left_chunks": 8, "position": "relative"}
    shapes["causal T=64"] = {"frames": 64, "heads": 4, "head_dim": 64, "lens": [64] * 32, "causal": True}
    return shapes


SELF = {"frames": 40, "heads": 1, "head_dim": 16, "lens": (40, 33)}
OP = Op(
    name="attention",
    backends=("torch", "reference", "triton"),
    draw=draw,
    run=run,
    differentiable=("q", "k", "v", "r", "u", "w"),
    test_shapes={
        "padding": SELF | {"heads": 2, "lens": (0, 40, 33, 1)},
        "rope": SELF | {"position": "rope"},
        "relative": SELF | {"position": "relative"},
        "causal": SELF | {"causal": True},
        "causal relative": SELF | {"causal": True, "position": "relative", "lens": (37,)},
        "chunks": SELF | CHUNKED | {"lens": (34, 0)},
        "chunks relative": SELF | CHUNKED | {"position": "relative", "lens": (36,)},
        "chunks, all to the left": SELF | {"chunk_size": 7, "lens": (35,)},
        "band": SELF | BANDED,
        "band relative": SELF | BANDED | {"position": "relative", "num_global": 0, "lens": (38,)},
        "mask": SELF | {"mask": 0.2},
        "cross": SELF | {"keys": 38, "lens": (38, 1, 0)},
        "cross mask": SELF | {"keys": 38, "mask": 0.1},
        "one frame relative": {"frames": 1, "heads": 1, "head_dim": 8, "lens": (1, 0), "position": "relative"},
        "odd head": {"frames": 33, "heads": 1, "head_dim": 36, "lens": (33,), "position": "rope"},
        "several tiles": {"frames": 70, "heads": 1, "head_dim": 16, "lens": (70,), "position": "relative"},
    },
    bench_shapes=_bench_shapes(),
    baselines={"sdpa": sdpa, "eager": eager, "flex": flex},
    yardstick="eager",
)
DECODE = Op(
    name="decode_attention",
    backends=("torch", "reference", "triton"),
    draw=draw_decode,
    run=run_decode,
    test_shapes={
        "one query": {"queries": 1, "keys": 300, "heads": 1, "head_dim": 16, "lens": (300, 0, 131)},
        "beam of 18": {"queries": 18, "keys": 40, "heads": 1, "head_dim": 36, "lens": (40, 1)},
        "mask": {"queries": 3, "keys": 150, "heads": 1, "head_dim": 16, "lens": (1, 1), "mask": 0.3},
        "one key": {"queries": 2, "keys": 1, "heads": 1, "head_dim": 8, "lens": (1,)},
    },
    bench_shapes={
        f"B={batch} J={queries} S={keys}": {"queries": queries, "keys": keys, "heads": 8, "head_dim": 64, "lens": [keys] * batch}
        for batch, queries in ((1, 1), (1, 10), (32, 1), (32, 10))
        for keys in (250, 1500)
    },
    baselines={"sdpa": sdpa_decode, "eager": eager_decode},
    yardstick="eager",
)
OPS = (OP, DECODE)

"""Monotonic alignment search on a GPU: one program per utterance for the scores, one to follow the moves back.

The row of phones is kept in registers; one bit per cell says whether the best path came from the phone before, four frames to
a byte. Likelihoods are read four frames ahead.

Shape legend: B batch, T frames, P phones, W = ceil(T / 4) bytes.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechkit.kernels.aot import Variant
from speechkit.kernels.mas.reference import Paths

FRAMES_OF_A_BYTE = 4  # the kernels spell them out


def align(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor) -> Paths:
    """As `reference.align`, bit for bit; nothing waits for the device.

    Likelihoods are read where they lie, best with phones side by side. Lengths beyond the shapes count as the shapes, those
    below 0 as 0.
    """
    batch, num_frames, num_phones = log_likelihood_BTP.shape
    frame_lens_B, phone_lens_B = frame_lens_B.contiguous(), phone_lens_B.contiguous()
    durations_BP = frame_lens_B.new_empty(batch, num_phones)
    frame_phone_BT = frame_lens_B.new_empty(batch, num_frames)
    scores_B = log_likelihood_BTP.new_empty(batch, dtype=torch.float32)
    if not batch:
        return Paths(durations_BP, frame_phone_BT, scores_B)
    steps_BWP = frame_lens_B.new_empty((batch, triton.cdiv(num_frames, FRAMES_OF_A_BYTE), num_phones), dtype=torch.int8)
    block, warps = launch_of(num_phones)
    _advance[(batch,)](
        log_likelihood_BTP,
        *log_likelihood_BTP.stride(),
        frame_lens_B,
        phone_lens_B,
        steps_BWP,
        scores_B,
        num_frames,
        num_phones,
        BLOCK=block,
        num_warps=warps,
    )
    _trace_back[(batch,)](
        *(steps_BWP, scores_B, frame_lens_B, phone_lens_B),
        *(durations_BP, frame_phone_BT),
        num_frames,
        num_phones,
        FILL=128,
        num_warps=1,
    )
    return Paths(durations_BP, frame_phone_BT, scores_B)


def launch_of(num_phones: int) -> tuple[int, int]:
    """Places of a row and warps of its program."""
    block = max(triton.next_power_of_2(num_phones), 32)
    return block, min(max(block // 128, 1), 16)


@triton.jit
def _frame(likelihoods, t, length, stride_t, inside):
    """Log-likelihoods of frame t, fp32."""
    at = likelihoods + t.to(tl.int64) * stride_t
    return tl.load(at, mask=inside & (t < length), other=float("-inf")).to(tl.float32)


@triton.jit
def _step(best, t, length, emit, places, before_place):
    """The row after frame t, and which places were entered from the one before."""
    never = float("-inf")
    before = tl.where(places > 0, tl.gather(best, before_place, 0), tl.where(t == 0, 0.0, never))
    larger = tl.maximum(best, before, propagate_nan=tl.PropagateNan.ALL)
    onward = tl.where(places <= t, larger + emit, never)
    return tl.where(t < length, onward, best), (before > best).to(tl.int32)


@triton.jit
def _advance(
    log_likelihood_BTP,
    stride_b,
    stride_t,
    stride_p,
    frame_lens_B,
    phone_lens_B,
    steps_BWP,
    scores_B,
    num_frames,
    num_phones,
    BLOCK: tl.constexpr,
):
    """Moves to every cell, and the score of the best path."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.maximum(tl.minimum(tl.load(frame_lens_B + row), num_frames), 0).to(tl.int32)
    count = tl.maximum(tl.minimum(tl.load(phone_lens_B + row), num_phones), 0).to(tl.int32)
    places = tl.arange(0, BLOCK)
    before_place = tl.maximum(places - 1, 0)
    inside = places < count
    likelihoods = log_likelihood_BTP + row * stride_b + places.to(tl.int64) * stride_p
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    t = tl.zeros((), tl.int32)
    emit_0 = _frame(likelihoods, t, length, stride_t, inside)
    emit_1 = _frame(likelihoods, t + 1, length, stride_t, inside)
    emit_2 = _frame(likelihoods, t + 2, length, stride_t, inside)
    emit_3 = _frame(likelihoods, t + 3, length, stride_t, inside)
    steps = steps_BWP + row * ((num_frames + 3) // 4) * num_phones + places
    for _ in range((length + 3) // 4):
        best, bits = _step(best, t, length, emit_0, places, before_place)
        emit_0 = _frame(likelihoods, t + 4, length, stride_t, inside)
        best, entered = _step(best, t + 1, length, emit_1, places, before_place)
        emit_1 = _frame(likelihoods, t + 5, length, stride_t, inside)
        bits |= entered << 1
        best, entered = _step(best, t + 2, length, emit_2, places, before_place)
        emit_2 = _frame(likelihoods, t + 6, length, stride_t, inside)
        bits |= entered << 2
        best, entered = _step(best, t + 3, length, emit_3, places, before_place)
        emit_3 = _frame(likelihoods, t + 7, length, stride_t, inside)
        bits |= entered << 3
        tl.store(steps, bits.to(tl.int8), mask=inside)
        steps += num_phones
        t += 4
    score = tl.sum(tl.where(places == count - 1, best, 0.0), 0)
    empty = tl.where(length == 0, 0.0, float("-inf"))
    tl.store(scores_B + row, tl.where(count > 0, score, empty))


@triton.jit
def _trace_back(
    steps_BWP,
    scores_B,
    frame_lens_B,
    phone_lens_B,
    durations_BP,
    frame_phone_BT,
    num_frames,
    num_phones,
    FILL: tl.constexpr,
):
    """Follows the moves back from the last phone; frames and phones without a part in a path are filled."""
    row = tl.program_id(0).to(tl.int64)
    feasible = tl.load(scores_B + row) > float("-inf")
    length = tl.where(feasible, tl.maximum(tl.minimum(tl.load(frame_lens_B + row), num_frames), 0), 0).to(tl.int32)
    count = tl.where(feasible, tl.maximum(tl.minimum(tl.load(phone_lens_B + row), num_phones), 0), 0).to(tl.int32)
    frame_phone = frame_phone_BT + row * num_frames
    durations = durations_BP + row * num_phones
    lanes = tl.arange(0, FILL)
    for first in range(0, num_frames, FILL):
        filled = (first + lanes >= length) & (first + lanes < num_frames)
        tl.store(frame_phone + first + lanes, tl.full((FILL,), -1, tl.int64), mask=filled)
    for first in range(0, num_phones, FILL):
        filled = (first + lanes >= count) & (first + lanes < num_phones)
        tl.store(durations + first + lanes, tl.zeros((FILL,), tl.int64), mask=filled)
    steps = steps_BWP + row * ((num_frames + 3) // 4) * num_phones
    phone = count - 1
    end = length
    t = length - 1
    for _ in range(length):
        bits = tl.load(steps + (t >> 2).to(tl.int64) * num_phones + phone).to(tl.int32)
        entered = (bits >> (t & 3)) & 1
        tl.store(frame_phone + t, phone.to(tl.int64))
        tl.store(durations + phone, (end - t).to(tl.int64), mask=entered == 1)
        end = tl.where(entered == 1, t, end)
        phone -= entered
        t -= 1


def compile_variants() -> list[Variant]:
    """Both kernels for few and many phones, fp32 and bf16."""
    found = []
    for num_phones in (64, 256, 1024, 2048):
        block, warps = launch_of(num_phones)
        for dtype in ("fp32", "bf16") if num_phones <= 256 else ("fp32",):
            signature = {"log_likelihood_BTP": f"*{dtype}"} | dict.fromkeys(("stride_b", "stride_t", "stride_p"), "i32")
            signature |= {"frame_lens_B": "*i64", "phone_lens_B": "*i64", "steps_BWP": "*i8", "scores_B": "*fp32"}
            signature |= {"num_frames": "i32", "num_phones": "i32"}
            found.append(Variant(f"advance P<={block} {dtype}", _advance, signature, {"BLOCK": block}, num_warps=warps))
    signature = {"steps_BWP": "*i8", "scores_B": "*fp32"}
    signature |= dict.fromkeys(("frame_lens_B", "phone_lens_B", "durations_BP", "frame_phone_BT"), "*i64")
    signature |= {"num_frames": "i32", "num_phones": "i32"}
    found.append(Variant("trace_back", _trace_back, signature, {"FILL": 128}, num_warps=1))
    return found

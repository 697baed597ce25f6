"""Viterbi over transcripts widened by blanks, on a GPU: one program per utterance for the scores, one to follow the moves back.

States are kept in registers as two rows, blank i and the token i after it, so that one shift by one serves all moves: blank i
is reached from itself or from token i - 1; token i from itself, from blank i, or from token i - 1. The moves of a pair take
three bits: bit 0, the blank came from token i - 1; bits 1 and 2, the token came from blank i (1) or from token i - 1 (2). Four
frames share a word of 16 bits. Log-probabilities are read four frames ahead, U + 1 of V per frame.

Shape legend: B batch, T frames, U tokens, W = ceil(T / 4) words, V vocab.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechkit.kernels.aot import Variant
from speechkit.kernels.ctc_align.reference import Paths

FRAMES_OF_A_WORD = 4  # the kernels spell them out


def align(log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, blank: int) -> Paths:
    """As `reference.align`, bit for bit; nothing waits for the device.

    Lengths beyond the shapes count as the shapes, those below 0 as 0, and ids outside the vocabulary have no probability.
    """
    batch, num_frames, vocab = log_probs_BTV.shape
    num_tokens = tokens_BU.shape[1]
    lens_B, tokens_BU, token_lens_B = lens_B.contiguous(), tokens_BU.contiguous(), token_lens_B.contiguous()
    labels_BT = lens_B.new_empty(batch, num_frames)
    index_BT, spikes_BU = torch.empty_like(labels_BT), torch.empty_like(tokens_BU)
    scores_B = log_probs_BTV.new_empty(batch, dtype=torch.float32)
    if not batch:
        return Paths(labels_BT, index_BT, spikes_BU, scores_B)
    words = triton.cdiv(num_frames, FRAMES_OF_A_WORD)
    moves_BWU = lens_B.new_empty((batch, words, num_tokens + 1), dtype=torch.int16)
    states_B = lens_B.new_empty(batch, dtype=torch.int32)
    sizes = (num_frames, num_tokens)
    block, warps = launch_of(num_tokens)
    _advance[(batch,)](
        log_probs_BTV,
        *log_probs_BTV.stride(),
        tokens_BU,
        lens_B,
        token_lens_B,
        *(moves_BWU, states_B, scores_B),
        *sizes,
        vocab,
        blank,
        BLOCK=block,
        num_warps=warps,
    )
    _trace_back[(batch,)](
        *(moves_BWU, states_B, scores_B),
        *(tokens_BU, lens_B, token_lens_B),
        *(labels_BT, index_BT, spikes_BU),
        *sizes,
        blank,
        FILL=128,
        num_warps=1,
    )
    return Paths(labels_BT, index_BT, spikes_BU, scores_B)


def launch_of(num_tokens: int) -> tuple[int, int]:
    """Places of a row and warps of its program."""
    block = max(triton.next_power_of_2(num_tokens + 1), 32)
    return block, min(max(block // 128, 1), 16)


@triton.jit
def _emissions(frame, t, length, stride_t, stride_v, columns, silence, present):
    """Log-probabilities of the blank and of the tokens at frame t, fp32; -inf for tokens that are not there."""
    at = frame + t.to(tl.int64) * stride_t
    inside = t < length
    rest = tl.load(at + silence * stride_v, mask=inside, other=0.0).to(tl.float32)
    tokens = tl.load(at + columns * stride_v, mask=present & inside, other=float("-inf")).to(tl.float32)
    return rest, tokens


@triton.jit
def _step(blanks, tokens, before_place, may_leap, places, rest, emit, inside):
    """The rows after one more frame, and the moves that led there."""
    never = float("-inf")
    before = tl.where(places > 0, tl.gather(tokens, before_place, 0), never)
    jump = tl.where(may_leap, before, before + never)
    best = tl.maximum(tokens, blanks, propagate_nan=tl.PropagateNan.ALL)
    leapt = jump > best
    code = tl.where(leapt, 4, tl.where(blanks > tokens, 2, 0)) + tl.where(before > blanks, 1, 0)
    best = tl.maximum(best, jump, propagate_nan=tl.PropagateNan.ALL) + emit
    rested = tl.maximum(blanks, before, propagate_nan=tl.PropagateNan.ALL) + rest
    return tl.where(inside, rested, blanks), tl.where(inside, best, tokens), code


@triton.jit
def _advance(
    log_probs_BTV,
    stride_b,
    stride_t,
    stride_v,
    tokens_BU,
    lens_B,
    token_lens_B,
    moves_BWU,
    states_B,
    scores_B,
    num_frames,
    num_tokens,
    vocab,
    blank,
    BLOCK: tl.constexpr,
):
    """Moves to every state at every frame, and the last state of the best path (2 i for blank i) with its score."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.maximum(tl.minimum(tl.load(lens_B + row), num_frames), 0).to(tl.int32)
    count = tl.maximum(tl.minimum(tl.load(token_lens_B + row), num_tokens), 0).to(tl.int32)
    places = tl.arange(0, BLOCK)
    before_place = tl.maximum(places - 1, 0)
    own = tokens_BU + row * num_tokens
    ids = tl.load(own + places, mask=places < count, other=-1)
    ids_before = tl.load(own + before_place, mask=(places > 0) & (places < count), other=-1)
    may_leap = (places > 0) & (places < count) & (ids != ids_before)
    present = (places < count) & (ids >= 0) & (ids < vocab)
    ids = tl.where(present, ids, 0).to(tl.int32)
    frame = log_probs_BTV + row * stride_b
    silence = tl.zeros((), tl.int64) + blank
    blanks = tl.where(places == 0, 0.0, float("-inf"))  # stands for an utterance without frames
    tokens = tl.full((BLOCK,), float("-inf"), tl.float32)
    t = tl.zeros((), tl.int32)
    rest_0, emit_0 = _emissions(frame, t, length, stride_t, stride_v, ids, silence, present)
    rest_1, emit_1 = _emissions(frame, t + 1, length, stride_t, stride_v, ids, silence, present)
    rest_2, emit_2 = _emissions(frame, t + 2, length, stride_t, stride_v, ids, silence, present)
    rest_3, emit_3 = _emissions(frame, t + 3, length, stride_t, stride_v, ids, silence, present)
    words = moves_BWU + row * ((num_frames + 3) // 4) * (num_tokens + 1) + places
    for _ in range((length + 3) // 4):
        inside = (t < length) & ((t > 0) | (places == 0))  # none but the first pair can begin
        blanks, tokens, word = _step(blanks, tokens, before_place, may_leap, places, rest_0, emit_0, inside)
        rest_0, emit_0 = _emissions(frame, t + 4, length, stride_t, stride_v, ids, silence, present)
        blanks, tokens, code = _step(blanks, tokens, before_place, may_leap, places, rest_1, emit_1, t + 1 < length)
        rest_1, emit_1 = _emissions(frame, t + 5, length, stride_t, stride_v, ids, silence, present)
        word |= code << 3
        blanks, tokens, code = _step(blanks, tokens, before_place, may_leap, places, rest_2, emit_2, t + 2 < length)
        rest_2, emit_2 = _emissions(frame, t + 6, length, stride_t, stride_v, ids, silence, present)
        word |= code << 6
        blanks, tokens, code = _step(blanks, tokens, before_place, may_leap, places, rest_3, emit_3, t + 3 < length)
        rest_3, emit_3 = _emissions(frame, t + 7, length, stride_t, stride_v, ids, silence, present)
        word |= code << 9
        tl.store(words, word.to(tl.int16), mask=places <= count)
        words += num_tokens + 1
        t += 4
    last_blank = tl.sum(tl.where(places == count, blanks, 0.0), 0)
    last_token = tl.sum(tl.where(places == count - 1, tokens, 0.0), 0)
    in_token = (count > 0) & (last_token > last_blank)
    tl.store(scores_B + row, tl.where(in_token, last_token, last_blank))
    tl.store(states_B + row, 2 * count - in_token.to(tl.int32))


@triton.jit
def _trace_back(
    moves_BWU,
    states_B,
    scores_B,
    tokens_BU,
    lens_B,
    token_lens_B,
    labels_BT,
    index_BT,
    spikes_BU,
    num_frames,
    num_tokens,
    blank,
    FILL: tl.constexpr,
):
    """Follows the moves back from the last state; frames and tokens without a part in a path are filled."""
    row = tl.program_id(0).to(tl.int64)
    feasible = tl.load(scores_B + row) > float("-inf")
    length = tl.where(feasible, tl.maximum(tl.minimum(tl.load(lens_B + row), num_frames), 0), 0).to(tl.int32)
    count = tl.where(feasible, tl.maximum(tl.minimum(tl.load(token_lens_B + row), num_tokens), 0), 0).to(tl.int32)
    labels = labels_BT + row * num_frames
    index = index_BT + row * num_frames
    spikes = spikes_BU + row * num_tokens
    lanes = tl.arange(0, FILL)
    for first in range(0, num_frames, FILL):
        filled = (first + lanes >= length) & (first + lanes < num_frames)
        tl.store(labels + first + lanes, tl.full((FILL,), 0, tl.int64) + blank, mask=filled)
        tl.store(index + first + lanes, tl.full((FILL,), -1, tl.int64), mask=filled)
    for first in range(0, num_tokens, FILL):
        filled = (first + lanes >= count) & (first + lanes < num_tokens)
        tl.store(spikes + first + lanes, tl.full((FILL,), -1, tl.int64), mask=filled)
    words = moves_BWU + row * ((num_frames + 3) // 4) * (num_tokens + 1)
    state = tl.load(states_B + row)
    t = length - 1
    for _ in range(length):
        place = state >> 1
        word = tl.load(words + (t >> 2).to(tl.int64) * (num_tokens + 1) + place).to(tl.int32)
        code = (word >> ((t & 3) * 3)) & 7
        in_token = (state & 1) == 1
        token = tl.load(tokens_BU + row * num_tokens + place, mask=in_token, other=0)
        tl.store(labels + t, tl.where(in_token, token, blank))
        tl.store(index + t, tl.where(in_token, place, -1).to(tl.int64))
        move = tl.where(in_token, code >> 1, code & 1)
        tl.store(spikes + place, t.to(tl.int64), mask=in_token & (move > 0))
        state -= move
        t -= 1


def compile_variants() -> list[Variant]:
    """Both kernels for short and long transcripts, fp32 and bf16."""
    found = []
    for num_tokens in (60, 255, 1023, 2047):
        block, warps = launch_of(num_tokens)
        for dtype in ("fp32", "bf16") if num_tokens <= 255 else ("fp32",):
            signature = {"log_probs_BTV": f"*{dtype}"} | dict.fromkeys(("stride_b", "stride_t", "stride_v"), "i32")
            signature |= dict.fromkeys(("tokens_BU", "lens_B", "token_lens_B"), "*i64")
            signature |= {"moves_BWU": "*i16", "states_B": "*i32", "scores_B": "*fp32"}
            signature |= dict.fromkeys(("num_frames", "num_tokens", "vocab", "blank"), "i32")
            found.append(Variant(f"advance U<{block} {dtype}", _advance, signature, {"BLOCK": block}, num_warps=warps))
    signature = {"moves_BWU": "*i16", "states_B": "*i32", "scores_B": "*fp32"}
    signature |= dict.fromkeys(("tokens_BU", "lens_B", "token_lens_B", "labels_BT", "index_BT", "spikes_BU"), "*i64")
    signature |= dict.fromkeys(("num_frames", "num_tokens", "blank"), "i32")
    found.append(Variant("trace_back", _trace_back, signature, {"FILL": 128}, num_warps=1))
    return found

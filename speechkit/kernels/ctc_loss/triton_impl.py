"""CTC in four kernels: log-sum-exp and gather, alpha beside beta, posteriors, gradient.

Alpha and beta of an utterance are two programs that run at the same time, each with a row of states in registers. State 2i is
blank i, state 2i + 1 is token i, so that a step needs one neighbour of one vector::

    alpha   blank[i] = (blank[i] + token[i-1]) p(blank)       token[i] = (token[i] + blank[i] + skip[i] token[i-1]) p(token i)
    beta    with e the state times its emission one frame on:
            blank[i] = e_blank[i] + e_token[i]                token[i] = e_token[i] + e_blank[i+1] + skip[i+1] e_token[i+1]

in base-2 logarithms, of which a whole number is taken out every few frames and kept apart: log p of a long recording leaves few
digits of fp32 to tell paths apart by. Every sum over states or frames runs in blocks of fixed size over a row's own lengths:
neither padding nor batch mates change a bit.

Shape legend: B batch, T frames, U tokens, V vocab, L = U + 1 labels (blank, then tokens).
"""

# mypy: allow-untyped-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechkit.kernels.aot import Variant
from speechkit.kernels.triton_rounding import narrow

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NEVER = tl.constexpr(-1e30)  # stands for log 0
PIECE = 32  # tokens whose posteriors are summed at a time
SPAN = 64  # tokens that they are summed for at a time


@triton.jit
def _log_add(a, b):
    """log2(2^a + 2^b)."""
    high = tl.maximum(a, b)
    return high + tl.log2(tl.exp2(a - high) + tl.exp2(b - high))


@triton.jit
def _log_add3(a, b, c):
    """log2(2^a + 2^b + 2^c)."""
    high = tl.maximum(tl.maximum(a, b), c)
    return high + tl.log2(tl.exp2(a - high) + tl.exp2(b - high) + tl.exp2(c - high))


@triton.jit
def log_sum_exp(row, vocab, BLOCK_V: tl.constexpr):
    """Natural log-sum-exp of the scores of a frame, read once, a block at a time."""
    places = tl.arange(0, BLOCK_V)
    high = tl.full((), NEVER, tl.float32)
    sums = tl.zeros((BLOCK_V,), tl.float32)
    for v in range(0, vocab, BLOCK_V):
        x = tl.load(row + v + places, mask=v + places < vocab, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(high, tl.max(x, axis=0))
        sums = sums * tl.exp2((high - higher) * LOG2_E) + tl.exp2((x - higher) * LOG2_E)
        high = higher
    return high + tl.log2(tl.sum(sums, axis=0)) * LN_2


@triton.jit
def lse_gather_kernel(
    logits, lens, targets, target_lens, lse, emit, frames, vocab, num_labels, stride_b, stride_t, stride_u, blank,
    BLOCK_V: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A program per frame: log-sum-exp of its scores, natural, and base-2 log-probabilities of the row's labels."""
    t, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if t >= tl.load(lens + b):
        tl.store(lse + b * frames + t, float("inf"))
        return
    row = logits + b * stride_b + t.to(tl.int64) * stride_t
    log_sum = log_sum_exp(row, vocab, BLOCK_V)
    tl.store(lse + b * frames + t, log_sum)
    out = emit + (b * frames + t) * num_labels
    num_tokens = tl.load(target_lens + b).to(tl.int32)
    for first in range(0, num_tokens + 1, BLOCK_L):
        label = first + tl.arange(0, BLOCK_L)
        token = tl.load(targets + b * stride_u + label - 1, mask=(label > 0) & (label <= num_tokens), other=blank)
        at_label = tl.load(row + token, mask=label <= num_tokens, other=0.0).to(tl.float32)
        value = (at_label - log_sum) * LOG2_E
        # Comparisons with nan are false: nan stays nan.
        tl.store(out + label, tl.where(value < NEVER, NEVER, value), mask=label <= num_tokens)


@triton.jit
def _emissions(emit, i, is_token, exists):
    """Of the blank and of each token at one frame. Read two frames ahead: a load takes longer than a step."""
    return tl.load(emit, mask=exists, other=NEVER), tl.load(emit + 1 + i, mask=is_token & exists, other=NEVER)


@triton.jit
def _shift(blank, token, total, t):
    """Takes a whole number out of the states every 16 frames and adds it to `total`."""
    if t % 16 == 0:
        high = tl.maximum(tl.max(blank, axis=0), tl.max(token, axis=0))
        whole = tl.where(high > 0.5 * NEVER, tl.floor(high), 0.0)
        blank -= whole
        token -= whole
        total += whole.to(tl.int32)
    return blank, token, total


@triton.jit
def _alpha(emit, states, shifts, nll, rest, targets, num_frames, num_tokens, num_labels, WIDTH: tl.constexpr):
    """Forward recursion of one row."""
    i = tl.arange(0, WIDTH)
    left = tl.maximum(i - 1, 0)
    is_token, is_blank = i < num_tokens, i <= num_tokens
    token_id = tl.load(targets + i, mask=is_token, other=-1)
    before_id = tl.load(targets + i - 1, mask=is_token & (i > 0), other=-1)
    skips = (i > 0) & (token_id != before_id)
    blank = tl.where(i == 0, tl.load(emit), NEVER)
    token = tl.where(i == 0, tl.load(emit + 1 + i, mask=is_token, other=NEVER), NEVER)
    total = tl.full((), 0, tl.int32)
    tl.store(states + i, blank, mask=is_blank)
    tl.store(states + num_labels + i, token, mask=is_token)
    tl.store(shifts, total)
    emit += num_labels
    on_blank, on_token = _emissions(emit, i, is_token, num_frames > 1)
    soon_blank, soon_token = _emissions(emit + num_labels, i, is_token, num_frames > 2)
    for t in range(1, num_frames):
        states += 2 * num_labels
        later_blank, later_token = _emissions(emit + 2 * num_labels, i, is_token, t + 2 < num_frames)
        before = tl.where(i > 0, tl.gather(token, left, 0), NEVER)
        token = _log_add3(token, blank, tl.where(skips, before, NEVER)) + on_token
        blank = _log_add(blank, before) + on_blank
        blank, token, total = _shift(blank, token, total, t)
        tl.store(states + i, blank, mask=is_blank)
        tl.store(states + num_labels + i, token, mask=is_token)
        tl.store(shifts + t, total)
        emit += num_labels
        on_blank, on_token, soon_blank, soon_token = soon_blank, soon_token, later_blank, later_token
    ends = _log_add(
        tl.sum(tl.where(i == num_tokens, blank, 0.0), axis=0),
        tl.sum(tl.where(i == num_tokens - 1, token, 0.0), axis=0) + tl.where(num_tokens > 0, 0.0, NEVER),
    )
    tl.store(rest, ends)
    tl.store(nll, tl.where(ends < 0.5 * NEVER, float("inf"), -(ends + total.to(tl.float32)) * LN_2))


@triton.jit
def _beta(emit, states, shifts, targets, num_frames, num_tokens, num_labels, WIDTH: tl.constexpr):
    """Backward recursion of one row; the emission of a state's own frame is not in it."""
    i = tl.arange(0, WIDTH)
    right = tl.minimum(i + 1, WIDTH - 1)
    is_token, is_blank = i < num_tokens, i <= num_tokens
    token_id = tl.load(targets + i, mask=is_token, other=-1)
    before_id = tl.load(targets + i - 1, mask=is_token & (i > 0), other=-1)
    skips = is_token & (i > 0) & (token_id != before_id)
    last = (num_frames - 1).to(tl.int64)
    emit += last * num_labels
    states += last * (2 * num_labels)
    blank = tl.where(i == num_tokens, 0.0, NEVER)
    token = tl.where(i == num_tokens - 1, 0.0, NEVER)
    total = tl.full((), 0, tl.int32)
    tl.store(states + i, blank, mask=is_blank)
    tl.store(states + num_labels + i, token, mask=is_token)
    tl.store(shifts + last, total)
    on_blank, on_token = _emissions(emit, i, is_token, num_frames > 1)
    soon_blank, soon_token = _emissions(emit - num_labels, i, is_token, num_frames > 2)
    for t in range(1, num_frames):
        later_blank, later_token = _emissions(emit - 2 * num_labels, i, is_token, t + 2 < num_frames)
        to_blank, to_token = blank + on_blank, token + on_token
        after = tl.gather(_log_add(to_blank, tl.where(skips, to_token, NEVER)), right, 0)
        blank = tl.where(is_blank, _log_add(to_blank, to_token), NEVER)
        token = tl.where(is_token, _log_add(to_token, after), NEVER)
        blank, token, total = _shift(blank, token, total, t)
        emit -= num_labels
        states -= 2 * num_labels
        tl.store(states + i, blank, mask=is_blank)
        tl.store(states + num_labels + i, token, mask=is_token)
        tl.store(shifts + last - t, total)
        on_blank, on_token, soon_blank, soon_token = soon_blank, soon_token, later_blank, later_token


@triton.jit
def alpha_beta_kernel(
    emit, lens, targets, target_lens, alphas, betas, alpha_shifts, beta_shifts, nll, rest, frames, num_labels, stride_u,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Two programs per row: alpha, which also gives the loss, and beta.

    States are (B, T, 2, L), blanks, then tokens, less their shifts (B, T); `rest` is log2 p less the last shift of alpha.
    """
    b = tl.program_id(0).to(tl.int64)
    num_frames = tl.load(lens + b).to(tl.int32)
    num_tokens = tl.load(target_lens + b).to(tl.int32)
    emit += b * frames * num_labels
    targets += b * stride_u
    if tl.program_id(1) == 0:
        if num_frames == 0:
            tl.store(nll + b, tl.where(num_tokens == 0, 0.0, float("inf")))
            return
        states, shifts = alphas + b * frames * (2 * num_labels), alpha_shifts + b * frames
        _alpha(emit, states, shifts, nll + b, rest + b, targets, num_frames, num_tokens, num_labels, WIDTH)
    elif num_frames > 0:
        states, shifts = betas + b * frames * (2 * num_labels), beta_shifts + b * frames
        _beta(emit, states, shifts, targets, num_frames, num_tokens, num_labels, WIDTH)


@triton.jit
def posterior_kernel(
    alphas, betas, alpha_shifts, beta_shifts, lens, targets, target_lens, nll, rest, lse, gamma, frames, num_labels, stride_u,
    PIECE: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """A program per frame: gamma at the blank and at each token; that of equal tokens stands at the first of them, and -1 at the
    others and past the row's tokens. Frames that do not count get 0 throughout, and inf for their log-sum-exp."""
    t, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_frames, num_tokens = tl.load(lens + b), tl.load(target_lens + b).to(tl.int32)
    out = gamma + (b * frames + t) * num_labels
    if (t >= num_frames) | (tl.load(nll + b) == float("inf")):
        tl.store(lse + b * frames + t, float("inf"))
        for first in range(0, num_labels, SPAN):
            label = first + tl.arange(0, SPAN)
            tl.store(out + label, tl.zeros((SPAN,), tl.float32), mask=label < num_labels)
        return
    shift = tl.load(alpha_shifts + b * frames + num_frames - 1) - tl.load(alpha_shifts + b * frames + t)
    log_p = tl.load(rest + b) + (shift - tl.load(beta_shifts + b * frames + t)).to(tl.float32)
    alphas += (b * frames + t) * 2 * num_labels
    betas += (b * frames + t) * 2 * num_labels
    targets += b * stride_u
    on_blank = tl.full((), 0.0, tl.float32)
    for first in range(0, num_tokens + 1, PIECE):
        j = first + tl.arange(0, PIECE)
        state = tl.load(alphas + j, mask=j <= num_tokens, other=NEVER) + tl.load(betas + j, mask=j <= num_tokens, other=NEVER)
        on_blank += tl.sum(tl.exp2(state - log_p), axis=0)
    tl.store(out, on_blank)
    for begin in range(0, num_labels - 1, SPAN):
        i = begin + tl.arange(0, SPAN)
        mine = tl.load(targets + i, mask=i < num_tokens, other=-1)
        total = tl.zeros((SPAN,), tl.float32)
        earlier = tl.zeros((SPAN,), tl.int32)
        for first in range(0, num_tokens, PIECE):
            j = first + tl.arange(0, PIECE)
            real = j < num_tokens
            state = tl.load(alphas + num_labels + j, mask=real, other=NEVER)
            state += tl.load(betas + num_labels + j, mask=real, other=NEVER)
            equal = (tl.load(targets + j, mask=real, other=-2)[None, :] == mine[:, None]).to(tl.int32)
            total += tl.sum(tl.where(equal != 0, tl.exp2(state - log_p)[None, :], 0.0), axis=1)
            earlier += tl.sum(tl.where(j[None, :] < i[:, None], equal, 0), axis=1)
        counts = (i < num_tokens) & (earlier == 0)
        tl.store(out + 1 + i, tl.where(counts, total, -1.0), mask=i < num_labels - 1)


@triton.jit
def gradient_kernel(
    grad, logits, targets, target_lens, lse, gamma, out, frames, vocab, num_labels, stride_b, stride_t, stride_u, blank,
    BLOCK_V: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A program per frame and block of V: softmax times the gradient of the row, less gamma at the row's labels."""
    row, begin = tl.program_id(0), tl.program_id(1) * BLOCK_V
    b, t = (row // frames).to(tl.int64), row % frames
    v = begin + tl.arange(0, BLOCK_V)
    to = out + row.to(tl.int64) * vocab
    log_sum = tl.load(lse + row)
    if log_sum == float("inf"):
        tl.store(to + v, tl.zeros((BLOCK_V,), out.dtype.element_ty), mask=v < vocab)
        return
    scale = tl.load(grad + b).to(tl.float32)
    logits += b * stride_b + t.to(tl.int64) * stride_t
    x = tl.load(logits + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    soft = tl.exp2((x - log_sum) * LOG2_E) * scale
    tl.store(to + v, narrow(soft, out.dtype.element_ty), mask=v < vocab)
    tl.debug_barrier()  # what follows overwrites some of it, from other threads of the block
    num_tokens = tl.load(target_lens + b).to(tl.int32)
    for first in range(0, num_tokens + 1, BLOCK_L):
        label = first + tl.arange(0, BLOCK_L)
        token = tl.load(targets + b * stride_u + label - 1, mask=(label > 0) & (label <= num_tokens), other=blank)
        share = tl.load(gamma + row.to(tl.int64) * num_labels + label, mask=label <= num_tokens, other=-1.0)
        here = (share >= 0.0) & (token >= begin) & (token < begin + BLOCK_V)
        at_token = tl.load(logits + token, mask=here, other=0.0).to(tl.float32)
        value = (tl.exp2((at_token - log_sum) * LOG2_E) - share) * scale
        tl.store(to + token, narrow(value, out.dtype.element_ty), mask=here)


def vocab_block(vocab: int) -> tuple[int, int]:
    """Scores taken at a time and warps, by the vocabulary alone."""
    block = min(max(triton.next_power_of_2(vocab), 128), 4096)
    return block, min(max(block // 512, 1), 8)


def label_block(num_labels: int) -> int:
    """Labels gathered at a time."""
    return min(max(triton.next_power_of_2(num_labels), 16), 128)


def state_width(num_labels: int) -> tuple[int, int]:
    """Width of a row of states and warps."""
    width = max(triton.next_power_of_2(num_labels), 16)
    return width, min(max(width // 128, 1), 16)


def log_probs_of_labels(
    logits_BTV: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each frame (B, T), inf in padding, and base-2 log-probabilities of each row's labels (B, T, L)."""
    batch, frames, vocab = logits_BTV.shape
    num_labels = targets_BU.shape[1] + 1
    lse_BT = torch.empty((batch, frames), dtype=torch.float32, device=logits_BTV.device)
    emit_BTL = torch.empty((batch, frames, num_labels), dtype=torch.float32, device=logits_BTV.device)
    if lse_BT.numel():
        block, warps = vocab_block(vocab)
        lse_gather_kernel[(frames, batch)](
            logits_BTV, lens_B, targets_BU, target_lens_B, lse_BT, emit_BTL, frames, vocab, num_labels,
            logits_BTV.stride(0), logits_BTV.stride(1), targets_BU.stride(0), blank,
            BLOCK_V=block, BLOCK_L=label_block(num_labels), num_warps=warps,
        )  # fmt: skip
    return lse_BT, emit_BTL


def recursions(
    emit_BTL: Tensor,
    lse_BT: Tensor,
    lens_B: Tensor,
    targets_BU: Tensor,
    target_lens_B: Tensor,
    *,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Alpha and beta, then gamma.

    Args:
        emit_BTL: base-2 log-probabilities of each row's labels, fp32, shape (B, T, L).
        lse_BT: becomes inf in padding and in rows without a path, shape (B, T).
        lens_B: valid frames of each row, shape (B,).
        targets_BU: token ids, shape (B, U).
        target_lens_B: valid tokens of each row, shape (B,).
        wanted: whether gamma is; it is empty otherwise.

    Returns:
        -log p (B,) and gamma (B, T, L), as `posterior_kernel` has it.
    """
    batch, frames, num_labels = emit_BTL.shape
    nll_B = torch.empty(batch, dtype=torch.float32, device=emit_BTL.device)
    rest_B = torch.empty_like(nll_B)
    directions = 2 if wanted else 1
    states = emit_BTL.new_empty((directions, batch, frames, 2, num_labels))
    shifts = torch.empty((directions, batch, frames), dtype=torch.int32, device=emit_BTL.device)
    gamma = torch.empty_like(emit_BTL) if wanted else emit_BTL.new_empty(0)
    if not batch:
        return nll_B, gamma
    width, warps = state_width(num_labels)
    alpha_beta_kernel[(batch, directions)](
        emit_BTL, lens_B, targets_BU, target_lens_B, states[0], states[-1], shifts[0], shifts[-1], nll_B, rest_B, frames,
        num_labels, targets_BU.stride(0), WIDTH=width, num_warps=warps,
    )  # fmt: skip
    if gamma.numel():
        posterior_kernel[(frames, batch)](
            states[0], states[1], shifts[0], shifts[1], lens_B, targets_BU, target_lens_B, nll_B, rest_B, lse_BT, gamma,
            frames, num_labels, targets_BU.stride(0), PIECE=PIECE, SPAN=SPAN, num_warps=4,
        )  # fmt: skip
    return nll_B, gamma


def forward(
    logits_BTV: Tensor, logit_lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p (B,), log-sum-exp of each frame (B, T) with inf where nothing flows back, and gamma (B, T, L)."""
    logits_BTV, targets_BU = _dense(logits_BTV), _dense(targets_BU)
    lse_BT, emit_BTL = log_probs_of_labels(logits_BTV, logit_lens_B, targets_BU, target_lens_B, blank)
    nll_B, gamma = recursions(emit_BTL, lse_BT, logit_lens_B, targets_BU, target_lens_B, wanted=wanted)
    return nll_B, lse_BT, gamma


def backward(
    grad_B: Tensor,
    logits_BTV: Tensor,
    targets_BU: Tensor,
    target_lens_B: Tensor,
    lse_BT: Tensor,
    gamma_BTL: Tensor,
    blank: int,
) -> Tensor:
    """Gradient by the scores in their dtype, shape (B, T, V)."""
    logits_BTV, targets_BU = _dense(logits_BTV), _dense(targets_BU)
    batch, frames, vocab = logits_BTV.shape
    out_BTV = torch.empty((batch, frames, vocab), dtype=logits_BTV.dtype, device=logits_BTV.device)
    if out_BTV.numel():
        block, warps = vocab_block(vocab)
        num_labels = gamma_BTL.shape[2]
        gradient_kernel[(batch * frames, triton.cdiv(vocab, block))](
            grad_B.contiguous(), logits_BTV, targets_BU, target_lens_B, lse_BT, gamma_BTL, out_BTV, frames,
            vocab, num_labels, logits_BTV.stride(0), logits_BTV.stride(1), targets_BU.stride(0), blank,
            BLOCK_V=block, BLOCK_L=label_block(num_labels), num_warps=warps,
        )  # fmt: skip
    return out_BTV


def _dense(x: Tensor) -> Tensor:
    """As it is when its last dimension lies in one piece, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def compile_variants() -> list[Variant]:
    """What `speechkit.kernels.aot` compiles."""
    labels = {"targets": "*i64", "target_lens": "*i64"}
    lengths = labels | {"lens": "*i64"}
    sizes = {"frames": "i32", "num_labels": "i32", "stride_u": "i32"}
    found = []
    for kind in ("fp32", "bf16"):
        scores = {"logits": f"*{kind}", "lse": "*fp32", "vocab": "i32", "stride_b": "i64", "stride_t": "i32", "blank": "i32"}
        for vocab in (1000, 5000):
            block, warps = vocab_block(vocab)
            constants = {"BLOCK_V": block, "BLOCK_L": 128}
            signature = scores | lengths | sizes | {"emit": "*fp32"}
            found.append(Variant(f"lse_gather {kind} V={vocab}", lse_gather_kernel, signature, constants, warps))
            signature = scores | labels | sizes | {"grad": "*fp32", "gamma": "*fp32", "out": f"*{kind}"}
            found.append(Variant(f"gradient {kind} V={vocab}", gradient_kernel, signature, constants, warps))
    states = dict.fromkeys(("alphas", "betas", "nll", "rest"), "*fp32") | dict.fromkeys(("alpha_shifts", "beta_shifts"), "*i32")
    for num_labels in (64, 256, 1024):
        width, warps = state_width(num_labels)
        signature = states | lengths | sizes | {"emit": "*fp32"}
        found.append(Variant(f"alpha_beta U<{num_labels}", alpha_beta_kernel, signature, {"WIDTH": width}, warps))
    signature = states | lengths | sizes | {"lse": "*fp32", "gamma": "*fp32"}
    found.append(Variant("posterior", posterior_kernel, signature, {"PIECE": PIECE, "SPAN": SPAN}, 4))
    return found

"""What the sweep over chunks does in Triton: softmax less gamma in place of the scores, and the recursions of `ctc_loss`.

Shape legend: M frames of a chunk, B batch, T frames, U tokens, L = U + 1 labels (blank, then tokens), V vocab.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechkit.kernels.aot import Variant
from speechkit.kernels.ctc_loss.triton_impl import LOG2_E, NEVER, label_block, log_sum_exp, recursions, vocab_block
from speechkit.kernels.triton_rounding import narrow


@triton.jit
def softmax_less_gamma_kernel(
    scores, lse, labels, own, gamma, scale, vocab, num_labels,
    GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A program per frame: log-sum-exp of its scores, and with GRADIENT their gradient in their place.

    Scores are read twice, the second time from the cache, and written once. Labels with a gamma below 0 are left out.
    """
    m = tl.program_id(0).to(tl.int64)
    row = scores + m * vocab
    log_sum = log_sum_exp(row, vocab, BLOCK_V)
    tl.store(lse + m, log_sum)
    if GRADIENT:
        weight = tl.load(scale + m)
        places = tl.arange(0, BLOCK_V)
        for v in range(0, vocab, BLOCK_V):
            x = tl.load(row + v + places, mask=v + places < vocab, other=float("-inf")).to(tl.float32)
            soft = tl.exp2((x - log_sum) * LOG2_E) * weight
            tl.store(row + v + places, narrow(soft, scores.dtype.element_ty), mask=v + places < vocab)
        tl.debug_barrier()  # what follows changes some of it, from other threads of the block
        for first in range(0, num_labels, BLOCK_L):
            label = first + tl.arange(0, BLOCK_L)
            token = tl.load(labels + m * num_labels + label, mask=label < num_labels, other=0)
            share = tl.load(gamma + m * num_labels + label, mask=label < num_labels, other=-1.0)
            at_label = tl.load(own + m * num_labels + label, mask=label < num_labels, other=0.0)
            value = (tl.exp2((at_label - log_sum) * LOG2_E) - share) * weight
            tl.store(row + token, narrow(value, scores.dtype.element_ty), mask=share >= 0.0)


def softmax_less_gamma(
    scores_MV: Tensor, labels_ML: Tensor | None, own_ML: Tensor | None, gamma_ML: Tensor | None, scale_M: Tensor | None
) -> Tensor:
    """Puts the gradient by the scores in their place, if there is a gamma; gives their log-sum-exp.

    Args:
        scores_MV: in one piece, shape (M, V); becomes (softmax - gamma) * scale.
        labels_ML: ids, int64, shape (M, L).
        own_ML: scores of the labels, fp32, not rounded to the dtype of the scores, shape (M, L).
        gamma_ML: fp32, below 0 where the label counts for nothing, shape (M, L).
        scale_M: fp32, shape (M,).

    Returns:
        fp32, shape (M,).
    """
    frames, vocab = scores_MV.shape
    lse_M = torch.empty(frames, dtype=torch.float32, device=scores_MV.device)
    num_labels = 1 if labels_ML is None else labels_ML.shape[1]
    block, warps = vocab_block(vocab)
    softmax_less_gamma_kernel[(frames,)](
        scores_MV, lse_M, labels_ML, own_ML, gamma_ML, scale_M, vocab, num_labels, GRADIENT=gamma_ML is not None,
        BLOCK_V=block, BLOCK_L=label_block(num_labels), num_warps=warps,
    )  # fmt: skip
    return lse_M


def posteriors(
    scores_BTL: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, *, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Loss of the recursions over scores of each row's labels (B,), and gamma (B, T, L), as `posterior_kernel` has it."""
    lse_BT = torch.empty(scores_BTL.shape[:2], dtype=torch.float32, device=scores_BTL.device)
    emit_BTL = (scores_BTL.float() * LOG2_E.value).clamp_(min=NEVER.value).contiguous()
    return recursions(emit_BTL, lse_BT, lens_B, targets_BU.contiguous(), target_lens_B, wanted=wanted)


def compile_variants() -> list[Variant]:
    """What `speechkit.kernels.aot` compiles."""
    found = []
    for kind in ("fp32", "bf16"):
        signature = {"scores": f"*{kind}", "lse": "*fp32", "labels": "*i64", "own": "*fp32", "gamma": "*fp32"}
        signature |= {"scale": "*fp32", "vocab": "i32", "num_labels": "i32"}
        block, warps = vocab_block(50_000)
        for gradient in (True, False):
            constants = {"GRADIENT": gradient, "BLOCK_V": block, "BLOCK_L": 128}
            name = f"softmax_less_gamma {kind} gradient={gradient}"
            found.append(Variant(name, softmax_less_gamma_kernel, signature, constants, warps))
    return found

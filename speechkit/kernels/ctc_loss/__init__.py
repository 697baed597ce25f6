"""CTC loss from unnormalised scores: softmax, both recursions and the gradient by the scores in one operation.

Sources: Graves et al. 2006, "Connectionist Temporal Classification", section 4.1 and equation 16. Over states s of a transcript
widened by blanks, with l(s) their labels and beta without the emission of its own frame::

    log p = logsumexp over s of alpha[t, s] + beta[t, s]        (for any t)
    gamma[t, k] = sum over s with l(s) = k of exp(alpha[t, s] + beta[t, s] - log p)
    d(-log p) / d logits[t, k] = softmax(logits[t])[k] - gamma[t, k]

No (B, T, V) tensor is kept but the scores themselves, and none is made but their gradient: forward keeps the log-sum-exp of each
frame and gamma at a row's own U + 1 labels.

Shape legend: B batch, T frames, U tokens, V vocab, L = U + 1 labels (blank, then tokens).
"""

from typing import Any

import torch
from torch import Tensor

from speechkit.kernels.ctc_loss import reference, torch_impl
from speechkit.kernels.dispatch import choose
from speechkit.kernels.operator import operator

BACKENDS = ("torch", "reference", "triton")


def ctc_loss(
    logits_BTV: Tensor,
    logit_lens_B: Tensor,
    targets_BU: Tensor,
    target_lens_B: Tensor,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Negative log-likelihood of transcripts under frame-wise scores.

    Computed in fp32 (fp64 for fp64 scores), also under autocast. The gradient has the dtype of the scores and is exactly 0 on
    frames past a row's length and in rows that no path can spell. A row's loss and gradient are the same, bit for bit,
    whatever its padding and its batch mates.

    Args:
        logits_BTV: scores before the softmax, fp16, bf16, fp32 or fp64, shape (B, T, V).
        logit_lens_B: valid frames of each row, int64, shape (B,).
        targets_BU: token ids without the blank, anything past each length, int64, shape (B, U).
        target_lens_B: valid tokens of each row, int64, shape (B,).
        blank: id of the blank.
        reduction: "none" for the loss of each row; "sum" over rows; "mean" over rows of the loss by target token, as
            `torch.nn.functional.ctc_loss` has it.
        zero_infinity: whether the loss of rows that no path can spell is 0; it is inf otherwise.
        backend: "auto", "triton", "torch" or "reference". See `speechkit.kernels.dispatch`.

    Returns:
        nats, fp32 (fp64 for fp64 scores), shape (B,) or ().

    Raises:
        ValueError: shapes do not fit together, or `reduction` is unknown.
    """
    check_shapes(logits_BTV, logit_lens_B, targets_BU, target_lens_B, blank, vocab_size=logits_BTV.shape[-1])
    name = choose("ctc_loss", backend, logits_BTV.device, BACKENDS)
    if name == "reference":
        nll_B = reference.neg_log_likelihood(logits_BTV, logit_lens_B, targets_BU, target_lens_B, blank)
    else:
        wanted = torch.is_grad_enabled() and logits_BTV.requires_grad
        nll_B = _forward(logits_BTV, logit_lens_B, targets_BU, target_lens_B, blank, wanted, name)[0]
    return reduce(nll_B, target_lens_B, reduction, zero_infinity)


def check_shapes(
    scores: Tensor, logit_lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int, *, vocab_size: int
) -> None:
    """Refuses what does not fit together.

    Raises:
        ValueError: names the argument, what it is and what was expected.
    """
    if scores.ndim != 3 or targets_BU.ndim != 2 or len(targets_BU) != len(scores):
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} and targets of shape {tuple(targets_BU.shape)} do not fit together; "
            "expected (B, T, ...) and (B, U)"
        )
    for name, lens_B in (("logit_lens", logit_lens_B), ("target_lens", target_lens_B)):
        if lens_B.shape != (len(scores),):
            raise ValueError(f"{name} has shape {tuple(lens_B.shape)}; expected ({len(scores)},), one length per row")
    if not 0 <= blank < vocab_size:
        raise ValueError(f"blank={blank} must be an id below the {vocab_size} of the vocabulary")


def reduce(nll_B: Tensor, target_lens_B: Tensor, reduction: str, zero_infinity: bool) -> Tensor:
    """Reduces the losses of rows as `ctc_loss` says.

    Raises:
        ValueError: `reduction` is unknown.
    """
    if zero_infinity:
        nll_B = nll_B.masked_fill(nll_B == torch.inf, 0.0)
    if reduction == "none":
        return nll_B
    if reduction == "sum":
        return nll_B.sum()
    if reduction == "mean":
        return (nll_B / target_lens_B.clamp(min=1)).mean()
    raise ValueError(f"reduction={reduction!r} is unknown; choose none, sum or mean")


@operator("ctc_loss_forward")
def _forward(
    logits: Tensor, logit_lens: Tensor, targets: Tensor, target_lens: Tensor, blank: int, wanted: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row (B,), log-sum-exp of each frame (B, T), gamma (B, T, L) if `wanted`, else empty."""
    if backend == "torch":
        return torch_impl.forward(logits, logit_lens, targets, target_lens, blank, wanted)
    from speechkit.kernels.ctc_loss import triton_impl

    return triton_impl.forward(logits, logit_lens, targets, target_lens, blank, wanted)


@_forward.register_fake
def _(
    logits: Tensor, logit_lens: Tensor, targets: Tensor, target_lens: Tensor, blank: int, wanted: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, frames, _ = logits.shape
    shape = (batch, frames, targets.shape[1] + 1) if wanted else (0,)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return tuple(logits.new_empty(each, dtype=dtype) for each in ((batch,), (batch, frames), shape))  # type: ignore[return-value]


@operator("ctc_loss_backward")
def _backward(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    target_lens: Tensor,
    lse: Tensor,
    gamma: Tensor,
    blank: int,
    backend: str,
) -> Tensor:
    """Gradient by the scores, (B, T, V)."""
    if backend == "torch":
        return torch_impl.backward(grad, logits, lse, gamma, torch_impl.label_columns(targets, target_lens, blank))
    from speechkit.kernels.ctc_loss import triton_impl

    return triton_impl.backward(grad, logits, targets, target_lens, lse, gamma, blank)


@_backward.register_fake
def _(
    grad: Tensor, logits: Tensor, targets: Tensor, target_lens: Tensor, lse: Tensor, gamma: Tensor, blank: int, backend: str
) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, targets, target_lens, blank, _, backend = inputs
    ctx.save_for_backward(logits, targets, target_lens, output[1], output[2])
    ctx.blank, ctx.backend = blank, backend


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    logits, targets, target_lens, lse, gamma = ctx.saved_tensors
    return _backward(grad, logits, targets, target_lens, lse, gamma, ctx.blank, ctx.backend), *(None,) * 6


_forward.register_autograd(_differentiate, setup_context=_keep)

__all__ = ["BACKENDS", "ctc_loss"]

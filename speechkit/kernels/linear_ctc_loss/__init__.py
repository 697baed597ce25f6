"""CTC loss of frames behind an output layer that never holds the scores of all frames, for large vocabularies.

The same as `ctc_loss(F.linear(hidden, weight, bias), ...)`, of which (B, T, V) scores and what is made of them are the memory:
2.4 GB for 8 x 400 frames and 50,000 tokens. Here scores exist for a chunk of frames at a time. Since the recursions need those
of a row's own labels only, and run first, the sweep over chunks makes loss and gradient at once: three products of matrices as
ever, none repeated, when the loss is reduced; when it is not, backward sweeps again.

Sources: Graves et al. 2006, "Connectionist Temporal Classification", section 4.1; the chunks, Hsu et al. 2024, "Liger Kernel",
section 3.2 (there for cross-entropy).

Shape legend: B batch, T frames, U tokens, D model, V vocab.
"""

from typing import Any

import torch
from torch import Tensor

from speechkit.kernels.ctc_loss import check_shapes, reduce
from speechkit.kernels.dispatch import choose
from speechkit.kernels.linear_ctc_loss import chunked, reference
from speechkit.kernels.operator import operator

BACKENDS = ("torch", "reference", "triton")


def linear_ctc_loss(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    logit_lens_B: Tensor,
    targets_BU: Tensor,
    target_lens_B: Tensor,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Negative log-likelihood of transcripts under an output layer and softmax over frames.

    Under autocast the products run in its dtype, as those of `torch.nn.Linear` do; losses and sums in fp32.

    Args:
        hidden_BTD: frames, shape (B, T, D).
        weight_VD: of the output layer, shape (V, D).
        bias_V: of the output layer, shape (V,); None for none.
        logit_lens_B: valid frames of each row, int64, shape (B,).
        targets_BU: token ids without the blank, anything past each length, int64, shape (B, U).
        target_lens_B: valid tokens of each row, int64, shape (B,).
        blank: id of the blank.
        reduction: "none", "sum" or "mean", as in `speechkit.kernels.ctc_loss.ctc_loss`.
        zero_infinity: whether the loss of rows that no path can spell is 0; it is inf otherwise. They have no gradient.
        backend: "auto", "triton", "torch" or "reference". See `speechkit.kernels.dispatch`.

    Returns:
        nats, fp32 (fp64 for fp64 frames), shape (B,) or ().

    Raises:
        ValueError: shapes do not fit together, or `reduction` is unknown.
    """
    check_shapes(hidden_BTD, logit_lens_B, targets_BU, target_lens_B, blank, vocab_size=len(weight_VD))
    if weight_VD.shape[1:] != hidden_BTD.shape[2:] or (bias_V is not None and bias_V.shape != weight_VD.shape[:1]):
        bias_shape = None if bias_V is None else tuple(bias_V.shape)
        raise ValueError(
            f"weight of shape {tuple(weight_VD.shape)} and bias of shape {bias_shape} do not fit hidden of shape "
            f"{tuple(hidden_BTD.shape)}; expected (V, {hidden_BTD.shape[2]}) and (V,)"
        )
    device = hidden_BTD.device.type
    if torch.is_autocast_enabled(device):
        hidden_BTD, weight_VD = (x.to(torch.get_autocast_dtype(device)) for x in (hidden_BTD, weight_VD))
        bias_V = None if bias_V is None else bias_V.to(hidden_BTD.dtype)
    lengths = (logit_lens_B, targets_BU, target_lens_B)
    name = choose("linear_ctc_loss", backend, hidden_BTD.device, BACKENDS)
    if name == "reference":
        nll_B = reference.neg_log_likelihood(hidden_BTD, weight_VD, bias_V, *lengths, blank)
        return reduce(nll_B, target_lens_B, reduction, zero_infinity)
    to_hidden = torch.is_grad_enabled() and hidden_BTD.requires_grad
    to_layer = torch.is_grad_enabled() and (weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad))
    arguments = (hidden_BTD, weight_VD, bias_V, *lengths, blank)
    if reduction == "none" or not (to_hidden or to_layer):
        return reduce(_each(*arguments, to_hidden, to_layer, name), target_lens_B, reduction, zero_infinity)
    scale_B = torch.ones(len(hidden_BTD), device=hidden_BTD.device)
    if reduction == "mean":
        scale_B = scale_B / (target_lens_B.clamp(min=1) * max(len(hidden_BTD), 1))
    elif reduction != "sum":
        raise ValueError(f"reduction={reduction!r} is unknown; choose none, sum or mean")
    return _total(*arguments, scale_B, zero_infinity, to_hidden, to_layer, name)[0]


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_lens: Tensor,
    targets: Tensor,
    target_lens: Tensor,
    blank: int,
    scale: Tensor | None,
    to_hidden: bool,
    to_layer: bool,
    backend: str,
) -> chunked.Swept:
    options = {"blank": blank, "scale_B": scale, "to_hidden": to_hidden, "to_layer": to_layer, "backend": backend}
    with torch.autocast(hidden.device.type, enabled=False):
        return chunked.sweep(hidden, weight, bias, logit_lens, targets, target_lens, **options)  # type: ignore[arg-type]


@operator("linear_ctc_loss_total")
def _total(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_lens: Tensor,
    targets: Tensor,
    target_lens: Tensor,
    blank: int,
    scale: Tensor,
    zero_infinity: bool,
    to_hidden: bool,
    to_layer: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of `scale` (B,) times the losses, and its gradients by frames, weight and bias, empty where not wanted."""
    nll, gradients = _sweep(
        hidden, weight, bias, logit_lens, targets, target_lens, blank, scale, to_hidden, to_layer, backend
    )
    if zero_infinity:
        nll = nll.masked_fill(nll == torch.inf, 0.0)
    return (nll * scale).sum(), *gradients


@_total.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_lens: Tensor,
    targets: Tensor,
    target_lens: Tensor,
    blank: int,
    scale: Tensor,
    zero_infinity: bool,
    to_hidden: bool,
    to_layer: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(hidden.dtype, torch.float32)
    shapes = ((), hidden.shape if to_hidden else (0,), weight.shape if to_layer else (0,), weight.shape[:1] if to_layer else (0,))
    return tuple(torch.empty(shape, dtype=exact, device=hidden.device) for shape in shapes)  # type: ignore[return-value]


@operator("linear_ctc_loss_each")
def _each(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_lens: Tensor,
    targets: Tensor,
    target_lens: Tensor,
    blank: int,
    to_hidden: bool,
    to_layer: bool,
    backend: str,
) -> Tensor:
    """Loss of each row, (B,)."""
    arguments = (hidden, weight, bias, logit_lens, targets, target_lens, blank)
    return _sweep(*arguments, None, False, False, backend).nll_B


@_each.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_lens: Tensor,
    targets: Tensor,
    target_lens: Tensor,
    blank: int,
    to_hidden: bool,
    to_layer: bool,
    backend: str,
) -> Tensor:
    return hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = inputs[:3]
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
    ctx.wanted = (inputs[9], inputs[10], inputs[10] and bias is not None)


def _scale_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    made = zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted)
    return *((grad * found).to(dtype) if wanted else None for found, dtype, wanted in made), *(None,) * 9


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.blank, ctx.to_hidden, ctx.to_layer, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _sweep_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    arguments = (*ctx.saved_tensors, ctx.blank, grad, False, ctx.to_hidden, ctx.to_layer, ctx.backend)
    hidden, weight, bias = ctx.saved_tensors[:3]
    _, *found = _total(*arguments)
    wanted = (ctx.to_hidden, ctx.to_layer, ctx.to_layer and bias is not None)
    inputs = (hidden, weight, bias)
    return *(each.to(x.dtype) if want else None for each, x, want in zip(found, inputs, wanted)), *(None,) * 7


_total.register_autograd(_scale_gradients, setup_context=_keep_gradients)
_each.register_autograd(_sweep_again, setup_context=_keep_inputs)

__all__ = ["BACKENDS", "linear_ctc_loss"]

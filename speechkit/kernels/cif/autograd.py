"""Joins a forward and a backward operation of integrate-and-fire for autograd.

Shape legend: B batch, T frames, U tokens, D model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speechkit.kernels.operator import Operator


def differentiate(forward: Operator, backward: Operator) -> None:
    """Registers fakes of both operations and the second as the derivative of the first.

    Args:
        forward: (alphas_BT, hidden_BTD, frame_lens_B, token_lens_B, max_tokens) -> embeddings_BUD and sums_BT, fp64. No gradient
            flows into the sums.
        backward: (grad_BUD, sums_BT, hidden_BTD, frame_lens_B, token_lens_B, alphas_BT, to_alphas, to_hidden) -> gradients by
            alphas and by hidden; empty where the flag is not set.
    """

    def fake_forward(
        alphas_BT: Tensor, hidden_BTD: Tensor, frame_lens_B: Tensor, token_lens_B: Tensor, max_tokens: int
    ) -> tuple[Tensor, Tensor]:
        batch, frames, dim = hidden_BTD.shape
        return hidden_BTD.new_empty(batch, max_tokens, dim), alphas_BT.new_empty(batch, frames).double()

    def fake_backward(
        grad_BUD: Tensor,
        sums_BT: Tensor,
        hidden_BTD: Tensor,
        frame_lens_B: Tensor,
        token_lens_B: Tensor,
        alphas_BT: Tensor,
        to_alphas: bool,
        to_hidden: bool,
    ) -> tuple[Tensor, Tensor]:
        return (
            alphas_BT.new_empty(alphas_BT.shape if to_alphas else (0,)),
            hidden_BTD.new_empty(hidden_BTD.shape if to_hidden else (0,)),
        )

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        alphas_BT, hidden_BTD, frame_lens_B, token_lens_B, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], hidden_BTD, frame_lens_B, token_lens_B, alphas_BT)

    def differentiated(ctx: Any, grad_BUD: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_BUD is None:
            return (None,) * 5
        needs = ctx.needs_input_grad
        alphas_BT, hidden_BTD = backward(grad_BUD, *ctx.saved_tensors, needs[0], needs[1])
        return alphas_BT if needs[0] else None, hidden_BTD if needs[1] else None, None, None, None

    forward.register_fake(fake_forward)
    backward.register_fake(fake_backward)
    forward.register_autograd(differentiated, setup_context=remember)

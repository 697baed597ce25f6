"""CTC behind an output layer, a chunk of frames at a time.

The posteriors gamma do not change when a constant is added to all scores of a frame. So the recursions can run first, on the
scores of a row's own labels alone, normalised among themselves by c[t]; one sweep over chunks of frames then makes the scores of
the whole vocabulary, their log-sum-exp, and at once the gradient, softmax less gamma, and its products with the weights and the
frames. With n the loss of the recursions, -log p = n + sum over t of lse[t] - c[t], all terms of one sign.

Every product of matrices has one shape whatever the lengths: a frame's bits depend on neither padding nor batch mates.

Shape legend: B batch, T frames, N = B T frames of all rows, U tokens, L = U + 1 labels (blank, then tokens), D model, V vocab.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.ctc_loss.torch_impl import label_columns, posteriors

TILE = 64  # frames and labels that are multiplied at a time


class Gradients(NamedTuple):
    """By the inputs of the layer, fp32 or fp64; empty where not wanted."""

    hidden_BTD: Tensor
    weight_VD: Tensor
    bias_V: Tensor


class Swept(NamedTuple):
    """What a sweep over the vocabulary finds.

    Attributes:
        nll_B: -log p, inf where infeasible, shape (B,).
        gradients: of the sum of `scale_B` times the losses of the feasible rows.
    """

    nll_B: Tensor
    gradients: Gradients


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Frames in a chunk: up to 64 MB of scores in fp32 on a CPU, 128 MB in half precision on a GPU."""
    numel, most = (1 << 26, 4096) if device.type == "cuda" else (1 << 24, 512)
    return min(max(numel // max(vocab_size, 1) // TILE * TILE, TILE), most)


def label_scores(hidden_BTD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_BL: Tensor) -> Tensor:
    """Scores of each row's labels, computed in fp32 or more, shape (B, T, L), in products of TILE x TILE."""
    (batch, frames, dim), num_labels = hidden_BTD.shape, labels_BL.shape[1]
    exact = torch.promote_types(hidden_BTD.dtype, torch.float32)
    labels_BL = F.pad(labels_BL, (0, -num_labels % TILE))
    across, down = -(-frames // TILE), labels_BL.shape[1] // TILE
    hidden = F.pad(hidden_BTD.to(exact), (0, 0, 0, -frames % TILE)).reshape(batch, across, 1, TILE, dim)
    weights = weight_VD[labels_BL].to(exact).reshape(batch, 1, down, TILE, dim)
    count = batch * across * down
    left, right = (each.expand(batch, across, down, TILE, dim).reshape(count, TILE, dim) for each in (hidden, weights))
    tiles = torch.bmm(left, right.mT).view(batch, across, down, TILE, TILE)
    scores_BTL = tiles.transpose(2, 3).reshape(batch, across * TILE, down * TILE)
    if bias_V is not None:
        scores_BTL = scores_BTL + bias_V[labels_BL][:, None].to(exact)
    return scores_BTL[:, :frames, :num_labels]


def sweep(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    logit_lens_B: Tensor,
    targets_BU: Tensor,
    target_lens_B: Tensor,
    *,
    blank: int,
    scale_B: Tensor | None,
    to_hidden: bool,
    to_layer: bool,
    backend: str,
) -> Swept:
    """Losses and, with `scale_B`, the gradients.

    Args:
        hidden_BTD: frames, shape (B, T, D).
        weight_VD: of the output layer, dtype of the frames, shape (V, D).
        bias_V: of the output layer, shape (V,), or None.
        logit_lens_B: valid frames of each row, int64, shape (B,).
        targets_BU: token ids, anything past each length, int64, shape (B, U).
        target_lens_B: valid tokens of each row, int64, shape (B,).
        blank: id of the blank.
        scale_B: weight of each row in what is differentiated, fp32, shape (B,); None for losses alone.
        to_hidden: whether the gradient by the frames is wanted.
        to_layer: whether those by weight and bias are.
        backend: "torch" or "triton".
    """
    frames, device = hidden_BTD.shape[1], hidden_BTD.device
    labels_BL = label_columns(targets_BU, target_lens_B, blank)
    scores_BTL = label_scores(hidden_BTD, weight_VD, bias_V, labels_BL)
    own_BL = torch.arange(labels_BL.shape[1], device=device) <= target_lens_B[:, None]
    level_BT = scores_BTL.masked_fill(~own_BL[:, None], -torch.inf).amax(dim=2)
    level_BT = level_BT.masked_fill(level_BT == -torch.inf, 0.0)
    wanted = scale_B is not None
    above_BTL = scores_BTL - level_BT[..., None]
    lengths = (logit_lens_B, targets_BU, target_lens_B)
    if backend == "triton":
        from speechkit.kernels.linear_ctc_loss import triton_impl

        rest_B, gamma_BTL = triton_impl.posteriors(above_BTL, *lengths, wanted=wanted)
    else:
        rest_B, gamma_BTL = posteriors(above_BTL, *lengths, blank, wanted=wanted)
    counted_BT = (torch.arange(frames, device=device) < logit_lens_B[:, None]) & (rest_B != torch.inf)[:, None]
    scale_BT = None if scale_B is None else counted_BT * scale_B[:, None]
    chunks = _Chunks(hidden_BTD, counted_BT, labels_BL, scores_BTL, gamma_BTL, scale_BT, backend)
    lse_BT, gradients = chunks.run(weight_VD, bias_V, to_hidden=to_hidden, to_layer=to_layer)
    above_BT = (lse_BT - level_BT.to(lse_BT.dtype)).masked_fill(~counted_BT, 0.0)
    if not frames:
        return Swept(rest_B, gradients)
    # A running sum adds frames in order: what follows a row's last frame changes nothing.
    return Swept(rest_B + above_BT.double().cumsum(1)[:, -1].to(rest_B.dtype), gradients)


class _Chunks:
    """Frames of all rows one after the other, and what belongs to each of them.

    On a CPU only those are taken that count. To find out which would make a GPU wait.
    """

    def __init__(
        self,
        hidden_BTD: Tensor,
        counted_BT: Tensor,
        labels_BL: Tensor,
        scores_BTL: Tensor,
        gamma_BTL: Tensor,
        scale_BT: Tensor | None,
        backend: str,
    ) -> None:
        self.shape, self.backend, self.device = hidden_BTD.shape, backend, hidden_BTD.device
        batch, frames, dim = self.shape
        self.rows_N = torch.arange(batch * frames, device=self.device)
        if self.device.type == "cpu":
            self.rows_N = counted_BT.flatten().nonzero()[:, 0]
        self.hidden_ND = hidden_BTD.reshape(batch * frames, dim)
        self.labels_BL, self.scale_BT = labels_BL, scale_BT
        self.own_NL = scores_BTL.reshape(batch * frames, labels_BL.shape[1])
        self.gamma_NL = gamma_BTL.view(self.own_NL.shape) if gamma_BTL.numel() else None
        self.exact = torch.promote_types(hidden_BTD.dtype, torch.float32)
        # A CPU multiplies in half precision far more slowly than in full.
        self.dtype = self.exact if self.device.type == "cpu" else hidden_BTD.dtype

    def run(
        self, weight_VD: Tensor, bias_V: Tensor | None, *, to_hidden: bool, to_layer: bool
    ) -> tuple[Tensor, Gradients]:
        """Log-sum-exp of each frame, 0 where it was not taken, (B, T), and the gradients."""
        (batch, frames, dim), vocab = self.shape, len(weight_VD)
        weight_VD = weight_VD.to(self.dtype)
        bias_V = weight_VD.new_zeros(vocab) if bias_V is None else bias_V.to(self.dtype)
        step = chunk_rows(vocab, self.device)
        scores = weight_VD.new_empty((step, vocab))
        hidden = weight_VD.new_zeros((step, dim))
        lse_N = torch.zeros(batch * frames, dtype=self.exact, device=self.device)
        to_hidden, to_layer = to_hidden and self.scale_BT is not None, to_layer and self.scale_BT is not None
        grad_ND = lse_N.new_zeros((batch * frames, dim) if to_hidden else (0,))
        grad_VD = lse_N.new_zeros((vocab, dim) if to_layer else (0,))
        grad_V = lse_N.new_zeros(grad_VD.shape[:1])
        for rows_M in self.rows_N.split(step):
            taken = len(rows_M)
            hidden[:taken] = self.hidden_ND[rows_M]
            hidden[taken:] = 0.0
            torch.addmm(bias_V, hidden, weight_VD.T, out=scores)
            lse_N[rows_M] = self._softmax_less_gamma(scores[:taken], rows_M)
            if self.scale_BT is not None:
                scores[taken:] = 0.0
            if to_hidden:
                grad_ND[rows_M] = (scores @ weight_VD)[:taken].to(self.exact)
            if to_layer:
                grad_V += scores.sum(0, dtype=self.exact)
                if self.dtype == self.exact:
                    grad_VD.addmm_(scores.T, hidden)
                else:
                    grad_VD += scores.T @ hidden
        return lse_N.view(batch, frames), Gradients(grad_ND.view(batch, frames, dim) if to_hidden else grad_ND, grad_VD, grad_V)

    def _softmax_less_gamma(self, scores_MV: Tensor, rows_M: Tensor) -> Tensor:
        """Puts the gradient by the scores in their place, if one is wanted; gives their log-sum-exp, (M,)."""
        batch_M = rows_M // self.shape[1]
        if self.backend == "triton":
            from speechkit.kernels.linear_ctc_loss import triton_impl

            if self.scale_BT is None or self.gamma_NL is None:
                return triton_impl.softmax_less_gamma(scores_MV, None, None, None, None)
            own_ML, gamma_ML, scale_M = self.own_NL[rows_M], self.gamma_NL[rows_M], self.scale_BT.view(-1)[rows_M]
            return triton_impl.softmax_less_gamma(scores_MV, self.labels_BL[batch_M], own_ML, gamma_ML, scale_M)
        high_M1 = scores_MV.amax(dim=1, keepdim=True)
        total_M1 = scores_MV.sub_(high_M1).exp_().sum(dim=1, keepdim=True)
        if self.scale_BT is not None and self.gamma_NL is not None:
            scale_M1 = self.scale_BT.view(-1, 1)[rows_M]
            scores_MV.mul_(scale_M1 / total_M1)
            scores_MV.scatter_add_(1, self.labels_BL[batch_M], -self.gamma_NL[rows_M] * scale_M1)
        return (high_M1 + total_M1.log())[:, 0]

"""CTC without a (B, T, V) tensor of log-probabilities, in torch: what the CPU runs.

The recursions only see the columns of a row's own labels; the softmax over V is taken a block of frames at a time.

Shape legend: B batch, T frames, N = B T frames of all rows, U tokens, L = U + 1 labels (blank, then tokens), V vocab.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.kernels.ctc_loss import scaled

BLOCK_NUMEL = 1 << 20  # scores in a block: a few MB, which stay in the cache


class Posteriors(NamedTuple):
    """What the recursions say of each row.

    Attributes:
        nll_B: -log p, inf where infeasible, shape (B,).
        gamma_BTL: probability of being at each label, to be added up over equal tokens; 0 in padding and in infeasible
            rows, shape (B, T, L).
    """

    nll_B: Tensor
    gamma_BTL: Tensor


def label_columns(targets_BU: Tensor, target_lens_B: Tensor, blank: int) -> Tensor:
    """Columns of V that a row needs: the blank, then its tokens, the blank again past its length; shape (B, L)."""
    inside_BU = torch.arange(targets_BU.shape[1], device=targets_BU.device) < target_lens_B[:, None]
    return F.pad(targets_BU.masked_fill(~inside_BU, blank), (1, 0), value=blank)


def first_occurrences(labels_BL: Tensor) -> Tensor:
    """Where each label occurs first in its row, int64, shape (B, L)."""
    ordered_BL, places_BL = labels_BL.sort(dim=1, stable=True)
    opens_BL = F.pad(ordered_BL[:, 1:] != ordered_BL[:, :-1], (1, 0), value=True)
    indices_L = torch.arange(labels_BL.shape[1], device=labels_BL.device)
    group_BL = torch.where(opens_BL, indices_L, 0).cummax(dim=1).values  # of the run of equal labels, its first place
    return torch.empty_like(places_BL).scatter_(1, places_BL, places_BL.gather(1, group_BL))


def posteriors(
    emit_BTL: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int, *, wanted: bool
) -> Posteriors:
    """Runs alpha and, if posteriors are wanted, beta, over the labels of each row, in fp64: log p of a long recording leaves
    few digits of fp32 to tell paths apart by, and there are few numbers.

    Args:
        emit_BTL: log-probabilities of `label_columns`, fp32 or fp64, shape (B, T, L).
        lens_B: valid frames of each row, shape (B,).
        targets_BU: token ids, shape (B, U).
        target_lens_B: valid tokens of each row, shape (B,).
        blank: id of the blank.
        wanted: whether gamma is; it is empty otherwise.
    """
    batch, frames, _ = emit_BTL.shape
    if not batch or not frames:
        nll_B = torch.where(target_lens_B == 0, 0.0, torch.inf).to(emit_BTL.dtype)
        return Posteriors(nll_B, torch.zeros_like(emit_BTL) if wanted else emit_BTL.new_empty(0))
    if emit_BTL.device.type != "cpu":
        nll_B, gamma_BTL = _in_logarithms(emit_BTL, lens_B, targets_BU, target_lens_B, blank, wanted)
    else:
        nll_B, gamma_BTL = _in_probabilities(emit_BTL, lens_B, targets_BU, target_lens_B, blank, wanted)
    return Posteriors(nll_B.to(emit_BTL.dtype), gamma_BTL.to(emit_BTL.dtype))


def _in_probabilities(
    emit_BTL: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int, wanted: bool
) -> tuple[Tensor, Tensor]:
    """By `scaled`, and in logarithms where that is not sure; fp64."""
    emit_TLB = emit_BTL.permute(1, 2, 0).to(torch.float64, memory_format=torch.contiguous_format, copy=True)
    columns = (x.numpy() for x in (lens_B, targets_BU.T, target_lens_B))
    nll, gamma, sure = scaled.run(emit_TLB.numpy(), *columns, wanted=wanted)
    nll_B, sure_B = torch.from_numpy(nll), torch.from_numpy(sure)
    gamma_BTL = emit_BTL.new_empty(0) if gamma is None else torch.from_numpy(gamma).permute(2, 0, 1).contiguous()
    rows_R = (~sure_B).nonzero()[:, 0]
    if len(rows_R):
        lengths = lens_B[rows_R], targets_BU[rows_R], target_lens_B[rows_R]
        nll_B[rows_R], found = _in_logarithms(emit_BTL[rows_R], *lengths, blank, wanted)
        if wanted:
            gamma_BTL[rows_R] = found
    return nll_B, gamma_BTL


def _in_logarithms(
    emit_BTL: Tensor, lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int, wanted: bool
) -> tuple[Tensor, Tensor]:
    """By torch's alpha and beta over an alphabet of L: the blank, and each token at its first occurrence; fp64."""
    batch, frames, num_labels = emit_BTL.shape
    firsts_BL = first_occurrences(label_columns(targets_BU, target_lens_B, blank))
    names_BU = firsts_BL[:, 1:] if num_labels > 1 else firsts_BL.new_ones(batch, 1)  # torch asks for a column at least
    emit_TBL = emit_BTL.transpose(0, 1).double().contiguous()
    arguments = (names_BU.contiguous(), lens_B, target_lens_B)
    nll_B, alpha = torch.ops.aten._ctc_loss.Tensor(emit_TBL, *arguments, 0, False)
    if not wanted:
        return nll_B, emit_BTL.new_empty(0)
    to_emit_TBL = torch.ops.aten._ctc_loss_backward.Tensor(
        torch.ones_like(nll_B), emit_TBL, *arguments, nll_B, alpha, 0, True
    )
    gamma_BTL = emit_TBL.exp_().sub_(to_emit_TBL).transpose(0, 1)  # torch gives the softmax less gamma
    indices_L = torch.arange(num_labels, device=emit_BTL.device)
    used_BL = (indices_L <= target_lens_B[:, None]) & (firsts_BL == indices_L)
    valid_BT = (torch.arange(frames, device=emit_BTL.device) < lens_B[:, None]) & nll_B.isfinite()[:, None]
    return nll_B, gamma_BTL.masked_fill(~(valid_BT[..., None] & used_BL[:, None]), 0.0)


def blocks(num_rows: int, width: int, numel: int = BLOCK_NUMEL) -> Iterator[slice]:
    """Runs of rows of so many numbers that hold about `numel` together."""
    step = max(1, numel // max(width, 1))
    for begin in range(0, num_rows, step):
        yield slice(begin, min(begin + step, num_rows))


def forward(
    logits_BTV: Tensor, logit_lens_B: Tensor, targets_BU: Tensor, target_lens_B: Tensor, blank: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p (B,), log-sum-exp of each frame (B, T) with inf where nothing flows back, and gamma (B, T, L)."""
    batch, frames, vocab = logits_BTV.shape
    dtype = torch.promote_types(logits_BTV.dtype, torch.float32)
    labels_BL = label_columns(targets_BU, target_lens_B, blank)
    emit_BTL = logits_BTV.gather(2, labels_BL[:, None].expand(-1, frames, -1)).to(dtype)
    rows_NV = logits_BTV.reshape(-1, vocab)
    lse_N = torch.empty(len(rows_NV), dtype=dtype, device=logits_BTV.device)
    for block in blocks(len(rows_NV), vocab):
        lse_N[block] = rows_NV[block].to(dtype).logsumexp(dim=-1)
    lse_BT = lse_N.view(batch, frames)
    found = posteriors(emit_BTL - lse_BT[..., None], logit_lens_B, targets_BU, target_lens_B, blank, wanted=wanted)
    return found.nll_B, without_gradient(lse_BT, logit_lens_B, found.nll_B), found.gamma_BTL


def without_gradient(lse_BT: Tensor, lens_B: Tensor, nll_B: Tensor) -> Tensor:
    """inf in place of a log-sum-exp makes a softmax of zeros: in padding and in infeasible rows."""
    valid_BT = torch.arange(lse_BT.shape[1], device=lse_BT.device) < lens_B[:, None]
    return lse_BT.masked_fill(~valid_BT | (nll_B == torch.inf)[:, None], torch.inf)


def backward(grad_B: Tensor, logits_BTV: Tensor, lse_BT: Tensor, gamma_BTL: Tensor, labels_BL: Tensor) -> Tensor:
    """Gradient by the scores, (softmax - gamma) times that of the loss, in their dtype, shape (B, T, V)."""
    batch, frames, vocab = logits_BTV.shape
    rows_NV, lse_N1, scale_N1 = logits_BTV.reshape(-1, vocab), lse_BT.reshape(-1, 1), grad_B.repeat_interleave(frames)[:, None]
    labels_NL = labels_BL[:, None].expand(-1, frames, -1).reshape(batch * frames, labels_BL.shape[1])
    gamma_NL = gamma_BTL.view(labels_NL.shape)
    out_NV = torch.empty(rows_NV.shape, dtype=logits_BTV.dtype, device=logits_BTV.device)
    for block in blocks(len(rows_NV), vocab):
        part = torch.sub(rows_NV[block], lse_N1[block], out=out_NV[block] if out_NV.dtype == lse_BT.dtype else None)
        part.exp_().scatter_add_(1, labels_NL[block], -gamma_NL[block]).mul_(scale_N1[block])
        if part.dtype != out_NV.dtype:
            out_NV[block] = part
    return out_NV.view(batch, frames, vocab)

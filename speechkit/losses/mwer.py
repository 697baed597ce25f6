"""Minimum word error rate training without a search, for models that label all positions at once.

Candidates are the best tokens of all positions, with the runner-up at some positions drawn at random: negative sampling, Gao et
al. 2022, "Paraformer", section 3.4; the loss is that of Prabhavalkar et al. 2018, "Minimum word error rate training for
attention-based sequence-to-sequence models", equation 5. Errors are counted in tokens.

Shape legend: B batch, N candidates, U tokens, V vocab.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.losses.glancing import random_positions


def mwer_loss(
    logits_BUV: Tensor,
    tokens_BU: Tensor,
    token_lens_B: Tensor,
    *,
    num_candidates: int = 4,
    flip_ratio: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Expected token errors over sampled candidates, less their mean.

    sum over i of p_i (errors_i - mean errors), where p is the softmax over the candidates of their log-probabilities.

    Args:
        logits_BUV: scores before the softmax, shape (B, U, V) with V >= 2.
        tokens_BU: targets, int64, shape (B, U); a row's candidates have as many tokens as its target.
        token_lens_B: valid tokens of each row, int64, shape (B,).
        num_candidates: N, at least 2; the first one is the best token everywhere.
        flip_ratio: share of the positions at which another candidate takes the runner-up; at least one.
        generator: random numbers; None for torch's default generator.

    Returns:
        fp32, shape (B,), 0 for rows without tokens. Rows are independent of each other given the random numbers.
    """
    log_probs_BUV = F.log_softmax(logits_BUV.float(), dim=-1)
    candidates_BNU = sample_candidates(
        log_probs_BUV, token_lens_B, num_candidates=num_candidates, flip_ratio=flip_ratio, generator=generator
    )
    lens_BN = token_lens_B[:, None].expand(-1, num_candidates)
    refs_BNU = tokens_BU[:, None].expand_as(candidates_BNU)
    errors_BN = edit_distances(
        candidates_BNU.flatten(0, 1), lens_BN.flatten(), refs_BNU.flatten(0, 1), lens_BN.flatten()
    ).view_as(lens_BN)
    valid_BU = torch.arange(tokens_BU.shape[1], device=tokens_BU.device) < token_lens_B[:, None]
    scores_BUN = log_probs_BUV.gather(2, candidates_BNU.transpose(1, 2)).masked_fill(~valid_BU[..., None], 0.0)
    posterior_BN = scores_BUN.sum(1).softmax(dim=1)
    errors_BN = errors_BN.float()
    return (posterior_BN * (errors_BN - errors_BN.mean(1, keepdim=True))).sum(1)


def sample_candidates(
    log_probs_BUV: Tensor,
    token_lens_B: Tensor,
    *,
    num_candidates: int,
    flip_ratio: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Candidates as `mwer_loss` describes them, int64, shape (B, N, U); anything past each length."""
    best_BU2 = log_probs_BUV.detach().topk(2, dim=2).indices
    shape_BNU = (len(token_lens_B), num_candidates, log_probs_BUV.shape[1])
    valid_BU = torch.arange(shape_BNU[2], device=token_lens_B.device) < token_lens_B[:, None]
    counts_B = torch.maximum((token_lens_B.double() * flip_ratio + 1e-9).floor().long(), token_lens_B.clamp(max=1))
    counts_BN = counts_B[:, None].repeat(1, num_candidates)
    counts_BN[:, 0] = 0
    valid_BNU = valid_BU[:, None].expand(shape_BNU)
    flips_BNU = random_positions(valid_BNU.flatten(0, 1), counts_BN.flatten(), generator=generator).view(shape_BNU)
    return torch.where(flips_BNU, best_BU2[:, None, :, 1], best_BU2[:, None, :, 0])


def edit_distances(hyps_BU: Tensor, hyp_lens_B: Tensor, refs_BU: Tensor, ref_lens_B: Tensor) -> Tensor:
    """Substitutions, insertions and deletions between pairs of sequences, all pairs at once.

    Levenshtein's table, one row per hypothesis token: within a row, insertions are a running minimum.

    Args:
        hyps_BU: token ids, anything past each length, int64, shape (B, U).
        hyp_lens_B: valid tokens, int64, shape (B,).
        refs_BU: token ids, int64, shape (B, R).
        ref_lens_B: valid tokens, int64, shape (B,).

    Returns:
        int64, shape (B,).
    """
    columns_R = torch.arange(refs_BU.shape[1] + 1, device=refs_BU.device)
    row_BR = columns_R.expand(len(refs_BU), -1)
    for i in range(hyps_BU.shape[1]):
        substitute_BR = row_BR[:, :-1] + (hyps_BU[:, i : i + 1] != refs_BU)
        above_BR = row_BR + 1
        best_BR = torch.cat((above_BR[:, :1], torch.minimum(above_BR[:, 1:], substitute_BR)), dim=1)
        best_BR = (best_BR - columns_R).cummin(dim=1).values + columns_R
        row_BR = torch.where((i < hyp_lens_B)[:, None], best_BR, row_BR)
    return row_BR.gather(1, ref_lens_B[:, None]).squeeze(1)

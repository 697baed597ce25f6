"""Viterbi over transcripts widened by blanks, compiled for the CPU: one utterance after the other, one pass over its frames.

States are kept as pairs, blank i and the token i after it, so that one shift by one serves all moves: blank i is reached from
itself or from token i - 1; token i from itself, from blank i, or from token i - 1. The moves of a pair take one byte: bit 0,
the blank came from token i - 1; bits 1 and 2, the token came from blank i (1) or from token i - 1 (2).

Log-probabilities of fp32 are read where they lie, U + 1 of V per frame; others are gathered first.

Shape legend: B batch, T frames, U tokens, L = U + 1 labels (blank, then tokens), V vocab.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from speechkit.kernels.compiled import compiled, over_rows
from speechkit.kernels.ctc_align.reference import Paths, check_values, gather_labels

NEVER = np.float32(-np.inf)


def align(log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, blank: int) -> Paths:
    """As `reference.align`, bit for bit."""
    device = log_probs_BTV.device
    check_values(log_probs_BTV, lens_B, tokens_BU, token_lens_B)
    lens_B, tokens_BU, token_lens_B = lens_B.cpu(), tokens_BU.cpu(), token_lens_B.cpu()
    batch, num_frames = log_probs_BTV.shape[:2]
    tokens = tokens_BU.numpy()
    columns = np.concatenate((np.full((batch, 1), blank), tokens), axis=1)
    if log_probs_BTV.dtype != torch.float32 or device.type != "cpu":
        labels_BL = torch.from_numpy(columns).masked_fill(torch.arange(columns.shape[1]) > token_lens_B[:, None], blank)
        log_probs_BTV = gather_labels(log_probs_BTV, labels_BL.to(device)).float().cpu()
        columns = np.broadcast_to(np.arange(columns.shape[1]), columns.shape).copy()
    labels_BT = torch.full((batch, num_frames), blank)
    index_BT = torch.full((batch, num_frames), -1)
    spikes_BU = torch.full(tokens_BU.shape, -1)
    scores_B = torch.empty(batch)
    lens, token_lens = lens_B.numpy(), token_lens_B.numpy()
    results = [x.numpy() for x in (labels_BT, index_BT, spikes_BU, scores_B)]
    over_rows(_align_rows, lens * (token_lens + 1), log_probs_BTV.numpy(), columns, tokens, lens, token_lens, *results)
    return Paths(*(x.to(device) for x in (labels_BT, index_BT, spikes_BU, scores_B)))


@compiled(
    "void(int64[::1], float32[:,:,:], int64[:,:], int64[:,:], int64[:], int64[:],"
    " int64[:,::1], int64[:,::1], int64[:,::1], float32[::1])"
)
def _align_rows(
    rows_R: np.ndarray,
    log_probs_BTV: np.ndarray,
    columns_BL: np.ndarray,
    tokens_BU: np.ndarray,
    lens_B: np.ndarray,
    token_lens_B: np.ndarray,
    labels_BT: np.ndarray,
    index_BT: np.ndarray,
    spikes_BU: np.ndarray,
    scores_B: np.ndarray,
) -> None:
    """Aligns the rows listed; labels, index and spikes hold what infeasible rows get."""
    for row in rows_R:
        num_frames, num_tokens = lens_B[row], token_lens_B[row]
        width = num_tokens + 1
        columns = columns_BL[row, :width].copy()
        penalty = np.full(width, NEVER, dtype=np.float32)
        for i in range(1, num_tokens):
            if tokens_BU[row, i] != tokens_BU[row, i - 1]:
                penalty[i] = 0.0
        blanks = np.full(width, NEVER, dtype=np.float32)
        blanks[0] = 0.0  # stands for an utterance without frames
        tokens = np.full(width + 1, NEVER, dtype=np.float32)  # token i at place i + 1; place 0 stays empty
        onward = np.full(width + 1, NEVER, dtype=np.float32)
        emit = np.full(width, NEVER, dtype=np.float32)
        moves = np.empty((num_frames, width), dtype=np.uint8)
        for t in range(num_frames):
            frame = log_probs_BTV[row, t]
            for i in range(num_tokens):
                emit[i] = frame[columns[i + 1]]
            silence = frame[columns[0]]
            codes = moves[t]
            for i in range(width if t else 1):  # none but the first pair can begin
                before, rest, own = tokens[i], blanks[i], tokens[i + 1]
                jump = before + penalty[i]
                best = own if own >= rest or own != own else rest  # nan wins, as in numpy.maximum
                code = np.uint8(before > rest) | np.uint8(2) * np.uint8(rest > own)
                codes[i] = (code & np.uint8(1)) | np.uint8(4) if jump > best else code
                best = best if best >= jump or best != best else jump
                blanks[i] = (rest if rest >= before or rest != rest else before) + silence
                onward[i + 1] = best + emit[i]
            tokens, onward = onward, tokens
        in_token = tokens[num_tokens] > blanks[num_tokens]
        scores_B[row] = tokens[num_tokens] if in_token else blanks[num_tokens]
        if not scores_B[row] > NEVER:
            continue
        place = num_tokens - 1 if in_token else num_tokens
        for back in range(num_frames):
            t = num_frames - 1 - back
            code = moves[t, place]
            if in_token:
                labels_BT[row, t], index_BT[row, t] = tokens_BU[row, place], place
                move = code >> np.uint8(1)
                if move:
                    spikes_BU[row, place] = t
                    in_token = move == 2
                    place -= in_token
            elif code & np.uint8(1):
                in_token = True
                place -= 1

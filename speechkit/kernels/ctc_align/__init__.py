"""CTC alignment: the best path of frame labels that spells a given transcript (Viterbi).

Source: Graves et al. 2006, "Connectionist Temporal Classification", section 4.1, with max in place of sum.

The transcript is widened by blanks to S = 2U + 1 states, blank, token, blank, token, ..., blank; a path stays in its state,
steps to the next, or leaps over a blank between unequal tokens.

Shape legend: B batch, T frames, U tokens, S states, V vocab.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.kernels import dispatch
from speechkit.kernels.compiled import pays_to_start
from speechkit.kernels.ctc_align import reference
from speechkit.kernels.operator import operator

BACKENDS = ("numba", "reference", "triton")
SECONDS_OF_A_FRAME = 2e-5  # of the reference, besides what follows
SECONDS_OF_A_CELL = 4e-9
MAX_TRITON_TOKENS = 2047  # what one program holds in registers


class CtcAlignment(NamedTuple):
    """The best path of each utterance, on the device of the log-probabilities.

    Attributes:
        labels_BT: label of each frame, int64; blank past a row's length and in infeasible rows, shape (B, T).
        token_index_BT: which token of the transcript a frame belongs to, int64; -1 on blanks, past a row's length and in
            infeasible rows, shape (B, T).
        spikes_BU: first frame of each token, int64; -1 past a row's tokens and in infeasible rows, shape (B, U).
        scores_B: log-probability of the path, blanks included, fp32; -inf in infeasible rows (nan where nan was met), shape (B,).
        feasible_B: whether any path of non-zero probability spells the transcript, bool, shape (B,).
    """

    labels_BT: Tensor
    token_index_BT: Tensor
    spikes_BU: Tensor
    scores_B: Tensor
    feasible_B: Tensor


@torch.no_grad()
def ctc_viterbi(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    tokens_BU: Tensor,
    token_lens_B: Tensor,
    *,
    blank: int = 0,
    backend: str = "auto",
) -> CtcAlignment:
    """Aligns the transcripts of a batch to its frames; has no gradient.

    Computed in fp32, also under autocast. A row's result is the same, bit for bit, whatever its padding, its batch mates and
    the backend. Between paths of equal score the one that stays longest in its states is taken: going back from the last
    frame, from the last blank rather than the last token, each state is held for as long as the scores allow, and left for
    the next state rather than over a blank.

    On a GPU nothing waits for the device, and a transcript that holds an id outside the vocabulary is infeasible.

    Args:
        log_probs_BTV: frame log-probabilities, any float dtype and device, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        tokens_BU: transcripts as token ids without the blank, int64, shape (B, U); what lies past a length is not read.
        token_lens_B: valid tokens of each row, int64, shape (B,).
        blank: id of the blank.
        backend: "reference" (numpy), "numba", "triton", or "auto": Triton on a GPU, numba elsewhere once there is more work
            than starting it takes, numpy until then and where numba is not installed.

    Returns:
        paths, spikes, scores, feasibility.

    Raises:
        ValueError: shapes do not fit together, the blank is outside the vocabulary; on a CPU also a length or an id out of
            range. The backend is unknown or cannot run here; Triton is asked for with more than 2047 tokens.
    """
    _check(log_probs_BTV, lens_B, tokens_BU, token_lens_B, blank)
    device = log_probs_BTV.device
    chosen = _choose(backend, device, tokens_BU.shape[1])
    lens_B, tokens_BU, token_lens_B = (x.to(device, torch.int64) for x in (lens_B, tokens_BU, token_lens_B))
    labels_BT, index_BT, spikes_BU, scores_B = _align(
        log_probs_BTV.detach(), lens_B, tokens_BU, token_lens_B, blank, chosen
    )
    return CtcAlignment(labels_BT, index_BT, spikes_BU, scores_B, scores_B > -torch.inf)


def _choose(backend: str, device: torch.device, num_tokens: int) -> str:
    """The implementation; "cpu" leaves it open which of those for the CPU."""
    chosen = dispatch.choose("ctc_align", backend, device, BACKENDS)
    if chosen == "triton" and num_tokens > MAX_TRITON_TOKENS:
        if backend == "triton":
            raise ValueError(f"tokens has {num_tokens} columns; Triton takes up to {MAX_TRITON_TOKENS}; set backend to auto")
        dispatch.warn_slow("ctc_align", f"transcripts of {num_tokens} tokens; the kernel takes {MAX_TRITON_TOKENS}")
        return "cpu"
    return chosen if chosen == "triton" or dispatch.asked_for(backend, BACKENDS) else "cpu"


@operator("ctc_align")
def _align(
    log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, blank: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.align` by an implementation named."""
    if backend == "triton":
        from speechkit.kernels.ctc_align import triton_impl

        return triton_impl.align(log_probs_BTV, lens_B, tokens_BU, token_lens_B, blank)
    if backend == "cpu":
        cells_of_a_frame = len(tokens_BU) * (2 * tokens_BU.shape[1] + 1)
        seconds = log_probs_BTV.shape[1] * (SECONDS_OF_A_FRAME + cells_of_a_frame * SECONDS_OF_A_CELL)
        backend = "numba" if dispatch.HAS_NUMBA and pays_to_start(seconds) else "reference"
    if backend == "numba":
        from speechkit.kernels.ctc_align import numba_impl

        return numba_impl.align(log_probs_BTV, lens_B, tokens_BU, token_lens_B, blank)
    return reference.align(log_probs_BTV, lens_B, tokens_BU, token_lens_B, blank)


@_align.register_fake
def _(
    log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, blank: int, backend: str
) -> reference.Paths:
    labels_BT = log_probs_BTV.new_empty(log_probs_BTV.shape[:2], dtype=torch.int64)
    scores_B = log_probs_BTV.new_empty(log_probs_BTV.shape[:1], dtype=torch.float32)
    return reference.Paths(labels_BT, torch.empty_like(labels_BT), tokens_BU.new_empty(tokens_BU.shape), scores_B)


def _check(log_probs_BTV: Tensor, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, blank: int) -> None:
    """Refuses what does not fit together."""
    if log_probs_BTV.ndim != 3 or not log_probs_BTV.is_floating_point():
        raise ValueError(
            f"log_probs has shape {tuple(log_probs_BTV.shape)} and dtype {log_probs_BTV.dtype}; give floats, (B, T, V)"
        )
    batch, _, vocab = log_probs_BTV.shape
    shapes = [tuple(x.shape) for x in (lens_B, tokens_BU, token_lens_B)]
    if tokens_BU.ndim != 2 or shapes != [(batch,), (batch, tokens_BU.shape[1]), (batch,)]:
        raise ValueError(
            f"lens, tokens and token_lens have shapes {shapes}; give ({batch},), ({batch}, U) and ({batch},) for "
            f"log_probs of shape {tuple(log_probs_BTV.shape)}"
        )
    if not 0 <= blank < vocab:
        raise ValueError(f"blank={blank} is not in the vocabulary; give an id from 0 to {vocab - 1}")


__all__ = ["CtcAlignment", "ctc_viterbi"]

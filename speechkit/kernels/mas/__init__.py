"""Monotonic alignment search: the best way to give each frame of speech one phone, in order, with no phone left out.

Source: Kim et al. 2020, "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search", section 3.2,
algorithm 1::

    Q[t, p] = ll[t, p] + max(Q[t-1, p], Q[t-1, p-1])        from Q[0, 0] = ll[0, 0] to Q[T-1, P-1]

Frames come first and phones last: a step takes one frame, and all phones of it lie side by side.

Shape legend: B batch, T frames, P phones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.kernels import dispatch
from speechkit.kernels.compiled import pays_to_start
from speechkit.kernels.mas import reference
from speechkit.kernels.operator import operator

BACKENDS = ("numba", "reference", "triton")
SECONDS_OF_A_FRAME = 2.5e-5  # of the reference, besides what follows
SECONDS_OF_A_CELL = 1.5e-9
MAX_TRITON_PHONES = 2048  # what one program holds in registers


class MasOutput(NamedTuple):
    """The best path of each utterance, on the device of the likelihoods.

    Attributes:
        durations_BP: frames of each phone, int64, at least 1; 0 past a row's phones and in infeasible rows, shape (B, P).
        frame_phone_BT: which phone each frame belongs to, int64; -1 past a row's frames and in infeasible rows, shape (B, T).
        scores_B: sum of the log-likelihoods along the path, fp32; -inf in infeasible rows (nan where nan was met), shape (B,).
        feasible_B: whether there is a path of non-zero likelihood, bool, shape (B,). A row without frames and phones has one.
    """

    durations_BP: Tensor
    frame_phone_BT: Tensor
    scores_B: Tensor
    feasible_B: Tensor


@torch.no_grad()
def mas(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor, *, backend: str = "auto") -> MasOutput:
    """Aligns the phones of a batch to its frames; has no gradient.

    Computed in fp32, also under autocast. A row's result is the same, bit for bit, whatever its padding, its batch mates and
    the backend. Between paths of equal score, going back from the last frame, the one that stays in its phone is taken: of
    all best paths the one whose last phone is longest, among these the one whose last but one is longest, and so on.

    On a GPU nothing waits for the device.

    Args:
        log_likelihood_BTP: of each frame under each phone, priors added, any float dtype and device, shape (B, T, P). Cells
            past a row's lengths are not read, nor those that no path can pass.
        frame_lens_B: valid frames of each row, int64, shape (B,).
        phone_lens_B: valid phones of each row, int64, shape (B,); rows of fewer frames are infeasible.
        backend: "reference" (numpy), "numba", "triton", or "auto": Triton on a GPU, numba elsewhere once there is more work
            than starting it takes, numpy until then and where numba is not installed.

    Returns:
        durations, the phone of each frame, scores, feasibility.

    Raises:
        ValueError: shapes do not fit together; on a CPU also a length out of range. The backend is unknown or cannot run
            here; Triton is asked for with more than 2048 phones.
    """
    _check(log_likelihood_BTP, frame_lens_B, phone_lens_B)
    device = log_likelihood_BTP.device
    chosen = _choose(backend, device, log_likelihood_BTP.shape[2])
    frame_lens_B, phone_lens_B = (x.to(device, torch.int64) for x in (frame_lens_B, phone_lens_B))
    durations_BP, frame_phone_BT, scores_B = _align(
        log_likelihood_BTP.detach(), frame_lens_B, phone_lens_B, chosen
    )
    return MasOutput(durations_BP, frame_phone_BT, scores_B, scores_B > -torch.inf)


def _choose(backend: str, device: torch.device, num_phones: int) -> str:
    """The implementation; "cpu" leaves it open which of those for the CPU."""
    chosen = dispatch.choose("mas", backend, device, BACKENDS)
    if chosen == "triton" and num_phones > MAX_TRITON_PHONES:
        if backend == "triton":
            raise ValueError(
                f"log_likelihood has {num_phones} columns; Triton takes up to {MAX_TRITON_PHONES}; set backend to auto"
            )
        dispatch.warn_slow("mas", f"{num_phones} phones; the kernel takes {MAX_TRITON_PHONES}")
        return "cpu"
    return chosen if chosen == "triton" or dispatch.asked_for(backend, BACKENDS) else "cpu"


@operator("mas")
def _align(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.align` by an implementation named."""
    if backend == "triton":
        from speechkit.kernels.mas import triton_impl

        return triton_impl.align(log_likelihood_BTP, frame_lens_B, phone_lens_B)
    if backend == "cpu":
        batch, num_frames, num_phones = log_likelihood_BTP.shape
        seconds = num_frames * (SECONDS_OF_A_FRAME + batch * num_phones * SECONDS_OF_A_CELL)
        backend = "numba" if dispatch.HAS_NUMBA and pays_to_start(seconds) else "reference"
    if backend == "numba":
        from speechkit.kernels.mas import numba_impl

        return numba_impl.align(log_likelihood_BTP, frame_lens_B, phone_lens_B)
    return reference.align(log_likelihood_BTP, frame_lens_B, phone_lens_B)


@_align.register_fake
def _(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor, backend: str) -> reference.Paths:
    batch, num_frames, num_phones = log_likelihood_BTP.shape
    scores_B = log_likelihood_BTP.new_empty(batch, dtype=torch.float32)
    return reference.Paths(frame_lens_B.new_empty(batch, num_phones), frame_lens_B.new_empty(batch, num_frames), scores_B)


def _check(log_likelihood_BTP: Tensor, frame_lens_B: Tensor, phone_lens_B: Tensor) -> None:
    """Refuses what does not fit together."""
    shape = tuple(log_likelihood_BTP.shape)
    if len(shape) != 3 or not log_likelihood_BTP.is_floating_point():
        raise ValueError(f"log_likelihood has shape {shape} and dtype {log_likelihood_BTP.dtype}; give floats, (B, T, P)")
    shapes = [tuple(x.shape) for x in (frame_lens_B, phone_lens_B)]
    if shapes != [shape[:1], shape[:1]]:
        raise ValueError(
            f"frame_lens and phone_lens have shapes {shapes}; give ({shape[0]},) twice for log_likelihood of shape {shape}"
        )


__all__ = ["MasOutput", "mas"]

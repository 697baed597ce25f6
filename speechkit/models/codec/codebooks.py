"""What becomes of codebooks in training: how often codes are used, and new places for those that are not.

Shape legend: B batch, T frames, D channels, Q codebooks, K codes of each, N valid frames of a batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechkit.nn.masks import valid_mask
from speechkit.nn.quantizers import code_counts, code_usage


class CodebookCare(nn.Module):
    """Counts codes, and every so many steps revives those that were not used since (`VectorQuantizer.revive`).

    A step here is a batch of training; the optimiser's are fewer where gradients of several batches are accumulated.

    Before the first step none has been used: all begin at frames of the first batch.

    All that it will do is decided by its buffers and the frames it is shown: frames are drawn by a generator that is made anew of
    the seed and the step, so that a resumed training revives what the interrupted one would have. With several ranks counts are
    summed and the frames are those of the first, so that codebooks stay equal; every rank has to take part in every step.

    Args:
        num_codebooks: Q.
        num_codes: K.
        every: steps between revivals; 0 revives nothing, codes begin where they are, and counts go back to the first step.
        seed: of the frames that are drawn.

    Attributes:
        num_steps: that were counted, int64 buffer, scalar.
        counts_QK: since the last revival, of all ranks, int64 buffer, shape (Q, K).
        before_QK: between that one and the one before, likewise.

    Raises:
        ValueError: `every` is negative.
    """

    num_steps: Tensor
    counts_QK: Tensor
    before_QK: Tensor

    def __init__(self, *, num_codebooks: int, num_codes: int, every: int, seed: int = 0) -> None:
        super().__init__()
        if every < 0:
            raise ValueError(f"revive_every={every} must be a number of batches, or 0 to revive nothing")
        self.every, self.seed = every, seed
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("counts_QK", torch.zeros(num_codebooks, num_codes, dtype=torch.int64))
        self.register_buffer("before_QK", torch.zeros(num_codebooks, num_codes, dtype=torch.int64))

    @torch.no_grad()
    def revive(self, quantizer: nn.Module, z_BTD: Tensor, lens_B: Tensor) -> None:
        """Revives codes if it is time to; before the quantiser sees the frames of a step.

        Args:
            quantizer: whose codes they are; one without `revive` has none that could die.
            z_BTD: frames that it is about to see, shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).
        """
        step = int(self.num_steps)
        if self.every == 0 or step % self.every:
            return
        if hasattr(quantizer, "revive"):
            frames_ND = _first_ranks(z_BTD[valid_mask(lens_B, z_BTD.shape[1])])
            lens_1 = torch.tensor([len(frames_ND)], device=lens_B.device)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            quantizer.revive(frames_ND[None], lens_1, self.counts_QK, max_idle=1, generator=generator)  # type: ignore[operator]
        self.before_QK.copy_(self.counts_QK)
        self.counts_QK.zero_()

    @torch.no_grad()
    def count(self, indices_BTQ: Tensor) -> None:
        """Counts the codes of a step."""
        counts_QK = code_counts(indices_BTQ, self.counts_QK.shape[1]).contiguous()
        if _num_ranks() > 1:
            dist.all_reduce(counts_QK)
        self.counts_QK += counts_QK
        self.num_steps += 1

    def parts(self) -> dict[str, Tensor]:
        """Usage and perplexity of each codebook since the last revival but one: "usage_1", "perplexity_1" and so on."""
        return usage_parts(self.counts_QK + self.before_QK)


def usage_parts(counts_QK: Tensor) -> dict[str, Tensor]:
    """Usage and perplexity of each codebook, by name, from `speechkit.nn.quantizers.code_counts`."""
    usage = code_usage(counts_QK)
    named = {"usage": usage.usage_Q, "perplexity": usage.perplexity_Q}
    return {f"{name}_{q}": value for name, values_Q in named.items() for q, value in enumerate(values_Q, start=1)}


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _first_ranks(frames_ND: Tensor) -> Tensor:
    """The frames of the first rank, on all."""
    if _num_ranks() == 1:
        return frames_ND
    size_1 = torch.tensor([len(frames_ND)], device=frames_ND.device)
    dist.broadcast(size_1, src=0)
    if dist.get_rank() != 0:
        frames_ND = frames_ND.new_empty(int(size_1), frames_ND.shape[1])
    frames_ND = frames_ND.contiguous()
    dist.broadcast(frames_ND, src=0)
    return frames_ND

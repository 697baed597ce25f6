"""A codebook of means: frames become the number of the nearest mean (k-means).

Sources: Lloyd 1982, "Least squares quantization in PCM"; Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful
Seeding", section 2.2.

Shape legend: B batch, T frames, D channels, K codes, N frames of a corpus.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechkit.nn.masks import valid_mask
from speechkit.nn.quantizers import Quantised

_CHUNK = 16384  # frames whose distances to all means are in memory at once


class KMeansQuantizer(nn.Module):
    """A quantiser like those of `speechkit.nn.quantizers`, whose codebook is measured rather than trained by gradients.

    Args:
        dim: D.
        num_codes: K.

    Attributes:
        means_KD: fp32 buffer, shape (K, D); zeros before `fit`.

    Raises:
        ValueError: a size is below 1.
    """

    means_KD: Tensor

    def __init__(self, *, dim: int, num_codes: int) -> None:
        super().__init__()
        if dim < 1 or num_codes < 1:
            raise ValueError(f"dim={dim} and num_codes={num_codes} must be at least 1")
        self.dim, self.num_codebooks, self.num_codes = dim, 1, num_codes
        self.register_buffer("means_KD", torch.zeros(num_codes, dim))

    def forward(self, z_BTD: Tensor, lens_B: Tensor) -> Quantised:
        """Quantises, in the dtype of the means, also under autocast.

        Args:
            z_BTD: frames, shape (B, T, D); what lies past a length is not read.
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            `Quantised` with Q = 1 and no losses; nothing in it has a gradient.
        """
        valid_BT = valid_mask(lens_B, z_BTD.shape[1])
        cleared_BTD = z_BTD.detach().to(self.means_KD.dtype).masked_fill(~valid_BT[..., None], 0.0)
        with torch.autocast(z_BTD.device.type, enabled=False):
            nearest_N, _ = _nearest(cleared_BTD.flatten(0, 1), self.means_KD)
        indices_BTQ = nearest_N.view(*valid_BT.shape, 1).masked_fill(~valid_BT[..., None], -1)
        nothing_B = self.means_KD.new_zeros(len(lens_B))
        return Quantised(self.decode(indices_BTQ), indices_BTQ, codebook_loss_B=nothing_B, commitment_loss_B=nothing_B)

    def decode(self, indices_BTQ: Tensor) -> Tensor:
        """Means of codes, shape (B, T, D), from indices of shape (B, T, 1); zeros for -1.

        Raises:
            ValueError: the last axis is not 1.
        """
        if indices_BTQ.shape[-1] != 1:
            raise ValueError(f"the last axis of {tuple(indices_BTQ.shape)} must be 1: there is one codebook")
        return self.means_KD[indices_BTQ[..., 0].clamp(min=0)].masked_fill(indices_BTQ < 0, 0.0)

    @torch.no_grad()
    def fit(self, frames_ND: Tensor, *, seed: int = 0, num_iterations: int = 100) -> float:
        """Finds the means of a corpus: k-means++ first, then Lloyd's steps until no frame changes its mean.

        Computed on the CPU, wherever the frames and the module are: the same frames and seed give the same means. A mean that no
        frame chooses moves to the frame farthest from its own.

        Args:
            frames_ND: shape (N, D).
            seed: of the first means.
            num_iterations: steps at most.

        Returns:
            mean squared distance of the frames to their means, summed over channels.

        Raises:
            ValueError: there are fewer different frames than codes, or one is not finite.
        """
        frames_ND = frames_ND.detach().float().cpu()
        if not bool(frames_ND.isfinite().all()):
            raise ValueError("frames hold values that are not finite: look for a diverged encoder or a broken recording")
        means_KD = _first_means(frames_ND, self.num_codes, torch.Generator().manual_seed(seed))
        assigned_N, squares_N = _nearest(frames_ND, means_KD)
        for _ in range(num_iterations):
            means_KD = _means(frames_ND, assigned_N, squares_N, self.num_codes)
            before_N = assigned_N
            assigned_N, squares_N = _nearest(frames_ND, means_KD)
            if torch.equal(assigned_N, before_N):
                break
        self.means_KD.copy_(means_KD)
        return float(squares_N.double().mean())


def _first_means(frames_ND: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Frames drawn one after the other, each with odds of its squared distance to those drawn before, shape (K, D)."""
    squares_N = torch.ones(len(frames_ND), dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(num_codes):
        odds_N = squares_N.cumsum(0)
        if not len(odds_N) or float(odds_N[-1]) == 0.0:
            raise ValueError(
                f"num_codes={num_codes}, but there are only {len(chosen)} different frames among {len(frames_ND)}: "
                "fit on more speech or take fewer codes"
            )
        point = torch.rand(1, generator=generator, dtype=torch.float64) * odds_N[-1]
        # Never past the last one whose odds are above 0, whatever the rounding.
        last = int(squares_N.nonzero()[-1])
        chosen.append(min(int(torch.searchsorted(odds_N, point, right=True)), last))
        distance_N = (frames_ND - frames_ND[chosen[-1]]).square().sum(1).double()
        squares_N = distance_N if len(chosen) == 1 else torch.minimum(squares_N, distance_N)
    return frames_ND[chosen]


def _means(frames_ND: Tensor, assigned_N: Tensor, squares_N: Tensor, num_codes: int) -> Tensor:
    """Mean of the frames of each code, summed in fp64, shape (K, D)."""
    sums_KD = torch.zeros(num_codes, frames_ND.shape[1], dtype=torch.float64).index_add_(0, assigned_N, frames_ND.double())
    counts_K = torch.bincount(assigned_N, minlength=num_codes)
    means_KD = (sums_KD / counts_K.clamp(min=1)[:, None]).float()
    empty_R = (counts_K == 0).nonzero()[:, 0]
    means_KD[empty_R] = frames_ND[squares_N.argsort(descending=True, stable=True)[: len(empty_R)]]
    return means_KD


def _nearest(frames_ND: Tensor, means_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest mean of each frame, and the squared distance to it, both of shape (N,)."""
    lengths_K = means_KD.square().sum(1)
    numbers, squares = [], []
    for part_MD in frames_ND.split(_CHUNK):
        scores_M, number_M = torch.addmm(lengths_K, part_MD, means_KD.T, alpha=-2.0).min(1)
        numbers.append(number_M)
        squares.append((scores_M + part_MD.square().sum(1)).clamp(min=0.0))
    return torch.cat(numbers), torch.cat(squares)

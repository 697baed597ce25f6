"""Quantisers: frames to codes and back, with gradients straight through (Bengio et al. 2013, section 4).

- VectorQuantizer: one learned codebook, looked up by cosine in a few dimensions.
- ResidualVectorQuantizer: several of them, each for what those before it left.
- FiniteScalarQuantizer: a fixed grid, nothing to collapse.
- ScalarQuantizer: each channel rounded by itself, for models of the continuous latent.

All are called with frames (B, T, D) and lengths and return `Quantised`; `decode` of its indices is its frames again, bit for bit.
Each has `dim` D, `num_codebooks` Q and `num_codes` K. The index -1 means "no code" and decodes to zeros: past a row's length, and
in the codebooks that quantiser dropout leaves out. Frames past a length are not read, and take part in no loss and no count.

Everything runs in the dtype of the weights, also under autocast: which code is nearest should not depend on it.

Shape legend: B batch, T frames, D channels, E channels of a code, Q codebooks, K codes of each, N valid frames of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask


class Quantised(NamedTuple):
    """Frames made of codes.

    Attributes:
        quantised_BTD: zero past each length, shape (B, T, D).
        indices_BTQ: code of each frame in each codebook, int64, -1 for none, shape (B, T, Q).
        codebook_loss_B: how far the codes are from the frames that chose them, whose gradient moves the codes: squared errors
            averaged over the channels of a code, summed over a row's frames and codebooks, shape (B,); 0 where none are learned.
        commitment_loss_B: the same number, whose gradient moves the frames; weighted 0.25 or less in the papers.
    """

    quantised_BTD: Tensor
    indices_BTQ: Tensor
    codebook_loss_B: Tensor
    commitment_loss_B: Tensor


class CodeUsage(NamedTuple):
    """How evenly codebooks are used.

    Attributes:
        usage_Q: share of the codes that were used at all, shape (Q,).
        perplexity_Q: exp of the entropy of the codes: how many evenly used ones would say as much; 1 without frames, shape (Q,).
    """

    usage_Q: Tensor
    perplexity_Q: Tensor


def code_counts(indices_BTQ: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs; counts of batches and ranks add up to those of a step.

    Args:
        indices_BTQ: of `Quantised`; -1 is not counted.
        num_codes: K.

    Returns:
        int64, shape (Q, K).
    """
    indices_QN = indices_BTQ.flatten(0, 1).T + 1
    counts_QK = indices_QN.new_zeros(len(indices_QN), num_codes + 1)
    return counts_QK.scatter_add_(1, indices_QN, torch.ones_like(indices_QN))[:, 1:]


def code_usage(counts_QK: Tensor) -> CodeUsage:
    """Usage and perplexity of codebooks whose codes occurred so often, from `code_counts`."""
    shares_QK = counts_QK.double() / counts_QK.sum(1, keepdim=True).clamp(min=1)
    entropy_Q = -torch.xlogy(shares_QK, shares_QK).sum(1)
    return CodeUsage((counts_QK > 0).double().mean(1).float(), entropy_Q.exp().float())


class VectorQuantizer(nn.Module):
    """A codebook in a few dimensions, between two linear layers.

    The nearest code is the one with the largest cosine: projected frames and codes are compared on the sphere (Yu et al. 2022,
    "Vector-quantized Image Modeling with Improved VQGAN", section 3.2). As in DAC (Kumar et al. 2023, "High-Fidelity Audio
    Compression with Improved RVQGAN", section 3.2) the code put out is the learned one with its own length.

    Args:
        dim: D of the frames.
        num_codes: K.
        code_dim: E, channels in which codes are looked up and kept; 8 in the papers.

    Attributes:
        idle_K: revisions since each code was last used, int64 buffer, shape (K,): `revive` keeps it.

    Raises:
        ValueError: a size is below 1.
    """

    idle_K: Tensor

    def __init__(self, *, dim: int, num_codes: int, code_dim: int = 8) -> None:
        super().__init__()
        _check_sizes(dim=dim, num_codes=num_codes, code_dim=code_dim)
        self.dim, self.num_codebooks, self.num_codes = dim, 1, num_codes
        self.project_in = nn.Linear(dim, code_dim)
        self.codebook = nn.Embedding(num_codes, code_dim)
        self.project_out = nn.Linear(code_dim, dim)
        self.register_buffer("idle_K", torch.zeros(num_codes, dtype=torch.long))

    def forward(self, z_BTD: Tensor, lens_B: Tensor) -> Quantised:
        """Quantises.

        Args:
            z_BTD: frames, shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            `Quantised` with Q = 1. Its frames pass gradients to `z_BTD` as if there were no codebook between the linear layers.
        """
        valid_BT = valid_mask(lens_B, z_BTD.shape[1])
        with _full_precision(z_BTD):
            z_BTE = self.project_in(_cleared(z_BTD, valid_BT).to(self.project_in.weight.dtype))
            indices_BT = self._nearest(z_BTE)
            codes_BTE = self.codebook(indices_BT)
            codebook_BT = (codes_BTE - z_BTE.detach()).square().mean(2)
            commitment_BT = (codes_BTE.detach() - z_BTE).square().mean(2)
            quantised_BTD = self.project_out(_straight_through(codes_BTE, z_BTE))
        return Quantised(
            quantised_BTD=_cleared(quantised_BTD, valid_BT),
            indices_BTQ=indices_BT.masked_fill(~valid_BT, -1)[..., None],
            codebook_loss_B=codebook_BT.masked_fill(~valid_BT, 0.0).sum(1),
            commitment_loss_B=commitment_BT.masked_fill(~valid_BT, 0.0).sum(1),
        )

    def decode(self, indices_BTQ: Tensor) -> Tensor:
        """Frames of codes, shape (B, T, D), from indices of shape (B, T, 1); zeros for -1.

        Raises:
            ValueError: the last axis is not 1.
        """
        _check_codebooks(indices_BTQ, 1)
        indices_BT = indices_BTQ[..., 0]
        with _full_precision(indices_BT):
            return _cleared(self.project_out(self.codebook(indices_BT.clamp(min=0))), indices_BT >= 0)

    @torch.no_grad()
    def revive(
        self, z_BTD: Tensor, lens_B: Tensor, counts_QK: Tensor, *, max_idle: int, generator: torch.Generator
    ) -> Tensor:
        """Puts codes that nobody uses where frames are; to be called after the optimiser, every so many steps.

        A code is dead when `max_idle` calls in a row have not counted it. Dead codes, in order, take the projected values of
        valid frames drawn without replacement; those for which no frame is left wait for the next call. With several ranks all
        must pass the same: counts summed over the ranks, frames of one rank sent to the others (or gathered from all, in order),
        and generators in the same state; codebooks and `idle_K` then stay equal without further exchange.

        Args:
            z_BTD: frames to draw from, shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).
            counts_QK: `code_counts` since the last call, shape (1, K).
            max_idle: calls, at least 1.
            generator: on the CPU.

        Returns:
            codes that were moved, bool, shape (1, K).

        Raises:
            ValueError: `max_idle` is below 1, or the counts are not of this codebook.
        """
        if max_idle < 1:
            raise ValueError(f"max_idle={max_idle} must be at least 1 call")
        if counts_QK.shape != (1, self.num_codes):
            raise ValueError(f"counts of shape {tuple(counts_QK.shape)} for a codebook of (1, {self.num_codes}); use code_counts")
        self.idle_K.copy_(torch.where(counts_QK[0] > 0, 0, self.idle_K + 1))
        frames_ND = z_BTD[valid_mask(lens_B, z_BTD.shape[1])]
        order_N = torch.randperm(len(frames_ND), generator=generator).to(z_BTD.device)
        dead_R = (self.idle_K >= max_idle).nonzero()[: len(order_N), 0]
        with _full_precision(z_BTD):
            self.codebook.weight[dead_R] = self.project_in(frames_ND[order_N[: len(dead_R)]].to(self.project_in.weight.dtype))
        self.idle_K[dead_R] = 0
        moved_K = torch.zeros_like(self.idle_K, dtype=torch.bool)
        moved_K[dead_R] = True
        return moved_K[None]

    @torch.no_grad()
    def _nearest(self, z_BTE: Tensor) -> Tensor:
        """Code with the largest cosine; the frame's own length changes nothing."""
        return (z_BTE @ F.normalize(self.codebook.weight, dim=1).T).argmax(2)


class ResidualVectorQuantizer(nn.Module):
    """Vector quantisers one after the other, each for what those before it left (Zeghidour et al. 2022, "SoundStream", III-C).

    Quantiser dropout as in DAC (Kumar et al. 2023, section 3.3): in training some rows use only the first codebooks, a number
    drawn evenly from 1 to Q for each row, so that frames of fewer codes are worth hearing too.

    Args:
        dim: D of the frames.
        num_codebooks: Q.
        num_codes: K of each.
        code_dim: E.
        quantizer_dropout: probability that a row uses a drawn number of codebooks in training, in [0, 1].

    Raises:
        ValueError: a size is below 1 or `quantizer_dropout` is out of range.
    """

    def __init__(
        self, *, dim: int, num_codebooks: int, num_codes: int, code_dim: int = 8, quantizer_dropout: float = 0.0
    ) -> None:
        super().__init__()
        _check_sizes(dim=dim, num_codebooks=num_codebooks, num_codes=num_codes, code_dim=code_dim)
        if not 0 <= quantizer_dropout <= 1:
            raise ValueError(f"quantizer_dropout={quantizer_dropout} must be in [0, 1]")
        self.dim, self.num_codebooks, self.num_codes = dim, num_codebooks, num_codes
        self.quantizer_dropout = quantizer_dropout
        self.layers = nn.ModuleList(
            [VectorQuantizer(dim=dim, num_codes=num_codes, code_dim=code_dim) for _ in range(num_codebooks)]
        )

    def forward(self, z_BTD: Tensor, lens_B: Tensor, *, codebooks_B: Tensor | None = None) -> Quantised:
        """Quantises.

        Args:
            z_BTD: frames, shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).
            codebooks_B: how many codebooks each row uses, int64 from 0 to Q, shape (B,); None for all of them, in training for
                those of `draw_codebooks`.

        Returns:
            `Quantised`; indices are -1 in the codebooks that a row does not use, which add nothing to its losses.
        """
        if codebooks_B is None and self.training and self.quantizer_dropout > 0:
            codebooks_B = self.draw_codebooks(len(lens_B)).to(z_BTD.device)
        residual_BTD, parts = z_BTD, []
        for q, layer in enumerate(self._quantizers()):
            used_B = lens_B if codebooks_B is None else torch.where(codebooks_B > q, lens_B, 0)
            part = layer(residual_BTD, used_B)
            residual_BTD = residual_BTD - part.quantised_BTD
            parts.append(part)
        return Quantised(
            quantised_BTD=_sum([part.quantised_BTD for part in parts]),
            indices_BTQ=torch.cat([part.indices_BTQ for part in parts], dim=2),
            codebook_loss_B=_sum([part.codebook_loss_B for part in parts]),
            commitment_loss_B=_sum([part.commitment_loss_B for part in parts]),
        )

    def draw_codebooks(self, num_rows: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws how many codebooks each row uses, int64 on the CPU, shape (num_rows,).

        Args:
            num_rows: B.
            generator: on the CPU; None for torch's default generator.
        """
        drawn_B = torch.randint(1, self.num_codebooks + 1, (num_rows,), generator=generator)
        return torch.where(torch.rand(num_rows, generator=generator) < self.quantizer_dropout, drawn_B, self.num_codebooks)

    def decode(self, indices_BTQ: Tensor) -> Tensor:
        """Frames of codes, shape (B, T, D), from indices of all codebooks or of the first few; zeros for -1.

        Raises:
            ValueError: there are no codebooks, or more than Q.
        """
        if not 1 <= indices_BTQ.shape[-1] <= self.num_codebooks:
            shape = tuple(indices_BTQ.shape)
            raise ValueError(f"indices of shape {shape}; the last axis must be 1 to {self.num_codebooks} codebooks")
        return _sum([layer.decode(q_BT1) for layer, q_BT1 in zip(self._quantizers(), indices_BTQ.split(1, dim=-1))])

    @torch.no_grad()
    def revive(
        self, z_BTD: Tensor, lens_B: Tensor, counts_QK: Tensor, *, max_idle: int, generator: torch.Generator
    ) -> Tensor:
        """As `VectorQuantizer.revive`, each codebook from what those before it, revived already, leave of the frames.

        Args:
            z_BTD: frames to draw from, shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).
            counts_QK: `code_counts` since the last call, shape (Q, K).
            max_idle: calls, at least 1.
            generator: on the CPU.

        Returns:
            codes that were moved, bool, shape (Q, K).

        Raises:
            ValueError: `max_idle` is below 1, or the counts are not of these codebooks.
        """
        if counts_QK.shape != (self.num_codebooks, self.num_codes):
            expected = (self.num_codebooks, self.num_codes)
            raise ValueError(f"counts of shape {tuple(counts_QK.shape)} for codebooks of {expected}; use code_counts")
        moved = []
        for layer, counts_K in zip(self._quantizers(), counts_QK):
            moved.append(layer.revive(z_BTD, lens_B, counts_K[None], max_idle=max_idle, generator=generator))
            z_BTD = z_BTD - layer(z_BTD, lens_B).quantised_BTD
        return torch.cat(moved)

    def _quantizers(self) -> Iterator[VectorQuantizer]:
        for layer in self.layers:
            assert isinstance(layer, VectorQuantizer)
            yield layer


class FiniteScalarQuantizer(nn.Module):
    """A grid of fixed levels in a few bounded channels, between two linear layers.

    Source: Mentzer et al. 2024, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3.1 and appendix A.1. Of an even number
    of levels there is one more below zero than above; the shift that then keeps 0 at 0 is by the inverse of tanh.

    Args:
        dim: D of the frames.
        levels: levels of each of the E channels, at least 3 (of 2 none would be above zero); (8, 5, 5, 5) makes 1000 codes.

    Raises:
        ValueError: a size is too small, or there are no levels.
    """

    levels_E: Tensor
    basis_E: Tensor

    def __init__(self, *, dim: int, levels: Sequence[int]) -> None:
        super().__init__()
        _check_sizes(dim=dim)
        if not levels or min(levels) < 3:
            raise ValueError(f"levels={tuple(levels)} must name at least one channel, each of 3 levels or more")
        self.dim, self.num_codebooks, self.num_codes = dim, 1, math.prod(levels)
        self.project_in = nn.Linear(dim, len(levels))
        self.project_out = nn.Linear(len(levels), dim)
        self.register_buffer("levels_E", torch.tensor(levels), persistent=False)
        basis = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("basis_E", torch.tensor(basis), persistent=False)

    def forward(self, z_BTD: Tensor, lens_B: Tensor) -> Quantised:
        """Quantises.

        Args:
            z_BTD: frames, shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            `Quantised` with Q = 1 and no losses. Gradients pass as if nothing were rounded.
        """
        valid_BT = valid_mask(lens_B, z_BTD.shape[1])
        with _full_precision(z_BTD):
            z_BTE = self.project_in(_cleared(z_BTD, valid_BT).to(self.project_in.weight.dtype))
            bounded_BTE = self._bound(z_BTE)
            steps_BTE = bounded_BTE.detach().round()
            codes_BTE = _straight_through(self._codes(steps_BTE), bounded_BTE / (self.levels_E // 2))
            quantised_BTD = _cleared(self.project_out(codes_BTE), valid_BT)
        indices_BT = self.codes_to_indices(self._codes(steps_BTE)).masked_fill(~valid_BT, -1)
        return _without_losses(quantised_BTD, indices_BT[..., None])

    def decode(self, indices_BTQ: Tensor) -> Tensor:
        """Frames of codes, shape (B, T, D), from indices of shape (B, T, 1); zeros for -1.

        Raises:
            ValueError: the last axis is not 1.
        """
        _check_codebooks(indices_BTQ, 1)
        indices_BT = indices_BTQ[..., 0]
        with _full_precision(indices_BT):
            return _cleared(self.project_out(self.indices_to_codes(indices_BT.clamp(min=0))), indices_BT >= 0)

    def codes_to_indices(self, codes_xE: Tensor) -> Tensor:
        """Numbers of points of the grid, the first channel counting fastest, from 0 to K - 1, without the last axis."""
        half_E = self.levels_E // 2
        return (((codes_xE * half_E).round().long() + half_E) * self.basis_E).sum(-1)

    def indices_to_codes(self, indices_x: Tensor) -> Tensor:
        """Points of the grid, in [-1, 1] in each channel, with the channels as last axis."""
        steps_xE = indices_x[..., None] // self.basis_E % self.levels_E - self.levels_E // 2
        return self._codes(steps_xE.to(self.project_out.weight.dtype))

    def _bound(self, z_BTE: Tensor) -> Tensor:
        """Squeezes each channel so that it rounds to one of its levels; 0 stays 0."""
        half_E = (self.levels_E - 1).to(z_BTE.dtype) * (0.5 * (1 - 1e-3))
        offset_E = torch.where(self.levels_E % 2 == 0, 0.5, 0.0).to(z_BTE.dtype)
        return torch.tanh(z_BTE + torch.atanh(offset_E / half_E)) * half_E - offset_E

    def _codes(self, steps_xE: Tensor) -> Tensor:
        return steps_xE / (self.levels_E // 2)


class ScalarQuantizer(nn.Module):
    """Rounds the tanh of each channel to one of 2 s + 1 values.

    Source: Yang et al. 2024, "SimpleSpeech: Towards Simple and Efficient Text-to-Speech with Scalar Latent Transformer Diffusion
    Models", SQ-Codec. A generator models `latent`, and `snap` puts what it says, with small errors, back on the grid.

    Args:
        dim: D, at once the number Q of codebooks.
        scale: s; 9 in SimpleSpeech.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, *, dim: int, scale: int = 9) -> None:
        super().__init__()
        _check_sizes(dim=dim, scale=scale)
        self.dim, self.num_codebooks, self.num_codes, self.scale = dim, dim, 2 * scale + 1, scale

    def forward(self, z_BTD: Tensor, lens_B: Tensor) -> Quantised:
        """Quantises, in fp32 at least.

        Args:
            z_BTD: frames, shape (B, T, D).
            lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            `Quantised` with Q = D and no losses; its frames are `snap(latent(z))`. Gradients pass as if nothing were rounded.

        Raises:
            ValueError: the frames do not have D channels.
        """
        _check_codebooks(z_BTD, self.num_codebooks)
        valid_BT = valid_mask(lens_B, z_BTD.shape[1])
        latent_BTD = self.latent(_cleared(z_BTD, valid_BT))
        indices_BTQ = (latent_BTD.detach() * self.scale).round().long() + self.scale
        return _without_losses(self.snap(latent_BTD), indices_BTQ.masked_fill(~valid_BT[..., None], -1))

    def latent(self, z_BTD: Tensor) -> Tensor:
        """The continuous latent, in [-1, 1], same shape."""
        return torch.tanh(z_BTD.to(torch.promote_types(z_BTD.dtype, torch.float32)))

    def snap(self, latent_BTD: Tensor) -> Tensor:
        """The nearest values of the grid, gradients straight through, same shape."""
        return _straight_through((latent_BTD * self.scale).round() / self.scale, latent_BTD)

    def decode(self, indices_BTQ: Tensor) -> Tensor:
        """Frames of codes, fp32, same shape; zeros for -1.

        Raises:
            ValueError: the last axis is not D.
        """
        _check_codebooks(indices_BTQ, self.num_codebooks)
        return ((indices_BTQ - self.scale).float() / self.scale).masked_fill(indices_BTQ < 0, 0.0)


def _straight_through(codes: Tensor, continuous: Tensor) -> Tensor:
    """Exactly the codes, with the gradient of the continuous values."""
    return codes.detach() + (continuous - continuous.detach())


def _cleared(x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    return x_BTD.masked_fill(~valid_BT[..., None], 0.0)


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _sum(parts: list[Tensor]) -> Tensor:
    """In order, as everywhere here: the same bits in training and decoding."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _without_losses(quantised_BTD: Tensor, indices_BTQ: Tensor) -> Quantised:
    nothing_B = quantised_BTD.new_zeros(len(quantised_BTD))
    return Quantised(quantised_BTD, indices_BTQ, codebook_loss_B=nothing_B, commitment_loss_B=nothing_B)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def _check_codebooks(x_BTQ: Tensor, expected: int) -> None:
    if x_BTQ.shape[-1] != expected:
        raise ValueError(f"the last axis of {tuple(x_BTQ.shape)} must be {expected}, the codebooks of this quantiser")

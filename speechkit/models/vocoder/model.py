"""A vocoder that is trained: one of the generators with its losses, and waveforms at inference.

Training, with or without a discriminator, is on stretches of `segment_frames` frames, drawn anew for every utterance and step;
validation is on whole utterances.

Shape legend: B batch, N samples, T frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.adversarial import AdversarialPair
from speechkit.losses.spectral import mel_l1_loss, multi_resolution_stft_loss
from speechkit.nn.masks import valid_mask
from speechkit.types import LossOutput, TtsBatch


class Vocoder(nn.Module):
    """A generator, what it is trained by, and `vocode`.

    Losses: `stft_weight` times magnitudes at several resolutions (spectral convergence and log-magnitudes, Yamamoto et al. 2020)
    plus `mel_weight` times the mean absolute difference of log-mels. They need no discriminator; a generator that has one needs
    the mels alone (stft_weight=0).

    Args:
        mel: what the mel spectrograms are.
        generator: `mel=` to a module from (mel_BTF, mel_lens_B) to waveforms of `mel.num_samples` samples, e.g. a partial of
            `VocosGenerator` or `HifiGanGenerator`.
        loss_mel: mels that the loss compares, where not `mel`: those of HiFi-GAN's loss reach to half the rate.
        segment_frames: frames of the stretches in training.
        stft_weight: of the magnitudes, 0 for none.
        mel_weight: of the mels.

    Attributes:
        mel: as given.
        num_views: copies of a batch that training wants.

    Raises:
        ValueError: a value is out of range.
    """

    num_views = 1

    def __init__(
        self,
        *,
        mel: MelSpectrogram,
        generator: Callable[..., nn.Module],
        loss_mel: MelSpectrogram | None = None,
        segment_frames: int = 64,
        stft_weight: float = 1.0,
        mel_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if segment_frames < 2:
            raise ValueError(f"segment_frames={segment_frames}: must be at least 2")
        if stft_weight < 0.0 or mel_weight < 0.0 or stft_weight + mel_weight == 0.0:
            raise ValueError(f"stft_weight={stft_weight}, mel_weight={mel_weight}: neither may be negative, nor both 0")
        if loss_mel is not None and loss_mel.sample_rate != mel.sample_rate:
            raise ValueError(f"loss_mel.sample_rate={loss_mel.sample_rate}: mel.sample_rate is {mel.sample_rate}")
        self.mel, self.loss_mel = mel, mel if loss_mel is None else loss_mel
        self.generator = generator(mel=mel)
        self.segment_frames = segment_frames
        self.stft_weight, self.mel_weight = stft_weight, mel_weight

    def loss(self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> LossOutput:
        """What training without a discriminator minimises; arguments as for `adversarial_pair`.

        Returns:
            Parts: mel (L1 of log-mels), stft (convergence and log-magnitudes) if it is weighted. Targets are frames.
        """
        return self.adversarial_pair(mel_BTF, mel_lens_B, batch).reconstruction

    def adversarial_pair(self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> AdversarialPair:
        """Recordings, what the generator makes of their mels, and how far both are apart.

        In training mode it is stretches of utterances, drawn by torch's global generator. A generator sees nothing of a mel
        around its stretch, as in the papers.

        Args:
            mel_BTF: log-mels of the batch as `mel` computes them, shape (B, T, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
            batch: the recordings.
        """
        wave_BN, wave_lens_B = batch.wave_BN, batch.wave_lens_B
        if self.training:
            mel_BTF, mel_lens_B, wave_BN, wave_lens_B = self._draw_segments(mel_BTF, mel_lens_B, wave_BN, wave_lens_B)
        fake_BN = self.generator(mel_BTF, mel_lens_B)
        num_samples = min(fake_BN.shape[1], wave_BN.shape[1])  # padding "same" makes up the last frame, "center" cuts it
        lens_B = torch.minimum(self.mel.num_samples(mel_lens_B), wave_lens_B)
        past_BN = ~valid_mask(lens_B, num_samples)
        fake_BN = fake_BN[:, :num_samples].masked_fill(past_BN, 0.0)
        real_BN = wave_BN[:, :num_samples].float().masked_fill(past_BN, 0.0)
        return AdversarialPair(real_BN, fake_BN, lens_B, self._compare(fake_BN, real_BN, lens_B, mel_lens_B.sum()))

    @torch.inference_mode()
    def vocode(self, mel_BTF: Tensor, mel_lens_B: Tensor, *, seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Makes waveforms, one utterance after another: alone and in any batch, and whatever the padding, the same bits.

        Args:
            mel_BTF: log-mels as `mel` computes them, floating point, shape (B, T, F); what lies past a length is ignored.
            mel_lens_B: valid frames of each row, int64, shape (B,).
            seeds: not used, since nothing is drawn; other vocoders do.

        Returns:
            Waveforms at `mel.sample_rate`, float32, exactly 0 past each length, shape (B, N), and their lengths in samples,
            `mel.num_samples(mel_lens_B)`, int64, shape (B,). N is the longest.

        Raises:
            ValueError: shapes do not fit, a length exceeds T, or a valid frame is not finite.
        """
        _check(mel_BTF, mel_lens_B, self.mel.output_dim)
        wave_lens_B = self.mel.num_samples(mel_lens_B)
        lens, sizes = mel_lens_B.tolist(), wave_lens_B.tolist()
        wave_BN = torch.zeros(len(lens), max(sizes, default=0), device=mel_BTF.device)
        dtype = next(self.parameters()).dtype
        for wave_N, mel_TF, row_len, num_frames, size in zip(wave_BN, mel_BTF, mel_lens_B, lens, sizes):
            if size:
                mel_1TF = mel_TF[None, :num_frames].to(dtype, copy=True)  # apart from its mates, also in memory
                wave_N[:size] = self.generator(mel_1TF, row_len[None])[0]
        return wave_BN, wave_lens_B

    def fold_weight_norm(self) -> None:
        """Turns normalised weights into plain ones, for inference: faster, but weights of training no longer fit."""
        for module in list(self.generator.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")

    def _draw_segments(
        self, mel_BTF: Tensor, mel_lens_B: Tensor, wave_BN: Tensor, wave_lens_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cuts a stretch of every utterance, or takes the whole of what is shorter; zeros past each length."""
        num_frames = min(self.segment_frames, mel_BTF.shape[1])
        num_samples = int(self.mel.num_samples(torch.tensor(num_frames)))
        spare_B = (mel_lens_B - num_frames).clamp(min=0)
        begin_B = (torch.rand(len(mel_lens_B), device=mel_BTF.device) * (spare_B + 1)).long().minimum(spare_B)
        mel_BTF = _cut(mel_BTF, begin_B, num_frames)
        mel_lens_B = mel_lens_B.clamp(max=num_frames)
        begin_B = begin_B * self.mel.hop_length
        wave_lens_B = (wave_lens_B - begin_B).clamp(min=0, max=num_samples)
        return mel_BTF, mel_lens_B, _cut(wave_BN, begin_B, num_samples), wave_lens_B

    def _compare(self, fake_BN: Tensor, real_BN: Tensor, lens_B: Tensor, num_frames: Tensor) -> LossOutput:
        """The losses that need no discriminator."""
        mel_loss = mel_l1_loss(fake_BN, real_BN, lens_B, mel=self.loss_mel)
        loss, parts = self.mel_weight * mel_loss, {"mel": mel_loss.detach()}
        if self.stft_weight > 0.0:
            stft_loss = sum(multi_resolution_stft_loss(fake_BN, real_BN, lens_B), start=torch.zeros_like(mel_loss))
            loss, parts["stft"] = loss + self.stft_weight * stft_loss, stft_loss.detach()
        return LossOutput(loss, parts, num_frames)


def _cut(x_BT: Tensor, begin_B: Tensor, size: int) -> Tensor:
    """Stretches along the second axis, from each row's begin; the last element again where a row ends sooner."""
    index_BT = begin_B[:, None] + torch.arange(size, device=begin_B.device)
    index_BT = index_BT.clamp(max=max(x_BT.shape[1] - 1, 0))
    return x_BT[torch.arange(len(x_BT), device=begin_B.device)[:, None], index_BT]


def _check(mel_BTF: Tensor, mel_lens_B: Tensor, num_mels: int) -> None:
    """Raises a ValueError where mels are not what they should be."""
    if mel_BTF.ndim != 3 or mel_BTF.shape[2] != num_mels or mel_lens_B.shape != mel_BTF.shape[:1]:
        shapes = f"mel_BTF has shape {tuple(mel_BTF.shape)}, mel_lens_B {tuple(mel_lens_B.shape)}"
        raise ValueError(f"{shapes}: give (B, T, {num_mels}) and (B,)")
    if len(mel_lens_B) and not 0 <= int(mel_lens_B.min()) <= int(mel_lens_B.max()) <= mel_BTF.shape[1]:
        raise ValueError(f"mel_lens_B={mel_lens_B.tolist()}: must be from 0 to the {mel_BTF.shape[1]} frames of mel_BTF")
    broken_BT = ~mel_BTF.isfinite().all(2) & valid_mask(mel_lens_B, mel_BTF.shape[1])
    if bool(broken_BT.any()):
        rows = broken_BT.any(1).nonzero().flatten().tolist()
        raise ValueError(f"mel_BTF is not finite in rows {rows}: look for a diverged model or a broken recording")

"""The codec: log-mels to codes, codes to log-mels and, with an inverse STFT head, to a waveform.

Shape legend: B batch, T mel frames, S code frames, F mel bins, Q codebooks, D channels of the quantiser, C channels of the
blocks, N samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.adversarial import AdversarialPair
from speechkit.losses.spectral import mel_l1_loss, multi_resolution_stft_loss
from speechkit.models.codec.codebooks import CodebookCare, usage_parts
from speechkit.nn.convnext import ConvNextBackbone
from speechkit.nn.istft_head import IstftHead
from speechkit.nn.masks import valid_mask
from speechkit.nn.mel_norm import MelNorm
from speechkit.nn.quantizers import ResidualVectorQuantizer, ScalarQuantizer, code_counts
from speechkit.types import LossOutput, TtsBatch, TtsOutput


class _Decoded(NamedTuple):
    """Normalised log-mels (B, S * stride, F), and what they were made of (B, S * stride, C)."""

    mel_BTF: Tensor
    x_BTC: Tensor


class CodecModel(nn.Module):
    """Encoder, quantiser, decoder.

    Frames: T mel frames have S = ceil(T / stride) codes. What is missing of the last `stride` frames counts as the mean of the
    corpus. S codes make S * stride mel frames, of which the first T are those of the utterance; they are the same whether T is
    told or not. So it is with the samples of the waveform.

    Args:
        num_mels: F.
        quantizer: one of `speechkit.nn.quantizers`; its `dim` is D.
        wave_head: makes waveforms of the decoder's frames; None for a codec of mels, to be heard through a vocoder.
        dim: C.
        intermediate_dim: channels between the linear layers of the blocks.
        num_encoder_layers: blocks over code frames.
        num_decoder_layers: blocks over mel frames.
        kernel_size: frames under each convolution, odd.
        stride: mel frames of a code; 2 makes 50 codes a second of mel frames 10 ms apart.
        codebook_weight: of the loss that moves codes to frames.
        commitment_weight: of the loss that moves frames to codes.
        wave_weight: of the losses of the waveform.
        segment_frames: of every utterance a stretch of so many frames, drawn anew, is compared as a waveform in training; None
            for the whole of it, which costs more than all else.
        revive_every: batches of training after which codes that were not used since are moved to frames, as all are before the
            first; 0 for never. Steps of the optimiser are fewer where gradients of several batches are accumulated.
        seed: of where they move.

    Attributes:
        mel_norm: mean and deviation of the corpus; to be fitted before training.
        num_codebooks: Q.
        num_codes: codes of each codebook.
        num_views: 1, copies of the mels that `loss` expects.

    Raises:
        ValueError: a size or weight is out of range, or the waveform head is for other frames.
    """

    num_views = 1

    def __init__(
        self,
        *,
        num_mels: int,
        quantizer: nn.Module,
        wave_head: IstftHead | None = None,
        dim: int = 256,
        intermediate_dim: int = 768,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 4,
        kernel_size: int = 7,
        stride: int = 2,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        wave_weight: float = 1.0,
        segment_frames: int | None = 64,
        revive_every: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride={stride} must be at least 1 mel frame for each code")
        weights = {"codebook_weight": codebook_weight, "commitment_weight": commitment_weight, "wave_weight": wave_weight}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name}={weight} must not be negative")
        if segment_frames is not None and segment_frames < 1:
            raise ValueError(f"segment_frames={segment_frames} must be at least 1, or null for whole utterances")
        if wave_head is not None:
            head_dim, head_mels = wave_head.out.in_features, wave_head.istft.mel.output_dim
            if (head_dim, head_mels) != (dim, num_mels):
                given = f"wave_head has dim={head_dim} and {head_mels} mel bins"
                raise ValueError(f"{given}: give it those of the codec, {dim} and {num_mels}")
        self.num_mels, self.stride, self.segment_frames = num_mels, stride, segment_frames
        self.codebook_weight, self.commitment_weight, self.wave_weight = codebook_weight, commitment_weight, wave_weight
        self.num_codebooks, self.num_codes = int(quantizer.num_codebooks), int(quantizer.num_codes)  # type: ignore[arg-type]
        sizes = {"dim": dim, "intermediate_dim": intermediate_dim, "kernel_size": kernel_size}
        self.mel_norm = MelNorm()
        self.encoder = ConvNextBackbone(input_dim=stride * num_mels, num_layers=num_encoder_layers, **sizes)
        self.to_latent = nn.Linear(dim, int(quantizer.dim))  # type: ignore[arg-type]
        self.quantizer = quantizer
        self.from_latent = nn.Linear(int(quantizer.dim), stride * dim)  # type: ignore[arg-type]
        self.decoder = ConvNextBackbone(input_dim=dim, num_layers=num_decoder_layers, **sizes)
        self.to_mel = nn.Linear(dim, num_mels)
        self.wave_head = wave_head
        self.care = CodebookCare(
            num_codebooks=self.num_codebooks, num_codes=self.num_codes, every=revive_every, seed=seed
        )

    def loss(self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> LossOutput:
        """Training loss.

        Mean absolute and mean squared error of normalised log-mels, the quantiser's losses per code frame and, with a waveform
        head, spectral convergence, log-magnitudes and log-mels of the waveform. In training it also counts codes and revives
        unused ones, once per call; all random numbers but those of the revival are torch's own.

        Args:
            mel_BTF: log-mels, shape (B, T, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
            batch: whose waveforms are compared with where there is a head; else not read.

        Returns:
            loss; parts mel_l1, mel_l2, codebook, commitment, with a head wave_convergence, wave_magnitude, wave_mel, and
            usage_q, perplexity_q of each codebook from 1: in training those of the last batches, else those of the batch;
            number of mel frames.
        """
        return self._compare(mel_BTF, mel_lens_B, batch)[0]

    def adversarial_pair(self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> AdversarialPair:
        """As `loss`, with the waveforms that discriminators compare: what `speechkit.training.gan_module.GanModule` trains.

        Args:
            mel_BTF: log-mels, shape (B, T, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
            batch: the recordings.

        Returns:
            recordings, what was made of them (in training stretches of `segment_frames`), and the result of `loss`, whose
            wave_mel is there again as mel.

        Raises:
            ValueError: there is no waveform head.
        """
        output, pair = self._compare(mel_BTF, mel_lens_B, batch)
        if pair is None:
            raise ValueError("wave_head=null: a codec of mels has no waveform to judge; give it a head or train it alone")
        return AdversarialPair(*pair, output._replace(parts={**output.parts, "mel": output.parts["wave_mel"]}))

    def _compare(
        self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: TtsBatch
    ) -> tuple[LossOutput, tuple[Tensor, Tensor, Tensor] | None]:
        """The loss, and recordings, waveforms and lengths that it compared."""
        target_BTF = self.mel_norm.normalize(mel_BTF)
        z_BSD, code_lens_B = self._encode(target_BTF, mel_lens_B)
        if self.training:
            self.care.revive(self.quantizer, z_BSD, code_lens_B)
        codes = self.quantizer(z_BSD, code_lens_B)
        if self.training:
            self.care.count(codes.indices_BTQ)
        decoded = self._decode(codes.quantised_BTD, code_lens_B)
        num_frames = mel_lens_B.sum()
        errors_BTF = decoded.mel_BTF[:, : mel_BTF.shape[1]].float() - target_BTF
        errors_BTF = errors_BTF.masked_fill(~valid_mask(mel_lens_B, mel_BTF.shape[1])[..., None], 0.0)
        count, num_codes = (num_frames * self.num_mels).clamp(min=1), code_lens_B.sum().clamp(min=1)
        losses = {
            "mel_l1": errors_BTF.abs().sum() / count,
            "mel_l2": errors_BTF.square().sum() / count,
            "codebook": codes.codebook_loss_B.sum() / num_codes,
            "commitment": codes.commitment_loss_B.sum() / num_codes,
        }
        loss = losses["mel_l1"] + losses["mel_l2"]
        loss = loss + self.codebook_weight * losses["codebook"] + self.commitment_weight * losses["commitment"]
        pair = None
        if self.wave_head is not None:
            pair = self._wave_pair(self.wave_head, decoded.x_BTC, mel_lens_B, batch)
            wave_losses = _wave_losses(*pair, mel=self.wave_head.istft.mel)
            loss = loss + self.wave_weight * sum(wave_losses.values())
            losses |= wave_losses
        parts = {name: value.detach() for name, value in losses.items()}
        parts |= self.care.parts() if self.training else usage_parts(code_counts(codes.indices_BTQ, self.num_codes))
        return LossOutput(loss=loss, parts=parts, num_targets=num_frames), pair

    @property
    def mel(self) -> MelSpectrogram | None:
        """What mels the waveform head is for; None without one."""
        return None if self.wave_head is None else self.wave_head.istft.mel

    @property
    def latent_dim(self) -> int:
        """D, channels of the continuous latent.

        Raises:
            ValueError: the quantiser is not a `ScalarQuantizer`, and so there is none.
        """
        return self._scalar_quantizer().dim

    def code_lengths(self, mel_lens_B: Tensor) -> Tensor:
        """Code frames of so many mel frames: ceil(T / stride)."""
        return (mel_lens_B + self.stride - 1) // self.stride

    def encode(self, mel_BTF: Tensor, mel_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of log-mels, of all codebooks, also in training mode.

        Args:
            mel_BTF: log-mels, shape (B, T, F); what lies past a length is ignored.
            mel_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            codes, int64, -1 past each length, shape (B, S, Q), and the lengths, int64, shape (B,).
        """
        z_BSD, code_lens_B = self._encode(self.mel_norm.normalize(mel_BTF), mel_lens_B)
        if not isinstance(self.quantizer, ResidualVectorQuantizer):
            return self.quantizer(z_BSD, code_lens_B).indices_BTQ, code_lens_B
        codebooks_B = torch.full_like(code_lens_B, self.num_codebooks)
        return self.quantizer(z_BSD, code_lens_B, codebooks_B=codebooks_B).indices_BTQ, code_lens_B

    def decode(self, codes_BSQ: Tensor, code_lens_B: Tensor, *, mel_lens_B: Tensor | None = None) -> TtsOutput:
        """Log-mels and, with a head, waveforms of codes.

        Args:
            codes_BSQ: of all codebooks, or of the first few of a residual quantiser; -1 where there is none, which adds nothing;
                int64, shape (B, S, Q). What lies past a length is ignored.
            code_lens_B: valid code frames of each row, int64, shape (B,).
            mel_lens_B: mel frames of each row, int64, shape (B,); None for all that the codes make.

        Returns:
            log-mels (B, S * stride, F), or fewer if no row has as many; waveforms of a head. No durations, no pitch.

        Raises:
            ValueError: a code is none of the codebook, a length is above S, or `mel_lens_B` are not the frames that these codes
                stand for.
        """
        codes_BSQ = codes_BSQ.masked_fill(~valid_mask(code_lens_B, codes_BSQ.shape[1])[..., None], -1)
        if codes_BSQ.numel() and not -1 <= int(codes_BSQ.min()) <= int(codes_BSQ.max()) < self.num_codes:
            found = f"codes from {int(codes_BSQ.min())} to {int(codes_BSQ.max())}"
            raise ValueError(f"{found}: they must be from 0 to {self.num_codes - 1}, or -1 for none")
        return self._output(self.quantizer.decode(codes_BSQ), code_lens_B, mel_lens_B)  # type: ignore[operator]

    def latents(self, mel_BTF: Tensor, mel_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """The continuous latent of log-mels, for models that generate it.

        Args:
            mel_BTF: log-mels, shape (B, T, F); what lies past a length is ignored.
            mel_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            values in [-1, 1], not rounded, zero past each length, fp32, shape (B, S, D), and the lengths, int64, shape (B,).

        Raises:
            ValueError: the quantiser is not a `ScalarQuantizer`.
        """
        quantizer = self._scalar_quantizer()
        z_BSD, code_lens_B = self._encode(self.mel_norm.normalize(mel_BTF), mel_lens_B)
        return quantizer.latent(z_BSD.masked_fill(~valid_mask(code_lens_B, z_BSD.shape[1])[..., None], 0.0)), code_lens_B

    def decode_latents(self, latent_BSD: Tensor, code_lens_B: Tensor, *, mel_lens_B: Tensor | None = None) -> TtsOutput:
        """As `decode`, of a latent, each value of which counts as the nearest one of the grid; those outside as its ends.

        Raises:
            ValueError: the quantiser is not a `ScalarQuantizer`, a length is above S, or `mel_lens_B` are not the frames that
                these stand for.
        """
        snapped_BSD = self._scalar_quantizer().snap(latent_BSD.clamp(-1.0, 1.0))
        return self._output(snapped_BSD, code_lens_B, mel_lens_B)

    def _scalar_quantizer(self) -> ScalarQuantizer:
        if not isinstance(self.quantizer, ScalarQuantizer):
            kind = type(self.quantizer).__name__
            raise ValueError(f"quantizer={kind} has no continuous latent: train a codec with ScalarQuantizer (codec_scalar_tiny)")
        return self.quantizer

    def _encode(self, x_BTF: Tensor, mel_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised log-mels to what the quantiser sees, (B, S, D), and the lengths of it."""
        code_lens_B = self.code_lengths(mel_lens_B)
        x_BTF = x_BTF.masked_fill(~valid_mask(mel_lens_B, x_BTF.shape[1])[..., None], 0.0)
        x_BTF = functional.pad(x_BTF, (0, 0, 0, -x_BTF.shape[1] % self.stride))
        patches_BSP = x_BTF.reshape(len(x_BTF), x_BTF.shape[1] // self.stride, self.stride * self.num_mels)
        patches_BSP = patches_BSP.to(self.to_latent.weight.dtype)
        return self.to_latent(self.encoder(patches_BSP, code_lens_B)), code_lens_B

    def _decode(self, quantised_BSD: Tensor, code_lens_B: Tensor) -> _Decoded:
        """Frames of all codes, also past the length of the mels."""
        x_BSP = self.from_latent(quantised_BSD)
        x_BTC = x_BSP.reshape(len(x_BSP), x_BSP.shape[1] * self.stride, x_BSP.shape[2] // self.stride)
        x_BTC = self.decoder(x_BTC, code_lens_B * self.stride)
        return _Decoded(self.to_mel(x_BTC), x_BTC)

    def _output(self, quantised_BSD: Tensor, code_lens_B: Tensor, mel_lens_B: Tensor | None) -> TtsOutput:
        """What `decode` returns."""
        num_codes = quantised_BSD.shape[1]
        if len(code_lens_B) and int(code_lens_B.max()) > num_codes:
            raise ValueError(f"code_lens_B={code_lens_B.tolist()}: there are {num_codes} code frames; give lengths up to that")
        if mel_lens_B is None:
            mel_lens_B = code_lens_B * self.stride
        elif not torch.equal(self.code_lengths(mel_lens_B), code_lens_B):
            frames, codes = mel_lens_B.tolist(), code_lens_B.tolist()
            raise ValueError(f"mel_lens_B={frames} do not fit code_lens_B={codes}: a code stands for {self.stride} mel frames")
        quantised_BSD = quantised_BSD.to(self.from_latent.weight.dtype)
        decoded = self._decode(quantised_BSD, code_lens_B)
        longest = int(mel_lens_B.max()) if len(mel_lens_B) else 0
        mel_BTF = self.mel_norm.denormalize(decoded.mel_BTF[:, :longest].float())
        mel_BTF = mel_BTF.masked_fill(~valid_mask(mel_lens_B, longest)[..., None], 0.0)
        if self.wave_head is None:
            return TtsOutput(mel_BTF=mel_BTF, mel_lens_B=mel_lens_B)
        wave_BN, wave_lens_B = self._wave(self.wave_head, decoded.x_BTC, mel_lens_B)
        return TtsOutput(mel_BTF=mel_BTF, mel_lens_B=mel_lens_B, wave_BN=wave_BN, wave_lens_B=wave_lens_B)

    def _wave(self, head: IstftHead, x_BTC: Tensor, mel_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms, zero past each length, and their lengths. The head sees the frames of all codes; then it is cut."""
        wave_BN = head(x_BTC, self.code_lengths(mel_lens_B) * self.stride)
        wave_lens_B = head.istft.mel.num_samples(mel_lens_B)
        wave_BN = wave_BN[:, : int(wave_lens_B.max()) if len(wave_lens_B) else 0]
        return wave_BN.masked_fill(~valid_mask(wave_lens_B, wave_BN.shape[1]), 0.0), wave_lens_B

    def _wave_pair(
        self, head: IstftHead, x_BTC: Tensor, mel_lens_B: Tensor, batch: TtsBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Recordings, waveforms and the lengths of the samples that both have; stretches of them in training."""
        fake_BN, fake_lens_B = self._wave(head, x_BTC, mel_lens_B)
        lens_B = torch.minimum(fake_lens_B, batch.wave_lens_B)
        num_samples, begin_B = min(fake_BN.shape[1], batch.wave_BN.shape[1]), torch.zeros_like(lens_B)
        if self.training and self.segment_frames is not None:
            num_samples = min(num_samples, self.segment_frames * head.istft.mel.hop_length)
            spare_B = (lens_B - num_samples).clamp(min=0)
            begin_B = (torch.rand(len(lens_B), device=lens_B.device) * (spare_B + 1)).long().minimum(spare_B)
            lens_B = lens_B.clamp(max=num_samples)
        real_BN, fake_BN = (_stretches(wave_BN, begin_B, lens_B, num_samples) for wave_BN in (batch.wave_BN.float(), fake_BN))
        return real_BN, fake_BN, lens_B


def _stretches(wave_BN: Tensor, begin_B: Tensor, lens_B: Tensor, num_samples: int) -> Tensor:
    """So many samples of each row from its own beginning, zero past each length."""
    index_BN = begin_B[:, None] + torch.arange(num_samples, device=begin_B.device)
    return wave_BN.gather(1, index_BN.clamp(max=max(wave_BN.shape[1] - 1, 0))).masked_fill(~valid_mask(lens_B, num_samples), 0.0)


def _wave_losses(real_BN: Tensor, fake_BN: Tensor, lens_B: Tensor, *, mel: MelSpectrogram) -> dict[str, Tensor]:
    """How far waveforms are from recordings."""
    stft = multi_resolution_stft_loss(fake_BN, real_BN, lens_B)
    wave_mel = mel_l1_loss(fake_BN, real_BN, lens_B, mel=mel)
    return {"wave_convergence": stft.convergence, "wave_magnitude": stft.log_magnitude, "wave_mel": wave_mel}

"""MaskGCT: two masked Transformers, a predictor of durations, and the tokenisers that they speak through.

Source: Wang et al. 2024, "MaskGCT", section 3.2.

Shape legend: B batch, N samples, M mel frames, F mel bins, P phones, T semantic tokens, A acoustic frames, Q codebooks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.models.maskgct.durations import DurationPredictor, duration_loss
from speechkit.models.maskgct.layers import UNKNOWN, MaskedTransformer
from speechkit.models.maskgct.semantic_to_acoustic import SemanticToAcoustic
from speechkit.models.maskgct.text_to_semantic import TextAlignment, TextToSemantic
from speechkit.models.maskgct.tokens import AcousticCodec, MaskGctBatch, SemanticTokens
from speechkit.nn.masks import valid_mask
from speechkit.types import LossOutput, TtsBatch

__all__ = ["AcousticCodec", "MaskGctBatch", "MaskGctModel", "SemanticTokens"]


class SpokenTokens(NamedTuple):
    """Speech as tokens.

    Attributes:
        semantic_BT: int64, 0 past each length, shape (B, T).
        semantic_lens_B: int64, shape (B,).
        acoustic_BAQ: int64, 0 past each length, shape (B, A, Q).
        acoustic_lens_B: at most `acoustic_ratio` times the semantic tokens, int64, shape (B,).
    """

    semantic_BT: Tensor
    semantic_lens_B: Tensor
    acoustic_BAQ: Tensor
    acoustic_lens_B: Tensor


class MaskGctModel(nn.Module):
    """Both networks and both tokenisers.

    The tokenisers are parts of the model, and so of its weights, since nothing can be spoken without them; they are frozen: their
    parameters take no gradient, and they stay in evaluation mode.

    Args:
        vocab_size: of the phones, 0 for padding.
        num_mels: F, as the codec has it.
        semantic: makes semantic tokens of waveforms; see `tokens.SemanticTokens`.
        codec: makes acoustic tokens of log-mels, and log-mels and maybe waveforms of them; see `tokens.AcousticCodec`.
        text_backbone: Transformer of the semantic tokens.
        acoustic_backbone: Transformer of the acoustic tokens.
        coarse_backbone: Transformer of the first codebook alone; None where `acoustic_backbone` fills in that one too.
        acoustic_ratio: acoustic frames per semantic token.
        num_speakers: above 1 for embeddings of them.
        num_languages: likewise.
        alignment: how text and tokens are aligned: "none", "even" or "durations"; see `TextToSemantic`.
        duration_dim: width of the predictor of durations.
        prompt_prob: probability of a prompt in training.
        drop_prob: probability that a row of training is not conditioned on anything, for guidance.
        span: neighbours that are hidden, and accepted, together; 1 for none, 3 in MAGNeT.
        label_smoothing: of the targets.
        finish_weight: of the loss of the filters that let decoding finish early (Learn2PD); 0 for none.

    Attributes:
        num_views: always 1.

    Raises:
        ValueError: a value is out of range, the codec is for other mels, or two networks are to share its one codebook.
    """

    num_views = 1

    def __init__(
        self,
        *,
        vocab_size: int,
        num_mels: int,
        semantic: nn.Module,
        codec: nn.Module,
        text_backbone: MaskedTransformer,
        acoustic_backbone: MaskedTransformer,
        coarse_backbone: MaskedTransformer | None = None,
        acoustic_ratio: int = 1,
        num_speakers: int = 1,
        num_languages: int = 1,
        alignment: TextAlignment = "none",
        duration_dim: int = 128,
        prompt_prob: float = 0.85,
        drop_prob: float = 0.15,
        span: int = 1,
        label_smoothing: float = 0.0,
        finish_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if codec.num_mels != num_mels:
            raise ValueError(f"num_mels={num_mels}, but the codec has {codec.num_mels}; take the mel that it was trained with")
        self.acoustic_ratio, self.span = acoustic_ratio, span
        self.semantic: Any = semantic.requires_grad_(False)
        self.codec: Any = codec.requires_grad_(False)
        num_semantic, num_codebooks = int(semantic.num_codes), int(codec.num_codebooks)  # type: ignore[arg-type]
        if coarse_backbone is not None and num_codebooks == 1:
            raise ValueError("coarse_backbone: the codec has one codebook; set coarse_backbone=null")
        shared: dict[str, Any] = {
            "num_speakers": num_speakers,
            "num_languages": num_languages,
            "prompt_prob": prompt_prob,
            "drop_prob": drop_prob,
            "span": span,
            "label_smoothing": label_smoothing,
            "finish_weight": finish_weight,
        }
        self.text_to_semantic = TextToSemantic(
            backbone=text_backbone, vocab_size=vocab_size, num_codes=num_semantic, alignment=alignment, **shared
        )
        shared |= {"num_semantic": num_semantic, "num_codes": self.codec.num_codes, "ratio": acoustic_ratio}
        self.coarse: SemanticToAcoustic | None = None
        if coarse_backbone is not None:
            self.coarse = SemanticToAcoustic(backbone=coarse_backbone, num_codebooks=1, **shared)
        first = int(coarse_backbone is not None)
        self.semantic_to_acoustic = SemanticToAcoustic(
            backbone=acoustic_backbone, num_codebooks=num_codebooks, first_codebook=first, **shared
        )
        self.durations = DurationPredictor(
            vocab_size=vocab_size, num_speakers=num_speakers, num_languages=num_languages, dim=duration_dim
        )
        self.train()

    def train(self, mode: bool = True) -> MaskGctModel:
        """Sets the mode of all but the tokenisers, which stay in evaluation mode."""
        super().train(mode)
        self.semantic.eval()
        self.codec.eval()
        return self

    def loss(self, mel_BMF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> LossOutput:
        """Training loss of speech, made into tokens on the way.

        Args:
            mel_BMF: log-mels, shape (B, M, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
            batch: waveforms, phones, speakers, languages, ids, and durations where there are any.

        Returns:
            as `token_loss`.

        Raises:
            ValueError: durations are needed and not there.
        """
        spoken = self.tokenize(batch.wave_BN, batch.wave_lens_B, mel_BMF, mel_lens_B)
        durations_BP = None
        if batch.durations_BP is not None:
            tokens_per_frame_B = spoken.semantic_lens_B / mel_lens_B.clamp(min=1)
            durations_BP = batch.durations_BP * tokens_per_frame_B[:, None]
        tokens = MaskGctBatch(
            phones_BP=batch.phones_BP,
            phone_lens_B=batch.phone_lens_B,
            speakers_B=batch.speakers_B,
            languages_B=batch.languages_B,
            ids=batch.ids,
            durations_BP=durations_BP,
            **spoken._asdict(),
        )
        return self.token_loss(tokens)

    def token_loss(self, batch: MaskGctBatch) -> LossOutput:
        """Training loss of speech that is tokens already: the sum of those of the networks, which share no weight.

        Returns:
            loss; parts semantic, acoustic, coarse_acoustic (with a network for the first codebook), each per hidden token,
            duration (squared error of logarithms), and accuracies as in `TextToSemantic.loss` and `SemanticToAcoustic.loss`;
            number of semantic tokens.

        Raises:
            ValueError: durations are needed and not there.
        """
        draw = self.text_to_semantic.draw(batch)
        outputs = [self.text_to_semantic.loss(batch, draw), self.semantic_to_acoustic.loss(batch)]
        parts = {name: value for output in outputs for name, value in output.parts.items()}
        if self.coarse is not None:
            outputs.append(self.coarse.loss(batch))
            parts |= {f"coarse_{name}": value for name, value in outputs[-1].parts.items()}
        speakers_B = batch.speakers_B.masked_fill(draw.prompted_B, UNKNOWN)
        log_durations_BP = self.durations(batch.phones_BP, batch.phone_lens_B, speakers_B, batch.languages_B)
        duration = duration_loss(log_durations_BP, batch.phone_lens_B, batch.semantic_lens_B, batch.durations_BP)
        parts["duration"] = duration.detach()
        loss = torch.stack([output.loss for output in outputs]).sum() + duration
        return LossOutput(loss=loss, parts=parts, num_targets=batch.semantic_lens_B.sum())

    @torch.no_grad()
    def tokenize(self, wave_BN: Tensor, wave_lens_B: Tensor, mel_BMF: Tensor, mel_lens_B: Tensor) -> SpokenTokens:
        """Speech to tokens, in full precision also under autocast, without a gradient.

        Acoustic frames behind the last semantic token, as the roundings of two tokenisers leave them, are dropped.

        Args:
            wave_BN: waveforms, zero past each length, shape (B, N).
            wave_lens_B: valid samples of each row, int64, shape (B,).
            mel_BMF: log-mels of the same, shape (B, M, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
        """
        with torch.autocast(wave_BN.device.type, enabled=False):
            semantic_BT, semantic_lens_B = self.semantic(wave_BN, wave_lens_B)
            acoustic_BAQ, acoustic_lens_B = self.codec.encode(mel_BMF, mel_lens_B)
        acoustic_lens_B = torch.minimum(acoustic_lens_B, self.acoustic_ratio * semantic_lens_B)
        semantic_BT = semantic_BT.masked_fill(~valid_mask(semantic_lens_B, semantic_BT.shape[1]), 0)
        acoustic_BAQ = acoustic_BAQ.masked_fill(~valid_mask(acoustic_lens_B, acoustic_BAQ.shape[1])[..., None], 0)
        return SpokenTokens(semantic_BT, semantic_lens_B, acoustic_BAQ, acoustic_lens_B)

    def network_of(self, codebook: int) -> SemanticToAcoustic:
        """The network that fills in a codebook, counted from 0."""
        return self.coarse if codebook == 0 and self.coarse is not None else self.semantic_to_acoustic

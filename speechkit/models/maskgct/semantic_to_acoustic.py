"""Semantic tokens to acoustic ones: a masked Transformer that fills in one codebook at a time.

Source: Wang et al. 2024, "MaskGCT", section 3.2.3; one network for all codebooks of a residual codec, as in SoundStorm (Borsos
et al. 2023, section 3.2), from which the order comes: coarse first, finer ones given all that is coarser.

Shape legend: B batch, T semantic tokens, A acoustic frames, Q codebooks, C codes of each, D model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.losses.label_smoothing import check_smoothing
from speechkit.losses.masked import (
    MaskDraw,
    check_masking,
    draw_codebooks,
    draw_masks,
    finish_loss,
    masked_token_loss,
    training_uniforms,
    utterance_uniforms,
)
from speechkit.models.maskgct.layers import UNKNOWN, FinishFilter, MaskedTransformer, Voice
from speechkit.models.maskgct.tokens import MaskGctBatch
from speechkit.nn.masks import valid_mask
from speechkit.types import LossOutput

MAX_PROMPT = 0.5  # longest prompt in training, as a share of the row


class Content(NamedTuple):
    """What is to be heard, and from whom.

    Attributes:
        semantic_BT: semantic tokens, anything past each length, int64, shape (B, T).
        semantic_lens_B: semantic tokens of each row, int64, shape (B,).
        speakers_B: number of the speaker of each row, int64, shape (B,); `layers.UNKNOWN` where not conditioned on it.
        languages_B: number of the language of each row, likewise.
    """

    semantic_BT: Tensor
    semantic_lens_B: Tensor
    speakers_B: Tensor
    languages_B: Tensor

    def unnamed(self, rows_B: Tensor) -> Content:
        """The same, the speakers of marked rows not told."""
        return self._replace(speakers_B=self.speakers_B.masked_fill(rows_B, UNKNOWN))

    def without(self, dropped_B: Tensor) -> Content:
        """The same, marked rows not conditioned on a voice; what they say stays, as in the paper."""
        return self._replace(
            speakers_B=self.speakers_B.masked_fill(dropped_B, UNKNOWN),
            languages_B=self.languages_B.masked_fill(dropped_B, UNKNOWN),
        )


class SemanticToAcoustic(nn.Module):
    """Scores of hidden acoustic tokens of one codebook.

    Rows without a prompt are told the number of the speaker, whose place a prompt takes.

    Args:
        backbone: the Transformer.
        num_semantic: semantic codes.
        num_codebooks: Q.
        num_codes: C.
        ratio: acoustic frames per semantic token.
        first_codebook: the first that this network fills in; those before it are given.
        num_speakers: above 1 for an embedding of them.
        num_languages: likewise.
        prompt_prob: probability of a prompt in training, which has all its codebooks.
        drop_prob: probability that a row of training has neither prompt nor voice, for guidance.
        span: neighbours that are hidden, and accepted, together; 1 for none, 3 in MAGNeT.
        label_smoothing: of the targets.
        finish_weight: of the loss of the filter that lets decoding finish early; 0 for no filter.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        *,
        backbone: MaskedTransformer,
        num_semantic: int,
        num_codebooks: int,
        num_codes: int,
        ratio: int = 1,
        first_codebook: int = 0,
        num_speakers: int = 1,
        num_languages: int = 1,
        prompt_prob: float = 0.85,
        drop_prob: float = 0.15,
        span: int = 1,
        label_smoothing: float = 0.0,
        finish_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if ratio < 1:
            raise ValueError(f"ratio={ratio} must be at least 1 acoustic frame per semantic token")
        if not 0 <= first_codebook < num_codebooks:
            raise ValueError(f"first_codebook={first_codebook} must be one of the {num_codebooks} codebooks, counted from 0")
        check_masking(prompt_prob=prompt_prob, drop_prob=drop_prob, span=span)
        check_smoothing(label_smoothing)
        self.backbone, self.ratio, self.span = backbone, ratio, span
        self.num_codebooks, self.num_codes, self.first_codebook = num_codebooks, num_codes, first_codebook
        self.prompt_prob, self.drop_prob = prompt_prob, drop_prob
        self.label_smoothing, self.finish_weight = label_smoothing, finish_weight
        dim = backbone.dim
        self.semantic = nn.Embedding(num_semantic, dim)
        self.codes = nn.ModuleList(nn.Embedding(num_codes + 1, dim) for _ in range(num_codebooks))  # the last is "hidden"
        self.codebooks = nn.Embedding(num_codebooks, dim)
        self.voice = Voice(num_speakers=num_speakers, num_languages=num_languages, dim=dim)
        self.heads_QCD = nn.Parameter(torch.randn(num_codebooks - first_codebook, num_codes, dim) * dim**-0.5)
        self.filter = FinishFilter(dim=dim) if finish_weight > 0 else None

    def loss(self, batch: MaskGctBatch, draw: MaskDraw | None = None, codebooks_B: Tensor | None = None) -> LossOutput:
        """Cross-entropy of hidden tokens of one codebook of each row, the earlier ones drawn more often.

        Args:
            batch: semantic and acoustic tokens (of codebooks that follow the last one here nothing is read), speakers, languages
                and ids are used.
            draw: what is hidden; None to draw it: by torch's generator in training, by the ids in evaluation.
            codebooks_B: which codebook each row learns, int64, shape (B,); with `draw`, and only then.

        Returns:
            loss; parts acoustic, acoustic_accuracy (of hidden tokens) and the same by bands of the rate of hiding; number of
            hidden tokens.

        Raises:
            ValueError: one of `draw` and `codebooks_B` is given without the other.
        """
        lens_B, num_frames = batch.acoustic_lens_B, batch.acoustic_BAQ.shape[1]
        if (draw is None) != (codebooks_B is None):
            missing = "draw" if draw is None else "codebooks_B"
            raise ValueError(f"{missing}=None: give draw and codebooks_B together, as the method draw makes them, or neither")
        if draw is None or codebooks_B is None:
            draw, codebooks_B = self.draw(batch)
        valid_BA = valid_mask(lens_B, num_frames)
        acoustic_BAQ = batch.acoustic_BAQ[..., : self.num_codebooks].masked_fill(~valid_BA[..., None], 0)
        open_BA = valid_BA & ~valid_mask(draw.prompt_lens_B, num_frames)
        unknown_BAQ = unknown_tokens(draw.masked_BT, open_BA, codebooks_B, self.num_codebooks)
        content = Content(batch.semantic_BT, batch.semantic_lens_B, batch.speakers_B, batch.languages_B)
        content = content.unnamed(draw.prompted_B).without(draw.dropped_B)
        x_BAD = self.hidden(acoustic_BAQ, unknown_BAQ, lens_B, draw.t_B, codebooks_B, content)
        logits_BAC = self.logits(x_BAD, codebooks_B)
        targets_BA = acoustic_BAQ.gather(2, codebooks_B[:, None, None].expand(-1, num_frames, 1))[..., 0]
        out = masked_token_loss(logits_BAC, targets_BA, draw.masked_BT, draw.rate_B, smoothing=self.label_smoothing)
        loss, parts = out.loss, {"acoustic": out.loss.detach(), "acoustic_accuracy": out.accuracy.pop("all")}
        parts |= {f"acoustic_accuracy_{band}": value for band, value in out.accuracy.items()}
        if self.filter is not None:
            finish = finish_loss(self.filter(x_BAD, logits_BAC), logits_BAC, targets_BA, draw.masked_BT)
            loss, parts["acoustic_finish"] = loss + self.finish_weight * finish, finish.detach()
        return LossOutput(loss=loss, parts=parts, num_targets=out.num_masked)

    def draw(self, batch: MaskGctBatch) -> tuple[MaskDraw, Tensor]:
        """Draws what is hidden of a batch, and the codebook of each row (B,): by torch's generator in training, else by ids."""
        lens_B, size = batch.acoustic_lens_B, batch.acoustic_BAQ.shape[1]
        uniforms_BR = training_uniforms(lens_B, size) if self.training else utterance_uniforms(batch.ids, lens_B, size)
        draw = draw_masks(
            uniforms_BR,
            lens_B,
            prompt_prob=self.prompt_prob,
            max_prompt=MAX_PROMPT,
            drop_prob=self.drop_prob,
            span=self.span,
        )
        return draw, draw_codebooks(uniforms_BR, self.num_codebooks, first=self.first_codebook)

    def hidden(
        self, acoustic_BAQ: Tensor, unknown_BAQ: Tensor, lens_B: Tensor, t_B: Tensor, codebooks_B: Tensor, content: Content
    ) -> Tensor:
        """Hidden states of acoustic frames, of which `logits` makes scores.

        Args:
            acoustic_BAQ: acoustic tokens, any id where not known, int64, shape (B, A, Q).
            unknown_BAQ: of `unknown_tokens`, bool, shape (B, A, Q).
            lens_B: acoustic frames of each row, int64, shape (B,).
            t_B: time of each row in [0, 1], shape (B,).
            codebooks_B: which codebook each row fills in, int64, shape (B,).
            content: what is said, that of a prompt at the beginning included.

        Returns:
            shape (B, A, D); past a row's length anything finite.
        """
        x_BAD = self._said(content, acoustic_BAQ.shape[1]) + self.codebooks(codebooks_B)[:, None]
        x_BAD = self.voice(x_BAD, content.speakers_B, content.languages_B)
        for q, embedding in enumerate(self.codes):
            x_BAD = x_BAD + embedding(acoustic_BAQ[..., q].masked_fill(unknown_BAQ[..., q], self.num_codes))
        return self.backbone(x_BAD, lens_B, t_B)

    def logits(self, x_BAD: Tensor, codebooks_B: Tensor) -> Tensor:
        """Scores of the codebook of each row, from its hidden states, shape (B, A, C)."""
        return x_BAD @ self.heads_QCD[codebooks_B - self.first_codebook].transpose(1, 2).to(x_BAD.dtype)

    def _said(self, content: Content, num_frames: int) -> Tensor:
        """The semantic token at each acoustic frame, shape (B, A, D)."""
        semantic_BT = content.semantic_BT.masked_fill(~valid_mask(content.semantic_lens_B, content.semantic_BT.shape[1]), 0)
        if not semantic_BT.shape[1]:
            return self.semantic.weight.new_zeros(len(semantic_BT), num_frames, self.backbone.dim)
        index_A = torch.arange(num_frames, device=semantic_BT.device) // self.ratio
        return self.semantic(semantic_BT[:, index_A.clamp(max=semantic_BT.shape[1] - 1)])


def unknown_tokens(masked_BA: Tensor, open_BA: Tensor, codebooks_B: Tensor, num_codebooks: int) -> Tensor:
    """What is not known while a codebook is filled in: its hidden tokens, and all that are finer, but those of a prompt.

    Args:
        masked_BA: hidden tokens of the codebook of each row, bool, shape (B, A).
        open_BA: frames behind the prompt, bool, shape (B, A).
        codebooks_B: which codebook each row fills in, int64, shape (B,).
        num_codebooks: Q.

    Returns:
        bool, shape (B, A, Q).
    """
    order_B1Q = torch.arange(num_codebooks, device=codebooks_B.device) - codebooks_B[:, None, None]
    return ((order_B1Q > 0) & open_BA[..., None]) | ((order_B1Q == 0) & masked_BA[..., None])

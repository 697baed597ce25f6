"""Phones to semantic tokens: a masked Transformer that reads the phones in front of the tokens.

Source: Wang et al. 2024, "MaskGCT", section 3.2.2.

Shape legend: B batch, P phones, T semantic tokens, W = P + T places, D model, S semantic codes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.losses.label_smoothing import check_smoothing
from speechkit.losses.masked import (
    MaskDraw,
    check_masking,
    draw_masks,
    finish_loss,
    masked_token_loss,
    training_uniforms,
    utterance_uniforms,
)
from speechkit.models.maskgct.durations import even_places, places_in_text
from speechkit.models.maskgct.layers import UNKNOWN, FinishFilter, MaskedTransformer, Voice
from speechkit.models.maskgct.rows import join_rows, take_rows
from speechkit.models.maskgct.tokens import MaskGctBatch
from speechkit.nn.masks import valid_mask
from speechkit.nn.positional import sinusoids
from speechkit.types import LossOutput

MIN_RATE = 0.2  # least share of hidden tokens in training, as in the public code
MAX_PROMPT = 0.4  # longest prompt in training, as a share of the row
TextAlignment = Literal["none", "even", "durations"]


class Text(NamedTuple):
    """What is to be said, and by whom.

    Attributes:
        phones_BP: phone ids, int64, shape (B, P).
        phone_lens_B: phones of each row, int64, shape (B,); 0 for rows that are not conditioned on a text.
        speakers_B: number of the speaker of each row, int64, shape (B,); `layers.UNKNOWN` where not conditioned on it.
        languages_B: number of the language of each row, likewise.
        places_BT: of `durations.places_in_text`, for networks that take durations; else None.
    """

    phones_BP: Tensor
    phone_lens_B: Tensor
    speakers_B: Tensor
    languages_B: Tensor
    places_BT: Tensor | None = None

    def unnamed(self, rows_B: Tensor) -> Text:
        """The same, the speakers of marked rows not told."""
        return self._replace(speakers_B=self.speakers_B.masked_fill(rows_B, UNKNOWN))

    def without(self, dropped_B: Tensor) -> Text:
        """The same, marked rows not conditioned on anything."""
        return self._replace(
            phone_lens_B=self.phone_lens_B.masked_fill(dropped_B, 0),
            speakers_B=self.speakers_B.masked_fill(dropped_B, UNKNOWN),
            languages_B=self.languages_B.masked_fill(dropped_B, UNKNOWN),
        )


class TextToSemantic(nn.Module):
    """Scores of hidden semantic tokens.

    Differences from the paper: rows are conditioned on phones without a prompt too, and then on the number of the speaker, whose
    place a prompt takes; places in the text (below).

    Args:
        backbone: the Transformer.
        vocab_size: of the phones.
        num_codes: S.
        num_speakers: above 1 for an embedding of them.
        num_languages: likewise.
        alignment: what the network is told of where in the text a token stands, as sinusoids of places that phones have too.
            "none": nothing, as in the paper; it is to be found in much data. "even": as if all phones lasted equally long, a
            hint for smaller corpora. "durations": the place by durations, and the phone there; these are then needed in training.
        prompt_prob: probability of a prompt in training.
        drop_prob: probability that a row of training is not conditioned on anything, for guidance.
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
        vocab_size: int,
        num_codes: int,
        num_speakers: int = 1,
        num_languages: int = 1,
        alignment: TextAlignment = "none",
        prompt_prob: float = 0.85,
        drop_prob: float = 0.15,
        span: int = 1,
        label_smoothing: float = 0.0,
        finish_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if alignment not in ("none", "even", "durations"):
            raise ValueError(f"alignment={alignment!r} is unknown; choose none, even or durations")
        check_masking(prompt_prob=prompt_prob, drop_prob=drop_prob, span=span)
        check_smoothing(label_smoothing)
        self.backbone, self.num_codes, self.alignment, self.span = backbone, num_codes, alignment, span
        self.prompt_prob, self.drop_prob = prompt_prob, drop_prob
        self.label_smoothing, self.finish_weight = label_smoothing, finish_weight
        dim = backbone.dim
        self.phones = nn.Embedding(vocab_size, dim)
        self.tokens = nn.Embedding(num_codes + 1, dim)  # the last one is "hidden"
        self.voice = Voice(num_speakers=num_speakers, num_languages=num_languages, dim=dim)
        self.head = nn.Linear(dim, num_codes)
        self.filter = FinishFilter(dim=dim) if finish_weight > 0 else None

    def loss(self, batch: MaskGctBatch, draw: MaskDraw | None = None) -> LossOutput:
        """Cross-entropy of hidden tokens.

        Args:
            batch: phones, semantic tokens, speakers, languages and ids are used; durations where `alignment` takes them.
            draw: what is hidden; None to draw it: by torch's generator in training, by the ids in evaluation.

        Returns:
            loss; parts semantic, semantic_accuracy (of hidden tokens) and the same by bands of the rate of hiding; number of
            hidden tokens.

        Raises:
            ValueError: durations are needed and not there.
        """
        lens_B, num_tokens = batch.semantic_lens_B, batch.semantic_BT.shape[1]
        draw = self.draw(batch) if draw is None else draw
        text = Text(batch.phones_BP, batch.phone_lens_B, batch.speakers_B, batch.languages_B, self._places(batch))
        masked_BT = draw.masked_BT
        tokens_BT = batch.semantic_BT.masked_fill(~valid_mask(lens_B, num_tokens), 0)
        text = text.unnamed(draw.prompted_B).without(draw.dropped_B)
        x_BTD = self.hidden(tokens_BT, masked_BT, lens_B, draw.t_B, text)
        logits_BTS = self.head(x_BTD)
        out = masked_token_loss(logits_BTS, tokens_BT, masked_BT, draw.rate_B, smoothing=self.label_smoothing)
        loss, parts = out.loss, {"semantic": out.loss.detach(), "semantic_accuracy": out.accuracy.pop("all")}
        parts |= {f"semantic_accuracy_{band}": value for band, value in out.accuracy.items()}
        if self.filter is not None:
            finish = finish_loss(self.filter(x_BTD, logits_BTS), logits_BTS, tokens_BT, masked_BT)
            loss, parts["semantic_finish"] = loss + self.finish_weight * finish, finish.detach()
        return LossOutput(loss=loss, parts=parts, num_targets=out.num_masked)

    def draw(self, batch: MaskGctBatch) -> MaskDraw:
        """Draws what is hidden of a batch: by torch's generator in training, by the ids in evaluation."""
        lens_B, size = batch.semantic_lens_B, batch.semantic_BT.shape[1]
        uniforms_BR = training_uniforms(lens_B, size) if self.training else utterance_uniforms(batch.ids, lens_B, size)
        return draw_masks(
            uniforms_BR,
            lens_B,
            min_rate=MIN_RATE,
            prompt_prob=self.prompt_prob,
            max_prompt=MAX_PROMPT,
            drop_prob=self.drop_prob,
            span=self.span,
        )

    def hidden(self, tokens_BT: Tensor, masked_BT: Tensor, lens_B: Tensor, t_B: Tensor, text: Text) -> Tensor:
        """Hidden states of semantic tokens, of which `head` makes scores.

        Args:
            tokens_BT: semantic tokens, any id where hidden, int64, shape (B, T).
            masked_BT: which are hidden, bool, shape (B, T).
            lens_B: semantic tokens of each row, int64, shape (B,).
            t_B: time of each row in [0, 1], shape (B,).
            text: what is said, the text of a prompt at the beginning included.

        Returns:
            shape (B, T, D); past a row's length anything finite.
        """
        num_tokens = tokens_BT.shape[1]
        phones_BPD = self.phones(text.phones_BP)
        x_BTD = self.tokens(tokens_BT.masked_fill(masked_BT, self.num_codes))
        if self.alignment != "none":
            places_BT = even_places(lens_B, text.phone_lens_B, num_tokens) if text.places_BT is None else text.places_BT
            places_BT = torch.minimum(places_BT, text.phone_lens_B[:, None].to(places_BT.dtype))
            if self.alignment == "durations" and phones_BPD.shape[1]:
                x_BTD = x_BTD + self._phones_at(phones_BPD, places_BT, text.phone_lens_B)
            x_BTD = x_BTD + _sinusoids(places_BT, self.backbone.dim).to(x_BTD.dtype)
            middles_BP = torch.arange(phones_BPD.shape[1], device=places_BT.device).expand(phones_BPD.shape[:2]) + 0.5
            phones_BPD = phones_BPD + _sinusoids(middles_BP, self.backbone.dim).to(x_BTD.dtype)
        x_BWD, all_lens_B = join_rows(phones_BPD, text.phone_lens_B, x_BTD, lens_B)
        x_BWD = self.voice(x_BWD, text.speakers_B, text.languages_B)
        return take_rows(self.backbone(x_BWD, all_lens_B, t_B), text.phone_lens_B, num_tokens)

    def _phones_at(self, phones_BPD: Tensor, places_BT: Tensor, phone_lens_B: Tensor) -> Tensor:
        """The phone at each place, 0 where there is no text, shape (B, T, D)."""
        index_BT = torch.minimum(places_BT.long(), (phone_lens_B - 1).clamp(min=0)[:, None])
        x_BTD = phones_BPD.gather(1, index_BT[..., None].expand(-1, -1, phones_BPD.shape[2]))
        return x_BTD.masked_fill((phone_lens_B == 0)[:, None, None], 0.0)

    def _places(self, batch: MaskGctBatch) -> Tensor | None:
        if self.alignment != "durations":
            return None
        if batch.durations_BP is None:
            raise ValueError("durations_BP=None, but alignment='durations' needs them: align the corpus, or train with even")
        return places_in_text(batch.durations_BP, batch.phone_lens_B, batch.semantic_BT.shape[1])


def _sinusoids(places_BT: Tensor, dim: int) -> Tensor:
    """Sinusoids of places, fp32, shape (B, T, D)."""
    return sinusoids(places_BT.flatten(), dim).unflatten(0, places_BT.shape)

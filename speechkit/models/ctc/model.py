"""CTC model: encoder, shared output layer, and the losses that train them.

Sources: Lee and Watanabe 2021, "Intermediate loss regularization for CTC-based speech recognition"; Nozaki and Komatsu
2021, "Relaxing the conditional independence assumption of CTC-based ASR by conditioning on intermediate predictions";
Yao et al. 2024, "CR-CTC".

Shape legend: B batch, T frames, U tokens, D model, V vocab, F mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.losses.consistency import symmetric_kl
from speechkit.losses.ctc import ctc_branch_loss, scores_for_loss
from speechkit.nn.ctc_encoder import check_inter_layers, encode_with_ctc
from speechkit.nn.dropout import Dropout
from speechkit.text.tokenizers import BLANK
from speechkit.types import AsrBatch, LossOutput


class CtcModel(nn.Module):
    """Encoder and CTC head.

    Args:
        encoder: maps (feats_BTF, feat_lens_B, tap=) to (x_BTD, x_lens_B); has `output_dim`, `subsampling_factor`, and
            `layers` when `inter_layers` are asked for. See `speechkit.nn.conformer.ConformerEncoder`.
        vocab_size: V, with the blank as id 0.
        inter_layers: encoder layers, counted from 1, whose output is also trained with CTC through the same head.
        inter_weight: share w of the intermediate losses: (1 - w) final + w mean(intermediate).
        self_condition: add a linear image of the intermediate predictions to what the next layer sees.
        cr_weight: weight of the consistency between two augmented views; 0 trains on one view.
        dropout: rate before the head in training.

    Attributes:
        num_views: augmented copies of the features that `loss` expects: 2 in training with `cr_weight`, else 1.
        subsampling_factor: input frames per output frame.

    Raises:
        ValueError: an intermediate layer does not exist or is the last one, or a weight is out of range.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        vocab_size: int,
        inter_layers: Sequence[int] = (),
        inter_weight: float = 0.5,
        self_condition: bool = False,
        cr_weight: float = 0.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_inter_layers(encoder, inter_layers, inter_weight, self_condition)
        if cr_weight < 0.0:
            raise ValueError(f"cr_weight={cr_weight} must not be negative; use 0 to train on one view")
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.inter_layers, self.inter_weight = tuple(inter_layers), inter_weight
        self.cr_weight = cr_weight
        dim: int = encoder.output_dim  # type: ignore[assignment]
        self.subsampling_factor: int = encoder.subsampling_factor  # type: ignore[assignment]
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size)
        self.condition = nn.Linear(vocab_size, dim) if self_condition else None

    @property
    def num_views(self) -> int:
        """Augmented copies of the features that `loss` expects."""
        return 2 if self.training and self.cr_weight > 0.0 else 1

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: AsrBatch) -> LossOutput:
        """Training loss: the sum over the batch of -log p(tokens), divided by the number of target tokens.

        Utterances too short for their tokens add neither loss nor tokens; `parts["infeasible"]` counts them. Losses of
        two views are averaged.

        Args:
            feats_BTF: features of `num_views` augmented copies of the batch, one copy after the other, shape
                (num_views * B, T, F).
            feat_lens_B: valid frames of each row, shape (num_views * B,).
            batch: B utterances, of which tokens and their lengths are used.

        Returns:
            loss; parts ctc, inter_ctc, cr (those in use), each per target token, and infeasible, a count of utterances;
            number of target tokens.

        Raises:
            ValueError: the number of rows is not `num_views` times the batch.
        """
        views = self.num_views
        if len(feats_BTF) != views * len(batch.tokens_BU):
            raise ValueError(f"feats has {len(feats_BTF)} rows; expected {views} view(s) of {len(batch.tokens_BU)} utterances")
        # What only the loss sees need not be scored ahead of it.
        head = self.head if views == 2 else partial(scores_for_loss, self.head)
        logits_BTV, inter_logits, lens_B = self._encode(feats_BTF, feat_lens_B, head, intermediate=True)
        ctc = ctc_branch_loss(
            logits_BTV,
            inter_logits,
            lens_B,
            batch.tokens_BU,
            batch.token_lens_B,
            inter_weight=self.inter_weight,
            views=views,
            blank=BLANK,
        )
        loss, parts, rows = ctc.loss, ctc.parts, len(batch.tokens_BU)
        if views == 2:
            cr_B = symmetric_kl(logits_BTV[:rows], logits_BTV[rows:], torch.minimum(lens_B[:rows], lens_B[rows:]))
            cr = cr_B.sum() / ctc.num_targets.clamp(min=1)
            parts["cr"] = cr.detach()
            loss = loss + self.cr_weight * cr
        return LossOutput(loss=loss, parts=parts, num_targets=ctc.num_targets)

    def frame_log_probs(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of labels at each output frame.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            fp32, shape (B, ceil(T / subsampling_factor), V), and their lengths (B,).
        """
        logits_BTV, _, lens_B = self._encode(feats_BTF, feat_lens_B, self.head, intermediate=False)
        return F.log_softmax(logits_BTV.float(), dim=-1), lens_B

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Output frames for so many input frames."""
        return self.encoder.output_lengths(lens_B)  # type: ignore[operator]

    def _encode(
        self, feats_BTF: Tensor, feat_lens_B: Tensor, head: Callable[[Tensor], Any], *, intermediate: bool
    ) -> tuple[Any, tuple[Any, ...], Tensor]:
        """What `head` makes of the last layer, and of `inter_layers` if asked for; lengths."""
        x_BTD, inter_logits, lens_B = encode_with_ctc(
            self.encoder,
            feats_BTF,
            feat_lens_B,
            head=head if self.condition is None else self.head,
            inter_layers=self.inter_layers,
            condition=self.condition,
            intermediate=intermediate,
        )
        return head(self.dropout(x_BTD)), inter_logits, lens_B

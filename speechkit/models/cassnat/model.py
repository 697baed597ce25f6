"""CASS-NAT: encoder with CTC head, decoder over places, and the losses that train them.

Sources: Fan et al. 2021, "CASS-NAT", sections 3.1 and 3.2; Fan et al. 2023, section III.

Shape legend: B batch, R alignments, T frames, U tokens, Q = U + 1 places (tokens and the end of sentence), D model, V vocab,
F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.kernels.ctc_align import ctc_viterbi
from speechkit.losses.ctc import ctc_branch_loss
from speechkit.losses.label_smoothing import check_smoothing, smoothed_cross_entropy
from speechkit.models.cassnat.decoder import TokenDecoder
from speechkit.nn.attention import Position
from speechkit.nn.ctc_encoder import check_inter_layers, encode_with_ctc
from speechkit.nn.dropout import Dropout
from speechkit.nn.masks import valid_mask
from speechkit.nn.token_acoustic import trigger_mask
from speechkit.search.alignment_sampling import Alignments, token_starts
from speechkit.text.tokenizers import BLANK, EOS
from speechkit.types import AsrBatch, LossOutput


class Encoding(NamedTuple):
    """What the encoder makes of a batch.

    Attributes:
        x_BTD: frames, zero in padding, shape (B, T, D).
        lens_B: valid frames of each row, int64, shape (B,).
        log_probs_BTV: CTC log-probabilities of each frame, fp32, shape (B, T, V).
    """

    x_BTD: Tensor
    lens_B: Tensor
    log_probs_BTV: Tensor


class Prediction(NamedTuple):
    """What the decoder makes of alignments.

    Attributes:
        tokens_RU: best token of each place but the last of a row, anything past each length, int64, shape (R, U).
        log_probs_RQ: log-probability of the best token, and of the end of sentence at the last place of a row; 0 after it, fp32,
            shape (R, U + 1).
    """

    tokens_RU: Tensor
    log_probs_RQ: Tensor


class CassNatModel(nn.Module):
    """Encoder, CTC head, and a decoder that reads each token off the frames where CTC sees it.

    Args:
        encoder: maps (feats_BTF, feat_lens_B, tap=) to (x_BTD, x_lens_B), zero in padding; has `output_dim`,
            `subsampling_factor`, and `layers` when `inter_layers` are asked for. See `speechkit.nn.conformer.ConformerEncoder`.
        vocab_size: V; id 0 is the blank and id 3 the end of sentence, as in every tokenizer.
        sad_layers: Conformer blocks over tokens.
        mad_layers: layers in which tokens see all frames, too.
        decoder_heads: attention heads of the decoder, whose width is the encoder's.
        decoder_ff_dim: hidden width of its feed-forward layers.
        decoder_kernel: tokens under the convolution of its Conformer blocks; odd.
        decoder_position: how its Conformer blocks see distances.
        left_trigger: frames before its own that a token sees besides in its acoustic embedding.
        right_trigger: frames after its own that it sees besides.
        dropout: rate in training in the decoder, and before the CTC head.
        attention_dropout: rate on the decoder's attention weights in training.
        ctc_weight: factor of CTC, of which `inter_weight` is a share; the cross-entropy has factor 1.
        inter_layers: encoder layers, counted from 1, whose output is also trained with CTC through the same head.
        inter_weight: share w of the intermediate losses in CTC: (1 - w) final + w mean(intermediate).
        inter_ce_layer: decoder layer, counted from 1 through SAD and MAD, whose output is also trained with cross-entropy;
            None for none.
        inter_ce_weight: factor of that.
        label_smoothing: of both cross-entropies.

    Attributes:
        num_views: augmented copies of the features that `loss` expects, 1.
        subsampling_factor: input frames per encoder frame.

    Raises:
        ValueError: a weight is out of range, or an intermediate layer does not exist.
    """

    num_views = 1

    def __init__(
        self,
        *,
        encoder: nn.Module,
        vocab_size: int,
        sad_layers: int = 5,
        mad_layers: int = 2,
        decoder_heads: int = 4,
        decoder_ff_dim: int = 2048,
        decoder_kernel: int = 3,
        decoder_position: Position = "relative",
        left_trigger: int = 1,
        right_trigger: int = 1,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        ctc_weight: float = 1.0,
        inter_layers: Sequence[int] = (),
        inter_weight: float = 0.5,
        inter_ce_layer: int | None = None,
        inter_ce_weight: float = 0.01,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        if ctc_weight <= 0.0:
            raise ValueError(f"ctc_weight={ctc_weight} must be above 0: without CTC there are no alignments")
        if inter_ce_weight < 0.0 or left_trigger < 0 or right_trigger < 0:
            raise ValueError(f"{inter_ce_weight=}, {left_trigger=} and {right_trigger=} must not be negative")
        if inter_ce_layer is not None and not 1 <= inter_ce_layer < sad_layers + mad_layers:
            raise ValueError(f"inter_ce_layer={inter_ce_layer} must be from 1 to {sad_layers + mad_layers - 1}, or null")
        check_inter_layers(encoder, inter_layers, inter_weight, self_condition=False)
        check_smoothing(label_smoothing)
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.subsampling_factor: int = encoder.subsampling_factor  # type: ignore[assignment]
        self.left_trigger, self.right_trigger = left_trigger, right_trigger
        self.ctc_weight, self.inter_layers, self.inter_weight = ctc_weight, tuple(inter_layers), inter_weight
        self.inter_ce_layer, self.inter_ce_weight, self.label_smoothing = inter_ce_layer, inter_ce_weight, label_smoothing
        dim: int = encoder.output_dim  # type: ignore[assignment]
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size)
        self.decoder = TokenDecoder(
            dim=dim,
            num_heads=decoder_heads,
            ff_dim=decoder_ff_dim,
            sad_layers=sad_layers,
            mad_layers=mad_layers,
            kernel_size=decoder_kernel,
            position=decoder_position,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.token_head = nn.Linear(dim, vocab_size)

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: AsrBatch) -> LossOutput:
        """Training loss: ctc_weight CTC + cross-entropy + inter_ce_weight intermediate cross-entropy.

        Tokens are read off the best CTC path of the transcript, as the model sees it at this moment; no gradient flows
        through that choice. CTC is summed over the batch and divided by the number of target tokens, cross-entropy by
        theirs, which the end of sentence is one of. Utterances too short for their tokens add nothing.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            batch: B utterances, of which tokens and their lengths are used.

        Returns:
            loss; parts ctc, ce, accuracy (share of places that the decoder gets right), length_accuracy (share of utterances
            whose best CTC path has the right number of tokens), infeasible (utterances left out), and those in use of
            inter_ctc and inter_ce; number of targets of the cross-entropy.
        """
        x_BTD, inter_logits, lens_B = encode_with_ctc(
            self.encoder, feats_BTF, feat_lens_B, head=self.head, inter_layers=self.inter_layers, intermediate=True
        )
        logits_BTV = self.head(self.dropout(x_BTD))
        tokens_BU, token_lens_B = batch.tokens_BU, batch.token_lens_B
        ctc = ctc_branch_loss(
            logits_BTV, inter_logits, lens_B, tokens_BU, token_lens_B, inter_weight=self.inter_weight, blank=BLANK
        )
        log_probs_BTV = F.log_softmax(logits_BTV.detach().float(), dim=-1)
        path = ctc_viterbi(log_probs_BTV, lens_B, tokens_BU, token_lens_B, blank=BLANK)
        x_BQD, inter_BQD = self.decoder(
            self.decoder.read(x_BTD, lens_B),
            self._triggers(path.spikes_BU, token_lens_B, lens_B, x_BTD.shape[1]),
            token_lens_B,
            inter_layer=self.inter_ce_layer,
        )
        targets_BQ = F.pad(tokens_BU, (0, 1)).scatter(1, token_lens_B[:, None], EOS)
        valid_BQ = valid_mask(token_lens_B + 1, targets_BQ.shape[1]) & path.feasible_B[:, None]
        ce = smoothed_cross_entropy(self.token_head(x_BQD), targets_BQ, valid_BQ, smoothing=self.label_smoothing)
        best_lens_B = token_starts(log_probs_BTV.argmax(dim=2), lens_B, blank=BLANK).sum(dim=1)
        loss = self.ctc_weight * ctc.loss + ce.loss
        parts = ctc.parts | {"ce": ce.loss.detach(), "accuracy": ce.accuracy}
        parts["length_accuracy"] = (best_lens_B == token_lens_B).float().mean()
        if inter_BQD is not None:
            inter = smoothed_cross_entropy(self.token_head(inter_BQD), targets_BQ, valid_BQ, smoothing=self.label_smoothing)
            parts["inter_ce"] = inter.loss.detach()
            loss = loss + self.inter_ce_weight * inter.loss
        return LossOutput(loss=loss, parts=parts, num_targets=ce.num_targets)

    def encode(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Encoding:
        """Frames and their CTC log-probabilities.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
        """
        x_BTD, lens_B = self.encoder(feats_BTF, feat_lens_B)
        return Encoding(x_BTD, lens_B, F.log_softmax(self.head(self.dropout(x_BTD)).float(), dim=-1))

    def predict(self, encoding: Encoding, alignments: Alignments) -> Prediction:
        """Labels all tokens of all alignments in one pass.

        Args:
            encoding: from `encode`.
            alignments: which frames the tokens are to be read off.
        """
        rows_R, token_lens_R = alignments.rows_R, alignments.token_lens_R
        frames = encoding.x_BTD.shape[1]
        triggers_RQT = self._triggers(alignments.starts_RU, token_lens_R, encoding.lens_B[rows_R], frames)
        source = self.decoder.read(encoding.x_BTD, encoding.lens_B).select(rows_R)
        x_RQD, _ = self.decoder(source, triggers_RQT, token_lens_R)
        logits_RQV = self.token_head(x_RQD).float()
        best_RQ = logits_RQV.max(dim=2)
        places_Q = torch.arange(x_RQD.shape[1], device=rows_R.device)
        scores_RQ = torch.where(places_Q == token_lens_R[:, None], logits_RQV[..., EOS], best_RQ.values)
        log_probs_RQ = (scores_RQ - logits_RQV.logsumexp(dim=2)).masked_fill(places_Q > token_lens_R[:, None], 0.0)
        return Prediction(best_RQ.indices[:, :-1], log_probs_RQ)

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Encoder frames for so many input frames."""
        return self.encoder.output_lengths(lens_B)  # type: ignore[operator]

    def _triggers(self, spikes_RU: Tensor, token_lens_R: Tensor, frame_lens_R: Tensor, num_frames: int) -> Tensor:
        return trigger_mask(spikes_RU, token_lens_R, frame_lens_R, num_frames, left=self.left_trigger, right=self.right_trigger)

"""Paraformer: encoder, predictor, integrate-and-fire, parallel decoder, and the losses that train them.

Sources: Gao et al. 2022, "Paraformer: Fast and Accurate Parallel Transformer for Non-autoregressive End-to-End Speech
Recognition", sections 3.1 to 3.4; tokens off the CTC path: An et al. 2024, "Paraformer-v2: An improved non-autoregressive
transformer for noise-robust speech recognition", section 2.

Shape legend: B batch, T frames, U tokens, D model, V vocab, F mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.kernels.cif import cif, count_tokens
from speechkit.kernels.ctc_align import CtcAlignment, ctc_viterbi
from speechkit.losses.boundary import boundary_loss
from speechkit.losses.ctc import ctc_branch_loss
from speechkit.losses.glancing import glance
from speechkit.losses.label_smoothing import check_smoothing, smoothed_cross_entropy
from speechkit.losses.mwer import mwer_loss
from speechkit.models.paraformer.layers import ParallelDecoder, PosteriorEmbedding, Predictor, path_weights
from speechkit.nn.ctc_encoder import check_inter_layers, encode_with_ctc
from speechkit.nn.decoder import Source
from speechkit.nn.dropout import Dropout
from speechkit.nn.masks import valid_mask
from speechkit.search.alignment_sampling import token_starts
from speechkit.text.tokenizers import BLANK
from speechkit.types import AsrBatch, LossOutput

TokenSource = Literal["cif", "ctc"]


class Prediction(NamedTuple):
    """What one pass makes of a batch.

    Attributes:
        log_probs_BUV: log-probabilities of all tokens, fp32, shape (B, U, V).
        token_lens_B: tokens of each row, int64, shape (B,).
        alphas_BT: weight of each encoder frame, zero in padding, fp32, shape (B, T).
        frame_lens_B: valid encoder frames of each row, int64, shape (B,).
    """

    log_probs_BUV: Tensor
    token_lens_B: Tensor
    alphas_BT: Tensor
    frame_lens_B: Tensor


class _Marks(NamedTuple):
    """Where the tokens are: weights of frames, what is integrated under them, and tokens of each row as the model counts them."""

    alphas_BT: Tensor
    hidden_BTD: Tensor
    token_lens_B: Tensor


class ParaformerModel(nn.Module):
    """Encoder, predictor of frame weights, and a decoder of all tokens at once.

    Args:
        encoder: maps (feats_BTF, feat_lens_B, tap=) to (x_BTD, x_lens_B), zero in padding; has `output_dim`,
            `subsampling_factor`, and `layers` when `inter_layers` are asked for. See `speechkit.nn.conformer.ConformerEncoder`.
        vocab_size: V, with the blank as id 0.
        decoder_layers: layers of the decoder.
        decoder_heads: its attention heads.
        decoder_ff_dim: hidden width of its feed-forward layers.
        token_source: what tells one token from the next in the frames: "cif", the predictor's weights; "ctc", the path of the CTC
            head (Paraformer-v2), for languages whose tokens are letters or pieces of words.
        predictor_kernel: frames under the convolution of the predictor; odd. Only with "cif".
        dropout: rate in training in predictor and decoder, and before the CTC head.
        attention_dropout: rate on the decoder's attention weights in training.
        ctc_weight: w in w CTC + (1 - w) (cross-entropy and MWER); 0 for no CTC head, without which there is neither
            `token_source="ctc"` nor a boundary loss.
        inter_layers: encoder layers, counted from 1, whose output is also trained with CTC through the same head.
        inter_weight: share of the intermediate losses in CTC.
        ce_weight: factor of the cross-entropy; small (0.01) when MWER leads.
        quantity_weight: factor of the quantity loss, the absolute error of the predicted number of tokens. Only with "cif".
        boundary_weight: factor of the boundary loss, by which weights add up to one between CTC spikes; 0 for none. Only with
            "cif".
        glancing_ratio: share of the wrong tokens of the first pass that the second one is shown; 0 trains in one pass.
        label_smoothing: of the cross-entropy.
        mwer_weight: factor of the expected token errors; for fine-tuning a trained model. 0 for none.
        mwer_candidates: candidates sampled per utterance, at least 2.
        mwer_flip_ratio: share of the positions at which a candidate takes the runner-up.
        max_scale: largest factor by which the weights are scaled to the number of target tokens.

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
        decoder_layers: int = 6,
        decoder_heads: int = 4,
        decoder_ff_dim: int = 2048,
        token_source: TokenSource = "cif",
        predictor_kernel: int = 3,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        ctc_weight: float = 0.3,
        inter_layers: Sequence[int] = (),
        inter_weight: float = 0.5,
        ce_weight: float = 1.0,
        quantity_weight: float = 1.0,
        boundary_weight: float = 0.0,
        glancing_ratio: float = 0.4,
        label_smoothing: float = 0.1,
        mwer_weight: float = 0.0,
        mwer_candidates: int = 4,
        mwer_flip_ratio: float = 0.1,
        max_scale: float = 4.0,
    ) -> None:
        super().__init__()
        shares = {"ctc_weight": ctc_weight, "glancing_ratio": glancing_ratio, "mwer_flip_ratio": mwer_flip_ratio}
        factors = {"ce": ce_weight, "quantity": quantity_weight, "boundary": boundary_weight, "mwer": mwer_weight}
        _check_settings(shares, factors, token_source, mwer_candidates)
        if not ctc_weight and (inter_layers or boundary_weight or token_source == "ctc"):
            raise ValueError(f"inter_layers={list(inter_layers)}, {boundary_weight=} and {token_source=} need ctc_weight above 0")
        check_inter_layers(encoder, inter_layers, inter_weight, self_condition=False)
        check_smoothing(label_smoothing)
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.subsampling_factor: int = encoder.subsampling_factor  # type: ignore[assignment]
        self.ctc_weight, self.inter_layers, self.inter_weight = ctc_weight, tuple(inter_layers), inter_weight
        self.ce_weight, self.quantity_weight, self.label_smoothing = ce_weight, quantity_weight, label_smoothing
        self.boundary_weight, self.glancing_ratio, self.max_scale = boundary_weight, glancing_ratio, max_scale
        self.mwer_weight, self.mwer_candidates, self.mwer_flip_ratio = mwer_weight, mwer_candidates, mwer_flip_ratio
        dim: int = encoder.output_dim  # type: ignore[assignment]
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size) if ctc_weight else None
        self.predictor, self.posteriors = None, None
        if token_source == "cif":
            self.predictor = Predictor(dim=dim, kernel_size=predictor_kernel, dropout=dropout)
        else:
            self.posteriors = PosteriorEmbedding(vocab_size=vocab_size, dim=dim)
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.embedding.requires_grad_(glancing_ratio > 0.0)  # without glancing nothing reads it
        self.decoder = ParallelDecoder(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=decoder_layers,
            num_heads=decoder_heads,
            ff_dim=decoder_ff_dim,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: AsrBatch) -> LossOutput:
        """Training loss; every part is summed over the batch and divided by the number of target tokens.

        In training the decoder is shown some targets (glancing); in evaluation none, so that the loss is a function of the
        utterances.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            batch: B utterances, of which tokens and their lengths are used.

        Returns:
            loss; parts ce, accuracy (share of tokens that the decoder gets right, with what it was shown), length_accuracy (share
            of utterances with the right number of tokens), and those in use of quantity (tokens too many or too few per target
            token), boundary (weight on the wrong side of a CTC spike per target token), ctc, inter_ctc, infeasible (utterances
            too short for CTC, which it leaves out, and so does a decoder that needs the path), hits (share of tokens that the
            first pass gets right), mwer; number of target tokens.
        """
        inter_logits: tuple[Tensor, ...] = ()
        if self.head is None:
            x_BTD, lens_B = self.encoder(feats_BTF, feat_lens_B)
        else:
            x_BTD, inter_logits, lens_B = encode_with_ctc(
                self.encoder, feats_BTF, feat_lens_B, head=self.head, inter_layers=self.inter_layers, intermediate=True
            )
        logits_BTV = None if self.head is None else self.head(self.dropout(x_BTD))
        tokens_BU = batch.tokens_BU if batch.tokens_BU.shape[1] else F.pad(batch.tokens_BU, (0, 1))
        path = self._align(logits_BTV, lens_B, tokens_BU, batch.token_lens_B)
        token_lens_B = batch.token_lens_B if path is None else batch.token_lens_B * path.feasible_B
        num_targets = token_lens_B.sum()
        marks = self._mark(x_BTD, lens_B, logits_BTV, path)
        right_B = marks.token_lens_B == batch.token_lens_B
        parts = {"length_accuracy": right_B.float().mean()}
        source = self.decoder.read(x_BTD, lens_B)
        embeddings_BUD = self._target_embeddings(marks, lens_B, token_lens_B, tokens_BU.shape[1])
        if self.training and self.glancing_ratio:
            embeddings_BUD, parts["hits"] = self._glance(embeddings_BUD, tokens_BU, token_lens_B, source)
        logits_BUV = self.decoder(embeddings_BUD, token_lens_B, source)
        valid_BU = valid_mask(token_lens_B, tokens_BU.shape[1])
        ce = smoothed_cross_entropy(logits_BUV, tokens_BU, valid_BU, smoothing=self.label_smoothing)
        parts |= {"ce": ce.loss.detach(), "accuracy": ce.accuracy}
        loss = self.ce_weight * ce.loss
        if self.mwer_weight:
            mwer = self._mwer(logits_BUV, tokens_BU, token_lens_B)
            parts["mwer"] = mwer.detach()
            loss = loss + self.mwer_weight * mwer
        if logits_BTV is not None:
            ctc = ctc_branch_loss(
                logits_BTV, inter_logits, lens_B, tokens_BU, batch.token_lens_B, inter_weight=self.inter_weight, blank=BLANK
            )
            parts |= ctc.parts
            loss = self.ctc_weight * ctc.loss + (1.0 - self.ctc_weight) * loss
        if self.predictor is not None:
            errors_B = (marks.alphas_BT.sum(1) - batch.token_lens_B).abs()
            quantity = errors_B.sum() / batch.token_lens_B.sum().clamp(min=1)
            parts["quantity"] = quantity.detach()
            loss = loss + self.quantity_weight * quantity
        if self.boundary_weight and path is not None:
            boundary = boundary_loss(marks.alphas_BT, path.spikes_BU, token_lens_B).sum() / num_targets.clamp(min=1)
            parts["boundary"] = boundary.detach()
            loss = loss + self.boundary_weight * boundary
        return LossOutput(loss=loss, parts=parts, num_targets=num_targets)

    def predict(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Prediction:
        """Labels all tokens in one pass.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
        """
        x_BTD, lens_B = self.encoder(feats_BTF, feat_lens_B)
        logits_BTV = self.head(x_BTD) if self.head is not None and self.posteriors is not None else None
        alphas_BT, hidden_BTD, token_lens_B = self._mark(x_BTD, lens_B, logits_BTV, None)
        num_tokens = max(int(token_lens_B.max()), 1)
        embeddings_BUD = cif(alphas_BT, hidden_BTD, lens_B, token_lens_B=token_lens_B, max_tokens=num_tokens).embeddings_BUD
        logits_BUV = self.decoder(embeddings_BUD, token_lens_B, self.decoder.read(x_BTD, lens_B))
        return Prediction(F.log_softmax(logits_BUV.float(), dim=-1), token_lens_B, alphas_BT, lens_B)

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Encoder frames for so many input frames."""
        return self.encoder.output_lengths(lens_B)  # type: ignore[operator]

    def _align(self, logits_BTV: Tensor | None, lens_B: Tensor, tokens_BU: Tensor, token_lens_B: Tensor) -> CtcAlignment | None:
        """The CTC path of the targets, where the token source or a loss needs it."""
        if logits_BTV is None or not (self.posteriors or self.boundary_weight):
            return None
        return ctc_viterbi(F.log_softmax(logits_BTV.detach().float(), dim=-1), lens_B, tokens_BU, token_lens_B, blank=BLANK)

    def _mark(self, x_BTD: Tensor, lens_B: Tensor, logits_BTV: Tensor | None, path: CtcAlignment | None) -> _Marks:
        """Tells the tokens apart; off the best CTC path when that of the targets is not given."""
        if self.predictor is not None:
            alphas_BT = self.predictor(x_BTD, valid_mask(lens_B, x_BTD.shape[1]))
            return _Marks(alphas_BT, x_BTD, count_tokens(alphas_BT))
        assert logits_BTV is not None
        assert self.posteriors is not None
        labels_BT = logits_BTV.argmax(dim=2)
        starts_BT = token_starts(labels_BT, lens_B, blank=BLANK)
        if path is None:
            is_token_BT = (labels_BT != BLANK) & valid_mask(lens_B, labels_BT.shape[1])
            index_BT = torch.where(is_token_BT, starts_BT.cumsum(dim=1) - 1, -1)
        else:
            index_BT = path.token_index_BT
        return _Marks(path_weights(index_BT), self.posteriors(logits_BTV), starts_BT.sum(dim=1))

    def _target_embeddings(self, marks: _Marks, lens_B: Tensor, token_lens_B: Tensor, max_tokens: int) -> Tensor:
        """As many embeddings as there are targets: the weights of each row are scaled to sum to their number."""
        alphas_BT = marks.alphas_BT
        sums_B = alphas_BT.sum(1)
        scale_B = (token_lens_B / sums_B.clamp(min=torch.finfo(sums_B.dtype).tiny)).clamp(max=self.max_scale)
        scaled_BT = alphas_BT * scale_B[:, None]
        return cif(scaled_BT, marks.hidden_BTD, lens_B, token_lens_B=token_lens_B, max_tokens=max_tokens).embeddings_BUD

    def _glance(
        self, embeddings_BUD: Tensor, tokens_BU: Tensor, token_lens_B: Tensor, source: Source
    ) -> tuple[Tensor, Tensor]:
        """Embeddings with some targets in their place, and the share of tokens that a first pass without them gets right."""
        with torch.no_grad():
            first_BU = self.decoder(embeddings_BUD, token_lens_B, source).argmax(dim=2)
        shown_BU = glance(first_BU, tokens_BU, token_lens_B, ratio=self.glancing_ratio)
        targets_BUD = self.embedding(tokens_BU) * math.sqrt(self.embedding.embedding_dim)
        hits = ((first_BU == tokens_BU) & valid_mask(token_lens_B, tokens_BU.shape[1])).sum() / token_lens_B.sum().clamp(min=1)
        return torch.where(shown_BU[..., None], targets_BUD.to(embeddings_BUD.dtype), embeddings_BUD), hits

    def _mwer(self, logits_BUV: Tensor, tokens_BU: Tensor, token_lens_B: Tensor) -> Tensor:
        """Expected token errors per target token, less the mean of the candidates."""
        mwer_B = mwer_loss(
            logits_BUV,
            tokens_BU,
            token_lens_B,
            num_candidates=self.mwer_candidates,
            flip_ratio=self.mwer_flip_ratio,
        )
        return mwer_B.sum() / token_lens_B.sum().clamp(min=1)


def _check_settings(shares: dict[str, float], factors: dict[str, float], token_source: str, mwer_candidates: int) -> None:
    """Raises ValueError for values out of range, and for a boundary loss without weights to teach."""
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name}={share} must be in [0, 1]")
    for name, factor in factors.items():
        if factor < 0.0:
            raise ValueError(f"{name}_weight={factor} must not be negative; use 0 to leave the loss out")
    if token_source not in ("cif", "ctc"):
        raise ValueError(f"token_source={token_source!r} must be 'cif' or 'ctc'")
    if token_source == "ctc" and factors["boundary"]:
        raise ValueError(f"boundary_weight={factors['boundary']} teaches the weights of token_source='cif'; use 0 with 'ctc'")
    if mwer_candidates < 2:
        raise ValueError(f"mwer_candidates={mwer_candidates} must be at least 2, for errors are compared between candidates")

"""Attention encoder-decoder model and its hybrid loss.

Sources: Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech recognition"; masking of decoder
inputs, Zhuang et al. 2025, "Mask-Enhanced Autoregressive Prediction" (there for language models).

Shape legend: B batch, T frames, U tokens, P prompt, D model, V vocab, F mel bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.losses.ctc import ctc_branch_loss, scores_for_loss
from speechkit.losses.label_smoothing import TokenLoss, check_smoothing, smoothed_cross_entropy
from speechkit.nn.ctc_encoder import check_inter_layers, encode_with_ctc
from speechkit.nn.decoder import TransformerDecoder
from speechkit.nn.dropout import Dropout
from speechkit.nn.feed_forward import Activation
from speechkit.nn.masks import valid_mask
from speechkit.text.tags import tag_places
from speechkit.text.tokenizers import BLANK, EOS, SOS
from speechkit.types import AsrBatch, LossOutput

MASK = BLANK  # never a decoder input otherwise, so that its embedding is free to mean "hidden"


class AedModel(nn.Module):
    """Encoder, CTC head and autoregressive decoder.

    Args:
        encoder: maps (feats_BTF, feat_lens_B, tap=) to (x_BTD, x_lens_B); has `output_dim`, `subsampling_factor`, and
            `layers` when `inter_layers` are asked for. See `speechkit.nn.conformer.ConformerEncoder`.
        vocab_size: V; ids 0, 2 and 3 are blank, start and end.
        decoder_layers: layers of the decoder.
        decoder_dim: its width; None for that of the encoder.
        decoder_heads: its attention heads.
        decoder_ff_dim: hidden width of its feed-forward layers.
        decoder_activation: of its feed-forward layers: "relu", "silu" or "gelu".
        tie_embeddings: whether its output layer shares the weights of its embedding.
        dropout: rate in training in the decoder and before the CTC head.
        attention_dropout: rate on the decoder's attention weights in training.
        ctc_weight: w in w CTC + (1 - w) cross-entropy; 0 for no CTC head.
        inter_layers: encoder layers, counted from 1, whose output is also trained with CTC through the same head.
        inter_weight: share of the intermediate losses in CTC.
        self_condition: add a linear image of the intermediate predictions to what the next encoder layer sees.
        label_smoothing: of the cross-entropy.
        decoder_mask_prob: chance in training that a token which the decoder reads is hidden from it; targets stay.
        prompt_tokens: ids of tags that every utterance begins with, after <sos> and its tags of language and task.
        language_tokens: ids of language tags by language code, if each utterance is to have that of its language.
        task_tokens: ids of task tags by name, if each utterance is to have one; the first is what is done when no task is named,
            and the only one to say what CTC spells.

    Attributes:
        num_views: augmented copies of the features that `loss` expects, 1.
        subsampling_factor: input frames per encoder frame.

    Raises:
        ValueError: a share is out of range, an intermediate layer does not exist, or a prompt is not in the vocabulary.
    """

    num_views = 1

    def __init__(
        self,
        *,
        encoder: nn.Module,
        vocab_size: int,
        decoder_layers: int = 6,
        decoder_dim: int | None = None,
        decoder_heads: int = 4,
        decoder_ff_dim: int = 2048,
        decoder_activation: Activation = "relu",
        tie_embeddings: bool = False,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        ctc_weight: float = 0.3,
        inter_layers: Sequence[int] = (),
        inter_weight: float = 0.5,
        self_condition: bool = False,
        label_smoothing: float = 0.1,
        decoder_mask_prob: float = 0.0,
        prompt_tokens: Sequence[int] = (),
        language_tokens: Mapping[str, int] | None = None,
        task_tokens: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("ctc_weight", ctc_weight), ("decoder_mask_prob", decoder_mask_prob)):
            if not 0.0 <= share < 1.0:
                raise ValueError(f"{name}={share} must be at least 0 and below 1")
        if inter_layers and not ctc_weight:
            raise ValueError(f"inter_layers={list(inter_layers)} needs ctc_weight above 0")
        check_inter_layers(encoder, inter_layers, inter_weight, self_condition)
        check_smoothing(label_smoothing)
        self.language_tokens, self.task_tokens = dict(language_tokens or {}), dict(task_tokens or {})
        for token in (*prompt_tokens, *self.language_tokens.values(), *self.task_tokens.values()):
            if not EOS < token < vocab_size:
                raise ValueError(f"prompt, language and task tokens hold {token}; give ids above {EOS} and below {vocab_size}")
        self.prompt_tokens = tuple(prompt_tokens)
        self.vocab_size = vocab_size
        self.ctc_weight, self.label_smoothing, self.decoder_mask_prob = ctc_weight, label_smoothing, decoder_mask_prob
        self.inter_layers, self.inter_weight = tuple(inter_layers), inter_weight
        dim: int = encoder.output_dim  # type: ignore[assignment]
        self.subsampling_factor: int = encoder.subsampling_factor  # type: ignore[assignment]
        self.encoder = encoder
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size) if ctc_weight else None
        self.condition = nn.Linear(vocab_size, dim) if self_condition else None
        self.decoder = TransformerDecoder(
            vocab_size=vocab_size,
            dim=dim if decoder_dim is None else decoder_dim,
            num_layers=decoder_layers,
            num_heads=decoder_heads,
            ff_dim=decoder_ff_dim,
            source_dim=dim,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation=decoder_activation,
            tie_embeddings=tie_embeddings,
        )

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: AsrBatch) -> LossOutput:
        """Training loss: w CTC + (1 - w) cross-entropy.

        Each is summed over the batch and divided by the number of its target tokens: the transcript's tokens for CTC, the
        tokens of what the task asks for, mostly the transcript, and one <eos> per utterance for the cross-entropy. Utterances
        too short for their tokens add nothing to CTC; `parts["infeasible"]` counts them.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            batch: B utterances, with languages and tasks for models that have tokens of them. The transcript is the target of
                both, unless the batch brings `task_tokens_BU`: these are then the decoder's, and rows without a transcript
                add nothing to CTC.

        Returns:
            loss; parts ce (smoothed), accuracy (share of tokens right, given those before), and ctc, inter_ctc, infeasible
            where in use; number of target tokens of the cross-entropy.

        Raises:
            ValueError: an utterance is in a language, or a task is named, that has no token.
        """
        x_BTD, inter_logits, lens_B = self._encode(feats_BTF, feat_lens_B, intermediate=True)
        ce = self._decoder_loss(x_BTD, lens_B, batch)
        loss, parts = (1.0 - self.ctc_weight) * ce.loss, {"ce": ce.loss.detach(), "accuracy": ce.accuracy}
        if self.head is not None:
            ctc = ctc_branch_loss(
                scores_for_loss(self.head, self.dropout(x_BTD)),
                inter_logits,
                lens_B,
                batch.tokens_BU,
                batch.token_lens_B,
                inter_weight=self.inter_weight,
                known_B=None if batch.task_tokens_BU is None else batch.token_lens_B > 0,
                blank=BLANK,
            )
            loss = self.ctc_weight * ctc.loss + loss
            parts |= ctc.parts
        return LossOutput(loss=loss, parts=parts, num_targets=ce.num_targets)

    def encode(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output, for `decoder.read` and `ctc_log_probs`.

        Args:
            feats_BTF: features, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            shape (B, ceil(T / subsampling_factor), D), and lengths (B,).
        """
        x_BTD, _, lens_B = self._encode(feats_BTF, feat_lens_B, intermediate=False)
        return x_BTD, lens_B

    def ctc_log_probs(self, x_BTD: Tensor) -> Tensor:
        """Log-probabilities of labels at each encoder frame, fp32, shape (B, T, V).

        Raises:
            ValueError: the model has no CTC head.
        """
        if self.head is None:
            raise ValueError("ctc_weight=0: this model has no CTC head; train with ctc_weight above 0 or decode without CTC")
        return F.log_softmax(self.head(self.dropout(x_BTD)).float(), dim=-1)

    def prompts(self, languages: Sequence[str], tasks: Sequence[str] = ()) -> Tensor:
        """What the decoder reads before the first token of utterances.

        Args:
            languages: of B utterances, "" where there is no choice.
            tasks: of B utterances, "" for the usual one; () when all are.

        Returns:
            int64, shape (B, P).

        Raises:
            ValueError: a language or a task has no token, although others have.
        """
        columns: list[Sequence[int]] = []
        if self.language_tokens:
            known = tuple(self.language_tokens)
            columns.append([self.language_tokens[known[n]] for n in tag_places("language", languages, known)])
        if self.task_tokens:
            known = tuple(self.task_tokens)
            named = [task or known[0] for task in tasks or ("",) * len(languages)]
            columns.append([self.task_tokens[known[n]] for n in tag_places("task", named, known)])
        rows = [(SOS, *(column[row] for column in columns), *self.prompt_tokens) for row in range(len(languages))]
        return torch.tensor(rows, dtype=torch.long, device=self.decoder.head.weight.device)

    def output_lengths(self, lens_B: Tensor) -> Tensor:
        """Encoder frames for so many input frames."""
        return self.encoder.output_lengths(lens_B)  # type: ignore[operator]

    def _encode(self, feats_BTF: Tensor, feat_lens_B: Tensor, *, intermediate: bool) -> tuple[Tensor, tuple[Any, ...], Tensor]:
        """Encoder output; what the loss takes of the CTC head after `inter_layers`, if asked for; lengths."""
        if self.head is None:
            x_BTD, lens_B = self.encoder(feats_BTF, feat_lens_B)
            return x_BTD, (), lens_B
        return encode_with_ctc(
            self.encoder,
            feats_BTF,
            feat_lens_B,
            head=partial(scores_for_loss, self.head) if self.condition is None else self.head,
            inter_layers=self.inter_layers,
            condition=self.condition,
            intermediate=intermediate,
        )

    def _decoder_loss(self, x_BTD: Tensor, lens_B: Tensor, batch: AsrBatch) -> TokenLoss:
        """Cross-entropy of what the task asks for and <eos>, each token given all before it."""
        prompt_BP = self.prompts(batch.langs, batch.tasks)
        tokens_BU, token_lens_B = batch.tokens_BU, batch.token_lens_B
        if batch.task_tokens_BU is not None:
            assert batch.task_token_lens_B is not None
            tokens_BU, token_lens_B = batch.task_tokens_BU, batch.task_token_lens_B
        inputs_BU = tokens_BU
        if self.training and self.decoder_mask_prob:
            hidden_BU = torch.rand(tokens_BU.shape, device=tokens_BU.device) < self.decoder_mask_prob
            inputs_BU = tokens_BU.masked_fill(hidden_BU, MASK)
        logits_BUV = self.decoder(torch.cat((prompt_BP, inputs_BU), dim=1), self.decoder.read(x_BTD, lens_B))
        targets_BU = F.pad(tokens_BU, (0, 1)).scatter(1, token_lens_B[:, None], EOS)
        valid_BU = valid_mask(token_lens_B + 1, targets_BU.shape[1])
        logits_BUV = logits_BUV[:, prompt_BP.shape[1] - 1 :]
        return smoothed_cross_entropy(logits_BUV, targets_BU, valid_BU, smoothing=self.label_smoothing)

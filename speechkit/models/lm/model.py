"""Transformer language model and its loss.

Shape legend: B batch, U tokens, D model, V vocab.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.losses.label_smoothing import check_smoothing, smoothed_cross_entropy
from speechkit.nn.decoder import TransformerDecoder
from speechkit.nn.feed_forward import Activation
from speechkit.nn.masks import valid_mask
from speechkit.text.tokenizers import EOS, SOS
from speechkit.types import LossOutput, TextBatch


class LmModel(nn.Module):
    """Autoregressive language model over tokens.

    Args:
        vocab_size: V; ids 2 and 3 are start and end.
        dim: D.
        num_layers: layers.
        num_heads: attention heads; must divide `dim`.
        ff_dim: hidden width of the feed-forward layers.
        dropout: rate in training on embeddings, hidden layers and residual branches.
        attention_dropout: rate on the attention weights in training.
        activation: of the feed-forward layers: "relu", "silu" or "gelu".
        tie_embeddings: whether the output layer shares the weights of the embedding.
        label_smoothing: of the loss; above 0 the model is worse calibrated, and fusion lives from calibration.

    Attributes:
        decoder: the network, which also reads token by token behind a cache.

    Raises:
        ValueError: `num_heads` does not divide `dim`, or `label_smoothing` is out of range.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 4,
        ff_dim: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation: Activation = "gelu",
        tie_embeddings: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_smoothing(label_smoothing)
        self.vocab_size, self.label_smoothing = vocab_size, label_smoothing
        self.decoder = TransformerDecoder(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            ff_dim=ff_dim,
            cross_attention=False,
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation=activation,
            tie_embeddings=tie_embeddings,
        )

    def loss(self, batch: TextBatch) -> LossOutput:
        """Training loss: cross-entropy of tokens and ends, summed over the batch, divided by their number.

        Args:
            batch: B sentences.

        Returns:
            loss (smoothed); parts nll, the same without smoothing in nats per token, and accuracy, the share of tokens
            right given those before; number of tokens and ends.
        """
        logits_BUV, targets_BU, valid_BU = self._predict(batch.tokens_BU, batch.token_lens_B)
        ce = smoothed_cross_entropy(logits_BUV, targets_BU, valid_BU, smoothing=self.label_smoothing)
        nll = ce.loss.detach()
        if self.label_smoothing:
            nll = smoothed_cross_entropy(logits_BUV.detach(), targets_BU, valid_BU).loss
        return LossOutput(loss=ce.loss, parts={"nll": nll, "accuracy": ce.accuracy}, num_targets=ce.num_targets)

    def token_log_probs(self, tokens_BU: Tensor, token_lens_B: Tensor) -> Tensor:
        """Natural log-probability of each token and of the end, given all before.

        Args:
            tokens_BU: token ids, anything past each length, int64, shape (B, U).
            token_lens_B: valid tokens of each row, int64, shape (B,).

        Returns:
            fp32, zero past the end, shape (B, U + 1).
        """
        logits_BUV, targets_BU, valid_BU = self._predict(tokens_BU, token_lens_B)
        log_probs_BUV = F.log_softmax(logits_BUV.float(), dim=-1)
        return log_probs_BUV.gather(2, targets_BU[..., None])[..., 0].masked_fill(~valid_BU, 0.0)

    def _predict(self, tokens_BU: Tensor, token_lens_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, what they should point at, and which of them count, all with U + 1 places."""
        logits_BUV = self.decoder(F.pad(tokens_BU, (1, 0), value=SOS), None)
        targets_BU = F.pad(tokens_BU, (0, 1)).scatter(1, token_lens_B[:, None], EOS)
        return logits_BUV, targets_BU, valid_mask(token_lens_B + 1, targets_BU.shape[1])

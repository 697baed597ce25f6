"""The parts that make a Paraformer: what tells tokens apart in the frames, and the decoder of all tokens at once.

Sources: Gao et al. 2022, "Paraformer", sections 3.1 and 3.2; shapes of the convolution and the decoder as in FunASR. Tokens
off a CTC path: An et al. 2024, "Paraformer-v2", section 2.

Shape legend: B batch, T frames, U tokens, D model, V vocab.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.decoder import DecoderLayer, Source, read_source
from speechkit.nn.dropout import Dropout
from speechkit.nn.masks import hide_padding
from speechkit.nn.positional import sinusoids


class Predictor(nn.Module):
    """Weight of each frame: depthwise convolution with residual, ReLU, linear, sigmoid; in fp32 whatever the model computes in.

    Args:
        dim: D.
        kernel_size: frames under the convolution; odd.
        dropout: rate in training.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(self, *, dim: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"predictor_kernel={kernel_size} must be odd, so that the convolution is centred")
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, groups=dim, padding=kernel_size // 2)
        self.out = nn.Linear(dim, 1)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Maps frames, zero in padding, shape (B, T, D), to weights in (0, 1), zero in padding, fp32, shape (B, T)."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_BDT = x_BTD.float().transpose(1, 2)
            conv, out = self.depthwise, self.out
            bias = None if conv.bias is None else conv.bias.float()
            context_BDT = F.conv1d(x_BDT, conv.weight.float(), bias, padding=conv.padding, groups=conv.groups)
            hidden_BTD = self.dropout(x_BDT + context_BDT).relu().transpose(1, 2)
            return F.linear(hidden_BTD, out.weight.float(), out.bias.float()).squeeze(2).sigmoid() * valid_BT


class PosteriorEmbedding(nn.Module):
    """Frames as what CTC takes them for: a linear map of the posteriors of all labels.

    No gradient flows into the posteriors: a decoder that reads the targets off the path of the targets would teach CTC to
    be sure of it, right or wrong (recipes/speechocean762/README.md has a run of that).

    Args:
        vocab_size: V.
        dim: D.
    """

    def __init__(self, *, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vocab_size, dim)

    def forward(self, logits_BTV: Tensor) -> Tensor:
        """Maps scores of a CTC head, shape (B, T, V), to frames, shape (B, T, D)."""
        return self.linear(logits_BTV.detach().float().softmax(dim=-1))


def path_weights(token_index_BT: Tensor) -> Tensor:
    """Weights of frames under which integrate-and-fire takes the mean of each token's run in a CTC path.

    Args:
        token_index_BT: which token a frame belongs to, ascending from 0 without gaps; -1 for frames of none, int64, shape (B, T).

    Returns:
        fp32, one over the length of its run for a frame of a token, shape (B, T).
    """
    places_BT = token_index_BT + 1  # 0 counts the frames of none
    counts_BP = torch.zeros_like(F.pad(places_BT, (0, 1))).scatter_add_(1, places_BT, torch.ones_like(places_BT))
    return counts_BP.gather(1, places_BT).float().reciprocal() * (token_index_BT >= 0)


class ParallelDecoder(nn.Module):
    """Transformer decoder in which every token sees all tokens of its utterance, and all frames.

    Args:
        vocab_size: V.
        dim: D, also of the frames.
        num_layers: layers.
        num_heads: attention heads.
        ff_dim: hidden width of the feed-forward layers.
        dropout: rate in training.
        attention_dropout: rate on the attention weights in training.
    """

    def __init__(
        self, *, vocab_size: int, dim: int, num_layers: int, num_heads: int, ff_dim: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, ff_dim=ff_dim, dropout=dropout, attention_dropout=attention_dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size)

    def read(self, source_BTD: Tensor, source_lens_B: Tensor) -> Source:
        """Prepares encoder output for `forward`; both passes of glancing share it.

        Args:
            source_BTD: encoder output, shape (B, T, D).
            source_lens_B: valid frames of each row, int64, shape (B,).
        """
        return read_source([layer.cross_attention for layer in self.layers], source_BTD, source_lens_B)

    def forward(self, embeddings_BUD: Tensor, token_lens_B: Tensor, source: Source) -> Tensor:
        """Scores of all tokens.

        Args:
            embeddings_BUD: one embedding per token, shape (B, U, D) with U >= 1.
            token_lens_B: valid tokens of each row, int64, shape (B,).
            source: from `read`.

        Returns:
            logits, shape (B, U, V).
        """
        num_tokens = embeddings_BUD.shape[1]
        positions_UD = sinusoids(torch.arange(num_tokens, device=embeddings_BUD.device), embeddings_BUD.shape[2])
        x_BUD = self.dropout(embeddings_BUD + positions_UD.to(embeddings_BUD.dtype))
        visible = hide_padding(token_lens_B, num_tokens, of_queries=True)
        for layer, key, value in zip(self.layers, source.keys, source.values):
            x_BUD = layer(x_BUD, visible, key, value, source.visible)
        return self.head(self.norm(x_BUD))

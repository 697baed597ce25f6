"""The decoder of CASS-NAT: token embeddings from frames, then tokens among themselves, then tokens and frames.

Source: Fan et al. 2023, section III: self-attention decoder (SAD) and mixed-attention decoder (MAD).

Shape legend: B batch, R rows (alignments), T frames, Q places (tokens and the end of sentence), D model.
"""

from __future__ import annotations

from torch import Tensor, nn

from speechkit.kernels.attention import Visibility
from speechkit.nn.attention import Position, position_table
from speechkit.nn.conformer import ConformerBlock
from speechkit.nn.decoder import DecoderLayer, Source, read_source
from speechkit.nn.masks import padding_mask
from speechkit.nn.token_acoustic import TokenAcousticExtractor


class TokenDecoder(nn.Module):
    """Extractor, SAD and MAD.

    Args:
        dim: D, also of the frames.
        num_heads: attention heads.
        ff_dim: hidden width of the feed-forward layers.
        sad_layers: Conformer blocks over tokens.
        mad_layers: layers in which tokens see the frames, too.
        kernel_size: tokens under the convolution of a Conformer block; odd.
        position: how Conformer blocks see distances.
        dropout: rate in training.
        attention_dropout: rate on the attention weights in training.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ff_dim: int,
        sad_layers: int,
        mad_layers: int,
        kernel_size: int,
        position: Position,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.dim, self.num_heads, self.position = dim, num_heads, position
        self.extractor = TokenAcousticExtractor(
            dim=dim, num_heads=num_heads, ff_dim=ff_dim, dropout=dropout, attention_dropout=attention_dropout
        )
        self.sad = nn.ModuleList(
            ConformerBlock(
                dim=dim,
                num_heads=num_heads,
                ff_dim=ff_dim,
                kernel_size=kernel_size,
                position=position,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(sad_layers)
        )
        self.mad = nn.ModuleList(
            DecoderLayer(
                dim=dim,
                num_heads=num_heads,
                ff_dim=ff_dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation="silu",
            )
            for _ in range(mad_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def read(self, source_BTD: Tensor, source_lens_B: Tensor) -> Source:
        """Prepares frames for `forward`: keys and values of the extractor, then of each MAD layer.

        Args:
            source_BTD: encoder output, zero in padding, shape (B, T, D).
            source_lens_B: valid frames of each row, int64, shape (B,).
        """
        return read_source(
            [self.extractor.attention, *(layer.cross_attention for layer in self.mad)], source_BTD, source_lens_B
        )

    def forward(
        self, source: Source, triggers_RQT: Tensor, token_lens_R: Tensor, *, inter_layer: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeds and refines all places of each row.

        Args:
            source: from `read`, one row for each alignment.
            triggers_RQT: frames of each place, from `speechkit.nn.token_acoustic.trigger_mask`.
            token_lens_R: tokens of each row without the end of sentence, int64, shape (R,).
            inter_layer: layer, counted from 1 through SAD and MAD, whose output is wanted besides; None for none.

        Returns:
            what the head takes, after the last layer and after `inter_layer`, each of shape (R, Q, D).
        """
        places, device = triggers_RQT.shape[1], triggers_RQT.device
        x_RQD = self.extractor(source.keys[0], source.values[0], triggers_RQT)
        valid_RQ = padding_mask(token_lens_R + 1, places)
        visible = None if valid_RQ is None else Visibility(lens_B=token_lens_R + 1, query_lens_B=token_lens_R + 1)
        table = position_table(self.position, places, dim=self.dim, num_heads=self.num_heads, device=device)
        inter_RQD = None
        for i, layer in enumerate([*self.sad, *self.mad], start=1):
            if i <= len(self.sad):
                x_RQD = layer(x_RQD, valid_RQ, visible, table)
            else:
                place = i - len(self.sad)  # the extractor's keys and values come first
                x_RQD = layer(x_RQD, visible, source.keys[place], source.values[place], source.visible)
            if i == inter_layer:
                inter_RQD = self.norm(x_RQD)
        return self.norm(x_RQD), inter_RQD

"""From frames to one embedding per token, given where the tokens lie: trigger masks and attention within them.

Source: Fan et al. 2021, "CASS-NAT: CTC alignment-based single step non-autoregressive transformer for speech
recognition", section 3; neighbouring frames: Fan et al. 2023, "A CTC alignment-based non-autoregressive transformer for
end-to-end automatic speech recognition", section III.

The spike of a token is the first frame of its run in a CTC path. Token u owns the frames after the spike before it, up to
and including its own; the end of sentence owns the rest::

    path      -  -  a  a  -  b  b  -  -
    owner     0  0  0  1  1  1  2  2  2        (2: end of sentence)

Shape legend: B batch, T frames, U tokens, Q = U + 1 places (tokens and the end of sentence), D model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechkit.kernels.attention import Visibility
from speechkit.nn.decoder import CrossAttention
from speechkit.nn.dropout import Dropout
from speechkit.nn.feed_forward import Activation, FeedForward
from speechkit.nn.positional import sinusoids


def trigger_mask(
    spikes_BU: Tensor, token_lens_B: Tensor, frame_lens_B: Tensor, num_frames: int, *, left: int = 0, right: int = 0
) -> Tensor:
    """Frames of each token and of the end of sentence.

    Without neighbours every valid frame belongs to one place alone, with one exception: an end of sentence to which nothing
    is left, because the last spike is on the last frame, shares that frame.

    Args:
        spikes_BU: frame of each token's spike, ascending in each row; what lies past a length is not read, int64, shape (B, U).
        token_lens_B: valid tokens of each row, int64, shape (B,).
        frame_lens_B: valid frames of each row, int64, shape (B,).
        num_frames: T.
        left: frames before its own that a place sees besides.
        right: frames after its own that a place sees besides.

    Returns:
        bool, shape (B, U + 1, T); all False past the end of sentence, and in rows without frames.
    """
    last_B1 = frame_lens_B[:, None] - 1
    places_Q = torch.arange(spikes_BU.shape[1] + 1, device=spikes_BU.device)
    spikes_BU = torch.where(places_Q[:-1] < token_lens_B[:, None], spikes_BU, last_B1)
    begins_BQ1 = torch.cat((torch.zeros_like(last_B1), spikes_BU + 1), dim=1).minimum(last_B1)[..., None]
    ends_BQ1 = torch.cat((spikes_BU, last_B1), dim=1)[..., None]
    frames_T = torch.arange(num_frames, device=spikes_BU.device)
    seen_BQT = (frames_T >= begins_BQ1 - left) & (frames_T <= ends_BQ1 + right)
    is_frame_BT, is_place_BQ = frames_T <= last_B1, places_Q <= token_lens_B[:, None]
    return seen_BQT & is_frame_BT[:, None] & is_place_BQ[..., None]


class TokenAcousticExtractor(nn.Module):
    """One attention layer that asks the frames of each token what was said there.

    The queries are sinusoids of the token's place, so that nothing is known of a token but its frames and its place.

    Args:
        dim: D, also of the frames.
        num_heads: attention heads.
        ff_dim: hidden width of the feed-forward layer.
        dropout: rate in training.
        attention_dropout: rate on the attention weights in training.
        activation: of the feed-forward layer.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ff_dim: int,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.attention = CrossAttention(dim=dim, num_heads=num_heads, dropout=attention_dropout)
        self.feed_forward = FeedForward(dim=dim, ff_dim=ff_dim, dropout=dropout, activation=activation)
        self.dropout = Dropout(dropout)

    def forward(self, key_BHTK: Tensor, value_BHTK: Tensor, mask_BQT: Tensor) -> Tensor:
        """Gathers.

        Args:
            key_BHTK: of the frames, from `attention.keys_values`.
            value_BHTK: of the frames.
            mask_BQT: from `trigger_mask`; a place without frames reads the first one, valid or not.

        Returns:
            shape (B, Q, D), with sinusoids of the places added.
        """
        batch, places, frames = mask_BQT.shape
        is_first_T = torch.arange(frames, device=mask_BQT.device) == 0
        mask_BQT = mask_BQT | (is_first_T & ~mask_BQT.any(dim=2, keepdim=True))
        places_QD = sinusoids(torch.arange(places, device=mask_BQT.device), self.dim).to(key_BHTK.dtype)
        visible = Visibility(mask=mask_BQT[:, None])
        x_BQD = self.attention(places_QD.expand(batch, -1, -1), key_BHTK, value_BHTK, visible)
        x_BQD = self.dropout(x_BQD * math.sqrt(self.dim) + places_QD)
        return x_BQD + self.feed_forward(x_BQD)

"""Speaker encoder: an LSTM over log-mels whose last output is the embedding, and the loss that trains it.

Sources: see the package.

Shape legend: B batch, T frames, F mel bins, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.losses.ge2e import EPS, ge2e_loss
from speechkit.nn.masks import valid_mask
from speechkit.nn.mel_norm import MelNorm
from speechkit.types import LossOutput, TtsBatch


class SpeakerModel(nn.Module):
    """LSTM layers, and a linear layer on the output at the last frame.

    Args:
        num_mels: F, those of `speechkit.audio.features.LogMel`; 40 in the papers.
        hidden_dim: cells of each LSTM layer; 768 in the papers.
        projection_dim: what each layer's output is projected to, below `hidden_dim`; 256 in the papers. None for no
            projection.
        num_layers: LSTM layers.
        embedding_dim: D.
        segment_frames: frames of a stretch, in training and for each part of an embedding; 160 are 1.6 s at 10 ms.

    Attributes:
        num_views: 1, copies of the features that `loss` expects.
        scale: factor on the cosines in the loss, scalar.
        bias: added to them, scalar.

    Raises:
        ValueError: a size is below 1, or a projection does not make an output smaller.
    """

    num_views = 1

    def __init__(
        self,
        *,
        num_mels: int = 40,
        hidden_dim: int = 256,
        projection_dim: int | None = None,
        num_layers: int = 3,
        embedding_dim: int = 256,
        segment_frames: int = 160,
    ) -> None:
        super().__init__()
        sizes = {"num_mels": num_mels, "hidden_dim": hidden_dim, "num_layers": num_layers, "embedding_dim": embedding_dim}
        for name, value in {**sizes, "segment_frames": segment_frames}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if projection_dim is not None and not 1 <= projection_dim < hidden_dim:
            raise ValueError(f"projection_dim={projection_dim}: must be in 1..{hidden_dim - 1}, or None for no projection")
        self.num_mels, self.embedding_dim, self.segment_frames = num_mels, embedding_dim, segment_frames
        self.mel_norm = MelNorm()
        self.lstm = nn.LSTM(num_mels, hidden_dim, num_layers, batch_first=True, proj_size=projection_dim or 0)
        self.out = nn.Linear(projection_dim or hidden_dim, embedding_dim)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
        """Embeddings of whole rows, which should not be much longer than the stretches of training.

        Nothing past a row's length has a part in its embedding. Computed in fp32, also under autocast: not every CPU has LSTMs
        in halves.

        Args:
            feats_BTF: log-mels as they come, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            fp32, of length 1, exactly 0 for rows without a frame, shape (B, D).

        Raises:
            ValueError: shapes do not fit together.
        """
        check_feats(feats_BTF, feat_lens_B, num_mels=self.num_mels)
        if feats_BTF.shape[0] == 0 or feats_BTF.shape[1] == 0:
            return self.out.weight.new_zeros(len(feats_BTF), self.embedding_dim)
        with torch.autocast(feats_BTF.device.type, enabled=False):
            hidden_BT1 = ~valid_mask(feat_lens_B, feats_BTF.shape[1])[..., None]
            x_BTD, _ = self.lstm(self.mel_norm.normalize(feats_BTF.float()).masked_fill(hidden_BT1, 0.0))
            last_BD = x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), (feat_lens_B - 1).clamp(min=0)]
            embeddings_BD = F.normalize(self.out(last_BD), dim=1, eps=EPS)
        return embeddings_BD.masked_fill(feat_lens_B[:, None] == 0, 0.0)

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: TtsBatch) -> LossOutput:
        """Generalised end-to-end loss of one stretch of each utterance; the whole of what is shorter.

        In training the stretches are drawn by torch's global generator, in evaluation they are the middles.

        Args:
            feats_BTF: log-mels, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).
            batch: B utterances, of which the speakers are used: best some of each.

        Returns:
            Loss per utterance that counts: utterances of speakers with only one in the batch, and those without a frame, do
            not. Parts: ge2e, the loss; accuracy, the share of utterances that are nearest to their own speaker; scale.

        Raises:
            ValueError: shapes do not fit together.
        """
        check_feats(feats_BTF, feat_lens_B, num_mels=self.num_mels)
        if batch.speakers_B.shape != feat_lens_B.shape:
            raise ValueError(f"feats has {len(feats_BTF)} rows; expected the batch's {len(batch.speakers_B)} utterances")
        embeddings_BD = self(*self._draw_segments(feats_BTF, feat_lens_B))
        heard_B = feat_lens_B > 0
        found = ge2e_loss(embeddings_BD[heard_B], batch.speakers_B[heard_B], self.scale, self.bias)
        parts = {"ge2e": found.loss.detach(), "accuracy": found.accuracy, "scale": self.scale.detach()}
        return LossOutput(loss=found.loss, parts=parts, num_targets=found.counted_B.sum())

    def _draw_segments(self, feats_BTF: Tensor, feat_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """A stretch of every utterance, and its length."""
        num_frames = min(self.segment_frames, feats_BTF.shape[1])
        spare_B = (feat_lens_B - num_frames).clamp(min=0)
        begin_B = spare_B // 2
        if self.training:
            begin_B = (torch.rand(len(spare_B)).to(spare_B.device) * (spare_B + 1)).long().minimum(spare_B)
        rows_B = torch.arange(len(begin_B), device=begin_B.device)
        return cut(feats_BTF, rows_B, begin_B, num_frames), feat_lens_B.clamp(max=num_frames)


def cut(feats_BTF: Tensor, rows_K: Tensor, begin_K: Tensor, num_frames: int) -> Tensor:
    """Stretches of some rows, each from its own begin; all that lie within the padded frames, shape (K, num_frames, F)."""
    frames_KT = begin_K[:, None] + torch.arange(num_frames, device=begin_K.device)
    return feats_BTF[rows_K[:, None], frames_KT]


def check_feats(feats_BTF: Tensor, feat_lens_B: Tensor, *, num_mels: int) -> None:
    """Refuses what is no batch of log-mels with as many bins, or has not one length per row."""
    if feats_BTF.ndim != 3 or feats_BTF.shape[2] != num_mels:
        raise ValueError(f"feats has shape {tuple(feats_BTF.shape)}; give log-mels with {num_mels} bins, (B, T, {num_mels})")
    if feat_lens_B.shape != feats_BTF.shape[:1]:
        raise ValueError(f"feat_lens has shape {tuple(feat_lens_B.shape)}; give ({len(feats_BTF)},), one length per row")

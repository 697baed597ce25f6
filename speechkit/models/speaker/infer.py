"""Embeddings of utterances of any length.

Source: Wan et al. 2018, section 3.2: windows that overlap by half, their embeddings averaged.

Shape legend: B batch, T frames, F mel bins, D embedding, K windows, W of them at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.losses.ge2e import EPS
from speechkit.models.speaker.model import SpeakerModel, check_feats, cut

_WINDOWS_AT_ONCE = 256  # a few hundred MB for the largest model, and recordings of any length


@torch.inference_mode()
def embed(model: SpeakerModel, feats_BTF: Tensor, feat_lens_B: Tensor) -> Tensor:
    """Who speaks in each row: the mean over windows of `model.segment_frames`, each of which has a vote of the same weight.

    A window begins every half a window (0.8 s with the usual 160 frames of 10 ms), and one more ends where the row does if no
    other does; a row that is shorter than a window is one. The result is the same in any batch and with any padding, to
    rounding. Pauses are listened to as well: cut long ones before.

    Args:
        model: in eval mode.
        feats_BTF: log-mels as the model was trained on, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).

    Returns:
        fp32, of length 1, exactly 0 for rows without a frame, shape (B, D).

    Raises:
        ValueError: shapes do not fit together.
    """
    check_feats(feats_BTF, feat_lens_B, num_mels=model.num_mels)
    size = model.segment_frames
    begins = [window_begins(frames, size=size) for frames in feat_lens_B.tolist()]
    rows_K = torch.tensor([row for row, own in enumerate(begins) for _ in own], dtype=torch.int64, device=feats_BTF.device)
    begin_K = torch.tensor([begin for own in begins for begin in own], dtype=torch.int64, device=feats_BTF.device)
    num_frames = min(size, feats_BTF.shape[1])
    total_BD = torch.zeros(len(feats_BTF), model.embedding_dim, device=feats_BTF.device)
    for first in range(0, len(rows_K), _WINDOWS_AT_ONCE):
        rows_W, begin_W = rows_K[first : first + _WINDOWS_AT_ONCE], begin_K[first : first + _WINDOWS_AT_ONCE]
        windows_WTF = cut(feats_BTF, rows_W, begin_W, num_frames)
        total_BD.index_add_(0, rows_W, model(windows_WTF, feat_lens_B[rows_W].clamp(max=num_frames)))
    return F.normalize(total_BD, dim=1, eps=EPS)


def window_begins(num_frames: int, *, size: int) -> list[int]:
    """First frames of the windows of an utterance; none without frames."""
    begins = list(range(0, max(num_frames - size, 0) + 1, max(size // 2, 1))) if num_frames else []
    if begins and begins[-1] + size < num_frames:
        begins.append(num_frames - size)
    return begins

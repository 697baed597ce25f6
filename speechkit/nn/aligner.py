"""An aligner of phones and mel frames that needs no teacher, and the prior that starts it near the diagonal.

Sources: Shih et al. 2021, "RAD-TTS"; Badlani et al. 2022, "One TTS Alignment To Rule Them All", section 2. Phones
become keys, frames queries, and the nearer two are the more one attends to the other. Trained by `speechkit.losses.forward_sum`;
`speechkit.kernels.mas.mas` makes durations of what comes out.

Shape legend: B batch, T frames, P phones, D width of phones, F mel bins, C channels, A attention, Q rows and K columns of a
table.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.masks import valid_mask

NEVER = -1e30  # stands for log 0; a softmax over nothing else stays finite


class Aligner(nn.Module):
    """Soft attention of frames to phones by the distance of learned keys and queries.

    Glorot's initialisation, with the gain of ReLU in the convolutions over time.

    Args:
        phone_dim: D.
        num_mels: F.
        dim: A.
        temperature: what squared distances are multiplied by.
    """

    def __init__(self, *, phone_dim: int, num_mels: int, dim: int = 80, temperature: float = 0.0005) -> None:
        super().__init__()
        self.temperature = temperature
        self.keys = nn.Sequential(
            nn.Conv1d(phone_dim, 2 * phone_dim, 3, padding=1), nn.ReLU(), nn.Conv1d(2 * phone_dim, dim, 1)
        )
        self.queries = nn.Sequential(
            nn.Conv1d(num_mels, 2 * num_mels, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(2 * num_mels, num_mels, 1),
            nn.ReLU(),
            nn.Conv1d(num_mels, dim, 1),
        )
        for conv in (*self.keys, *self.queries):
            if isinstance(conv, nn.Conv1d):
                nn.init.xavier_uniform_(conv.weight, gain=2.0**0.5 if conv.kernel_size == (3,) else 1.0)

    def forward(
        self,
        phones_BPD: Tensor,
        phone_lens_B: Tensor,
        mels_BTF: Tensor,
        frame_lens_B: Tensor,
        log_prior_BTP: Tensor | None = None,
    ) -> Tensor:
        """Log attention: log softmax over a row's phones of -temperature * ||query - key||^2, plus the prior.

        With a prior, a frame's attention does not add up to 1; losses normalise, and the best path does not depend on it.
        Distances and softmax are computed in fp32, also under autocast; padding and mates change a row by no more than
        rounding.

        Args:
            phones_BPD: embeddings of phones, without context if the alignment shall be sharp, shape (B, P, D).
            phone_lens_B: valid phones of each row, int64, shape (B,).
            mels_BTF: log-mel frames, shape (B, T, F).
            frame_lens_B: valid frames of each row, int64, shape (B,).
            log_prior_BTP: as `beta_binomial_log_prior` gives it, shape (B, T, P); None for none.

        Returns:
            fp32, shape (B, T, P); -inf past a row's lengths.
        """
        own_BP, own_BT = valid_mask(phone_lens_B, phones_BPD.shape[1]), valid_mask(frame_lens_B, mels_BTF.shape[1])
        keys_BAP, queries_BAT = _convolve(self.keys, phones_BPD, own_BP), _convolve(self.queries, mels_BTF, own_BT)
        with torch.autocast(mels_BTF.device.type, enabled=False):
            keys_BAP, queries_BTA = keys_BAP.float(), queries_BAT.float().transpose(1, 2)
            # ||q||^2 is the same for all phones of a frame, so that the softmax does not see it.
            square_B1P = keys_BAP.square().sum(1, keepdim=True)
            scores_BTP = self.temperature * torch.baddbmm(square_B1P, queries_BTA, keys_BAP, beta=-1, alpha=2)
            log_attention_BTP = scores_BTP.masked_fill(~own_BP[:, None], NEVER).log_softmax(dim=2)
        if log_prior_BTP is not None:
            log_attention_BTP = log_attention_BTP + log_prior_BTP
        return log_attention_BTP.masked_fill(~(own_BT[..., None] & own_BP[:, None]), -torch.inf)


def _convolve(convs: nn.Sequential, x_BTC: Tensor, own_BT: Tensor) -> Tensor:
    """Channels first, (B, C, T); the first convolution reads zeros past a row's length, and the others read no neighbours."""
    num_frames = x_BTC.shape[1]
    x_BCT = x_BTC.masked_fill(~own_BT[..., None], 0.0).transpose(1, 2)
    if num_frames == 0:
        x_BCT = F.pad(x_BCT, (0, 1))
    return convs(x_BCT)[..., :num_frames]


@torch.no_grad()
def beta_binomial_log_prior(
    frame_lens_B: Tensor, phone_lens_B: Tensor, *, num_frames: int, num_phones: int, scaling: float = 1.0
) -> Tensor:
    """Log-probability of each phone at each frame that moves from the first phone to the last at a steady pace.

    At frame t = 1, ..., T the phone p = 0, ..., P - 1 is drawn from a beta-binomial distribution with n = P - 1, a = w t,
    b = w (T + 1 - t). Every logarithm of a gamma function in it stands in one table of lgamma(p + w t), whatever the lengths;
    the table is kept between calls. Computed in fp64: the logarithms are large and their sum is not. A row's result is the
    same, bit for bit, whatever its padding and its batch mates, and nothing waits for the device.

    Args:
        frame_lens_B: valid frames of each row, int64, shape (B,).
        phone_lens_B: valid phones of each row, int64, shape (B,).
        num_frames: T of the padded batch.
        num_phones: P of the padded batch.
        scaling: w; the larger, the narrower.

    Returns:
        fp32, shape (B, T, P), on the device of the lengths; -inf past a row's lengths.

    Raises:
        ValueError: `scaling` is not positive.
    """
    if not scaling > 0.0:
        raise ValueError(f"scaling={scaling} must be above 0; 1.0 is usual")
    device = frame_lens_B.device
    table_QK = _log_gammas(_power_of_two(num_frames + 2), _power_of_two(num_phones), scaling, device)
    factorials_K = torch.lgamma(torch.arange(1, table_QK.shape[1] + 1, dtype=torch.float64, device=device))
    t_T, p_P = torch.arange(1, num_frames + 1, device=device), torch.arange(num_phones, device=device)
    n_B, end_B = (phone_lens_B - 1).clamp(min=0), frame_lens_B + 1
    left_BT, left_BP = (end_B[:, None] - t_T).clamp(min=1), (n_B[:, None] - p_P).clamp(min=0)
    choose_BP = factorials_K[n_B][:, None] - factorials_K[p_P] - factorials_K[left_BP]
    beta_BTP = table_QK[1 : num_frames + 1, :num_phones] + table_QK[left_BT[..., None], left_BP[:, None]]
    norm_BT = table_QK[t_T, 0] + table_QK[left_BT, 0] + (table_QK[end_B, n_B] - table_QK[end_B, 0])[:, None]
    log_prior_BTP = choose_BP[:, None] + beta_BTP - norm_BT[..., None]
    own_BTP = valid_mask(frame_lens_B, num_frames)[..., None] & valid_mask(phone_lens_B, num_phones)[:, None]
    return log_prior_BTP.masked_fill(~own_BTP, -torch.inf).float()


def _power_of_two(number: int) -> int:
    """The next one, so that a training makes few tables."""
    return 1 << max(number - 1, 0).bit_length()


@lru_cache(maxsize=16)
def _log_gammas(num_rows: int, num_columns: int, scaling: float, device: torch.device) -> Tensor:
    """lgamma(p + scaling * t) at row t and column p, fp64, shape (Q, K); at (0, 0) there is none."""
    t_Q, p_K = (torch.arange(n, dtype=torch.float64, device=device) for n in (num_rows, num_columns))
    return torch.lgamma(scaling * t_Q[:, None] + p_K)

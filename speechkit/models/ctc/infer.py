"""From frame log-probabilities to transcripts with times and confidences.

Shape legend: B batch, T frames, V vocab, F mel bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.models.ctc.model import CtcModel
from speechkit.search.ctc_decode import CtcSearchOptions, ctc_decode
from speechkit.text.tokenizers import BLANK, Tokenizer
from speechkit.types import Hypothesis, Seconds


@dataclass(frozen=True, slots=True)
class CtcDecodeOptions(CtcSearchOptions):
    """How to decode; all is said in `speechkit.search.ctc_decode.CtcSearchOptions`."""


@torch.inference_mode()
def infer(
    model: CtcModel,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: CtcDecodeOptions | None = None,
    frame_shift: Seconds = 0.01,
) -> list[Hypothesis]:
    """Transcribes a batch of features.

    Args:
        model: a CTC model; put in eval mode by the caller.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: the tokenizer that the model was trained with.
        options: how to decode; greedy without times when None.
        frame_shift: seconds between input frames.

    Returns:
        one hypothesis per row.
    """
    log_probs_BTV, lens_B = model.frame_log_probs(feats_BTF, feat_lens_B)
    shift = frame_shift * model.subsampling_factor
    return decode_log_probs(log_probs_BTV, lens_B, tokenizer=tokenizer, options=options, frame_shift=shift)


def decode_log_probs(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: CtcDecodeOptions | None = None,
    frame_shift: Seconds,
) -> list[Hypothesis]:
    """Decodes frame log-probabilities.

    Args:
        log_probs_BTV: frame log-probabilities, shape (B, T, V).
        lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: turns ids into text.
        options: how to decode; greedy without times when None.
        frame_shift: seconds between these frames.

    Returns:
        one hypothesis per row.
    """
    options = CtcDecodeOptions() if options is None else options
    return ctc_decode(log_probs_BTV, lens_B, tokenizer=tokenizer, options=options, frame_shift=frame_shift, blank=BLANK)

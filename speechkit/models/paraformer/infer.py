"""From features to transcripts in one pass, with times from the weights of the frames.

Shape legend: B batch, T frames, U tokens, V vocab, F mel bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.kernels.cif import crossings, running_sums
from speechkit.models.paraformer.model import ParaformerModel, Prediction
from speechkit.search.hypotheses import Timestamps, check_timestamps, make_hypothesis
from speechkit.text.tokenizers import Tokenizer
from speechkit.types import Hypothesis, Seconds

EDGE = 0.1  # share of a token's weight before it begins and after it ends: weights of silence are small but not zero


@dataclass(frozen=True, slots=True)
class ParaformerDecodeOptions:
    """How to decode.

    Attributes:
        timestamps: None, "token", or "word" (which gives tokens too).

    Raises:
        ValueError: a choice is unknown.
    """

    timestamps: Timestamps | None = None

    def __post_init__(self) -> None:
        check_timestamps(self.timestamps)


@torch.inference_mode()
def infer(
    model: ParaformerModel,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: ParaformerDecodeOptions | None = None,
    frame_shift: Seconds = 0.01,
) -> list[Hypothesis]:
    """Transcribes a batch of features.

    Args:
        model: a Paraformer; put in eval mode by the caller.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: the tokenizer that the model was trained with.
        options: how to decode; without times when None.
        frame_shift: seconds between input frames.

    Returns:
        one hypothesis per row: the best token of each position, blank, start and end left out; the score is the sum of the
        log-probabilities of the best tokens.
    """
    options = ParaformerDecodeOptions() if options is None else options
    prediction = model.predict(feats_BTF, feat_lens_B)
    best = prediction.log_probs_BUV.max(dim=2)
    log_probs, tokens = best.values.tolist(), best.indices.tolist()
    spans = None
    if options.timestamps is not None:
        spans = (token_spans(prediction) * (frame_shift * model.subsampling_factor)).tolist()
    silent = {tokenizer.blank_id, tokenizer.sos_id, tokenizer.eos_id}
    hypotheses = []
    for row, length in enumerate(prediction.token_lens_B.tolist()):
        kept = [u for u in range(length) if tokens[row][u] not in silent]
        hypothesis = make_hypothesis(
            [tokens[row][u] for u in kept],
            tokenizer=tokenizer,
            score=sum(log_probs[row][:length]),
            confidences=[min(math.exp(log_probs[row][u]), 1.0) for u in kept],
            times=[] if spans is None else [(spans[row][u][0], spans[row][u][1]) for u in kept],
            timestamps=options.timestamps,
        )
        hypotheses.append(hypothesis)
    return hypotheses


def token_spans(prediction: Prediction) -> Tensor:
    """Where each token lies: from where it has a tenth of its weight to where all but a tenth of it is in.

    Args:
        prediction: what the model made of a batch.

    Returns:
        beginnings and ends in encoder frames from the start of the row, fp32, shape (B, U, 2); beyond a row's tokens
        anything.
    """
    alphas_BT, lens_B = prediction.alphas_BT, prediction.frame_lens_B
    before_U = torch.arange(prediction.log_probs_BUV.shape[1], device=alphas_BT.device)
    total_B1 = running_sums(alphas_BT)[:, -1:]
    weight_BU = (total_B1 - before_U).clamp(0.0, 1.0)  # the last token may have less than one
    levels = [before_U + share * weight_BU for share in (EDGE, 1.0 - EDGE)]
    return torch.stack([crossings(alphas_BT, lens_B, levels_BU) for levels_BU in levels], dim=2)

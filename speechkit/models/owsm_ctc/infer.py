"""From frame log-probabilities to transcripts with times and confidences, and the language that is spoken.

The first two frames are those of the language and the task, see `OwsmCtcModel.frame_log_probs`; the frames of the audio
follow and decide on the text.

Shape legend: B batch, T frames of the audio, P prefix frames (2), V vocab, F mel bins.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.models.owsm_ctc.model import OwsmCtcModel
from speechkit.search.ctc_decode import CtcSearchOptions, ctc_decode
from speechkit.text.tokenizers import BLANK, Tokenizer
from speechkit.types import Hypothesis, Seconds


@dataclass(frozen=True, slots=True)
class OwsmCtcDecodeOptions(CtcSearchOptions):
    """How to decode; the search as in `speechkit.search.ctc_decode.CtcSearchOptions`.

    Attributes:
        language: code of the language spoken; None to have it identified.
        task: name of the task; None for the model's first.
        prompt: text that came before, for models trained with prompts.
    """

    language: str | None = None
    task: str | None = None
    prompt: str = ""


@torch.inference_mode()
def infer(
    model: OwsmCtcModel,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: OwsmCtcDecodeOptions | None = None,
    frame_shift: Seconds = 0.01,
) -> list[Hypothesis]:
    """Transcribes, or does what the task is, for a batch of features.

    Args:
        model: an OWSM-CTC model; put in eval mode by the caller.
        feats_BTF: features, shape (B, T, F).
        feat_lens_B: valid frames of each row, int64, shape (B,).
        tokenizer: the tokenizer that the model was trained with.
        options: how to decode; greedy without times, the language unknown, when None.
        frame_shift: seconds between input frames.

    Returns:
        one hypothesis per row, with its language.

    Raises:
        ValueError: the model does not know the language or the task, or takes no prompt.
    """
    log_probs_BTV, lens_B = frame_log_probs(model, feats_BTF, feat_lens_B, tokenizer=tokenizer, options=options)
    shift = frame_shift * model.subsampling_factor
    return decode_log_probs(log_probs_BTV, lens_B, tokenizer=tokenizer, options=options, frame_shift=shift)


@torch.inference_mode()
def frame_log_probs(
    model: OwsmCtcModel,
    feats_BTF: Tensor,
    feat_lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: OwsmCtcDecodeOptions | None = None,
) -> tuple[Tensor, Tensor]:
    """What the model says to language, task and prompt of the options; arguments as `infer`.

    Returns:
        fp32, shape (B, P + T, V), and lengths (B,), for `decode_log_probs`.
    """
    options = OwsmCtcDecodeOptions() if options is None else options
    return model.frame_log_probs(
        feats_BTF, feat_lens_B, language=options.language, task=options.task, prompt=tokenizer.encode(options.prompt)
    )


def decode_log_probs(
    log_probs_BTV: Tensor,
    lens_B: Tensor,
    *,
    tokenizer: Tokenizer,
    options: OwsmCtcDecodeOptions | None = None,
    frame_shift: Seconds,
) -> list[Hypothesis]:
    """Decodes frame log-probabilities.

    Args:
        log_probs_BTV: log-probabilities of languages, of tasks, and of labels at each frame of the audio, shape
            (B, P + T, V).
        lens_B: valid frames of each row, the prefix among them, int64, shape (B,).
        tokenizer: turns ids into text.
        options: how to decode; greedy without times when None.
        frame_shift: seconds between these frames.

    Returns:
        one hypothesis per row; its language is the one of the options, or else the likeliest.
    """
    options = OwsmCtcDecodeOptions() if options is None else options
    prefix = OwsmCtcModel.num_prefix_frames
    hypotheses = ctc_decode(
        log_probs_BTV[:, prefix:], lens_B - prefix, tokenizer=tokenizer, options=options, frame_shift=frame_shift, blank=BLANK
    )
    languages = tokenizer.pieces(log_probs_BTV[:, 0].argmax(dim=-1).tolist())
    return [
        dataclasses.replace(hypothesis, language=options.language or language.strip("<>"))
        for hypothesis, language in zip(hypotheses, languages)
    ]

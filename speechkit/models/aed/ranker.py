"""An attention decoder that judges the transcripts of other models, such as those of CASS-NAT's sampled alignments.

Source: Fan et al. 2021, "CASS-NAT", section 3.3, where an autoregressive model ranks.

Shape legend: B batch, T frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechkit.models.aed.infer import decode_language
from speechkit.models.aed.model import AedModel
from speechkit.search.rescoring import score_sequences
from speechkit.text.tokenizers import EOS


class AedRanker:
    """Says how well token sequences fit utterances; of the same tokenizer and features as what made the sequences.

    Args:
        model: put in eval mode by the caller.
        language: language code, for models with language tokens; None for the model's first.
        name: how it is called in messages.
    """

    def __init__(self, *, model: AedModel, language: str | None = None, name: str = "") -> None:
        self.model, self.language, self.name = model, language, name

    def __repr__(self) -> str:
        return f"AedRanker({self.name})"

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[tuple[int, ...]]], feats_BTF: Tensor, feat_lens_B: Tensor) -> list[list[float]]:
        """Scores all sequences of all utterances in one teacher-forced pass of the decoder.

        Args:
            sequences: for each of B utterances, some token sequences.
            feats_BTF: features of the utterances, shape (B, T, F).
            feat_lens_B: valid frames of each row, int64, shape (B,).

        Returns:
            natural log-probability of each sequence and its end, in the order of `sequences`.
        """
        x_BTD, lens_B = self.model.encode(feats_BTF, feat_lens_B)
        prompts_BP = self.model.prompts([decode_language(self.model, self.language)] * len(lens_B))
        source = self.model.decoder.read(x_BTD, lens_B)
        scores = score_sequences(self.model.decoder, source, prompts_BP, sequences, eos=EOS)
        return [[score.total for score in own] for own in scores]

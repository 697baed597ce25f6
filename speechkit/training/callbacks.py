"""Callbacks beside those for resuming (`resume`), averaging (`ema`) and progress (`progress`)."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from speechkit.types import AsrBatch


class SampleLogger(pl.Callback):
    """Shows the first utterances of each validation in TensorBoard: reference, hypothesis, and once their spectrogram.

    Args:
        num_samples: utterances shown.
    """

    def __init__(self, *, num_samples: int = 4) -> None:
        self.num_samples = num_samples
        self._shown_images = False

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: AsrBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows the first batch."""
        logger = next((each for each in trainer.loggers if isinstance(each, TensorBoardLogger)), None)
        if batch_idx > 0 or logger is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        rows = list(zip(batch.ids, batch.texts, outputs))[: self.num_samples]
        for utterance_id, reference, hypothesis in rows:
            text = f"ref: {reference}  \nhyp: {hypothesis.text}"
            logger.experiment.add_text(f"samples/{utterance_id}", text, trainer.global_step)
        if not self._shown_images:
            self._shown_images = True
            features: Any = pl_module.features
            feats_BTF, feat_lens_B = features(batch.wave_BN[: len(rows)], batch.wave_lens_B[: len(rows)])
            for (utterance_id, *_), feats_TF, length in zip(rows, feats_BTF, feat_lens_B.tolist()):
                logger.experiment.add_image(f"features/{utterance_id}", spectrogram_image(feats_TF[:length]), 0)


def spectrogram_image(feats_TF: Tensor) -> Tensor:
    """Features as a grey image, low frequencies at the bottom, uint8, shape (1, F, T)."""
    low, high = torch.aminmax(feats_TF)
    scaled_TF = (feats_TF - low) / (high - low).clamp(min=1e-6)
    return (255 * scaled_TF.T.flip(0)[None]).to(torch.uint8).cpu()


class SkipReport(pl.Callback):
    """Says at the end of training how many utterances could not be read and how many steps were skipped."""

    def __init__(self) -> None:
        self._num_unread = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: AsrBatch, batch_idx: int
    ) -> None:
        """Counts what the collate function had to leave out."""
        self._num_unread += batch.num_skipped

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the counts that are not zero."""
        if self._num_unread:
            print(f"{self._num_unread} utterances could not be read in training and were left out of their batches")
        if pl_module.num_skipped_steps:
            print(f"{pl_module.num_skipped_steps} steps were skipped for a gradient that was not finite")

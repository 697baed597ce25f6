"""The FastSpeech 2 model: phones to mel frames, with its losses.

Shape legend: B batch, P phones, T frames, D model, F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.kernels.mas import mas
from speechkit.losses.forward_sum import binarization_loss, forward_sum_loss
from speechkit.models.fastspeech.layers import BinnedEmbedding, FeedForwardTransformer, PostNet, VariancePredictor
from speechkit.nn.aligner import Aligner, beta_binomial_log_prior
from speechkit.nn.length_regulator import average_by_phone, expand
from speechkit.nn.masks import padding_mask, valid_mask
from speechkit.nn.mel_norm import MelNorm
from speechkit.types import LossOutput, TtsBatch


class Alignment(NamedTuple):
    """What the aligner found for a batch.

    Attributes:
        durations_BP: frames of each phone, int64, shape (B, P).
        usable_B: rows with at least one frame per phone, bool, shape (B,).
        forward_sum: loss of the soft alignment, scalar.
        binarization: loss of its distance from the hard one, scalar.
    """

    durations_BP: Tensor
    usable_B: Tensor
    forward_sum: Tensor
    binarization: Tensor


class Variances(NamedTuple):
    """What is predicted of each phone, shapes (B, P); pitch and energy are None in models without them."""

    log_durations_BP: Tensor
    pitch_BP: Tensor | None
    energy_BP: Tensor | None


class FastSpeechModel(nn.Module):
    """FastSpeech 2.

    Args:
        vocab_size: number of phone ids.
        num_mels: F.
        num_speakers: voices; above 1 each gets an embedding.
        num_languages: languages; above 1 each gets an embedding.
        log_f0_std: deviation of log F0 that pitch was normalised by; makes semitones of it in inference.
        dim: D.
        encoder_layers: blocks over phones.
        decoder_layers: blocks over frames.
        num_heads: attention heads.
        filter_dim: channels between the convolutions of a block.
        kernel_sizes: of the two convolutions of a block.
        predictor_dim: channels of the predictors.
        predictor_kernel_size: of their convolutions.
        predictor_dropout: their dropout.
        postnet_layers: convolutions of PostNet; 0 leaves it out.
        postnet_dim: its channels.
        dropout: rate in training.
        pitch: predict pitch, and read it.
        energy: predict energy, and read it.
        learn_alignment: train an aligner along, for data without known durations; where a batch has them, they are taken.
        binarization_start: batches of training, calls of `loss`, after which the loss of the hard alignment sets in; it rises
            over as many again. Steps of the optimiser are fewer where gradients of several batches are accumulated.
        teacher: a trained model of this family, of the same phones, mels, voices and languages. Its mels are learnt instead of
            the recordings', with durations, pitch and energy forced to be theirs, which batches have to have where it reads
            them; so a small model learns from a large one (Ren et al. 2019, "FastSpeech", section 3.3, where the teacher is
            autoregressive). It is no part of what is exported.

    Attributes:
        step: batches that it was trained on, int64 buffer, scalar.

    Raises:
        ValueError: sizes do not fit together, or the teacher knows another number of phones, mels, speakers or languages.
    """

    num_views = 1
    training_only = ("teacher",)
    step: Tensor

    def __init__(
        self,
        *,
        vocab_size: int,
        num_mels: int,
        num_speakers: int = 1,
        num_languages: int = 1,
        log_f0_std: float = 0.25,
        dim: int = 256,
        encoder_layers: int = 4,
        decoder_layers: int = 6,
        num_heads: int = 2,
        filter_dim: int = 1024,
        kernel_sizes: Sequence[int] = (9, 1),
        predictor_dim: int = 256,
        predictor_kernel_size: int = 3,
        predictor_dropout: float = 0.5,
        postnet_layers: int = 5,
        postnet_dim: int = 512,
        dropout: float = 0.2,
        pitch: bool = True,
        energy: bool = True,
        learn_alignment: bool = False,
        binarization_start: int = 2000,
        teacher: FastSpeechModel | None = None,
    ) -> None:
        super().__init__()
        first, second = kernel_sizes
        stack = {"dim": dim, "num_heads": num_heads, "filter_dim": filter_dim}
        self.log_f0_std, self.binarization_start = log_f0_std, binarization_start
        self.mel_norm = MelNorm()
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.encoder = FeedForwardTransformer(
            **stack, num_layers=encoder_layers, kernel_sizes=(first, second), dropout=dropout
        )
        self.speakers = nn.Embedding(num_speakers, dim) if num_speakers > 1 else None
        self.languages = nn.Embedding(num_languages, dim) if num_languages > 1 else None
        predictor = {"dim": dim, "hidden_dim": predictor_dim, "kernel_size": predictor_kernel_size}
        self.duration = VariancePredictor(**predictor, dropout=predictor_dropout)
        self.pitch = VariancePredictor(**predictor, dropout=predictor_dropout) if pitch else None
        self.energy = VariancePredictor(**predictor, dropout=predictor_dropout) if energy else None
        self.pitch_embedding = BinnedEmbedding(dim=dim) if pitch else None
        self.energy_embedding = BinnedEmbedding(dim=dim) if energy else None
        self.decoder = FeedForwardTransformer(
            **stack, num_layers=decoder_layers, kernel_sizes=(first, second), dropout=dropout
        )
        self.out = nn.Linear(dim, num_mels)
        self.postnet = None
        if postnet_layers:
            self.postnet = PostNet(num_mels=num_mels, dim=postnet_dim, num_layers=postnet_layers, dropout=dropout)
        self.aligner = Aligner(phone_dim=dim, num_mels=num_mels) if learn_alignment else None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if teacher is not None and _known(teacher) != _known(self):
            known = f"knows {_known(teacher)}, the model {_known(self)}"
            raise ValueError(f"teacher: {known}; take the tokenizer, mel, voices and languages of its training")
        self.teacher = None if teacher is None else teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> FastSpeechModel:
        """As of any module; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def encode(self, phones_BP: Tensor, phone_lens_B: Tensor, speakers_B: Tensor, languages_B: Tensor) -> Tensor:
        """Phones to hidden vectors, shape (B, P, D); arguments as in `speechkit.types.TtsInputs`."""
        x_BPD = self.encoder(self.embedding(phones_BP), phone_lens_B)
        if self.speakers is not None:
            x_BPD = x_BPD + self.speakers(speakers_B)[:, None]
        if self.languages is not None:
            x_BPD = x_BPD + self.languages(languages_B)[:, None]
        return x_BPD

    def predict(self, x_BPD: Tensor, phone_lens_B: Tensor) -> Variances:
        """Duration, pitch and energy of each phone of `encode`."""
        valid_BP = padding_mask(phone_lens_B, x_BPD.shape[1])
        return Variances(
            log_durations_BP=self.duration(x_BPD, valid_BP),
            pitch_BP=None if self.pitch is None else self.pitch(x_BPD, valid_BP),
            energy_BP=None if self.energy is None else self.energy(x_BPD, valid_BP),
        )

    def decode(
        self,
        x_BPD: Tensor,
        phone_lens_B: Tensor,
        durations_BP: Tensor,
        pitch_BP: Tensor | None,
        energy_BP: Tensor | None,
        *,
        max_frames: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden vectors of phones to normalised mel frames.

        Args:
            x_BPD: from `encode`, shape (B, P, D).
            phone_lens_B: valid phones of each row, int64, shape (B,).
            durations_BP: frames of each phone, int64, shape (B, P).
            pitch_BP: normalised pitch of each phone, shape (B, P); for models with pitch.
            energy_BP: normalised energy of each phone, likewise.
            max_frames: T; None for the longest row.

        Returns:
            mel before and after PostNet, shapes (B, T, F), and the frames of each row, shape (B,).
        """
        if self.pitch_embedding is not None and pitch_BP is not None:
            x_BPD = x_BPD + self.pitch_embedding(pitch_BP)
        if self.energy_embedding is not None and energy_BP is not None:
            x_BPD = x_BPD + self.energy_embedding(energy_BP)
        frames_BTD, lens_B = expand(x_BPD, durations_BP, phone_lens_B, max_frames=max_frames)
        before_BTF = self.out(self.decoder(frames_BTD, lens_B))
        if self.postnet is None or before_BTF.shape[1] == 0:
            return before_BTF, before_BTF, lens_B
        return before_BTF, before_BTF + self.postnet(before_BTF, padding_mask(lens_B, before_BTF.shape[1])), lens_B

    def align(self, mel_BTF: Tensor, mel_lens_B: Tensor, phones_BP: Tensor, phone_lens_B: Tensor) -> Alignment:
        """Finds durations by the aligner, for log-mels as they come from the features.

        Raises:
            ValueError: the model was made without one.
        """
        if self.aligner is None:
            raise ValueError(
                "the batch has no durations and the model no aligner: set data.alignment to the field that holds times, or "
                "model.learn_alignment=true"
            )
        num_frames, num_phones = mel_BTF.shape[1], phones_BP.shape[1]
        prior_BTP = beta_binomial_log_prior(mel_lens_B, phone_lens_B, num_frames=num_frames, num_phones=num_phones)
        mel_BTF = self.mel_norm.normalize(mel_BTF)
        scores_BTP = self.aligner(self.embedding(phones_BP), phone_lens_B, mel_BTF, mel_lens_B, prior_BTP)
        path = mas(scores_BTP, mel_lens_B, phone_lens_B)
        return Alignment(
            durations_BP=path.durations_BP,
            usable_B=path.feasible_B,
            forward_sum=forward_sum_loss(scores_BTP, mel_lens_B, phone_lens_B).loss,
            binarization=binarization_loss(scores_BTP, path.frame_phone_BT, phone_lens_B),
        )

    def loss(self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> LossOutput:
        """L1 of the mel before and after PostNet, mean squared errors of log(d + 1), pitch and energy, all with weight 1.

        Args:
            mel_BTF: log-mels of the features, shape (B, T, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
            batch: the phones, and what is known of them.

        Raises:
            ValueError: the batch lacks what this model needs.
        """
        self._check(batch)
        parts: dict[str, Tensor] = {}
        total = mel_BTF.new_zeros(())
        usable_B = torch.ones_like(mel_lens_B, dtype=torch.bool)
        if batch.durations_BP is not None:
            durations_BP = batch.durations_BP
        else:
            found = self.align(mel_BTF, mel_lens_B, batch.phones_BP, batch.phone_lens_B)
            durations_BP, usable_B = found.durations_BP, found.usable_B
            parts |= {"forward_sum": found.forward_sum, "binarization": found.binarization}
            total = total + found.forward_sum + self._binarization_weight() * found.binarization
        valid_BT = valid_mask(mel_lens_B, mel_BTF.shape[1]) & usable_B[:, None]
        valid_BP = valid_mask(batch.phone_lens_B, batch.phones_BP.shape[1]) & usable_B[:, None]
        x_BPD = self.encode(batch.phones_BP, batch.phone_lens_B, batch.speakers_B, batch.languages_B)
        predicted = self.predict(x_BPD, batch.phone_lens_B)
        pitch_BP = None if self.pitch is None else _by_phone(batch.pitch_BT, durations_BP)
        energy_BP = None if self.energy is None else _by_phone(batch.energy_BT, durations_BP)
        frames = mel_BTF.shape[1]
        before_BTF, after_BTF, _ = self.decode(x_BPD, batch.phone_lens_B, durations_BP, pitch_BP, energy_BP, max_frames=frames)
        if self.teacher is not None:
            mel_BTF = self.teacher.recite(batch, durations_BP, max_frames=frames)
        target_BTF = self.mel_norm.normalize(mel_BTF)
        parts["mel"] = _mean((before_BTF.float() - target_BTF).abs().mean(2), valid_BT)
        if self.postnet is not None:
            parts["postnet"] = _mean((after_BTF.float() - target_BTF).abs().mean(2), valid_BT)
        for name, guess_BP, truth_BP in (
            ("duration", predicted.log_durations_BP, durations_BP.float().log1p()),
            ("pitch", predicted.pitch_BP, pitch_BP),
            ("energy", predicted.energy_BP, energy_BP),
        ):
            if guess_BP is not None and truth_BP is not None:
                parts[name] = _mean((guess_BP.float() - truth_BP).square(), valid_BP)
        for name, part in parts.items():
            total = total if name in ("forward_sum", "binarization") else total + part
        if self.training:
            self.step += 1
        return LossOutput(total, {name: part.detach() for name, part in parts.items()}, valid_BT.sum())

    @torch.no_grad()
    def recite(self, batch: TtsBatch, durations_BP: Tensor, *, max_frames: int) -> Tensor:
        """Log-mels of a batch with the given durations, pitch and energy, shape (B, T, F)."""
        pitch_BP = None if self.pitch is None else _by_phone(batch.pitch_BT, durations_BP)
        energy_BP = None if self.energy is None else _by_phone(batch.energy_BT, durations_BP)
        x_BPD = self.encode(batch.phones_BP, batch.phone_lens_B, batch.speakers_B, batch.languages_B)
        _, mel_BTF, _ = self.decode(x_BPD, batch.phone_lens_B, durations_BP, pitch_BP, energy_BP, max_frames=max_frames)
        return self.mel_norm.denormalize(mel_BTF)

    def _binarization_weight(self) -> float:
        """0 until the soft alignment has formed, then rising to 1."""
        return min(max(int(self.step) / max(self.binarization_start, 1) - 1.0, 0.0), 1.0)

    def _check(self, batch: TtsBatch) -> None:
        for name, given in (("pitch", batch.pitch_BT), ("energy", batch.energy_BT)):
            if given is not None:
                continue
            if self.teacher is not None and getattr(self.teacher, name) is not None:
                raise ValueError(f"the batch has no {name}, which the teacher reads: pass data.prosody=true")
            if getattr(self, name) is not None:
                raise ValueError(f"the batch has no {name}: pass data.prosody=true, or model.{name}=false")


def _known(model: FastSpeechModel) -> str:
    """How many phones, mels, speakers and languages a model knows, in words."""
    speakers, languages = (1 if table is None else table.num_embeddings for table in (model.speakers, model.languages))
    phones, mels = model.embedding.num_embeddings, model.out.out_features
    return f"{phones} phones, {mels} mels, num_speakers={speakers} and num_languages={languages}"


def _by_phone(values_BT: Tensor | None, durations_BP: Tensor) -> Tensor:
    assert values_BT is not None
    return average_by_phone(values_BT, durations_BP)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the values that count; 0 of none."""
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)

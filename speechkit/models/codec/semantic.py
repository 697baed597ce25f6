"""Semantic tokens: what is said, by the hidden frames of a recogniser, each named by the nearest code.

    wave (B, N)
      | the recogniser's features and the first layers of its encoder
    frames (B, T, D), 25 a second behind a subsampling by 4
      | each channel less its mean and divided by its deviation
      | k-means, vector quantiser or finite scalar quantiser
    ids (B, T)

Sources: Wang et al. 2024, "MaskGCT", section 3.2.1 (normalised frames of an intermediate layer, one codebook); Lakhotia et al.
2021, "On Generative Spoken Language Modeling from Raw Audio", section 3 (k-means).

Differences: MaskGCT takes layer 17 of 24 of a self-supervised model, and quantises inside an autoencoder of many layers. Here the
encoder is one that was trained to recognise speech, whose frames hold phones in a far more direct way; between them and the
codebook stand the linear layers of the quantiser alone.

Shape legend: B batch, N samples, T encoder frames, D channels of a frame, M frames kept of a corpus.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speechkit.models.codec.kmeans import KMeansQuantizer
from speechkit.nn.masks import valid_mask
from speechkit.nn.quantizers import VectorQuantizer, code_counts
from speechkit.types import Seconds

_COMMITMENT = 0.15  # MaskGCT's weight
_BATCH = 1024  # frames of a step
_REVIVE_EVERY = 50  # steps


class SemanticTokenizer(nn.Module):
    """Waveforms to ids. Nothing in it is trained but by `fit`; it stays in evaluation mode, and its parameters have no gradient.

    Ids of an utterance depend on neither padding nor batch mates, to rounding where a frame lies between two codes.

    Args:
        features: of a recogniser; maps (wave_BN, wave_lens_B) to (feats_BTF, feat_lens_B), with `sample_rate`, `frame_shift` and
            `fingerprint()`.
        encoder: of the same recogniser, as `speechkit.nn.conformer.ConformerEncoder`: maps features to (x_BTD, x_lens_B), with
            `layers`, `output_dim` and `subsampling_factor`. It is copied, and the copy cut behind `layer`. Predictions that a
            self-conditioned model feeds back between layers are not.
        layer: whose output is taken, counted from 1: two thirds of the depth in MaskGCT. `speechkit.metrics.units` tells which is
            best; of small recognisers that were trained on letters the first layers are nearest to phones.
        quantizer: one codebook for frames of `output_dim` channels: `KMeansQuantizer`, which compares all of them and is nearest
            to phones, or `VectorQuantizer` or `FiniteScalarQuantizer` of `speechkit.nn.quantizers`, which compare a few.

    Attributes:
        sample_rate: that the waveforms must have, Hz.
        frame_shift: seconds from id to id; id t is about the time t * frame_shift.
        num_codes: ids are from 0 to num_codes - 1.
        num_fitted: frames that the codebook was made of, int64 buffer; 0 before `fit`.

    Raises:
        ValueError: the layer does not exist, the widths of encoder and quantiser differ, or there are several codebooks.
    """

    mean_D: Tensor
    std_D: Tensor
    num_fitted: Tensor

    def __init__(self, *, features: nn.Module, encoder: nn.Module, layer: int, quantizer: nn.Module) -> None:
        super().__init__()
        num_layers, dim = len(encoder.layers), int(encoder.output_dim)  # type: ignore[arg-type]
        if not 1 <= layer <= num_layers:
            raise ValueError(f"layer={layer}: this encoder has layers 1 to {num_layers}")
        if quantizer.num_codebooks != 1 or quantizer.dim != dim:
            given = f"quantizer has {quantizer.num_codebooks} codebook(s) for frames of {quantizer.dim} channels"
            raise ValueError(f"{given}: give it one codebook and dim={dim}, the width of the encoder")
        self.features, self.layer = features, layer
        self.encoder = copy.deepcopy(encoder)
        self.encoder.layers = self.encoder.layers[:layer]  # type: ignore[index]
        self.quantizer = quantizer
        self.num_codes = int(quantizer.num_codes)  # type: ignore[arg-type]
        self.sample_rate = int(features.sample_rate)  # type: ignore[arg-type]
        self.frame_shift: Seconds = features.frame_shift * encoder.subsampling_factor  # type: ignore[assignment, operator]
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("std_D", torch.ones(dim))
        self.register_buffer("num_fitted", torch.zeros((), dtype=torch.int64))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SemanticTokenizer:
        """Stays in evaluation mode, also as part of a model in training."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of waveforms.

        Args:
            wave_BN: at `sample_rate`, floating point, shape (B, N); what lies past a length is ignored.
            wave_lens_B: valid samples of each row, int64, shape (B,).

        Returns:
            ids, int64, -1 past each length, shape (B, T), and the lengths, int64, shape (B,).

        Raises:
            ValueError: there is no codebook yet.
        """
        if int(self.num_fitted) == 0:
            raise ValueError("num_fitted=0: this tokenizer has no codebook yet; call fit or load first")
        x_BTD, lens_B = self._frames(wave_BN, wave_lens_B)
        return self.quantizer((x_BTD - self.mean_D) / self.std_D, lens_B).indices_BTQ[..., 0], lens_B

    @torch.no_grad()
    def fit(
        self, waves: Iterable[tuple[Tensor, Tensor]], *, seed: int = 0, max_frames: int = 200_000, num_steps: int = 2000
    ) -> float:
        """Makes the codebook from speech. The same speech in the same order and the same seed give the same codebook on a CPU.

        Args:
            waves: batches of waveforms and their lengths, as `forward` takes them.
            seed: of the frames that are kept and of the codebook.
            max_frames: of a longer corpus so many frames are kept, all with the same odds; they are in memory at once.
            num_steps: of gradient descent; k-means goes on until it has settled instead.

        Returns:
            share of the variance of the frames that their codes do not tell, 0 for a perfect codebook.

        Raises:
            ValueError: there are too few frames.
        """
        generator = torch.Generator().manual_seed(seed)
        frames_MD = self._sample(waves, max_frames, generator)
        if len(frames_MD) < 2:
            raise ValueError(f"waves hold {len(frames_MD)} frames: give speech of {self.num_codes} or more, better 50 times that")
        self.mean_D.copy_(frames_MD.mean(0))
        self.std_D.copy_(frames_MD.std(0).clamp(min=1e-5))
        frames_MD = (frames_MD - self.mean_D.cpu()) / self.std_D.cpu()
        if isinstance(self.quantizer, KMeansQuantizer):
            self.quantizer.fit(frames_MD, seed=seed)
        else:
            _train_quantizer(self.quantizer, frames_MD, num_steps, generator)
        self.num_fitted.fill_(len(frames_MD))
        device = self.mean_D.device
        errors = [
            self.quantizer(part_BD[None].to(device), torch.tensor([len(part_BD)], device=device)).quantised_BTD[0].cpu() - part_BD
            for part_BD in frames_MD.split(_BATCH)
        ]
        return float(torch.cat(errors).square().mean())

    def save(self, path: str | Path) -> None:
        """Writes all weights and buffers, those of the encoder too, as safetensors."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata=self._facts())

    def load(self, path: str | Path) -> None:
        """Reads what `save` wrote into a tokenizer with the same features, layer and quantiser; an encoder of any weights.

        Raises:
            ValueError: the file is damaged, or was written by another kind of tokenizer; it names what differs.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
            tensors = load_file(path, device=str(self.mean_D.device))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; write it again") from error
        for name, value in self._facts().items():
            if facts.get(name) != value:
                raise ValueError(f"{path}: {name} is {facts.get(name)}, here it is {value}; build the tokenizer as the saved one")
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path} holds another encoder or quantiser: {error}") from error

    def _facts(self) -> dict[str, str]:
        fingerprint = self.features.fingerprint()  # type: ignore[operator]
        kind, codes = type(self.quantizer).__name__, str(self.num_codes)
        return {"layer": str(self.layer), "quantizer": kind, "num_codes": codes, "features": fingerprint}

    def _frames(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden frames, fp32, shape (B, T, D), and their lengths."""
        feats_BTF, feat_lens_B = self.features(wave_BN, wave_lens_B)
        x_BTD, lens_B = self.encoder(feats_BTF.to(next(self.encoder.parameters()).dtype), feat_lens_B)
        return x_BTD.float(), lens_B

    def _sample(self, waves: Iterable[tuple[Tensor, Tensor]], max_frames: int, generator: torch.Generator) -> Tensor:
        """At most so many frames of a corpus, in its order, on the CPU, shape (M, D): those that draw the least numbers."""
        frames_MD, drawn_M = self.mean_D.new_zeros(0, len(self.mean_D)).cpu(), torch.zeros(0, dtype=torch.float64)
        for wave_BN, wave_lens_B in waves:
            x_BTD, lens_B = self._frames(wave_BN, wave_lens_B)
            own_MD = x_BTD[valid_mask(lens_B, x_BTD.shape[1])].cpu()
            own_M = torch.rand(len(own_MD), generator=generator, dtype=torch.float64)
            frames_MD, drawn_M = torch.cat((frames_MD, own_MD)), torch.cat((drawn_M, own_M))
            kept_M = drawn_M.argsort(stable=True)[:max_frames].sort().values
            frames_MD, drawn_M = frames_MD[kept_M], drawn_M[kept_M]
        return frames_MD


@torch.enable_grad()
def _train_quantizer(quantizer: nn.Module, frames_MD: Tensor, num_steps: int, generator: torch.Generator) -> None:
    """Trains a quantiser of `speechkit.nn.quantizers` to give back the frames, by Adam; dead codes are revived."""
    parameters = list(quantizer.requires_grad_(True).parameters())
    device = parameters[0].device
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, num_steps))
    counts_QK = torch.zeros(1, int(quantizer.num_codes), dtype=torch.int64, device=device)  # type: ignore[arg-type]
    for step in range(num_steps):
        drawn_N = torch.randint(len(frames_MD), (_BATCH,), generator=generator)
        z_1ND, lens_1 = frames_MD[drawn_N][None].to(device), torch.tensor([_BATCH], device=device)
        # All codes begin at frames; none moves in the last part, in which they have to settle.
        if isinstance(quantizer, VectorQuantizer) and step % _REVIVE_EVERY == 0 and step <= 0.8 * num_steps:
            quantizer.revive(z_1ND, lens_1, counts_QK, max_idle=1, generator=generator)
            counts_QK.zero_()
        out = quantizer(z_1ND, lens_1)
        loss = (out.quantised_BTD - z_1ND).square().mean()
        loss = loss + (out.codebook_loss_B + _COMMITMENT * out.commitment_loss_B).sum() / _BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        counts_QK += code_counts(out.indices_BTQ, len(counts_QK[0]))
    quantizer.requires_grad_(False)

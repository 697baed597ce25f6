"""What scripts/bench_tts.py compares: systems of synthesis with random weights, each of which says exactly so much.

Shape legend: B batch, P phones, T frames, U frames at once, D model, H heads, K head dimension, F mel bins, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.model import CodecModel
from speechkit.models.fastspeech import infer as fastspeech
from speechkit.models.fastspeech.layers import FeedForwardTransformer, PostNet
from speechkit.models.fastspeech.model import FastSpeechModel
from speechkit.models.flow import infer as flow
from speechkit.models.flow.model import F5Model, MatchaModel
from speechkit.models.maskgct import infer as maskgct
from speechkit.models.maskgct.layers import MaskedTransformer
from speechkit.models.maskgct.model import MaskGctModel
from speechkit.models.vocoder.griffin_lim import GriffinLim
from speechkit.models.vocoder.hifigan import HifiGanGenerator
from speechkit.models.vocoder.model import Vocoder
from speechkit.models.vocoder.vocos import VocosGenerator
from speechkit.nn.positional import sinusoids
from speechkit.nn.quantizers import ResidualVectorQuantizer
from speechkit.types import TtsInputs

VOCAB, PHONES_PER_SECOND = 100, 12
BASELINE, EQUAL_SIZE, UNCACHED = "AR Transformer", "AR Transformer, equal size", "AR Transformer, no cache"
ESPNET_AR = "ESPnet Transformer TTS"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured."""

    seconds: float = 10.0
    first_seconds: float = 5.0  # of 60 characters
    steps: tuple[int, ...] = (4, 8, 16)
    maskgct_steps: tuple[int, ...] = (5, 10, 20)
    dim: int = 256  # of FastSpeech 2 and the baseline
    ar_layers: int = 6
    ar_ff_dim: int = 1024
    f5_dim: int = 768
    f5_layers: int = 18
    maskgct_dim: int = 768
    maskgct_layers: int = 12
    codec_layers: int = 30
    vocos_layers: int = 8
    hifigan_dim: int = 512


SMALL = Sizes(seconds=1.0, first_seconds=0.5, steps=(2,), maskgct_steps=(2,), dim=32, ar_layers=2, ar_ff_dim=64, f5_dim=64,
              f5_layers=2, maskgct_dim=32, maskgct_layers=2, codec_layers=2, vocos_layers=2, hifigan_dim=32)  # fmt: skip


class Work(NamedTuple):
    """So much speech, in so many rows: the phones for models, log-mels for vocoders."""

    seconds: float
    rows: int

    def inputs(self) -> TtsInputs:
        """Phones, all rows equally long."""
        num_phones = round(self.seconds * PHONES_PER_SECOND)
        phones_BP = torch.arange(self.rows * num_phones).reshape(self.rows, -1) % (VOCAB - 2) + 2
        none_B = torch.zeros(self.rows, dtype=torch.int64)
        return TtsInputs(phones_BP, none_B + num_phones, none_B, none_B, tuple(map(str, range(self.rows))))

    def num_frames(self, mel: MelSpectrogram) -> int:
        """Frames of a row."""
        return round(self.seconds / mel.frame_shift)

    def mels(self, mel: MelSpectrogram) -> tuple[Tensor, Tensor]:
        """Log-mels of noise (B, T, F) and their lengths (B,)."""
        lens_B = torch.full((self.rows,), self.num_frames(mel))
        return torch.randn(self.rows, int(lens_B[0]), mel.output_dim) - 5.0, lens_B


class System(NamedTuple):
    """Something that speaks.

    Attributes:
        name: what it is called.
        mel: the frames that it makes, or takes.
        run: work to log-mels (B, T, F); of a vocoder to waveforms (B, N).
        parameters: their number.
        steps: of the sampler; 0 for none.
        guided: whether each step goes through the network twice, or through twice as many rows.
        vocoder: whether it takes mels.
        alone: whether only a batch of one row is measured.
        rival: label of what of ours a published system is compared with.
    """

    name: str
    mel: MelSpectrogram
    run: Callable[[Work], Tensor]
    parameters: int
    steps: int = 0
    guided: bool = False
    vocoder: bool = False
    alone: bool = False
    rival: str = ""

    @property
    def label(self) -> str:
        """Name, steps and guidance."""
        steps = f", {self.steps} steps" if self.steps else ""
        return self.name + steps + (", guided" if self.guided else "")


# ---------------------------------------------------------------------- the baseline


class ArLayer(nn.Module):
    """Self-attention, attention to the phones, feed-forward; each behind a layer norm and a residual."""

    def __init__(self, *, dim: int, num_heads: int, ff_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.query_key_value, self.self_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.key_value, self.cross_out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, ff_dim), nn.Linear(ff_dim, dim)

    def heads(self, x_BUD: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Splits (B, U, parts * D) into `parts` of shape (B, H, U, K)."""
        return x_BUD.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x_BUD: Tensor, source: tuple[Tensor, ...], cache: Tensor | None, begin: int) -> Tensor:
        """Maps (B, U, D) to (B, U, D).

        Args:
            x_BUD: the frame `begin` alone, with a cache; all frames without.
            source: keys and values of the phones, shapes (B, H, P, K).
            cache: of keys and values of frames, written to, shape (2, B, H, T, K).
            begin: number of the first frame of `x_BUD`.
        """
        query, key, value = self.heads(self.query_key_value(self.norms[0](x_BUD)), 3)
        if cache is not None:
            cache[0, :, :, begin : begin + 1], cache[1, :, :, begin : begin + 1] = key, value
            key, value = cache[:, :, :, : begin + 1].unbind(0)
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        x_BUD = x_BUD + self.self_out(out.transpose(1, 2).flatten(2))
        [query] = self.heads(self.query(self.norms[1](x_BUD)), 1)
        key, value = source
        out = functional.scaled_dot_product_attention(query, key, value)
        x_BUD = x_BUD + self.cross_out(out.transpose(1, 2).flatten(2))
        return x_BUD + self.down(self.up(self.norms[2](x_BUD)).relu())


class ArBaseline(nn.Module):
    """Phones to mel frames, each frame from those before it.

    Args:
        num_mels: F.
        dim: D.
        num_layers: of the decoder.
        ff_dim: of the decoder.
        postnet_dim: channels of PostNet.
    """

    def __init__(self, *, num_mels: int, dim: int, num_layers: int, ff_dim: int, postnet_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, dim)
        self.encoder = FeedForwardTransformer(
            dim=dim, num_layers=4, num_heads=2, filter_dim=4 * dim, kernel_sizes=(9, 1), dropout=0.0
        )
        sizes = [nn.Linear(num_mels, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)]
        self.prenet = nn.Sequential(*sizes)
        self.layers = nn.ModuleList(ArLayer(dim=dim, num_heads=4, ff_dim=ff_dim) for _ in range(num_layers))
        self.norm, self.frame, self.stop = nn.LayerNorm(dim), nn.Linear(dim, num_mels), nn.Linear(dim, 1)
        self.postnet = PostNet(num_mels=num_mels, dim=postnet_dim, num_layers=5, dropout=0.0)

    @torch.inference_mode()
    def speak(self, inputs: TtsInputs, num_frames: int, *, cached: bool) -> Tensor:
        """Mel frames, shape (B, T, F); rows must have equally many phones."""
        phones_BPD = self.encoder(self.embedding(inputs.phones_BP), inputs.phone_lens_B)
        layers: list[Any] = list(self.layers)
        sources = [layer.heads(layer.key_value(phones_BPD), 2) for layer in layers]
        batch, dim = len(phones_BPD), phones_BPD.shape[2]
        shape = (2, batch, layers[0].num_heads, num_frames, dim // layers[0].num_heads)
        caches = [phones_BPD.new_zeros(shape) if cached else None for _ in layers]
        places_TD = sinusoids(torch.arange(num_frames), dim)
        mel_BTF = phones_BPD.new_zeros(batch, num_frames + 1, self.frame.out_features)  # frame 0 is silence, to begin with
        for t in range(num_frames):
            begin = t if cached else 0
            x_BUD = self.prenet(mel_BTF[:, begin : t + 1]) + places_TD[begin : t + 1]
            for layer, source, cache in zip(layers, sources, caches):
                x_BUD = layer(x_BUD, source, cache, begin)
            last_BD = self.norm(x_BUD[:, -1])
            self.stop(last_BD)  # would say when to stop
            mel_BTF[:, t + 1] = self.frame(last_BD)
        return mel_BTF[:, 1:] + self.postnet(mel_BTF[:, 1:], None)


# ---------------------------------------------------------------------- what takes part


class FixedLength(nn.Module):
    """Runs a predictor, and then says that every phone has as many frames as it should, to rounding."""

    def __init__(self, predictor: nn.Module, mel: MelSpectrogram) -> None:
        super().__init__()
        self.predictor, self.rate = predictor, 1.0 / (PHONES_PER_SECOND * mel.frame_shift)

    def forward(self, *given: Tensor) -> Tensor:
        """log(d + 1) of phones (B, P), or the logarithm of frames per phone (B,), as the predictor has it."""
        said = self.predictor(*given)
        if said.ndim == 1:
            return torch.full_like(said, self.rate).log()
        ends_P = (torch.arange(said.shape[1] + 1) * self.rate).round()
        return ends_P.diff().log1p().to(said.dtype).expand_as(said)


class NoSemanticTokens(nn.Module):
    """Stands where a tokeniser of prompts does: none are given."""

    num_codes, sample_rate = 8192, 24000


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def acoustic_systems(sizes: Sizes, mel: MelSpectrogram) -> Iterator[System]:
    """The baseline, and FastSpeech 2."""
    dim, num_mels = sizes.dim, mel.output_dim
    torch.manual_seed(0)
    model = FastSpeechModel(
        vocab_size=VOCAB, num_mels=num_mels, dim=dim, decoder_layers=4, filter_dim=4 * dim, predictor_dim=dim, postnet_dim=2 * dim
    ).eval()
    model.duration = FixedLength(model.duration, mel)  # type: ignore[assignment]
    wanted = count(model)

    def baseline(ff_dim: int) -> ArBaseline:
        return ArBaseline(num_mels=num_mels, dim=dim, num_layers=sizes.ar_layers, ff_dim=ff_dim, postnet_dim=2 * dim).eval()

    small = baseline(sizes.ar_ff_dim)
    missing = max(wanted - count(small), 0) / (sizes.ar_layers * 2 * dim)
    equal = baseline(sizes.ar_ff_dim + round(missing))

    def run(model: ArBaseline, work: Work, *, cached: bool) -> Tensor:
        return model.speak(work.inputs(), work.num_frames(mel), cached=cached)

    yield System(BASELINE, mel, partial(run, small, cached=True), count(small))
    yield System(EQUAL_SIZE, mel, partial(run, equal, cached=True), count(equal))
    yield System(UNCACHED, mel, partial(run, small, cached=False), count(small), alone=True)
    yield System("FastSpeech 2", mel, lambda work: fastspeech.infer(model, work.inputs(), mel=mel).mel_BTF, wanted)


def flow_systems(sizes: Sizes, mel22: MelSpectrogram, mel24: MelSpectrogram) -> Iterator[System]:
    """Matcha and F5, by steps, with and without guidance."""
    torch.manual_seed(0)
    matcha = MatchaModel(vocab_size=VOCAB, num_mels=mel22.output_dim, condition_drop=0.2).eval()
    matcha.durations = FixedLength(matcha.durations, mel22)  # type: ignore[assignment]
    heads = max(sizes.f5_dim // 64, 1)
    f5 = F5Model(
        vocab_size=VOCAB, num_mels=mel24.output_dim, dim=sizes.f5_dim, num_layers=sizes.f5_layers, num_heads=heads
    ).eval()
    f5.total_length = FixedLength(f5.total_length, mel24)  # type: ignore[assignment]
    rivals: list[tuple[str, MatchaModel | F5Model, MelSpectrogram]] = [("Matcha", matcha, mel22), ("F5 small", f5, mel24)]

    def run(model: MatchaModel | F5Model, mel: MelSpectrogram, options: flow.FlowOptions, work: Work) -> Tensor:
        return flow.infer(model, work.inputs(), mel=mel, options=options).mel_BTF

    for name, model, mel in rivals:
        for steps in sizes.steps:
            for guidance in (0.0, 2.0):
                options = flow.FlowOptions(num_steps=steps, guidance=guidance)
                alone = model is f5 and steps > min(sizes.steps)
                yield System(name, mel, partial(run, model, mel, options), count(model), steps, guidance > 0, alone=alone)


def maskgct_systems(sizes: Sizes, mel: MelSpectrogram) -> Iterator[System]:
    """MaskGCT by steps of its semantic tokens; its acoustic steps grow with them."""
    torch.manual_seed(0)
    dim, shape = sizes.maskgct_dim, {"num_layers": sizes.maskgct_layers, "num_heads": max(sizes.maskgct_dim // 64, 1)}
    backbones = [MaskedTransformer(dim=dim, ff_dim=8 * dim // 3, **shape) for _ in range(2)]
    quantizer = ResidualVectorQuantizer(dim=512, num_codebooks=12, num_codes=1024, code_dim=8)
    codec = CodecModel(
        num_mels=mel.output_dim,
        quantizer=quantizer,
        dim=512,
        intermediate_dim=1536,
        num_encoder_layers=1,  # prompts would need more
        num_decoder_layers=sizes.codec_layers,
    )
    model = MaskGctModel(
        vocab_size=VOCAB,
        num_mels=mel.output_dim,
        semantic=NoSemanticTokens(),
        codec=codec,
        text_backbone=backbones[0],
        acoustic_backbone=backbones[1],
    ).eval()

    def run(options: maskgct.MaskGctOptions, work: Work) -> Tensor:
        lens_B = torch.full((work.rows,), work.num_frames(mel))
        return maskgct.infer(model, work.inputs(), mel=mel, options=options, mel_lens_B=lens_B).mel_BTF

    for steps in sizes.maskgct_steps:
        acoustic_steps = (max(3 * steps // 5, 1), max(steps // 5, 1), 1, 1)
        for guidance in (0.0, 2.5):
            options = maskgct.MaskGctOptions(num_steps=steps, acoustic_steps=acoustic_steps, guidance=guidance)
            alone = steps > min(sizes.maskgct_steps)
            yield System("MaskGCT", mel, partial(run, options), count(model), steps, guidance > 0, alone=alone)


def vocoder_systems(sizes: Sizes, mel22: MelSpectrogram, vocos: Sequence[Vocoder]) -> Iterator[System]:
    """Vocoders: Vocos of each rate, HiFi-GAN and Griffin-Lim."""
    torch.manual_seed(0)
    hifigan = Vocoder(mel=mel22, generator=partial(HifiGanGenerator, dim=sizes.hifigan_dim)).eval()
    hifigan.fold_weight_norm()
    rivals: list[tuple[str, Any]] = [(f"Vocos {vocoder.mel.sample_rate / 1000:g} kHz", vocoder) for vocoder in vocos]
    rivals += [("HiFi-GAN V1", hifigan), ("Griffin-Lim", GriffinLim(mel=mel22))]

    def run(vocoder: Any, work: Work) -> Tensor:
        return vocoder.vocode(*work.mels(vocoder.mel), seeds=list(range(work.rows)))[0]

    for name, vocoder in rivals:
        yield System(name, vocoder.mel, partial(run, vocoder), count(vocoder), vocoder=True)


Peers = Callable[[Sizes, MelSpectrogram, MelSpectrogram], Iterator[System]]


def build(sizes: Sizes, names: Sequence[str], peers: Peers) -> tuple[list[System], list[Vocoder]]:
    """All systems whose names contain one of `names` (the baseline always), and a Vocos for each kind of mels."""
    mel22, mel24 = MelSpectrogram.preset(22050), MelSpectrogram.preset(24000)
    torch.manual_seed(0)
    vocos = [Vocoder(mel=mel, generator=partial(VocosGenerator, num_layers=sizes.vocos_layers)).eval() for mel in (mel22, mel24)]
    systems = [*acoustic_systems(sizes, mel22), *flow_systems(sizes, mel22, mel24), *maskgct_systems(sizes, mel24)]
    systems += [*vocoder_systems(sizes, mel22, vocos), *peers(sizes, mel22, mel24)]
    wanted = [name.lower() for name in names]
    return [s for s in systems if s.name == BASELINE or any(name in s.label.lower() for name in wanted) or not wanted], vocos

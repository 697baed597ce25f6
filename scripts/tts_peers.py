"""Published systems that scripts/bench_tts.py runs beside ours, of equal sizes and with random weights, where they are installed.

    ESPnet       FastSpeech 2, the sizes of its LJSpeech recipe (37 million parameters), and ours of those sizes;
                 Transformer TTS (34 million), frame by frame
    matcha-tts   Matcha-TTS as published, and the HiFi-GAN V1 that comes with it
    f5-tts       F5-TTS v1 small
    vocos        Vocos at 24 kHz

Each package is called as its own inference code calls it; predictors of durations run, and what they say is then replaced.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from tts_contestants import ESPNET_AR, VOCAB, FixedLength, Sizes, System, Work, count

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.fastspeech import infer as fastspeech
from speechkit.models.fastspeech.model import FastSpeechModel


def optional(package: str, *names: str) -> tuple[Any, ...] | None:
    """Modules of a package that is only compared with; None, and a line that says so, where it is not installed."""
    try:
        return tuple(importlib.import_module(f"{package}.{name}") for name in names)
    except ImportError as error:
        print(f"{package} left out: {error}", file=sys.stderr)
        return None


class FixedFrames(nn.Module):
    """Runs a predictor of log frames, shape (B, 1, P), and says what comes to the right number when it is rounded up."""

    def __init__(self, predictor: nn.Module, mel: MelSpectrogram) -> None:
        super().__init__()
        self.fixed = FixedLength(_Rows(predictor), mel)

    def forward(self, *given: Tensor) -> Tensor:
        """log(d - 1/4), shape (B, 1, P)."""
        return (self.fixed(*given).expm1().round() - 0.25).log()[:, None]


class _Rows(nn.Module):
    """A predictor without its axis of one channel."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, *given: Tensor) -> Tensor:
        return self.predictor(*given)[:, 0]


class EspnetDurations(nn.Module):
    """ESPnet's predictor of durations, with the end of sentence that it counts as a phone said in no frame."""

    def __init__(self, predictor: nn.Module, mel: MelSpectrogram) -> None:
        super().__init__()
        self.fixed = FixedLength(predictor, mel)

    def inference(self, hidden: Tensor, masks: Tensor | None = None) -> Tensor:
        """Frames of phones, shape (B, P)."""
        durations_BP = self.fixed(hidden, masks).expm1().round().long()
        durations_BP[:, -1] = 0
        return durations_BP


def peers(sizes: Sizes, mel22: MelSpectrogram, mel24: MelSpectrogram) -> Iterator[System]:
    """All that are installed; each with the label of what of ours it is compared with."""
    torch.manual_seed(0)
    yield from espnet(sizes, mel22)
    yield from matcha(sizes, mel22)
    yield from f5(sizes, mel24)
    yield from vocos(sizes, mel24)


def espnet(sizes: Sizes, mel: MelSpectrogram) -> Iterator[System]:
    """FastSpeech 2 of ESPnet, ours of its sizes, and ESPnet's Transformer TTS, which is told when to stop."""
    found = optional("espnet2", "tts.fastspeech2", "tts.transformer")
    if found is None:
        return
    dim, num_mels = 3 * sizes.dim // 2, mel.output_dim
    shape = {"adim": dim, "aheads": 2, "elayers": 4, "eunits": 4 * dim, "dlayers": 4, "dunits": 4 * dim}
    predictors = {f"{name}_predictor_chans": sizes.dim for name in ("duration", "pitch", "energy")}
    predictors |= {"pitch_predictor_layers": 5, "pitch_predictor_kernel_size": 5, "pitch_embed_kernel_size": 1}
    kernels = {"positionwise_conv_kernel_size": 3, "energy_embed_kernel_size": 1}
    theirs = found[0].FastSpeech2(VOCAB, num_mels, **shape, **predictors, **kernels, postnet_chans=sizes.dim).eval()
    theirs.duration_predictor = EspnetDurations(theirs.duration_predictor, mel)

    def run_theirs(work: Work) -> Tensor:
        return theirs.inference(work.inputs().phones_BP[0])["feat_gen"][None]

    ours = FastSpeechModel(
        vocab_size=VOCAB, num_mels=num_mels, dim=dim, decoder_layers=4, filter_dim=4 * dim, kernel_sizes=(3, 3),
        predictor_dim=sizes.dim, postnet_dim=sizes.dim,
    ).eval()  # fmt: skip
    ours.duration = FixedLength(ours.duration, mel)  # type: ignore[assignment]
    name = "FastSpeech 2, sizes of ESPnet"
    yield System(name, mel, lambda work: fastspeech.infer(ours, work.inputs(), mel=mel).mel_BTF, count(ours), alone=True)
    yield System("ESPnet FastSpeech 2", mel, run_theirs, count(theirs), alone=True, rival=name)
    adim, layers = 2 * sizes.dim, sizes.ar_layers
    shape = {"adim": adim, "embed_dim": adim, "elayers": layers, "dlayers": layers, "eunits": 2 * adim, "dunits": 2 * adim}
    slow = found[1].Transformer(VOCAB, num_mels, **shape, num_layers_applied_guided_attn=min(layers, 2)).eval()

    def run_slow(work: Work) -> Tensor:
        phones_P = work.inputs().phones_BP[0]
        ratio = (work.num_frames(mel) + 0.5) / (len(phones_P) + 1)  # of frames to phones, the end of the sentence being one
        return slow.inference(phones_P, threshold=2.0, maxlenratio=ratio)["feat_gen"][None]

    yield System(ESPNET_AR, mel, run_slow, count(slow), alone=True, rival=name)


def matcha(sizes: Sizes, mel: MelSpectrogram) -> Iterator[System]:
    """Matcha-TTS, and its HiFi-GAN."""
    found = optional("matcha", "models.matcha_tts", "hifigan.models", "hifigan.config")
    if found is None:
        return
    sizes_of_text = {"filter_channels": 768, "n_heads": 2, "n_layers": 6, "kernel_size": 3, "p_dropout": 0.1, "prenet": True}
    encoder = SimpleNamespace(
        encoder_type="RoPE Encoder",
        encoder_params=SimpleNamespace(n_feats=mel.output_dim, n_channels=192, **sizes_of_text),
        duration_predictor_params=SimpleNamespace(filter_channels_dp=256, kernel_size=3, p_dropout=0.1),
    )
    decoder = {"channels": (256, 256), "dropout": 0.05, "attention_head_dim": 64, "n_blocks": 1, "num_mid_blocks": 2}
    model = found[0].MatchaTTS(
        n_vocab=VOCAB, n_spks=1, spk_emb_dim=64, n_feats=mel.output_dim, encoder=encoder,
        decoder=decoder | {"num_heads": 2, "act_fn": "snakebeta"},
        cfm=SimpleNamespace(solver="euler", sigma_min=1e-4), data_statistics={"mel_mean": 0.0, "mel_std": 1.0}, out_size=None,
    ).eval()  # fmt: skip
    model.encoder.proj_w = FixedFrames(model.encoder.proj_w, mel)

    def run(work: Work, steps: int) -> Tensor:
        inputs = work.inputs()
        return model.synthesise(inputs.phones_BP, inputs.phone_lens_B, n_timesteps=steps)["mel"].transpose(1, 2)

    for steps in sizes.steps:
        rival = f"Matcha, {steps} steps"
        yield System("Matcha-TTS", mel, partial(run, steps=steps), count(model), steps, rival=rival)
    generator = found[1].Generator(SimpleNamespace(**found[2].v1 | {"upsample_initial_channel": sizes.hifigan_dim})).eval()
    generator.remove_weight_norm()

    def vocode(work: Work) -> Tensor:
        return generator(work.mels(mel)[0].transpose(1, 2)).squeeze(1)

    yield System("matcha-tts HiFi-GAN V1", mel, vocode, count(generator), vocoder=True, rival="HiFi-GAN V1")


def f5(sizes: Sizes, mel: MelSpectrogram) -> Iterator[System]:
    """F5-TTS without a prompt, by steps, with and without guidance; it is told how long the speech is."""
    found = optional("f5_tts", "model.cfm", "model.backbones.dit")
    if found is None:
        return
    shape = {"dim": sizes.f5_dim, "depth": sizes.f5_layers, "heads": max(sizes.f5_dim // 64, 1), "ff_mult": 2}
    network = found[1].DiT(**shape, mel_dim=mel.output_dim, text_num_embeds=VOCAB, text_dim=512, conv_layers=4)
    model = found[0].CFM(network, mel_spec_kwargs={"n_mel_channels": mel.output_dim}).eval()

    def run(work: Work, steps: int, guidance: float) -> Tensor:
        phones_BP = work.inputs().phones_BP
        nothing_B0F = torch.zeros(len(phones_BP), 0, mel.output_dim)
        frames = work.num_frames(mel)
        return model.sample(nothing_B0F, phones_BP, frames, steps=steps, cfg_strength=guidance, sway_sampling_coef=-1.0)[0]

    for steps in sizes.steps:
        for guidance in (0.0, 2.0):
            label = f"F5 small, {steps} steps" + (", guided" if guidance else "")
            here = partial(run, steps=steps, guidance=guidance)
            yield System("F5-TTS v1 small", mel, here, count(model), steps, guidance > 0, alone=True, rival=label)


def vocos(sizes: Sizes, mel: MelSpectrogram) -> Iterator[System]:
    """The public Vocos of 24 kHz."""
    found = optional("vocos", "models", "heads")
    if found is None:
        return
    backbone = found[0].VocosBackbone(mel.output_dim, dim=512, intermediate_dim=1536, num_layers=sizes.vocos_layers)
    model = nn.Sequential(backbone, found[1].ISTFTHead(dim=512, n_fft=1024, hop_length=256, padding="center")).eval()

    def run(work: Work) -> Tensor:
        return model(work.mels(mel)[0].transpose(1, 2))

    yield System("vocos 24 kHz", mel, run, count(model), vocoder=True, rival="Vocos 24 kHz")

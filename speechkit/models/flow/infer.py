"""Speech from text: lengths first, then the flow from noise to frames in a few steps.

Noise is drawn by the id of the utterance, and every network sees a row alone: what comes out depends on neither batch mates nor
padding.

Shape legend: B batch, M mel frames, T frames of the space that the flow runs in (see `spaces`), P phones, Q phones of prompts, F
mel bins, C channels of the space. In the aligned model T is M and C is F.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.flow_matching import utterance_noise
from speechkit.models.flow.duration import frames_by_rate, spread, total_frames
from speechkit.models.flow.model import F5Model, MatchaModel
from speechkit.nn.length_regulator import durations_from_log, expand
from speechkit.nn.masks import valid_mask
from speechkit.search.ode import Grid, Solver, Velocity, guided, solve, time_grid
from speechkit.types import TtsInputs, TtsOutput

FlowModel = MatchaModel | F5Model
LengthRule = Literal["auto", "rate", "phones", "total"]


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """How to speak.

    Attributes:
        num_steps: steps from noise to speech; 4 to 10 for the aligned model, 7 to 32 for the infilling one.
        solver: "euler", or "midpoint" for two evaluations a step.
        grid: of the steps, "uniform" or "epss"; see `speechkit.search.ode.time_grid`.
        sway: moves the steps towards the noise below 0 (F5-TTS takes -1).
        guidance: weight of the difference that text and voice make, on top of the velocity with them; twice the work above 0.
            F5-TTS takes 2.
        temperature: deviation of the noise; None for what the model is known for: 0.667 (Matcha-TTS) or 1 (F5-TTS).
        length: how the infilling model finds the length: "rate", as fast as its prompt, phone for phone; "phones", the sum of
            predicted durations; "total", predicted as a whole; "auto", "rate" where there is a prompt, else "phones" if the
            model predicts durations, else "total". With "rate", rows without a prompt are as with "auto".
        speed: 2.0 speaks twice as fast.
        seed: of the noise, besides the ids of the utterances.

    Raises:
        ValueError: a number is out of range or a choice is unknown.
    """

    num_steps: int = 10
    solver: Solver = "euler"
    grid: Grid = "uniform"
    sway: float = 0.0
    guidance: float = 0.0
    temperature: float | None = None
    length: LengthRule = "auto"
    speed: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        time_grid(self.num_steps, grid=self.grid, sway=self.sway)
        if self.solver not in ("euler", "midpoint"):
            raise ValueError(f"solver={self.solver!r} is unknown; choose euler or midpoint")
        if not 0.0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance={self.guidance} must be a number from 0; 0 is none")
        if self.temperature is not None and not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be a number from 0; null is the model's own")
        if self.length not in ("auto", "rate", "phones", "total"):
            raise ValueError(f"length={self.length!r} is unknown; choose auto, rate, phones or total")
        if not 0.0 < self.speed < float("inf"):
            raise ValueError(f"speed={self.speed} must be a positive number; 1.0 is the usual speed")


class _Task(NamedTuple):
    """A flow to follow.

    Attributes:
        velocity: along it.
        lens_B: frames that it runs over, shape (B,).
        num_frames: the most of them.
        skip_B: frames at the beginning that are the prompt's, shape (B,).
        mel_lens_B: mel frames that the others stand for, shape (B,).
        durations_BP: mel frames of each phone, if known, shape (B, P).
    """

    velocity: Velocity
    lens_B: Tensor
    num_frames: int
    skip_B: Tensor
    mel_lens_B: Tensor
    durations_BP: Tensor | None


@torch.inference_mode()
def infer(model: FlowModel, inputs: TtsInputs, *, mel: MelSpectrogram, options: FlowOptions | None = None) -> TtsOutput:
    """Speaks a batch of texts.

    Rows without phones have no frames. Prompts are for the infilling model: it continues them, in their voice. Also in half
    precision and under autocast the state of the flow stays in fp32.

    Args:
        model: put in eval mode by the caller.
        inputs: texts, voices and prompts, on the model's device.
        mel: what the model was trained on; makes frames of the prompts.
        options: how to speak; None for the defaults.

    Returns:
        log-mels without those of the prompts, fp32, zero past each length; waveforms of models with a codec that makes them;
        durations, in mel frames, of models that know them.

    Raises:
        ValueError: `mel` is not that of the model, a prompt is without its text or is given to the aligned model, or the model
            was not trained for what the options ask for.
    """
    options = FlowOptions() if options is None else options
    _check_mel(model, mel)
    if options.guidance > 0.0 and not model.guidable:
        raise ValueError(
            f"guidance={options.guidance}, but the model was never trained without its condition; set guidance=0, or train with "
            "condition_drop (Matcha) or drop_all (F5) above 0"
        )
    num_phones, inputs = inputs.phones_BP.shape[1], _with_a_column(inputs)
    if isinstance(model, MatchaModel):
        if inputs.prompt_wave_BN is not None:
            raise ValueError("prompt_wave is given, but MatchaModel has only the voices it was trained on; choose a speaker")
        task = _aligned_task(model, inputs, options)
    else:
        task = _infilling_task(model, inputs, mel, options)
    x_BTC = _without_beginning(_follow(model, task, inputs, options), task.lens_B, task.skip_B)
    durations_BP = None if task.durations_BP is None else task.durations_BP[:, :num_phones]
    return model.space.leave(x_BTC, task.mel_lens_B)._replace(durations_BP=durations_BP)


def _check_mel(model: FlowModel, mel: MelSpectrogram) -> None:
    """Refuses another mel than the model's."""
    if mel.output_dim != model.num_mels:
        raise ValueError(f"mel has {mel.output_dim} bands and the model {model.num_mels}; give the mel that it was trained on")
    if isinstance(model, F5Model) and model.codec is not None and model.codec.mel is not None:
        model.codec.mel.check_same(mel, name="the codec", other_name="the mels")


def _without_beginning(x_BTC: Tensor, lens_B: Tensor, skip_B: Tensor) -> Tensor:
    """Rows less their first frames, anything past what is left of them."""
    left_B = lens_B - skip_B
    size = int(left_B.max()) if len(left_B) else 0
    places_BT = skip_B[:, None] + torch.arange(size, device=lens_B.device)
    places_BT1 = places_BT.clamp(max=max(x_BTC.shape[1] - 1, 0))[..., None]
    return x_BTC.gather(1, places_BT1.expand(-1, -1, x_BTC.shape[2]))


def _follow(model: FlowModel, task: _Task, inputs: TtsInputs, options: FlowOptions) -> Tensor:
    """Points at the end of the flow, fp32, shape (B, T, C)."""
    temperature = model.default_temperature if options.temperature is None else options.temperature
    shape = {"num_channels": model.space.num_channels, "num_frames": task.num_frames}
    x_BTC = temperature * utterance_noise(inputs.ids, task.lens_B, **shape, seed=options.seed)
    if task.num_frames == 0:
        return x_BTC
    velocity = task.velocity
    if options.guidance > 0.0:
        velocity = guided(velocity, torch.full((len(x_BTC),), options.guidance, device=x_BTC.device))
    times = time_grid(options.num_steps, grid=options.grid, sway=options.sway)
    return solve(velocity, x_BTC, times, solver=options.solver)


def _aligned_task(model: MatchaModel, inputs: TtsInputs, options: FlowOptions) -> _Task:
    """Lengths by predicted durations; rows are doubled for guidance, the second half without text and voice."""
    encoded = model.encode(inputs.phones_BP, inputs.phone_lens_B, inputs.speakers_B, inputs.languages_B)
    durations_BP = durations_from_log(encoded.log_durations_BP, inputs.phone_lens_B, speed=options.speed)
    mean_BTF, lens_B = expand(encoded.mean_BPF, durations_BP, inputs.phone_lens_B)
    voice_BD = model.decoder_voice(inputs.speakers_B, inputs.languages_B)
    again_B = lens_B
    if options.guidance > 0.0:
        mean_BTF, again_B = _and_zeros(mean_BTF), lens_B.repeat(2)
        voice_BD = None if voice_BD is None else _and_zeros(voice_BD)
    condition = model.decoder.condition(mean_BTF, again_B, voice_BD)
    velocity = partial(model.decoder, condition=condition)
    return _Task(velocity, lens_B, mean_BTF.shape[1], torch.zeros_like(lens_B), lens_B, durations_BP)


def _infilling_task(model: F5Model, inputs: TtsInputs, mel: MelSpectrogram, options: FlowOptions) -> _Task:
    """The prompt and room behind it; rows are doubled for guidance, the second half without prompt, text and voice."""
    prompt = _prompt(model, inputs, mel)
    plan = _plan_lengths(model, inputs, prompt, options)
    phones_BP, phone_lens_B = _join(prompt.phones_BQ, prompt.phone_lens_B, inputs.phones_BP, inputs.phone_lens_B)
    stands_BP, _ = _join(plan.prompt_stands_BQ, prompt.phone_lens_B, plan.stands_BP, inputs.phone_lens_B)
    silent_B = plan.mel_lens_B == 0  # nothing is asked for: there is no need to go through the prompt
    skip_B = prompt.lens_B.masked_fill(silent_B, 0)
    lens_B = skip_B + plan.lens_B
    num_frames = int(lens_B.max()) if len(lens_B) else 0
    text_BTE = model.text_by_frame(model.text(phones_BP, phone_lens_B), stands_BP, phone_lens_B, num_frames)
    x_BTC = functional.pad(prompt.x_BTC, (0, 0, 0, max(num_frames - prompt.x_BTC.shape[1], 0)))[:, :num_frames]
    x_BTC = x_BTC.masked_fill(~valid_mask(skip_B, num_frames)[..., None], 0.0)
    voice_BD = model.voice(inputs.speakers_B, inputs.languages_B)
    again_B = lens_B
    if options.guidance > 0.0:
        without_BTE = model.filler_E.expand_as(text_BTE)
        x_BTC, text_BTE = _and_zeros(x_BTC), torch.cat((text_BTE, without_BTE))
        voice_BD, again_B = None if voice_BD is None else _and_zeros(voice_BD), lens_B.repeat(2)
    velocity = partial(model.decoder, condition=model.decoder.condition(x_BTC, text_BTE, again_B, voice_BD))
    known = plan.durations_BP if model.text_upsampling == "durations" else None
    return _Task(velocity, lens_B, num_frames, skip_B, plan.mel_lens_B, known)


class _Prompt(NamedTuple):
    """Prompts of the rows: points (B, T, C), their lengths, and those in mel frames (B,), phones (B, Q), their numbers (B,)."""

    x_BTC: Tensor
    lens_B: Tensor
    mel_lens_B: Tensor
    phones_BQ: Tensor
    phone_lens_B: Tensor


def _prompt(model: F5Model, inputs: TtsInputs, mel: MelSpectrogram) -> _Prompt:
    """What rows continue; nothing where nothing is given."""
    none_B = torch.zeros_like(inputs.phone_lens_B)
    if inputs.prompt_wave_BN is None:
        x_BTC = model.filler_E.new_zeros(len(none_B), 0, model.space.num_channels, dtype=torch.float32)
        return _Prompt(x_BTC, none_B, none_B, inputs.phones_BP[:, :0], none_B)
    assert inputs.prompt_wave_lens_B is not None, "a prompt comes with its length"
    if inputs.prompt_phones_BP is None or inputs.prompt_phone_lens_B is None:
        raise ValueError("prompt_phones_BP is None: say what is spoken in the prompt, or leave the prompt out")
    mel_BMF, mel_lens_B = mel(inputs.prompt_wave_BN, inputs.prompt_wave_lens_B)
    half_B = (mel_lens_B > 0) != (inputs.prompt_phone_lens_B > 0)
    if bool(half_B.any()):
        rows = half_B.nonzero().flatten().tolist()
        raise ValueError(f"prompts of rows {rows} have speech without text or text without speech; give both, or neither")
    x_BTC, lens_B = model.space.enter(mel_BMF, mel_lens_B), model.space.lengths(mel_lens_B)
    return _Prompt(x_BTC, lens_B, mel_lens_B, inputs.prompt_phones_BP, inputs.prompt_phone_lens_B)


class _Lengths(NamedTuple):
    """How long rows are, and where their phones stand.

    Attributes:
        mel_lens_B: mel frames to make of each row, shape (B,).
        durations_BP: mel frames of each phone, shape (B, P).
        lens_B: frames to make, shape (B,).
        stands_BP: frames at which each phone stands, shape (B, P).
        prompt_stands_BQ: likewise of the prompt, shape (B, Q).
    """

    mel_lens_B: Tensor
    durations_BP: Tensor
    lens_B: Tensor
    stands_BP: Tensor
    prompt_stands_BQ: Tensor


def _plan_lengths(model: F5Model, inputs: TtsInputs, prompt: _Prompt, options: FlowOptions) -> _Lengths:
    """Lengths in mel frames first, then in frames of the space."""
    phones_BP, phone_lens_B, speed = inputs.phones_BP, inputs.phone_lens_B, options.speed
    text_BPE = model.text(phones_BP, phone_lens_B)
    rule = options.length
    if rule in ("auto", "rate"):
        rule = "total" if model.durations is None else "phones"
    durations_BP, prompt_BQ = torch.ones_like(phones_BP), torch.ones_like(prompt.phones_BQ)
    if model.durations is not None:
        durations_BP = durations_from_log(model.durations(text_BPE, phone_lens_B), phone_lens_B, speed=speed)
    elif rule == "phones":
        raise ValueError("length='phones', but the model predicts no durations; take total, or train with duration_predictor")
    if rule == "phones":
        mel_lens_B = durations_BP.sum(1)
    else:
        mel_lens_B = total_frames(model.total_length(text_BPE, phone_lens_B), phone_lens_B, speed=speed)
    if options.length in ("auto", "rate"):
        by_rate_B = frames_by_rate(prompt.mel_lens_B, prompt.phone_lens_B, phone_lens_B, speed=speed)
        mel_lens_B = torch.where(prompt.mel_lens_B > 0, by_rate_B, mel_lens_B)
    lens_B = model.space.lengths(mel_lens_B)
    if model.text_upsampling == "filler":
        return _Lengths(mel_lens_B, durations_BP, lens_B, torch.ones_like(phones_BP), prompt_BQ)
    if model.text_upsampling == "average":
        durations_BP = torch.ones_like(phones_BP)
    elif prompt_BQ.shape[1]:
        assert model.durations is not None
        log_durations_BQ = model.durations(model.text(prompt.phones_BQ, prompt.phone_lens_B), prompt.phone_lens_B)
        prompt_BQ = durations_from_log(log_durations_BQ, prompt.phone_lens_B)
    durations_BP = spread(durations_BP, phone_lens_B, mel_lens_B)
    stands_BP = spread(durations_BP, phone_lens_B, lens_B)
    return _Lengths(mel_lens_B, durations_BP, lens_B, stands_BP, spread(prompt_BQ, prompt.phone_lens_B, prompt.lens_B))


def _join(first_BQ: Tensor, first_lens_B: Tensor, second_BP: Tensor, second_lens_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of the second behind that of the first, without gaps, shape (B, Q + P); and their lengths (B,)."""
    places = torch.arange(first_BQ.shape[1] + second_BP.shape[1], device=second_BP.device)
    size = second_BP.shape[1]
    behind = (places - first_lens_B[:, None]).clamp(0, size - 1) + first_BQ.shape[1]
    index = torch.where(places < first_lens_B[:, None], places, behind)
    return torch.cat((first_BQ, second_BP), dim=1).gather(1, index), first_lens_B + second_lens_B


def _and_zeros(x: Tensor) -> Tensor:
    """Rows, then as many rows of zeros."""
    return torch.cat((x, torch.zeros_like(x)))


def _with_a_column(inputs: TtsInputs) -> TtsInputs:
    """A column of padding where there is no phone at all, so that convolutions have something to read."""
    return inputs._replace(phones_BP=functional.pad(inputs.phones_BP, (0, int(inputs.phones_BP.shape[1] == 0))))

"""From phones to speech: semantic tokens, then acoustic tokens codebook by codebook, then the codec.

All random numbers are drawn from the seed and the id of an utterance: it sounds the same alone and in any batch.

Shape legend: B batch, P phones, T semantic tokens, A acoustic frames, Q codebooks, V codes, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.flow_matching import utterance_noise
from speechkit.models.maskgct.durations import places_in_text
from speechkit.models.maskgct.layers import UNKNOWN, FinishFilter
from speechkit.models.maskgct.model import MaskGctModel, SpokenTokens
from speechkit.models.maskgct.rows import join_rows, take_rows
from speechkit.models.maskgct.semantic_to_acoustic import Content, SemanticToAcoustic, unknown_tokens
from speechkit.models.maskgct.text_to_semantic import Text
from speechkit.nn.masks import valid_mask
from speechkit.search.mask_predict import Noise, Prediction, Predictor, guide, hidden_share, mask_predict
from speechkit.types import TtsInputs, TtsOutput

_DRAWS_PER_STAGE = 1_000_000  # numbers of draws: those of a stage begin here times its number


@dataclass(frozen=True, slots=True)
class MaskGctOptions:
    """How to decode.

    Attributes:
        num_steps: of the semantic tokens.
        acoustic_steps: of each codebook; codebooks behind the last number take it too.
        guidance: weight w of what the condition adds, c + w (c - u); 0 for none, at half the cost. Published weights of MAGNeT
            are greater by 1.
        final_guidance: weight that `guidance` goes over to as less is hidden (MAGNeT, section 3.5); None to stay.
        rescale: share of the guided that is brought back to the deviation it had before.
        temperature: of sampling semantic tokens in the first step; 0 for the best.
        acoustic_temperature: of sampling acoustic tokens.
        choice_noise: of the confidences by which tokens are accepted.
        top_share: share of the codes that are sampled from, in (0, 1]; at least one code.
        finish_threshold: tokens that are final with at least this probability are accepted ahead of time, for models that were
            trained with `finish_weight` (Learn2PD takes 0.96); None for never.
        length: where the number of tokens comes from: "prompt" for the rate of the prompt, phone for phone, "predicted", or
            "auto" for that of the prompt in rows that have one with its phones.
        speed: 2.0 speaks twice as fast.
        seed: of all random numbers.

    Raises:
        ValueError: a value is out of range, or None where that means nothing.
    """

    num_steps: int = 20
    acoustic_steps: Sequence[int] = (12, 4, 1, 1)
    guidance: float = 2.5
    final_guidance: float | None = None
    rescale: float = 0.75
    temperature: float = 0.9
    acoustic_temperature: float = 1.5
    choice_noise: float = 1.0
    top_share: float = 0.02
    finish_threshold: float | None = None
    length: Literal["auto", "prompt", "predicted"] = "auto"
    speed: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        steps = tuple(self.acoustic_steps)
        if not steps or any(not isinstance(number, int) or number < 1 for number in (self.num_steps, *steps)):
            raise ValueError(f"num_steps={self.num_steps} and acoustic_steps={steps} must be whole numbers of at least 1")
        for name in ("guidance", "rescale", "temperature", "acoustic_temperature", "choice_noise", "top_share", "speed"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}=None must be a number; final_guidance and finish_threshold alone may be null")
        for name in ("guidance", "final_guidance", "temperature", "acoustic_temperature", "choice_noise"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a number from 0; 0 is none")
        for name in ("rescale", "top_share", "finish_threshold"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value} is a share; give one in [0, 1]")
        if self.top_share == 0:
            raise ValueError(f"top_share={self.top_share} must be above 0; temperature=0 takes the best code alone")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"speed={self.speed} must be a positive number; 1.0 keeps the predicted length")
        if self.length not in ("auto", "prompt", "predicted"):
            raise ValueError(f"length={self.length!r} is unknown; choose auto, prompt or predicted")

    def weight(self, t: float) -> float:
        """Weight of guidance at time t."""
        final = self.guidance if self.final_guidance is None else self.final_guidance
        return final + (self.guidance - final) * hidden_share(t)


class _Prompt(NamedTuple):
    """Speech that goes before; lengths of 0 for rows without. `phone_lens_B` is 0 where it is not known what is said."""

    tokens: SpokenTokens
    phones_BP: Tensor
    phone_lens_B: Tensor


@torch.inference_mode()
def infer(
    model: MaskGctModel,
    inputs: TtsInputs,
    *,
    mel: MelSpectrogram,
    options: MaskGctOptions | None = None,
    mel_lens_B: Tensor | None = None,
) -> TtsOutput:
    """Speaks.

    A prompt takes the place of the speaker's number. One whose phones are known is heard by both networks; one without, by that
    of the acoustic tokens alone.

    Args:
        model: in eval mode.
        inputs: what to say, and by whom; with a prompt to be spoken by its voice.
        mel: that the codec was trained with.
        options: how; `MaskGctOptions()` when None.
        mel_lens_B: mel frames of each row, int64, shape (B,), where the length is known; `speed` and `length` do not count then.

    Returns:
        mels, and waveforms if the codec makes them; durations where the model was trained with them, else None.

    Raises:
        ValueError: the mel does not fit, the model has no filter for `finish_threshold`, or `length` needs a prompt.
    """
    options = MaskGctOptions() if options is None else options
    _check_mel(model, mel)
    codec = model.codec
    prompt = _hear(model, inputs, mel)
    durations_BP, lens_B = _lengths(model, inputs, prompt, options)
    if mel_lens_B is None:
        mel_lens_B = lens_B * model.acoustic_ratio * codec.stride
    else:
        mel_lens_B = mel_lens_B.masked_fill(inputs.phone_lens_B == 0, 0)
        lens_B = -(-mel_lens_B // (model.acoustic_ratio * codec.stride))
    durations_BP = durations_BP * (lens_B / durations_BP.sum(1).clamp(min=1e-6))[:, None]
    semantic_BT = _semantic_tokens(model, inputs, prompt, durations_BP, lens_B, options)
    frames_B = -(-mel_lens_B // codec.stride)
    acoustic_BAQ = _acoustic_tokens(model, inputs, prompt, semantic_BT, lens_B, frames_B, options)
    output = codec.decode(acoustic_BAQ, frames_B, mel_lens_B=mel_lens_B)
    if model.text_to_semantic.alignment != "durations":
        return output
    return output._replace(durations_BP=_in_frames(durations_BP, inputs.phone_lens_B, mel_lens_B))


def _check_mel(model: MaskGctModel, mel: MelSpectrogram) -> None:
    codec, rate = model.codec, model.semantic.sample_rate
    if codec.mel is not None:
        codec.mel.check_same(mel, name="the codec", other_name="the mels")
    if (mel.sample_rate, mel.output_dim) != (rate, codec.num_mels):
        given = f"mel has sample_rate={mel.sample_rate} and num_mels={mel.output_dim}"
        raise ValueError(f"{given}, but this model {rate} and {codec.num_mels}; give it the mel of its training")


def _hear(model: MaskGctModel, inputs: TtsInputs, mel: MelSpectrogram) -> _Prompt:
    """Tokens and phones of the prompts."""
    batch, device = len(inputs.phones_BP), inputs.phones_BP.device
    none_B, none_B0 = inputs.phone_lens_B.new_zeros(batch), inputs.phones_BP.new_zeros(batch, 0)
    if inputs.prompt_wave_BN is None or inputs.prompt_wave_lens_B is None:
        no_codes = torch.zeros(batch, 0, model.codec.num_codebooks, dtype=torch.long, device=device)
        return _Prompt(SpokenTokens(none_B0, none_B, no_codes, none_B), none_B0, none_B)
    waves = (inputs.prompt_wave_BN, inputs.prompt_wave_lens_B)
    tokens = model.tokenize(*waves, *mel(*waves))
    # What follows begins with a semantic token and its first acoustic frame.
    semantic_lens_B = torch.minimum(tokens.semantic_lens_B, tokens.acoustic_lens_B // model.acoustic_ratio)
    tokens = tokens._replace(semantic_lens_B=semantic_lens_B, acoustic_lens_B=semantic_lens_B * model.acoustic_ratio)
    if inputs.prompt_phones_BP is None or inputs.prompt_phone_lens_B is None:
        return _Prompt(tokens, none_B0, none_B)
    return _Prompt(tokens, inputs.prompt_phones_BP, inputs.prompt_phone_lens_B.masked_fill(semantic_lens_B == 0, 0))


def _lengths(
    model: MaskGctModel, inputs: TtsInputs, prompt: _Prompt, options: MaskGctOptions
) -> tuple[Tensor, Tensor]:
    """Semantic tokens of each phone, to be scaled to the length of the row, (B, P), and semantic tokens of each row (B,)."""
    speakers_B = inputs.speakers_B.masked_fill(prompt.phone_lens_B > 0, UNKNOWN)
    log_durations_BP = model.durations(inputs.phones_BP, inputs.phone_lens_B, speakers_B, inputs.languages_B)
    durations_BP = log_durations_BP.double().expm1()
    predicted_B = durations_BP.sum(1)
    by_rate_B = prompt.tokens.semantic_lens_B / prompt.phone_lens_B.clamp(min=1).double() * inputs.phone_lens_B
    known_B = prompt.phone_lens_B > 0
    if options.length == "prompt" and not bool(known_B.all()):
        rows = (~known_B).nonzero()[:, 0].tolist()
        raise ValueError(f"length='prompt', but rows {rows} have no prompt with its phones; give one, or take length='auto'")
    total_B = predicted_B if options.length == "predicted" else torch.where(known_B, by_rate_B, predicted_B)
    lens_B = (total_B / options.speed).round().long().clamp(min=1).masked_fill(inputs.phone_lens_B == 0, 0)
    return durations_BP, lens_B


def _semantic_tokens(
    model: MaskGctModel, inputs: TtsInputs, prompt: _Prompt, durations_BP: Tensor, lens_B: Tensor, options: MaskGctOptions
) -> Tensor:
    """Semantic tokens of each row, 0 past its length, shape (B, T)."""
    network, num_tokens = model.text_to_semantic, int(lens_B.max()) if len(lens_B) else 0
    valid_BT = valid_mask(lens_B, num_tokens)
    before_B = prompt.tokens.semantic_lens_B.masked_fill(prompt.phone_lens_B == 0, 0)  # the network hears what it can read
    phones_BP, phone_lens_B = join_rows(prompt.phones_BP, prompt.phone_lens_B, inputs.phones_BP, inputs.phone_lens_B)
    given = Text(phones_BP, phone_lens_B, inputs.speakers_B, inputs.languages_B).unnamed(prompt.phone_lens_B > 0)
    nothing = given.without(torch.ones_like(lens_B, dtype=torch.bool))
    if network.alignment == "durations":
        spread_BP = (before_B / prompt.phone_lens_B.clamp(min=1))[:, None].expand(prompt.phones_BP.shape).double()
        all_BP, _ = join_rows(spread_BP, prompt.phone_lens_B, durations_BP, inputs.phone_lens_B)
        width = prompt.tokens.semantic_BT.shape[1] + num_tokens
        given = given._replace(places_BT=places_in_text(all_BP, phone_lens_B, width))

    def predict(tokens_BT: Tensor, masked_BT: Tensor, t_B: Tensor) -> Prediction:
        all_BT, all_lens_B = join_rows(prompt.tokens.semantic_BT, before_B, tokens_BT, lens_B)
        known_BT = torch.zeros_like(prompt.tokens.semantic_BT, dtype=torch.bool)
        hidden_BT, _ = join_rows(known_BT, before_B, masked_BT, lens_B)
        text = given if given.places_BT is None else given._replace(places_BT=given.places_BT[:, : all_BT.shape[1]])
        x_BTC = take_rows(network.hidden(all_BT, hidden_BT, all_lens_B, t_B, text), before_B, num_tokens)
        weight = options.weight(float(t_B[0]))
        if weight != 0:
            freely_BTC = network.hidden(tokens_BT, masked_BT, lens_B, t_B, nothing)
            x_BTC = guide(x_BTC, freely_BTC, valid_BT, weight=weight, rescale=options.rescale).to(x_BTC.dtype)
        return _prediction(x_BTC, network.head(x_BTC), network.filter)

    return mask_predict(
        predict,
        torch.zeros_like(valid_BT, dtype=torch.long),
        valid_BT,
        num_steps=options.num_steps,
        noise=_noise(inputs.ids, lens_B, num_tokens, options.seed, stage=0),
        temperature=options.temperature,
        choice_noise=options.choice_noise,
        top_share=options.top_share,
        span=model.span,
        finish_threshold=options.finish_threshold,
    ).tokens_BT


def _acoustic_tokens(
    model: MaskGctModel,
    inputs: TtsInputs,
    prompt: _Prompt,
    semantic_BT: Tensor,
    lens_B: Tensor,
    frames_B: Tensor,
    options: MaskGctOptions,
) -> Tensor:
    """Acoustic tokens of each row, 0 past its length, shape (B, A, Q)."""
    num_frames = int(frames_B.max()) if len(frames_B) else 0
    said_BT, said_lens_B = join_rows(prompt.tokens.semantic_BT, prompt.tokens.semantic_lens_B, semantic_BT, lens_B)
    given = Content(said_BT, said_lens_B, inputs.speakers_B, inputs.languages_B)
    given = given.unnamed(prompt.tokens.semantic_lens_B > 0)
    nothing = given._replace(semantic_BT=semantic_BT, semantic_lens_B=lens_B).without(torch.ones_like(lens_B, dtype=torch.bool))
    acoustic_BAQ = semantic_BT.new_zeros(len(frames_B), num_frames, model.codec.num_codebooks)
    for codebook in range(model.codec.num_codebooks):
        network = model.network_of(codebook)
        predict = _codebook_predictor(network, codebook, acoustic_BAQ, frames_B, prompt.tokens, given, nothing, options)
        acoustic_BAQ[..., codebook] = mask_predict(
            predict,
            acoustic_BAQ[..., codebook],
            valid_mask(frames_B, num_frames),
            num_steps=options.acoustic_steps[min(codebook, len(options.acoustic_steps) - 1)],
            noise=_noise(inputs.ids, frames_B, num_frames, options.seed, stage=codebook + 1),
            temperature=options.acoustic_temperature,
            choice_noise=options.choice_noise,
            top_share=options.top_share,
            span=model.span,
            finish_threshold=options.finish_threshold,
        ).tokens_BT
    return acoustic_BAQ


def _codebook_predictor(
    network: SemanticToAcoustic,
    codebook: int,
    acoustic_BAQ: Tensor,
    frames_B: Tensor,
    prompt: SpokenTokens,
    given: Content,
    nothing: Content,
    options: MaskGctOptions,
) -> Predictor:
    """Scores of the hidden tokens of a codebook; of `acoustic_BAQ` those before it are read."""
    num_frames, count = acoustic_BAQ.shape[1], network.num_codebooks
    valid_BA, codebooks_B = valid_mask(frames_B, num_frames), torch.full_like(frames_B, codebook)
    prompt_BAQ = prompt.acoustic_BAQ[..., :count]
    known_BAQ = torch.zeros_like(prompt_BAQ, dtype=torch.bool)

    def predict(tokens_BA: Tensor, masked_BA: Tensor, t_B: Tensor) -> Prediction:
        own_BAQ = acoustic_BAQ[..., :count].clone()
        own_BAQ[..., codebook] = tokens_BA
        unknown_BAQ = unknown_tokens(masked_BA, valid_BA, codebooks_B, count)
        all_BAQ, all_lens_B = join_rows(prompt_BAQ, prompt.acoustic_lens_B, own_BAQ, frames_B)
        hidden_BAQ, _ = join_rows(known_BAQ, prompt.acoustic_lens_B, unknown_BAQ, frames_B)
        x_BAC = network.hidden(all_BAQ, hidden_BAQ, all_lens_B, t_B, codebooks_B, given)
        x_BAC = take_rows(x_BAC, prompt.acoustic_lens_B, num_frames)
        weight = options.weight(float(t_B[0]))
        if weight != 0:
            freely_BAC = network.hidden(own_BAQ, unknown_BAQ, frames_B, t_B, codebooks_B, nothing)
            x_BAC = guide(x_BAC, freely_BAC, valid_BA, weight=weight, rescale=options.rescale).to(x_BAC.dtype)
        return _prediction(x_BAC, network.logits(x_BAC, codebooks_B), network.filter)

    return predict


def _prediction(x_BTC: Tensor, logits_BTV: Tensor, finish: FinishFilter | None) -> Prediction:
    """Scores, and what the filter says of them; it has learned from hidden states without guidance."""
    return Prediction(logits_BTV, None if finish is None else finish(x_BTC, logits_BTV).float().sigmoid())


def _noise(ids: Sequence[str], lens_B: Tensor, num_frames: int, seed: int, *, stage: int) -> Noise:
    """Standard Gumbel noise of each utterance, by step: its normal noise, each number taken to the same quantile."""

    def draw(step: int, num_channels: int) -> Tensor:
        number = stage * _DRAWS_PER_STAGE + step
        normal = utterance_noise(ids, lens_B, num_channels=num_channels, num_frames=num_frames, seed=seed, draw=number)
        return -torch.log(-torch.special.log_ndtr(normal))

    return draw


def _in_frames(durations_BP: Tensor, phone_lens_B: Tensor, frames_B: Tensor) -> Tensor:
    """Durations, scaled to add up to the frames of each row, int64, shape (B, P)."""
    valid_BP = valid_mask(phone_lens_B, durations_BP.shape[1])
    ends_BP = durations_BP.masked_fill(~valid_BP, 0.0).cumsum(1)
    shares_BP = ends_BP / ends_BP[:, -1:].clamp(min=1e-6)
    ends_BP = (shares_BP * frames_B[:, None]).round().long()
    return ends_BP.diff(dim=1, prepend=torch.zeros_like(ends_BP[:, :1]))

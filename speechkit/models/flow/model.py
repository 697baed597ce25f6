"""Two synthesisers trained by flow matching: one aligned with its text, one that fills gaps in speech.

Sources: Mehta et al. 2024, "Matcha-TTS: A Fast TTS Architecture with Conditional Flow Matching"; Chen et al. 2024, "F5-TTS: A
Fairytaler that Fakes Fluent and Faithful Speech with Flow Matching"; Yang et al. 2024, "SimpleSpeech 2" (flow matching in the
latent of a codec).

Shape legend: B batch, M mel frames, T frames of the space, P phones, F mel bins, C channels of the space, E channels of encoded
text, D condition, V vocab. In the aligned model T is M and C is F.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.kernels.mas import mas
from speechkit.losses.ctc import ctc_branch_loss
from speechkit.losses.flow_matching import SIGMA_MIN, conditional_flow, flow_matching_loss, path_end
from speechkit.models.flow.alignment import gaussian_log_likelihood, prior_loss
from speechkit.models.flow.dit import DiT
from speechkit.models.flow.draws import cut_segments, draw, draw_spans
from speechkit.models.flow.duration import PhoneDurations, TotalLength, duration_loss, spread
from speechkit.models.flow.layers import CtcHead, VoiceEmbedding
from speechkit.models.flow.spaces import LatentSpace, MelSpace
from speechkit.models.flow.text import PhoneConvNet, PhoneTransformer
from speechkit.models.flow.unet import UNet
from speechkit.nn.length_regulator import expand
from speechkit.nn.masks import valid_mask
from speechkit.nn.mel_norm import MelNorm
from speechkit.text.tokenizers import BLANK
from speechkit.types import LossOutput, TtsBatch

Upsampling = Literal["filler", "average", "durations"]


class EncodedPhones(NamedTuple):
    """What the aligned model's encoder says of a text.

    Attributes:
        mean_BPF: features expected of each phone, normalised, shape (B, P, F).
        log_durations_BP: log(d + 1) of each phone, shape (B, P).
    """

    mean_BPF: Tensor
    log_durations_BP: Tensor


class MatchaModel(nn.Module):
    """Encoder of phones, monotonic alignment search, and a U-Net that follows the flow from noise to mels.

    Args:
        vocab_size: V, phone ids with 0 for padding.
        num_mels: F.
        num_speakers: voices.
        num_languages: languages.
        encoder_dim: channels of the encoder.
        encoder_layers: its Transformer layers.
        encoder_heads: their attention heads.
        encoder_ff_dim: channels inside their feed-forward layers.
        duration_dim: channels of the predictor of durations.
        decoder_dims: channels of the stages of the U-Net; each but the first at half the frame rate of the one before.
        decoder_condition_dim: D, channels of time and voice in the U-Net.
        decoder_layers: Transformer layers of each of its stages.
        decoder_mid: stages at its lowest rate between way down and way up.
        encoder_dropout: rate in training.
        decoder_dropout: rate in training.
        sigma: what is left of the noise at the end of the paths.
        segment_frames: the flow is trained on pieces of so many frames, drawn anew each time, to save time; None for
            whole utterances.
        use_given_durations: take the batch's durations, where it has any, instead of searching for an alignment.
        condition_drop: chance that the U-Net is told neither text nor voice of an utterance in training, for guidance (Du et
            al. 2024, "CosyVoice", section 2.3); 0 for none.

    Attributes:
        num_views: always 1.
        mel_norm: mean and deviation of the features.
        default_temperature: deviation of the noise that synthesis begins with.
        guidable: whether it was trained for guidance.

    Raises:
        ValueError: `condition_drop` or `segment_frames` is out of range.
    """

    num_views = 1
    default_temperature = 0.667

    def __init__(
        self,
        *,
        vocab_size: int,
        num_mels: int = 80,
        num_speakers: int = 1,
        num_languages: int = 1,
        encoder_dim: int = 192,
        encoder_layers: int = 6,
        encoder_heads: int = 2,
        encoder_ff_dim: int = 768,
        duration_dim: int = 256,
        decoder_dims: Sequence[int] = (256, 256),
        decoder_condition_dim: int = 1024,
        decoder_layers: int = 1,
        decoder_mid: int = 2,
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.05,
        sigma: float = SIGMA_MIN,
        segment_frames: int | None = None,
        use_given_durations: bool = False,
        condition_drop: float = 0.0,
    ) -> None:
        super().__init__()
        _check_rate("condition_drop", condition_drop)
        if segment_frames is not None and segment_frames < 1:
            raise ValueError(f"segment_frames={segment_frames} must be at least 1; null trains on whole utterances")
        self.vocab_size, self.num_mels, self.sigma, self.segment_frames = vocab_size, num_mels, sigma, segment_frames
        self.use_given_durations, self.condition_drop = use_given_durations, condition_drop
        self.guidable = condition_drop > 0.0
        self.mel_norm = MelNorm()
        voices = {"num_speakers": num_speakers, "num_languages": num_languages}
        self.encoder_voice = VoiceEmbedding(dim=encoder_dim, **voices)
        self.decoder_voice = VoiceEmbedding(dim=decoder_condition_dim, **voices)
        self.encoder = PhoneTransformer(
            vocab_size=vocab_size,
            dim=encoder_dim,
            num_layers=encoder_layers,
            num_heads=encoder_heads,
            ff_dim=encoder_ff_dim,
            dropout=encoder_dropout,
        )
        self.mean = nn.Linear(encoder_dim, num_mels)
        self.durations = PhoneDurations(in_dim=encoder_dim, dim=duration_dim, dropout=encoder_dropout)
        self.decoder = UNet(
            num_channels=num_mels,
            dims=decoder_dims,
            condition_dim=decoder_condition_dim,
            num_layers=decoder_layers,
            num_mid=decoder_mid,
            dropout=decoder_dropout,
        )

    @property
    def space(self) -> MelSpace:
        """Where the flow runs."""
        return MelSpace(self.mel_norm, self.num_mels)

    def encode(self, phones_BP: Tensor, phone_lens_B: Tensor, speakers_B: Tensor, languages_B: Tensor) -> EncodedPhones:
        """What is expected of each phone.

        Args:
            phones_BP: ids, int64, shape (B, P) with P at least 1.
            phone_lens_B: valid phones of each row, int64, shape (B,).
            speakers_B: number of the speaker of each row, int64, shape (B,).
            languages_B: number of the language of each row, int64, shape (B,).
        """
        text_BPE = self.encoder(phones_BP, phone_lens_B, self.encoder_voice(speakers_B, languages_B))
        return EncodedPhones(self.mean(text_BPE), self.durations(text_BPE.detach(), phone_lens_B))

    def align(self, x_BTF: Tensor, lens_B: Tensor, mean_BPF: Tensor, batch: TtsBatch) -> tuple[Tensor, Tensor]:
        """Frames of each phone, given or found.

        Args:
            x_BTF: normalised features, shape (B, T, F).
            lens_B: valid frames of each row, int64, shape (B,).
            mean_BPF: of `encode`, shape (B, P, F).
            batch: of which lengths of texts and durations are read.

        Returns:
            durations, int64, shape (B, P), and which rows have enough frames for their phones, bool, shape (B,).
        """
        if self.use_given_durations and batch.durations_BP is not None:
            short = mean_BPF.shape[1] - batch.durations_BP.shape[1]
            return functional.pad(batch.durations_BP, (0, short)), batch.durations_BP.sum(1) == lens_B
        found = mas(gaussian_log_likelihood(x_BTF, mean_BPF), lens_B, batch.phone_lens_B)
        return found.durations_BP, found.feasible_B

    def loss(self, mel_BTF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> LossOutput:
        """Training loss: of the encoder's expectation, of the durations and of the flow, added up.

        Utterances with fewer frames than phones (or whose given durations do not add up to their frames) are left out;
        `parts["infeasible"]` counts them. All losses are computed in fp32, also under autocast.

        Args:
            mel_BTF: log-mels, shape (B, T, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
            batch: what is said in them.

        Returns:
            loss; parts prior, duration and flow, each a mean over frames or phones, and infeasible; number of frames.
        """
        x1_BTF, phones_BP = _at_least_one(self.space.enter(mel_BTF, mel_lens_B), batch.phones_BP)
        encoded = self.encode(phones_BP, batch.phone_lens_B, batch.speakers_B, batch.languages_B)
        durations_BP, feasible_B = self.align(x1_BTF, mel_lens_B, encoded.mean_BPF, batch)
        feasible_B &= (batch.phone_lens_B > 0) | (mel_lens_B == 0)
        lens_B, phone_lens_B = mel_lens_B * feasible_B, batch.phone_lens_B * feasible_B
        mean_BTF, _ = expand(encoded.mean_BPF, durations_BP, phone_lens_B, max_frames=x1_BTF.shape[1])
        counted_BT = valid_mask(lens_B, x1_BTF.shape[1])
        prior = prior_loss(x1_BTF, mean_BTF, counted_BT)
        duration = duration_loss(encoded.log_durations_BP, durations_BP, valid_mask(phone_lens_B, phones_BP.shape[1]))
        flow = self._flow_loss(x1_BTF, mean_BTF, lens_B, batch)
        parts = {"prior": prior.detach(), "duration": duration.detach(), "flow": flow.detach()}
        parts["infeasible"] = (~feasible_B).sum()
        return LossOutput(loss=prior + duration + flow, parts=parts, num_targets=counted_BT.sum())

    def _flow_loss(self, x1_BTF: Tensor, mean_BTF: Tensor, lens_B: Tensor, batch: TtsBatch) -> Tensor:
        """Squared error of the velocity over valid frames, or over one piece of each row."""
        draws = draw(x1_BTF, lens_B, batch.ids, num_uniforms=3, training=self.training)
        t_B, drop_B, start_B = draws.uniforms_BK.unbind(1)
        x0_BTF = draws.noise_BTF
        if self.segment_frames is not None:
            tensors = (x1_BTF, x0_BTF, mean_BTF)
            (x1_BTF, x0_BTF, mean_BTF), lens_B = cut_segments(tensors, lens_B, self.segment_frames, start_B)
        voice_BD = self.decoder_voice(batch.speakers_B, batch.languages_B)
        dropped_B1 = (drop_B < self.condition_drop)[:, None]
        mean_BTF = mean_BTF.masked_fill(dropped_B1[..., None], 0.0)
        voice_BD = None if voice_BD is None else voice_BD.masked_fill(dropped_B1, 0.0)
        sample = conditional_flow(x1_BTF, x0_BTF, t_B, self.sigma)
        velocity_BTF = self.decoder(sample.x_t_BTD, t_B, self.decoder.condition(mean_BTF, lens_B, voice_BD))
        return flow_matching_loss(velocity_BTF, sample.target_BTD, valid_mask(lens_B, x1_BTF.shape[1])).loss


class F5Model(nn.Module):
    """A Transformer over frames that fills in what is missing of speech, from the rest of it and from its text.

    Text reaches it frame by frame. With `text_upsampling` "filler" phone p stands at frame p and a filler at all frames after the
    last phone, as published: the network finds out what belongs where, which takes 100,000 steps and more; phones for which there
    is no frame it never sees. With "average" the phones are spread evenly over the frames. With "durations" they stand where they
    are spoken: the quickest to learn.

    Its frames are those of log-mels or, given a codec, of the codec's latent (SimpleSpeech 2), which are fewer. The codec is a
    part of the model, and so of its weights, since nothing can be spoken without it; it is frozen: its parameters take no
    gradient, and it stays in evaluation mode. Lengths are predicted in mel frames either way.

    Args:
        vocab_size: V, phone ids with 0 for padding.
        num_mels: F.
        num_speakers: voices.
        num_languages: languages.
        dim: D.
        num_layers: Transformer blocks.
        num_heads: their attention heads.
        ff_mult: width inside their feed-forward layers, in multiples of `dim`.
        text_dim: E.
        text_layers: ConvNeXt blocks over the text.
        dropout: rate in training.
        text_upsampling: "filler", "average" or "durations".
        duration_predictor: learn durations of phones, from those of the batch; always so with text_upsampling="durations".
        min_span: least share of an utterance that is to be filled in.
        max_span: greatest share.
        drop_given: chance that all of an utterance is to be filled in, in training.
        drop_all: chance that it is without its text and its voice, too; guidance needs it above 0.
        ctc_weight: of the CTC loss of the text on what the flow leads to (LEMAS-TTS), for small corpora; 0 for none.
        ctc_dim: channels of its convolutions.
        codec: speaks in its latent; a trained `speechkit.models.codec.model.CodecModel` with a scalar quantiser (see
            `spaces.LatentCodec`). None for mels.

    Attributes:
        num_views, default_temperature, guidable: as those of `MatchaModel`.
        mel_norm: likewise; None with a codec, which has its own.

    Raises:
        ValueError: a rate or a share is out of range, `text_upsampling` is unknown, or the codec has other mels or no continuous
            latent.
    """

    num_views = 1
    default_temperature = 1.0

    def __init__(
        self,
        *,
        vocab_size: int,
        num_mels: int = 100,
        num_speakers: int = 1,
        num_languages: int = 1,
        dim: int = 1024,
        num_layers: int = 22,
        num_heads: int = 16,
        ff_mult: int = 2,
        text_dim: int = 512,
        text_layers: int = 4,
        dropout: float = 0.1,
        text_upsampling: Upsampling = "filler",
        duration_predictor: bool = False,
        min_span: float = 0.7,
        max_span: float = 1.0,
        drop_given: float = 0.3,
        drop_all: float = 0.2,
        ctc_weight: float = 0.0,
        ctc_dim: int = 256,
        codec: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if text_upsampling not in ("filler", "average", "durations"):
            raise ValueError(f"text_upsampling={text_upsampling!r} is unknown; choose filler, average or durations")
        if not 0.0 <= min_span <= max_span <= 1.0:
            raise ValueError(f"min_span={min_span} and max_span={max_span} must be in [0, 1] and ascend")
        if ctc_weight < 0.0:
            raise ValueError(f"ctc_weight={ctc_weight} must not be negative; 0 is for no CTC loss")
        _check_rate("drop_given", drop_given)
        _check_rate("drop_all", drop_all)
        self.vocab_size, self.num_mels, self.text_upsampling = vocab_size, num_mels, text_upsampling
        self.min_span, self.max_span, self.drop_given, self.drop_all = min_span, max_span, drop_given, drop_all
        self.ctc_weight, self.guidable = ctc_weight, drop_all > 0.0
        if codec is not None and codec.num_mels != num_mels:
            raise ValueError(f"num_mels={num_mels}, but the codec has {codec.num_mels}; take the mel that it was trained with")
        self.codec: Any = None if codec is None else codec.requires_grad_(False)
        self.mel_norm = MelNorm() if codec is None else None
        num_channels = self.space.num_channels
        self.voice = VoiceEmbedding(dim=dim, num_speakers=num_speakers, num_languages=num_languages)
        self.text = PhoneConvNet(vocab_size=vocab_size, dim=text_dim, num_layers=text_layers)
        self.filler_E = nn.Parameter(torch.zeros(text_dim))
        self.total_length = TotalLength(in_dim=text_dim, dim=text_dim)
        self.durations: PhoneDurations | None = None
        if duration_predictor or text_upsampling == "durations":
            self.durations = PhoneDurations(in_dim=text_dim, dim=text_dim, dropout=dropout)
        self.decoder = DiT(
            num_channels=num_channels,
            text_dim=text_dim,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            ff_mult=ff_mult,
            dropout=dropout,
        )
        self.ctc = CtcHead(in_dim=num_channels, dim=ctc_dim, vocab_size=vocab_size) if ctc_weight > 0.0 else None
        self.train()

    @property
    def space(self) -> MelSpace | LatentSpace:
        """Where the flow runs."""
        return LatentSpace(self.codec) if self.mel_norm is None else MelSpace(self.mel_norm, self.num_mels)

    def train(self, mode: bool = True) -> F5Model:
        """Sets the mode of all but the codec, which stays in evaluation mode."""
        super().train(mode)
        if self.codec is not None:
            self.codec.eval()
        return self

    def text_by_frame(self, text_BPE: Tensor, durations_BP: Tensor, phone_lens_B: Tensor, num_frames: int) -> Tensor:
        """Repeats phones for as long as they stand, and fills up all frames after them.

        Args:
            text_BPE: of `text`, shape (B, P, E).
            durations_BP: frames of each phone, int64, shape (B, P).
            phone_lens_B: valid phones of each row, int64, shape (B,).
            num_frames: T.

        Returns:
            shape (B, T, E).
        """
        text_BTE, ends_B = expand(text_BPE, durations_BP, phone_lens_B, max_frames=num_frames)
        return torch.where(valid_mask(ends_B, num_frames)[..., None], text_BTE, self.filler_E.to(text_BTE.dtype))

    def loss(self, mel_BMF: Tensor, mel_lens_B: Tensor, batch: TtsBatch) -> LossOutput:
        """Training loss: of the flow over the frames to be filled in, and of what predicts lengths.

        The predictors of lengths teach the rest of the network nothing. All losses are computed in fp32, also under autocast.

        Args:
            mel_BMF: log-mels, shape (B, M, F).
            mel_lens_B: valid frames of each row, int64, shape (B,).
            batch: what is said in them.

        Returns:
            loss; parts flow, length, duration and ctc (those in use), each a mean, and with CTC infeasible, a count of utterances
            that are too short for their text; number of frames that were filled in.

        Raises:
            ValueError: durations are to be learned, but the batch has none.
        """
        lens_B, phone_lens_B = self.space.lengths(mel_lens_B), batch.phone_lens_B
        x1_BTC, phones_BP = _at_least_one(self.space.enter(mel_BMF, mel_lens_B), batch.phones_BP)
        num_frames = x1_BTC.shape[1]
        draws = draw(x1_BTC, lens_B, batch.ids, num_uniforms=5, training=self.training)
        t_B, share_B, start_B, given_B, all_B = draws.uniforms_BK.unbind(1)
        share_B = self.min_span + (self.max_span - self.min_span) * share_B
        hidden_BT = draw_spans(lens_B, num_frames, share_B, start_B)
        dropped_B = all_B < self.drop_all
        unseen_BT = hidden_BT | (dropped_B | (given_B < self.drop_given))[:, None]
        text_BPE = self.text(phones_BP, phone_lens_B)
        told_B = phone_lens_B * ~dropped_B
        text_BTE = self.text_by_frame(text_BPE, self._places(phones_BP, lens_B, batch), told_B, num_frames)
        voice_BD = self.voice(batch.speakers_B, batch.languages_B)
        voice_BD = None if voice_BD is None else voice_BD.masked_fill(dropped_B[:, None], 0.0)
        sample = conditional_flow(x1_BTC, draws.noise_BTF, t_B, 0.0)
        given_BTC = x1_BTC.masked_fill(unseen_BT[..., None], 0.0)
        condition = self.decoder.condition(given_BTC, text_BTE, lens_B, voice_BD)
        velocity_BTC = self.decoder(sample.x_t_BTD, t_B, condition)
        flow = flow_matching_loss(velocity_BTC, sample.target_BTD, hidden_BT).loss
        loss, parts = self._length_losses(text_BPE.detach(), mel_lens_B, batch)
        if self.ctc is not None:
            heard_BTC = torch.where(hidden_BT[..., None], path_end(sample.x_t_BTD, velocity_BTC, t_B, 0.0), x1_BTC)
            lengths = (lens_B, phones_BP, phone_lens_B)
            spelt = ctc_branch_loss(self.ctc(heard_BTC, lens_B), (), *lengths, known_B=~dropped_B, blank=BLANK)
            loss = loss + self.ctc_weight * spelt.loss
            parts |= spelt.parts
        parts["flow"] = flow.detach()
        return LossOutput(loss=flow + loss, parts=parts, num_targets=hidden_BT.sum())

    def _places(self, phones_BP: Tensor, lens_B: Tensor, batch: TtsBatch) -> Tensor:
        """Frames of the space at which each phone stands, as durations (B, P); `lens_B` are those of the rows."""
        if self.durations is not None and batch.durations_BP is None:
            raise ValueError(
                "durations_BP is None, but durations of phones are to be learned; align the speech, or set "
                "duration_predictor=false and text_upsampling to filler or average"
            )
        if self.text_upsampling == "filler":
            return torch.ones_like(phones_BP)
        if self.text_upsampling == "average":
            return spread(torch.ones_like(phones_BP), batch.phone_lens_B, lens_B)
        assert batch.durations_BP is not None
        durations_BP = functional.pad(batch.durations_BP, (0, phones_BP.shape[1] - batch.durations_BP.shape[1]))
        return spread(durations_BP, batch.phone_lens_B, lens_B)

    def _length_losses(self, text_BPE: Tensor, lens_B: Tensor, batch: TtsBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum and parts of the losses of what predicts lengths, in mel frames."""
        phone_lens_B = batch.phone_lens_B
        counted_B = (phone_lens_B > 0) & (lens_B > 0)
        log_rate_B = lens_B.clamp(min=1).float().log() - phone_lens_B.clamp(min=1).float().log()
        errors_B = (self.total_length(text_BPE, phone_lens_B) - log_rate_B).masked_fill(~counted_B, 0.0)
        loss = errors_B.square().sum() / counted_B.sum().clamp(min=1)
        parts = {"length": loss.detach()}
        if self.durations is not None:
            assert batch.durations_BP is not None
            num_phones = text_BPE.shape[1]
            durations_BP = functional.pad(batch.durations_BP, (0, num_phones - batch.durations_BP.shape[1]))
            log_durations_BP = self.durations(text_BPE, phone_lens_B)
            duration = duration_loss(log_durations_BP, durations_BP, valid_mask(phone_lens_B, num_phones))
            loss, parts["duration"] = loss + duration, duration.detach()
        return loss, parts


def _at_least_one(x_BTF: Tensor, phones_BP: Tensor) -> tuple[Tensor, Tensor]:
    """One frame and one phone of padding where there would be none, so that convolutions have something to read."""
    x_BTF = functional.pad(x_BTF, (0, 0, 0, int(x_BTF.shape[1] == 0)))
    return x_BTF, functional.pad(phones_BP, (0, int(phones_BP.shape[1] == 0)))


def _check_rate(name: str, rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}={rate} must be at least 0 and below 1")

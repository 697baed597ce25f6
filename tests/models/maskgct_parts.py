"""A small MaskGCT on tokenisers that need no training, and speech of known tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.maskgct.layers import MaskedTransformer
from speechkit.models.maskgct.model import MaskGctBatch, MaskGctModel
from speechkit.types import TtsBatch, TtsInputs, TtsOutput

VOCAB, SEMANTIC, CODES, CODEBOOKS, MELS, RATIO, STRIDE = 12, 9, 7, 3, 8, 2, 2
HOP = 160
MEL = MelSpectrogram(sample_rate=16000, n_fft=640, win_length=640, hop_length=HOP, num_mels=MELS)


class LoudnessTokens(nn.Module):
    """How loud each 40 ms are, as a token; one more frame than the codec has where a wave is short of a multiple."""

    num_codes, sample_rate = SEMANTIC, 16000

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(12.0))
        self.dropout = nn.Dropout(0.5)

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        size = HOP * STRIDE * RATIO
        wave_BN = nn.functional.pad(wave_BN, (0, -wave_BN.shape[1] % size))
        loud_BT = self.dropout(wave_BN.unflatten(1, (-1, size)).abs().mean(2) * self.scale)
        lens_B = -(-wave_lens_B // size)
        valid_BT = torch.arange(loud_BT.shape[1]) < lens_B[:, None]
        return (loud_BT * SEMANTIC).long().clamp(0, SEMANTIC - 1).masked_fill(~valid_BT, -1), lens_B


class BandCodec(nn.Module):
    """The first bands of every other mel frame, rounded."""

    num_codebooks, num_codes, num_mels, stride, mel = CODEBOOKS, CODES, MELS, STRIDE, None

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(1.5))

    def encode(self, mel_BMF: Tensor, mel_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        codes_BAQ = (mel_BMF[:, ::STRIDE, :CODEBOOKS] / self.step).round().long() + CODES - 1
        lens_B = -(-mel_lens_B // STRIDE)
        valid_BA = torch.arange(codes_BAQ.shape[1]) < lens_B[:, None]
        return codes_BAQ.clamp(0, CODES - 1).masked_fill(~valid_BA[..., None], -1), lens_B

    def decode(self, acoustic_BAQ: Tensor, acoustic_lens_B: Tensor, *, mel_lens_B: Tensor | None = None) -> TtsOutput:
        mel_lens_B = acoustic_lens_B * STRIDE if mel_lens_B is None else mel_lens_B
        assert torch.equal(-(-mel_lens_B // STRIDE), acoustic_lens_B)
        mel_BMF = nn.functional.pad((acoustic_BAQ - CODES + 1.0) * self.step, (0, MELS - CODEBOOKS)).repeat_interleave(STRIDE, 1)
        mel_BMF = mel_BMF[:, : int(mel_lens_B.max()) if len(mel_lens_B) else 0]
        valid_BM = torch.arange(mel_BMF.shape[1]) < mel_lens_B[:, None]
        return TtsOutput(mel_BMF.masked_fill(~valid_BM[..., None], 0.0), mel_lens_B)


def backbone(**sizes: Any) -> MaskedTransformer:
    return MaskedTransformer(**{"dim": 32, "num_layers": 2, "num_heads": 2, "ff_dim": 48, "dropout": 0.0, **sizes})


def build(
    *,
    seed: int = 0,
    coarse: bool = False,
    awake: bool = True,
    dim: int = 32,
    tokenisers: dict[str, nn.Module] | None = None,
    **settings: Any,
) -> MaskGctModel:
    """In training mode; `awake` gives weight to what begins at 0, the layers that read the time."""
    torch.manual_seed(seed)
    model = MaskGctModel(
        vocab_size=VOCAB,
        num_mels=MELS,
        **({"semantic": LoudnessTokens(), "codec": BandCodec()} if tokenisers is None else tokenisers),
        text_backbone=backbone(dim=dim),
        acoustic_backbone=backbone(dim=dim),
        coarse_backbone=backbone(num_layers=1, dim=dim) if coarse else None,
        acoustic_ratio=RATIO,
        duration_dim=16,
        **settings,
    )
    for name, parameter in model.named_parameters():
        if awake and "modulation.weight" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def token_batch(lens: list[int], *, seed: int = 0, durations: bool = False) -> MaskGctBatch:
    """Random tokens; phones as many as tokens, or 0."""
    generator = torch.Generator().manual_seed(seed)
    lens_B, rows, longest = torch.tensor(lens), len(lens), max(lens)

    def random(high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    phone_lens_B = (lens_B + 1) // 2
    valid_BP = torch.arange(longest) < phone_lens_B[:, None]
    phones_BP = random(VOCAB, rows, longest, low=1) * valid_BP
    return MaskGctBatch(
        phones_BP=phones_BP,
        phone_lens_B=phone_lens_B,
        semantic_BT=random(SEMANTIC, rows, longest),
        semantic_lens_B=lens_B,
        acoustic_BAQ=random(CODES, rows, longest * RATIO, CODEBOOKS),
        acoustic_lens_B=(lens_B * RATIO - 1).clamp(min=0),
        speakers_B=random(3, rows),
        languages_B=random(2, rows),
        ids=tuple(f"utt-{row}" for row in range(rows)),
        durations_BP=(lens_B / phone_lens_B.clamp(min=1))[:, None] * valid_BP if durations else None,
    )


def select(batch: Any, rows: list[int], *, trim: bool = False, extra: int = 0) -> Any:
    """Rows of a batch of any kind: cut to the longest of them, or with meaningless frames behind."""

    def pick(name: str, value: Any) -> Any:
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, tuple):
            return tuple(value[row] for row in rows) if value else value
        value = value[torch.tensor(rows)]
        lens = {"phones_BP": "phone_lens_B", "durations_BP": "phone_lens_B"}.get(name)
        lens = lens or {"prompt_phones_BP": "prompt_phone_lens_B"}.get(name) or f"{name.rpartition('_')[0]}_lens_B"
        if value.ndim > 1 and trim:
            value = value[:, : int(getattr(batch, lens)[torch.tensor(rows)].max())]
        if value.ndim > 1 and extra:
            value = torch.cat((value, value.new_ones(len(rows), extra, *value.shape[2:])), dim=1)
        return value

    return type(batch)(*(pick(name, value) for name, value in batch._asdict().items()))


def wave_batch(lens: list[int], *, seed: int = 0) -> TtsBatch:
    """Noise whose loudness changes, lengths in mel frames."""
    generator = torch.Generator().manual_seed(seed)
    wave_lens_B, rows = torch.tensor(lens) * HOP, len(lens)
    loud_BM = torch.rand(rows, max(lens), generator=generator).repeat_interleave(HOP, 1)
    valid_BN = torch.arange(loud_BM.shape[1]) < wave_lens_B[:, None]
    wave_BN = torch.randn(loud_BM.shape, generator=generator) * 0.2 * loud_BM * valid_BN
    phone_lens_B = -(-torch.tensor(lens) // 10)
    phones_BP = torch.randint(1, VOCAB, (rows, int(phone_lens_B.max())), generator=generator)
    valid_BP = torch.arange(phones_BP.shape[1]) < phone_lens_B[:, None]
    ids = tuple(f"utt-{row}" for row in range(rows))
    zeros_B = torch.zeros(rows, dtype=torch.long)
    durations_BP = valid_BP * 10
    durations_BP[torch.arange(rows), phone_lens_B - 1] -= phone_lens_B * 10 - torch.tensor(lens)
    batch = TtsBatch(wave_BN, wave_lens_B, phones_BP * valid_BP, phone_lens_B, zeros_B, zeros_B, ids, ids, ids)
    return batch._replace(durations_BP=durations_BP)


def inputs_of(phone_lens: list[int], *, prompts: list[int] | None = None, prompt_phones: bool = True, seed: int = 0) -> TtsInputs:
    """Random phones; prompts of so many mel frames, 0 for none."""
    generator = torch.Generator().manual_seed(seed)
    rows, lens_B = len(phone_lens), torch.tensor(phone_lens)
    phones_BP = torch.randint(1, VOCAB, (rows, max(phone_lens)), generator=generator)
    phones_BP *= torch.arange(max(phone_lens)) < lens_B[:, None]
    numbers_B = torch.arange(rows) % 2
    inputs = TtsInputs(phones_BP, lens_B, numbers_B, numbers_B, tuple(f"utt-{row}" for row in range(rows)))
    if prompts is None:
        return inputs
    spoken = wave_batch([max(frames, 1) for frames in prompts], seed=seed)
    heard_B = torch.tensor(prompts) > 0
    inputs = inputs._replace(
        prompt_wave_BN=spoken.wave_BN * heard_B[:, None], prompt_wave_lens_B=spoken.wave_lens_B * heard_B
    )
    if not prompt_phones:
        return inputs
    phones_BP, phone_lens_B = spoken.phones_BP * heard_B[:, None], spoken.phone_lens_B * heard_B
    return inputs._replace(prompt_phones_BP=phones_BP, prompt_phone_lens_B=phone_lens_B)

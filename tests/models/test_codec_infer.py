"""Copy synthesis and its halves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.models.codec.infer import CodecOptions, decode_codes, encode_waves, infer
from speechkit.models.codec.model import CodecModel
from speechkit.models.vocoder.griffin_lim import GriffinLim
from speechkit.nn.istft_head import IstftHead
from speechkit.nn.quantizers import FiniteScalarQuantizer, ResidualVectorQuantizer

SIZES = {"sample_rate": 8000, "n_fft": 128, "win_length": 128, "hop_length": 32, "num_mels": 12, "f_max": 4000.0}
LENS = [400, 97, 32, 1, 0]


def build(mel: MelSpectrogram, *, head: bool = True) -> CodecModel:
    torch.manual_seed(0)
    return CodecModel(
        num_mels=12,
        quantizer=ResidualVectorQuantizer(dim=16, num_codebooks=3, num_codes=8, code_dim=4),
        wave_head=IstftHead(dim=24, mel=mel) if head else None,
        dim=24,
        intermediate_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
    ).eval()


def waves(lens: list[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    lens_B = torch.tensor(lens)
    wave_BN = 0.1 * torch.randn(len(lens), max(lens) + extra)
    return wave_BN.masked_fill(torch.arange(wave_BN.shape[1]) >= lens_B[:, None], float("nan")), lens_B


@pytest.mark.parametrize("padding", ["same", "center"])
@pytest.mark.parametrize("vocoder", [False, True])
def test_copies_are_as_long_and_rows_are_their_own(padding: str, vocoder: bool) -> None:
    mel = MelSpectrogram(**SIZES, padding=padding)  # type: ignore[arg-type]
    model = build(mel, head=not vocoder)
    speaker = GriffinLim(mel=mel, num_iterations=2) if vocoder else None
    wave_BN, lens_B = waves(LENS, extra=70)
    out = infer(model, wave_BN, lens_B, mel=mel, vocoder=speaker)
    assert out.wave_BN is not None
    assert out.wave_lens_B is not None
    expected = LENS if padding == "same" else [length // 32 * 32 for length in LENS]
    assert out.wave_lens_B.tolist() == expected
    assert out.mel_lens_B.tolist() == mel.num_frames(lens_B).tolist()
    for row, length in enumerate(LENS):
        alone = infer(model, wave_BN[row : row + 1, :length], lens_B[row : row + 1], mel=mel, vocoder=speaker)
        assert alone.wave_BN is not None
        own = out.wave_BN[row, : expected[row]]
        torch.testing.assert_close(alone.wave_BN[0], own, atol=1e-4, rtol=1e-4)
        assert out.wave_BN[row, expected[row] :].abs().sum() == 0
        assert own.isfinite().all()


def test_both_halves_are_the_whole() -> None:
    mel = MelSpectrogram(**SIZES)
    model, (wave_BN, lens_B) = build(mel), waves(LENS)
    codes = encode_waves(model, wave_BN, lens_B, mel=mel)
    assert codes.codes_BSQ.shape == (5, 7, 3)
    assert codes.code_lens_B.tolist() == [7, 2, 1, 1, 0]
    out = decode_codes(model, codes.codes_BSQ, codes.code_lens_B, mel=mel, mel_lens_B=codes.mel_lens_B)
    whole = infer(model, wave_BN, lens_B, mel=mel)
    assert torch.equal(out.mel_BTF, whole.mel_BTF)
    assert torch.equal(out.wave_BN[0, :400], whole.wave_BN[0])  # type: ignore[index]
    longer = decode_codes(model, codes.codes_BSQ, codes.code_lens_B, mel=mel)
    assert longer.mel_lens_B.tolist() == [14, 4, 2, 2, 0]
    assert torch.equal(longer.mel_BTF[0, :13], out.mel_BTF[0])


def test_fewer_codebooks() -> None:
    mel = MelSpectrogram(**SIZES)
    model, (wave_BN, lens_B) = build(mel), waves(LENS)
    some = encode_waves(model, wave_BN, lens_B, mel=mel, options=CodecOptions(num_codebooks=2)).codes_BSQ
    assert torch.equal(some, encode_waves(model, wave_BN, lens_B, mel=mel).codes_BSQ[..., :2])
    rough = infer(model, wave_BN, lens_B, mel=mel, options=CodecOptions(num_codebooks=1))
    assert not torch.allclose(rough.mel_BTF, infer(model, wave_BN, lens_B, mel=mel).mel_BTF)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"num_codebooks={wrong}: this codec has 3"):
            encode_waves(model, wave_BN, lens_B, mel=mel, options=CodecOptions(num_codebooks=wrong))


def test_a_codec_of_mels_makes_no_waveform() -> None:
    mel = MelSpectrogram(**SIZES)
    out = infer(build(mel, head=False), *waves(LENS), mel=mel)
    assert out.wave_BN is None
    assert out.mel_BTF.shape == (5, 13, 12)


def test_mels_that_differ_are_refused() -> None:
    mel, other = MelSpectrogram(**SIZES), MelSpectrogram(**{**SIZES, "f_max": 3800.0})
    wave_BN, lens_B = waves([64])
    with pytest.raises(ValueError, match=r"the codec's waveform head and the mels differ: f_max=4000.0 against 3800.0"):
        infer(build(mel), wave_BN, lens_B, mel=other)
    with pytest.raises(ValueError, match=r"the vocoder and the codec differ: f_max"):
        infer(build(mel), wave_BN, lens_B, mel=mel, vocoder=GriffinLim(mel=other))
    with pytest.raises(ValueError, match="mel has 20 bins, the codec num_mels=12"):
        infer(build(mel, head=False), wave_BN, lens_B, mel=MelSpectrogram(**{**SIZES, "num_mels": 20}))
    finite = CodecModel(num_mels=12, quantizer=FiniteScalarQuantizer(dim=8, levels=(5, 5)), dim=8).eval()
    with pytest.raises(ValueError, match="num_codebooks=2: this codec has 1"):
        encode_waves(finite, wave_BN, lens_B, mel=mel, options=CodecOptions(num_codebooks=2))

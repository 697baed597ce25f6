"""The inverse transform against the mel's own frames and torch.istft; padding, mates, empty rows, halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.audio import frames
from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.nn.istft_head import Istft, IstftHead


def build_mel(padding: str, **settings: Any) -> MelSpectrogram:
    values = {"sample_rate": 8000, "n_fft": 64, "win_length": 48, "hop_length": 16, "num_mels": 8, "f_max": 4000.0}
    return MelSpectrogram(**{**values, "padding": padding, **settings})


def analyse(mel: MelSpectrogram, wave_BN: Tensor, num_frames: int) -> Tensor:
    """The spectra under the frames of a mel."""
    lens_B = torch.full((len(wave_BN),), wave_BN.shape[1])
    begin = -mel.reach
    x_BS = frames.reflected(wave_BN, lens_B, begin, begin + (num_frames - 1) * mel.hop_length + mel.n_fft)
    return torch.fft.rfft(x_BS.unfold(1, mel.n_fft, mel.hop_length) * torch.from_numpy(mel.window()).float())


@pytest.mark.parametrize("settings", [{}, {"hop_length": 20}, {"n_fft": 48}, {"hop_length": 24, "win_length": 64}])
@pytest.mark.parametrize("padding", ["same", "center"])
def test_it_undoes_the_frames_of_the_mel(padding: str, settings: dict[str, int]) -> None:
    mel = build_mel(padding, **settings)
    wave_BN = torch.randn(2, 12 * mel.hop_length)
    num_frames = int(mel.num_frames(torch.tensor(wave_BN.shape[1])))
    found = Istft(mel=mel)(analyse(mel, wave_BN, num_frames), torch.tensor([num_frames] * 2))
    torch.testing.assert_close(found, wave_BN, atol=2e-5, rtol=0.0)


def test_it_equals_torch() -> None:
    mel = build_mel("center")
    spectrum_BTK = torch.randn(2, 9, 33, dtype=torch.complex64)
    spectrum_BTK[..., 0], spectrum_BTK[..., -1] = spectrum_BTK[..., 0].real + 0j, spectrum_BTK[..., -1].real + 0j
    expected = torch.istft(
        spectrum_BTK.transpose(1, 2), 64, 16, 48, window=torch.hann_window(48), center=True, return_complex=False
    )
    torch.testing.assert_close(Istft(mel=mel)(spectrum_BTK, torch.tensor([9, 9])), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["same", "center"])
def test_a_row_is_its_own(padding: str) -> None:
    torch.manual_seed(0)
    mel = build_mel(padding)
    head = IstftHead(dim=6, mel=mel)
    x_BTC, lens_B = torch.randn(5, 11, 6), torch.tensor([11, 6, 2, 1, 0])
    wave_BN = head(x_BTC, lens_B)
    assert wave_BN.shape == (5, int(mel.num_samples(torch.tensor(11))))
    for row, (num_frames, num_samples) in enumerate(zip(lens_B.tolist(), mel.num_samples(lens_B).tolist())):
        alone = head(x_BTC[row : row + 1, :num_frames], torch.tensor([num_frames]))
        assert alone.shape == (1, num_samples)
        torch.testing.assert_close(wave_BN[row, :num_samples], alone[0], atol=1e-6, rtol=1e-5)
        assert (wave_BN[row, num_samples:] == 0).all()


def test_no_rows_and_no_frames() -> None:
    head = IstftHead(dim=6, mel=build_mel("same"))
    assert head(torch.zeros(0, 5, 6), torch.zeros(0, dtype=torch.long)).shape == (0, 0)
    assert head(torch.zeros(2, 0, 6), torch.zeros(2, dtype=torch.long)).shape == (2, 0)


def test_gradients_are_those_of_differences() -> None:
    torch.manual_seed(0)
    head = IstftHead(dim=3, mel=build_mel("same", n_fft=16, win_length=16, hop_length=4, num_mels=2))
    weights = torch.randn(2, 20)
    x_BTC = torch.randn(2, 5, 3, requires_grad=True)
    lens_B = torch.tensor([5, 3])

    def value(x: Tensor) -> Tensor:
        return (head(x, lens_B) * weights).sum()

    (grad,) = torch.autograd.grad(value(x_BTC), x_BTC)
    assert (grad[1, 3:] == 0).all()
    step = torch.randn(2, 5, 3)
    with torch.no_grad():
        slope = (value(x_BTC + 1e-3 * step) - value(x_BTC - 1e-3 * step)) / 2e-3
    torch.testing.assert_close((grad * step).sum(), slope, atol=2e-3, rtol=2e-3)


def test_large_magnitudes_end_at_100_and_halves_stay_float32() -> None:
    head = IstftHead(dim=3, mel=build_mel("same"))
    with torch.no_grad():
        head.out.bias.fill_(1000.0)
    x_BTC, lens_B = torch.randn(1, 4, 3), torch.tensor([4])
    wave_BN = head(x_BTC, lens_B)
    assert wave_BN.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head(x_BTC, lens_B), wave_BN, atol=0.0, rtol=0.0)
    assert head.to(torch.bfloat16)(x_BTC, lens_B).dtype == torch.float32

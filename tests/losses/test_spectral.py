"""Losses on spectra against torch.stft and librosa-like formulas; silence, padding, empty rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechkit.audio.spectrogram import MelSpectrogram
from speechkit.losses.spectral import Resolution, mel_l1_loss, multi_resolution_stft_loss, stft_magnitudes

SMALL = (Resolution(64, 16, 48), Resolution(32, 8, 32))
MEL = MelSpectrogram(sample_rate=8000, n_fft=64, win_length=64, hop_length=16, num_mels=6, f_max=4000.0)


def waves(*lens: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    lens_B = torch.tensor(lens)
    own = torch.arange(max(lens))[None] < lens_B[:, None]
    return torch.randn(own.shape) * own, torch.randn(own.shape) * own, lens_B


def test_magnitudes_equal_those_of_torch() -> None:
    wave_BN, _, lens_B = waves(300, 300)
    found, frame_lens_B = stft_magnitudes(wave_BN, lens_B, SMALL[0])
    expected = torch.stft(wave_BN, 64, 16, 48, window=torch.hann_window(48), center=True, pad_mode="reflect", return_complex=True)
    torch.testing.assert_close(found, expected.abs().transpose(1, 2), atol=2e-5, rtol=1e-5)
    assert frame_lens_B.tolist() == [found.shape[1]] * 2


def test_loss_is_its_formula() -> None:
    fake_BN, real_BN, lens_B = waves(200)
    found = multi_resolution_stft_loss(fake_BN, real_BN, lens_B, resolutions=SMALL)
    convergence, log_magnitude = 0.0, 0.0
    for n_fft, hop, win in SMALL:
        window = torch.hann_window(win)
        fake, real = (torch.stft(x, n_fft, hop, win, window=window, return_complex=True).abs() for x in (fake_BN, real_BN))
        convergence += float((fake - real).norm() / real.norm()) / 2
        log_magnitude += float((fake.clamp(min=1e-4).log() - real.clamp(min=1e-4).log()).abs().mean()) / 2
    assert float(found.convergence) == pytest.approx(convergence, rel=1e-5)
    assert float(found.log_magnitude) == pytest.approx(log_magnitude, rel=1e-5)


def test_equal_waveforms_cost_nothing() -> None:
    _, real_BN, lens_B = waves(200, 77)
    assert multi_resolution_stft_loss(real_BN, real_BN, lens_B, resolutions=SMALL).log_magnitude == 0.0
    assert multi_resolution_stft_loss(real_BN, real_BN, lens_B, resolutions=SMALL).convergence < 1e-4
    assert mel_l1_loss(real_BN, real_BN, lens_B, mel=MEL) == 0.0


def test_padding_changes_nothing_and_frames_count_equally() -> None:
    fake_BN, real_BN, lens_B = waves(200, 77, 1, 0)
    fake_BN.requires_grad_()
    whole = multi_resolution_stft_loss(fake_BN, real_BN, lens_B, resolutions=SMALL[:1])
    mel = mel_l1_loss(fake_BN, real_BN, lens_B, mel=MEL)
    sums, num_frames, num_mel_frames = [0.0, 0.0, 0.0], 0, 0
    for fake_N, real_N, length in zip(fake_BN.detach(), real_BN, lens_B.tolist()):
        row = (fake_N[None, :length], real_N[None, :length], torch.tensor([length]))
        alone, mel_alone = multi_resolution_stft_loss(*row, resolutions=SMALL[:1]), mel_l1_loss(*row, mel=MEL)
        frames, mel_frames = length // 16 + 1 if length else 0, -(-length // 16)
        values = (alone.convergence * frames, alone.log_magnitude * frames, mel_alone * mel_frames)
        sums = [total + float(value) for total, value in zip(sums, values)]
        num_frames, num_mel_frames = num_frames + frames, num_mel_frames + mel_frames
    assert whole.convergence.item() == pytest.approx(sums[0] / num_frames, rel=1e-5)
    assert whole.log_magnitude.item() == pytest.approx(sums[1] / num_frames, rel=1e-5)
    assert mel.item() == pytest.approx(sums[2] / num_mel_frames, rel=1e-5)
    (grad,) = torch.autograd.grad(whole.convergence + whole.log_magnitude + mel, fake_BN)
    assert grad.isfinite().all()
    assert (grad[1, 77:] == 0).all()


def test_silence_has_finite_losses_and_gradients() -> None:
    fake_BN = torch.zeros(2, 100).requires_grad_()
    lens_B = torch.tensor([100, 60])
    for real_BN in (torch.zeros(2, 100), torch.randn(2, 100)):
        stft, mel = multi_resolution_stft_loss(fake_BN, real_BN, lens_B), mel_l1_loss(fake_BN, real_BN, lens_B, mel=MEL)
        (grad,) = torch.autograd.grad(stft.convergence + stft.log_magnitude + mel, fake_BN)
        assert grad.isfinite().all()
        assert torch.stack([*stft, mel]).isfinite().all()
    noise_BN = 0.001 * torch.randn(2, 100)
    assert multi_resolution_stft_loss(noise_BN, torch.zeros(2, 100), lens_B).convergence < 5.0


def test_batches_without_samples() -> None:
    nothing_BN = torch.zeros(2, 0, requires_grad=True)
    loss = multi_resolution_stft_loss(nothing_BN, torch.zeros(2, 0), torch.tensor([0, 0]))
    (loss.convergence + loss.log_magnitude).backward()
    assert loss == (0.0, 0.0)
    assert mel_l1_loss(nothing_BN, torch.zeros(2, 0), torch.tensor([0, 0]), mel=MEL) == 0.0


def test_training_after_a_validation_in_inference_mode() -> None:
    fake_BN, real_BN, lens_B = waves(99)
    resolutions = (Resolution(40, 10, 20),)  # of no other test: its window is made here
    with torch.inference_mode():
        multi_resolution_stft_loss(fake_BN, real_BN, lens_B, resolutions=resolutions)
    multi_resolution_stft_loss(fake_BN.requires_grad_(), real_BN, lens_B, resolutions=resolutions).convergence.backward()
    assert fake_BN.grad is not None


def test_wrong_input_is_refused() -> None:
    fake_BN, real_BN, lens_B = waves(99)
    with pytest.raises(ValueError, match=r"fake_BN has shape \(1, 90\)"):
        mel_l1_loss(fake_BN[:, :90], real_BN, lens_B, mel=MEL)
    with pytest.raises(ValueError, match="resolutions=\\[\\]: must be at least one"):
        multi_resolution_stft_loss(fake_BN, real_BN, lens_B, resolutions=())

"""The aligner against its formulas and on a language with known durations; the prior against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.kernels.mas import mas
from speechkit.losses.forward_sum import binarization_loss, forward_sum_loss
from speechkit.nn.aligner import Aligner, beta_binomial_log_prior
from speechkit.nn.length_regulator import expand


def build(**settings: float) -> Aligner:
    torch.manual_seed(0)
    return Aligner(phone_dim=6, num_mels=5, dim=4, **settings)  # type: ignore[arg-type]


def beta(a: int, b: int) -> Fraction:
    return Fraction(factorial(a - 1) * factorial(b - 1), factorial(a + b - 1))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), min_size=1, max_size=3),
    scaling=st.integers(1, 3),
    extra=st.integers(0, 3),
)
def test_prior_equals_exact_fractions(rows: list[tuple[int, int]], scaling: int, extra: int) -> None:
    frame_lens, phone_lens = (torch.tensor(lens) for lens in zip(*rows))
    shape = {"num_frames": int(frame_lens.max()) + extra, "num_phones": int(phone_lens.max()) + extra}
    log_prior = beta_binomial_log_prior(frame_lens, phone_lens, **shape, scaling=float(scaling))
    assert log_prior.dtype == torch.float32
    expected = torch.zeros(len(rows), *shape.values(), dtype=torch.float64)
    for row, (frames, phones) in enumerate(rows):
        for t in range(1, frames + 1):
            a, b, n = scaling * t, scaling * (frames + 1 - t), phones - 1
            for p in range(phones):
                expected[row, t - 1, p] = float(comb(n, p) * beta(p + a, n - p + b) / beta(a, b))
    torch.testing.assert_close(log_prior, expected.log().float(), atol=1e-6, rtol=1e-6)


def test_prior_of_long_rows_is_a_distribution_near_the_diagonal() -> None:
    prior = beta_binomial_log_prior(torch.tensor([2000]), torch.tensor([300]), num_frames=2000, num_phones=300).exp()[0]
    torch.testing.assert_close(prior.sum(1), torch.ones(2000), atol=1e-5, rtol=0.0)
    mean_T = prior @ torch.arange(300.0)
    torch.testing.assert_close(mean_T, 299.0 * torch.arange(1, 2001) / 2001, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(prior, prior.flip(0, 1))


def test_prior_of_a_row_is_its_own_to_the_bit() -> None:
    alone = beta_binomial_log_prior(torch.tensor([37]), torch.tensor([11]), num_frames=37, num_phones=11)
    batch = beta_binomial_log_prior(torch.tensor([90, 37]), torch.tensor([40, 11]), num_frames=95, num_phones=41)
    assert torch.equal(batch[1, :37, :11], alone[0])
    assert (batch[1, 37:] == -torch.inf).all()
    assert (batch[1, :, 11:] == -torch.inf).all()


def test_prior_refuses_what_has_no_distribution() -> None:
    with pytest.raises(ValueError, match=r"scaling=0\.0 must be above 0"):
        beta_binomial_log_prior(torch.tensor([1]), torch.tensor([1]), num_frames=1, num_phones=1, scaling=0.0)


@pytest.mark.parametrize("with_prior", [True, False])
def test_attention_is_the_softmax_of_distances_and_the_prior(with_prior: bool) -> None:
    aligner, phones, mels = build(temperature=0.7), torch.randn(2, 7, 6), torch.randn(2, 12, 5)
    phone_lens, frame_lens = torch.tensor([7, 4]), torch.tensor([12, 9])
    prior = beta_binomial_log_prior(frame_lens, phone_lens, num_frames=12, num_phones=7) if with_prior else None
    found = aligner(phones, phone_lens, mels, frame_lens, prior)
    for row, (p, t) in enumerate(zip(phone_lens.tolist(), frame_lens.tolist())):
        keys, queries = aligner.keys(phones[row, :p].T)[..., :p].T, aligner.queries(mels[row, :t].T).T
        logits = -0.7 * (queries[:, None] - keys).square().sum(-1)
        expected = logits.log_softmax(1) + (0.0 if prior is None else prior[row, :t, :p])
        torch.testing.assert_close(found[row, :t, :p], expected, atol=1e-4, rtol=1e-4)
        assert (found[row, t:] == -torch.inf).all()
        assert (found[row, :, p:] == -torch.inf).all()


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=3), extra=st.integers(0, 2))
def test_padding_and_mates_change_nothing(rows: list[tuple[int, int]], extra: int) -> None:
    aligner = build(temperature=0.5)
    frame_lens, phone_lens = (torch.tensor(lens) for lens in zip(*rows))
    frames, phones = int(frame_lens.max()) + extra, int(phone_lens.max()) + extra
    x, mels = torch.randn(len(rows), phones, 6), torch.randn(len(rows), frames, 5)
    for row, (t, p) in enumerate(rows):
        x[row, p:], mels[row, t:] = float("nan"), float("inf")  # padding may hold anything
    prior = beta_binomial_log_prior(frame_lens, phone_lens, num_frames=frames, num_phones=phones)
    together = aligner(x.requires_grad_(), phone_lens, mels, frame_lens, prior)
    assert together.shape == (len(rows), frames, phones)
    (gradient,) = torch.autograd.grad(forward_sum_loss(together, frame_lens, phone_lens).loss, x)
    assert gradient.isfinite().all()
    for row, (t, p) in enumerate(rows):
        own = slice(row, row + 1)
        alone = aligner(x[own, :p], phone_lens[own], mels[own, :t], frame_lens[own], prior[own, :t, :p])
        torch.testing.assert_close(together[own, :t, :p], alone, atol=1e-5, rtol=1e-5)
        assert gradient[row, p:].abs().sum() == 0


def test_halves_attend_in_full() -> None:
    aligner, phones, mels = build(), torch.randn(1, 4, 6), torch.randn(1, 8, 5)
    lens = torch.tensor([4]), torch.tensor([8])
    exact = aligner(phones, lens[0], mels, lens[1])
    with torch.autocast("cpu", torch.bfloat16):
        halves = aligner(phones, lens[0], mels, lens[1])
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, exact, atol=1e-2, rtol=1e-2)


def speak(sounds_VF: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sixteen utterances: phones, how many, durations, frames, how many."""
    phones_BP = torch.randint(len(sounds_VF), (16, 10), generator=generator)
    repeats = torch.zeros_like(phones_BP, dtype=torch.bool)
    repeats[:, 1:] = phones_BP[:, 1:] == phones_BP[:, :-1]
    phones_BP = (phones_BP + repeats) % len(sounds_VF)  # of two equal neighbours nobody could tell where one ends
    phone_lens_B = torch.randint(5, 11, (16,), generator=generator)
    durations_BP = torch.randint(1, 9, (16, 10), generator=generator)
    durations_BP = durations_BP.masked_fill(torch.arange(10) >= phone_lens_B[:, None], 0)
    mels_BTF, frame_lens_B = expand(sounds_VF[phones_BP], durations_BP, phone_lens_B)
    mels_BTF = mels_BTF + 0.3 * torch.randn(mels_BTF.shape, generator=generator)
    return phones_BP, phone_lens_B, durations_BP, mels_BTF, frame_lens_B


def test_learns_the_durations_of_a_language_that_it_hears() -> None:
    generator = torch.Generator().manual_seed(0)
    sounds_VF = torch.randn(12, 20, generator=generator)
    torch.manual_seed(0)
    embedding, aligner = nn.Embedding(12, 16), Aligner(phone_dim=16, num_mels=20)
    optimizer = torch.optim.Adam([*embedding.parameters(), *aligner.parameters()], lr=1e-2)

    def attend(utterances: tuple[Tensor, ...]) -> Tensor:
        phones_BP, phone_lens_B, _, mels_BTF, frame_lens_B = utterances
        num_frames, num_phones = mels_BTF.shape[1], phones_BP.shape[1]
        prior_BTP = beta_binomial_log_prior(frame_lens_B, phone_lens_B, num_frames=num_frames, num_phones=num_phones)
        return aligner(embedding(phones_BP), phone_lens_B, mels_BTF, frame_lens_B, prior_BTP)

    for step in range(100):
        utterances = speak(sounds_VF, generator)
        _, phone_lens_B, _, _, frame_lens_B = utterances
        log_attention_BTP = attend(utterances)
        loss = forward_sum_loss(log_attention_BTP, frame_lens_B, phone_lens_B).loss
        if step >= 75:
            path_BT = mas(log_attention_BTP, frame_lens_B, phone_lens_B).frame_phone_BT
            loss = loss + binarization_loss(log_attention_BTP, path_BT, phone_lens_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = speak(sounds_VF, generator)
    found = mas(attend(unseen), unseen[4], unseen[1])
    right = (found.durations_BP == unseen[2])[unseen[2] > 0].float().mean()
    assert right > 0.9  # a tenth of this at the start, by the prior alone

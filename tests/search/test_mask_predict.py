"""Mask-predict against a plain loop over rows, and what must hold whatever the network says."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.search.mask_predict import (
    Noise,
    Prediction,
    Predictor,
    guide,
    hidden_share,
    mask_predict,
    num_candidates,
)

VOCAB = 11


def toy(ids: list[int], calls: list[tuple[Tensor, Tensor]] | None = None, final: float | None = None) -> Predictor:
    """Scores by row, place, time and the tokens known on either side, each row by its own numbers."""
    tables = torch.stack([torch.from_numpy(np.random.default_rng(i).normal(size=(40, VOCAB))) for i in ids])
    mix = torch.from_numpy(np.random.default_rng(99).normal(size=(VOCAB + 1, VOCAB)))

    def predict(tokens: Tensor, masked: Tensor, t: Tensor) -> Prediction:
        if calls is not None:
            calls.append((tokens.clone(), masked.clone()))
        seen = torch.nn.functional.pad(tokens.masked_fill(masked, VOCAB), (1, 1), value=VOCAB)
        logits = tables[:, : tokens.shape[1]] + mix[seen[:, :-2]] + mix[seen[:, 2:]] * t[:, None, None]
        return Prediction(logits, None if final is None else (logits.softmax(2).amax(2) > final).float())

    return predict


def noise_of(ids: list[int], frames: int) -> Noise:
    def draw(step: int, channels: int) -> Tensor:
        rows = [np.random.default_rng([i, step]).gumbel(size=(40, channels)).astype(np.float32)[:frames] for i in ids]
        return torch.from_numpy(np.stack(rows))

    return draw


def by_hand(row: int, tokens: list[int], masked: list[bool], steps: int, temperature: float, share: float) -> list[int]:
    """Appendix of the paper, one row, one token at a time."""
    predict, noise = toy([row]), noise_of([row], len(tokens))
    length, candidates = sum(masked), num_candidates(VOCAB, share)
    order = {place: number for number, place in enumerate(i for i, hidden in enumerate(masked) if hidden)}
    tokens, masked = list(tokens), list(masked)
    for step in range(steps):
        if not any(masked):
            break
        t = 1 - step / steps
        logits = predict(torch.tensor([tokens]), torch.tensor([masked]), torch.tensor([t])).logits_BTV[0].float()
        gumbel, sure = noise(step, candidates + 1)[0], {}
        for place in [i for i, hidden in enumerate(masked) if hidden]:
            values, ids = logits[place].sort(descending=True)
            values, ids = values[:candidates], ids[:candidates]
            chosen = 0
            if step < steps - 1:
                chosen = int((values / max(temperature * t, 1e-3) + gumbel[place, 1:]).argmax())
            tokens[place] = int(ids[chosen])
            sure[place] = float(values.softmax(0)[chosen] + t * gumbel[order[place], 0])
        stay = math.floor(math.sin(math.pi / 2 * (1 - (step + 1) / steps)) * length)
        for rank, place in enumerate(sorted(sure, key=sure.__getitem__)):
            masked[place] = rank < stay
    return tokens


def prepare(ids: list[int], lens: list[int], prompts: list[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    frames = max(lens) + extra
    tokens, masked = torch.full((len(ids), frames), VOCAB), torch.zeros(len(ids), frames, dtype=torch.bool)
    for row, (name, length, prompt) in enumerate(zip(ids, lens, prompts)):
        prompt = min(prompt, length)
        tokens[row, :prompt] = torch.from_numpy(np.random.default_rng([name, 1]).integers(VOCAB, size=prompt))
        masked[row, prompt:length] = True  # padding stays VOCAB, as what the toy sees where there is nothing
    return tokens, masked


@settings(max_examples=40, deadline=None)
@given(
    lens=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    prompt=st.integers(0, 3),
    extra=st.integers(0, 2),
    steps=st.integers(1, 7),
    share=st.sampled_from([0.02, 0.3, 1.0]),
)
def test_every_row_is_as_by_hand(lens: list[int], prompt: int, extra: int, steps: int, share: float) -> None:
    ids = list(range(len(lens)))
    tokens, masked = prepare(ids, lens, [prompt] * len(ids), extra)
    out = mask_predict(
        toy(ids), tokens, masked, num_steps=steps, noise=noise_of(ids, tokens.shape[1]), temperature=0.9, top_share=share
    )
    for row, length in enumerate(lens):
        expected = by_hand(row, tokens[row, :length].tolist(), masked[row, :length].tolist(), steps, 0.9, share)
        assert out.tokens_BT[row, :length].tolist() == expected
        assert torch.equal(out.tokens_BT[row, length:], tokens[row, length:])


@settings(max_examples=40, deadline=None)
@given(
    lens=st.lists(st.integers(0, 15), min_size=1, max_size=4),
    steps=st.integers(1, 9),
    span=st.integers(1, 4),
    final=st.sampled_from([None, 0.5, 0.9]),
)
def test_accepted_tokens_never_change_and_none_is_left(lens: list[int], steps: int, span: int, final: float | None) -> None:
    ids, calls = list(range(len(lens))), []
    tokens, masked = prepare(ids, lens, [2] * len(ids), 1)
    out = mask_predict(
        toy(ids, calls, final),
        tokens,
        masked,
        num_steps=steps,
        noise=noise_of(ids, tokens.shape[1]),
        span=span,
        finish_threshold=None if final is None else 0.5,
    )
    assert out.num_steps == len(calls) <= steps
    assert torch.equal(out.tokens_BT[~masked], tokens[~masked])
    states = [*calls, (out.tokens_BT, torch.zeros_like(masked))]
    for number, ((before, hidden), (after, still)) in enumerate(pairwise(states), start=1):
        assert torch.equal(before[~hidden], after[~hidden]), "accepted tokens never change"
        assert not (still & ~hidden).any(), "what was accepted is never hidden again"
        for row in range(len(ids)):
            cells = -(-int(masked[row].sum()) // span)
            open_cells = {int(place) // span for place in (still[row].nonzero()[:, 0] - 2).tolist()}
            most = math.floor(hidden_share(1 - number / steps) * cells)
            assert len(open_cells) <= most
            assert final is not None or number == len(calls) or len(open_cells) == most, "counts are the row's own"
            assert int(still[row].sum()) == sum(min(span, int(masked[row].sum()) - cell * span) for cell in open_cells)


@pytest.mark.parametrize("span", [1, 3])
def test_a_row_is_the_same_alone_in_any_batch_and_padded(span: int) -> None:
    ids, lens, prompts = [0, 1, 2, 3], [30, 7, 1, 19], [4, 0, 0, 8]

    def decode(rows: list[int], extra: int) -> list[list[int]]:
        names, own = [ids[r] for r in rows], [lens[r] for r in rows]
        tokens, masked = prepare(names, own, [prompts[r] for r in rows], extra)
        noise = noise_of(names, tokens.shape[1])
        out = mask_predict(toy(names), tokens, masked, num_steps=8, noise=noise, top_share=0.4, span=span, temperature=1.5)
        return [row[:length].tolist() for row, length in zip(out.tokens_BT, own)]

    together = decode(ids, 0)
    assert [decode([row], 0)[0] for row in ids] == together
    assert decode([2, 0, 3, 1], 5) == [together[row] for row in (2, 0, 3, 1)]


def test_sampling_follows_the_softmax_of_the_best_few() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
    rows = 30_000
    scores = logits.expand(1, rows, -1)
    generator = torch.Generator().manual_seed(0)

    def noise(step: int, channels: int) -> Tensor:
        return -torch.empty(1, rows, channels).exponential_(generator=generator).log()

    first: list[Tensor] = []

    def predict(tokens: Tensor, masked: Tensor, t: Tensor) -> Prediction:
        first.append(tokens.clone())
        return Prediction(scores)

    tokens, masked = torch.zeros(1, rows, dtype=torch.long), torch.ones(1, rows, dtype=torch.bool)
    mask_predict(predict, tokens, masked, num_steps=2, noise=noise, temperature=0.7, top_share=0.6, choice_noise=0.0)
    found = torch.bincount(first[1][0], minlength=5) / rows  # all are sampled in the first step, at t = 1
    expected = torch.zeros(5)
    expected[:3] = (logits[:3] / 0.7).softmax(0)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
    best = mask_predict(predict, tokens, masked, num_steps=1, noise=noise, temperature=5.0)
    assert best.num_steps == 1
    assert (best.tokens_BT == 0).all(), "the last step takes the best token"


def test_without_any_noise_the_surest_come_first() -> None:
    logits = torch.tensor([[[3.0, 0.0], [0.1, 0.0], [0.0, 2.0], [0.5, 0.0]]])
    calls: list[Tensor] = []

    def predict(tokens: Tensor, masked: Tensor, t: Tensor) -> Prediction:
        calls.append(masked.clone())
        return Prediction(logits)

    noise: Callable[[int, int], Tensor] = lambda step, channels: torch.full((1, 4, channels), 7.0)  # noqa: E731
    out = mask_predict(
        predict, torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool), num_steps=3, noise=noise,
        temperature=0.0, choice_noise=0.0, top_share=1.0,
    )
    assert [hidden.int().tolist()[0] for hidden in calls] == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1]]
    assert out.tokens_BT.tolist() == [[0, 0, 1, 0]]


def test_the_filter_ends_early_and_takes_the_best() -> None:
    ids = [0, 1]
    tokens, masked = prepare(ids, [12, 6], [0, 0])
    noise = noise_of(ids, 12)
    certain = mask_predict(toy(ids, final=-1.0), tokens, masked, num_steps=9, noise=noise, finish_threshold=0.96, top_share=1.0)
    assert certain.num_steps == 1
    best = toy(ids)(tokens, masked, torch.ones(2)).logits_BTV.argmax(2)
    assert torch.equal(certain.tokens_BT[masked], best[masked])
    slow = mask_predict(toy(ids, final=2.0), tokens, masked, num_steps=9, noise=noise, finish_threshold=0.96)
    plain = mask_predict(toy(ids), tokens, masked, num_steps=9, noise=noise)
    assert torch.equal(slow.tokens_BT, plain.tokens_BT)
    assert slow.num_steps == 9
    with pytest.raises(ValueError, match=r"finish_threshold=0\.96 needs a network with a filter"):
        mask_predict(toy(ids), tokens, masked, num_steps=9, noise=noise, finish_threshold=0.96)


@settings(max_examples=30, deadline=None)
@given(lens=st.lists(st.integers(0, 9), min_size=1, max_size=4), weight=st.floats(0, 5), rescale=st.floats(0, 1))
def test_guidance_of_a_row_is_its_own(lens: list[int], weight: float, rescale: float) -> None:
    torch.manual_seed(0)
    frames = max(lens) + 1
    c, u = torch.randn(len(lens), frames, 3), 4 * torch.randn(len(lens), frames, 3)
    valid = torch.arange(frames) < torch.tensor(lens)[:, None]
    out = guide(c, u, valid, weight=weight, rescale=rescale)
    for row, length in enumerate(lens):
        own_c, own_u = c[row, :length], u[row, :length]
        plain = own_c + weight * (own_c - own_u)
        expected = plain
        if length:
            scaled = plain * own_c.std(unbiased=False) / plain.std(unbiased=False)
            expected = rescale * scaled + (1 - rescale) * plain
        torch.testing.assert_close(out[row, :length], expected, atol=1e-5, rtol=1e-4)
    if weight == 0:
        torch.testing.assert_close(out[valid], c[valid])


def test_shares_and_candidates() -> None:
    assert [round(hidden_share(t), 6) for t in (0, 1 / 3, 1)] == [0, 0.5, 1]
    assert hidden_share(0.0) == 0.0
    assert [num_candidates(v, 0.02) for v in (1, 50, 51, 1024, 8192)] == [1, 1, 2, 21, 164]
    assert num_candidates(10, 1.0) == 10


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"span": 0}, "span=0 must be at least 1"),
        ({"temperature": -1.0}, r"temperature=-1\.0 must be at least 0"),
        ({"choice_noise": -1.0}, r"choice_noise=-1\.0 must be at least 0"),
        ({"top_share": 0.0}, r"top_share=0\.0 must be above 0"),
    ],
)
def test_misuse_is_refused(settings_: dict[str, float], message: str) -> None:
    tokens, masked = prepare([0], [3], [0])
    with pytest.raises(ValueError, match=message):
        mask_predict(toy([0]), tokens, masked, **{"num_steps": 2, "noise": noise_of([0], 3), **settings_})
    with pytest.raises(ValueError, match=r"rescale=1\.5 must be in"):
        guide(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1) > 0, weight=1.0, rescale=1.5)

"""The loss against torch's own, a sentence at a time; incremental reading; invariance; learning by heart; whole sentences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from speechkit.models.lm.infer import infer
from speechkit.models.lm.model import LmModel
from speechkit.text.tokenizers import EOS, SOS
from speechkit.types import TextBatch

VOCAB = 11


def build(**options: Any) -> LmModel:
    torch.manual_seed(0)
    values = {"dim": 16, "num_layers": 2, "num_heads": 2, "ff_dim": 24, "dropout": 0.0, **options}
    return LmModel(vocab_size=VOCAB, **values)


def make_batch(lens: list[int], seed: int = 0, room: int = 0) -> TextBatch:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, VOCAB, (length,), generator=generator) for length in lens]
    tokens = torch.zeros(len(lens), max(lens) + room, dtype=torch.long)
    for target, row in zip(tokens, rows):
        target[: len(row)] = row
    return TextBatch(tokens, torch.tensor(lens), tuple(map(str, range(len(lens)))))


def sentences(batch: TextBatch) -> list[list[int]]:
    return [row[:length] for row, length in zip(batch.tokens_BU.tolist(), batch.token_lens_B.tolist())]


def reference(model: LmModel, tokens: list[int], smoothing: float = 0.0) -> torch.Tensor:
    logits = model.decoder(torch.tensor([[SOS, *tokens]]), None)[0]
    return F.cross_entropy(logits, torch.tensor([*tokens, EOS]), label_smoothing=smoothing, reduction="sum")


@settings(max_examples=15, deadline=None)
@given(lens=st.lists(st.integers(0, 6), min_size=1, max_size=4), room=st.integers(0, 3), smoothing=st.sampled_from([0.0, 0.2]))
def test_loss_is_that_of_each_sentence_alone(lens: list[int], room: int, smoothing: float) -> None:
    model, batch = build(label_smoothing=smoothing), make_batch(lens, room=room)
    out, count = model.loss(batch), sum(lens) + len(lens)
    expected = torch.stack([reference(model, tokens, smoothing) for tokens in sentences(batch)]).sum() / count
    nll = torch.stack([reference(model, tokens) for tokens in sentences(batch)]).sum() / count
    torch.testing.assert_close(out.loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.parts["nll"], nll.detach(), atol=1e-5, rtol=1e-5)
    assert out.num_targets == count
    assert 0.0 <= out.parts["accuracy"] <= 1.0
    assert not any(part.requires_grad for part in out.parts.values())


def test_padding_takes_no_part() -> None:
    model, batch = build(), make_batch([2, 5], room=2)
    changed = batch._replace(tokens_BU=batch.tokens_BU.masked_fill(batch.tokens_BU == 0, 7))
    gradients = []
    for each in (batch, changed):
        model.zero_grad()
        model.loss(each).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.integers(1, 4), min_size=1, max_size=5), tie=st.booleans())
def test_reading_in_pieces_is_reading_at_once(steps: list[int], tie: bool) -> None:
    model = build(tie_embeddings=tie).eval()
    tokens_BU = torch.randint(0, VOCAB, (3, sum(steps)), generator=torch.Generator().manual_seed(sum(steps)))
    cache = model.decoder.start(3, room=1)
    pieces = [model.decoder.extend(piece_BJ, cache, None) for piece_BJ in tokens_BU.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.decoder(tokens_BU, None), atol=1e-5, rtol=1e-5)


def test_rows_of_different_lengths_share_a_cache() -> None:
    model, lens = build().eval(), [1, 4, 2]
    batch = make_batch(lens)
    cache = model.decoder.start(3, room=2)
    model.decoder.extend(batch.tokens_BU, cache, None)
    cache.lens_B = torch.tensor(lens)  # gives back what was padding
    logits_BV = model.decoder.extend(torch.full((3, 1), 5), cache, None)[:, -1]
    for row, tokens in enumerate(sentences(batch)):
        alone_V = model.decoder(torch.tensor([[*tokens, 5]]), None)[0, -1]
        torch.testing.assert_close(logits_BV[row], alone_V, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(lens=st.lists(st.integers(0, 7), max_size=6), size=st.integers(1, 40))
def test_whole_sentences(lens: list[int], size: int) -> None:
    model = build().eval()
    rows = sentences(make_batch(lens)) if lens else []
    found = infer(model, rows, max_batch_tokens=size)
    assert found == pytest.approx([-float(reference(model, tokens).detach()) for tokens in rows], abs=1e-4)


def test_it_is_a_distribution_over_sentences() -> None:
    model = build().eval()
    log_probs_BU = model.token_log_probs(torch.tensor([[4, 5, 0, 0]]), torch.tensor([2]))
    assert log_probs_BU.shape == (1, 5)
    assert (log_probs_BU[0, :3] < 0).all()
    assert (log_probs_BU[0, 3:] == 0).all()
    first_V = torch.stack([model.token_log_probs(torch.tensor([[v]]), torch.tensor([1]))[0, 0] for v in range(VOCAB)])
    assert float(first_V.exp().sum().detach()) == pytest.approx(1.0, abs=1e-5)  # <eos> as a token is as probable as the end


def test_tied_embeddings_save_their_weights() -> None:
    sizes = [sum(parameter.numel() for parameter in build(tie_embeddings=tie).parameters()) for tie in (True, False)]
    assert sizes[1] - sizes[0] == VOCAB * 16


def test_it_learns_by_heart() -> None:
    model, batch = build(), make_batch([5, 3, 6, 4])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        out = model.loss(batch)
        out.loss.backward()
        optimizer.step()
    assert float(out.parts["nll"]) < 0.6  # which of four sentences it is can only be guessed
    assert float(out.parts["accuracy"]) > 0.75


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0"):
        build(label_smoothing=1.0)
    with pytest.raises(ValueError, match="num_heads=3 must divide"):
        build(num_heads=3)
    with pytest.raises(ValueError, match="max_batch_tokens=0"):
        infer(build(), [[4]], max_batch_tokens=0)

"""Transformer decoder: causality, caches of ragged length, selection of rows, padding of the source."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.nn.decoder import DecoderCache, TransformerDecoder
from speechkit.nn.feed_forward import FeedForward


def make(**options: object) -> TransformerDecoder:
    torch.manual_seed(0)
    values = {"vocab_size": 11, "dim": 16, "num_layers": 2, "num_heads": 2, "ff_dim": 32, "source_dim": 12, **options}
    return TransformerDecoder(**values).eval()  # type: ignore[arg-type]


def test_no_token_sees_what_follows() -> None:
    decoder, x, lens = make(), torch.randn(2, 7, 12), torch.tensor([7, 4])
    source = decoder.read(x, lens)
    tokens = torch.randint(0, 11, (2, 6))
    logits = decoder(tokens, source)
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    torch.testing.assert_close(decoder(changed, source)[:, :4], logits[:, :4])
    assert (decoder(changed, source)[:, 4:] - logits[:, 4:]).abs().min(dim=-1).values.max() > 0


def test_padding_of_the_source_changes_nothing() -> None:
    decoder, x = make(), torch.randn(2, 7, 12)
    tokens = torch.randint(0, 11, (2, 5))
    padded = decoder(tokens, decoder.read(torch.nn.functional.pad(x, (0, 0, 0, 9), value=3.0), torch.tensor([7, 7])))
    torch.testing.assert_close(padded, decoder(tokens, decoder.read(x, torch.tensor([7, 7]))), atol=1e-6, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    room=st.integers(1, 4),
    lens=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_piecewise_equals_all_at_once(pieces: list[int], room: int, lens: list[int]) -> None:
    decoder = make()
    source = decoder.read(torch.randn(len(lens), 6, 12), torch.tensor(lens))
    tokens = torch.randint(0, 11, (len(lens), sum(pieces)))
    cache = decoder.start(len(lens), room=room)
    logits = torch.cat([decoder.extend(part, cache, source) for part in tokens.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, decoder(tokens, source), atol=1e-5, rtol=1e-4)


def test_rows_may_give_back_different_numbers_of_tokens() -> None:
    decoder, source_x = make(), torch.randn(3, 6, 12)
    source = decoder.read(source_x, torch.tensor([6, 5, 3]))
    tokens = torch.randint(0, 11, (3, 8))
    cache = decoder.start(3)
    decoder.extend(tokens, cache, source)
    cache.lens_B = torch.tensor([2, 8, 5])  # rows keep 2, all and 5 tokens
    following = torch.randint(0, 11, (3, 3))
    logits = decoder.extend(following, cache, source)
    for row, kept in enumerate((2, 8, 5)):
        whole = torch.cat((tokens[row, :kept], following[row]))[None]
        expected = decoder(whole, source.select(torch.tensor([row])))[0, kept:]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-4)


def test_selected_rows_go_on_for_themselves() -> None:
    decoder = make()
    source = decoder.read(torch.randn(2, 6, 12), torch.tensor([6, 4]))
    tokens = torch.randint(0, 11, (2, 4))
    cache = decoder.start(2)
    decoder.extend(tokens, cache, source)
    rows = torch.tensor([1, 1, 0])
    chosen: DecoderCache = cache.select(rows)
    following = torch.randint(0, 11, (3, 2))
    logits = decoder.extend(following, chosen, source.select(rows))
    expected = decoder(torch.cat((tokens[rows], following), dim=1), source.select(rows))[:, 4:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert cache.lens_B.tolist() == [4, 4]


def test_tied_embeddings_share_memory() -> None:
    decoder = make(tie_embeddings=True)
    assert decoder.head.weight is decoder.embedding.weight


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="tanh"):
        FeedForward(dim=4, ff_dim=4, dropout=0.0, activation="tanh")  # type: ignore[arg-type]


def test_rows_may_share_a_source() -> None:
    decoder, tokens = make(), torch.randint(0, 11, (6, 4))
    source = decoder.read(torch.randn(2, 6, 12), torch.tensor([6, 4]))
    repeated = source.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(decoder(tokens, source), decoder(tokens, repeated), atol=1e-6, rtol=1e-5)
    shared, own = decoder.start(6), decoder.start(6)
    for part in tokens.split([3, 1], dim=1):
        logits = decoder.extend(part, shared, source)
        torch.testing.assert_close(logits, decoder.extend(part, own, repeated), atol=1e-6, rtol=1e-5)


def test_attention_weights() -> None:
    decoder, tokens = make(num_layers=1), torch.randint(0, 11, (4, 3))
    x, lens = torch.randn(2, 6, 12), torch.tensor([6, 4])
    source, weights = decoder.read(x, lens), []
    decoder.extend(tokens, decoder.start(4), source, attention=weights)
    [weights_BJT] = weights
    assert weights_BJT.shape == (4, 3, 6)
    torch.testing.assert_close(weights_BJT.sum(-1), torch.ones(4, 3))
    assert (weights_BJT[2:, :, 4:] == 0).all()
    # One head whose values and output are the identity gives the weighted mean of the frames.
    attention = make(num_heads=1, source_dim=16).layers[0].cross_attention  # type: ignore[union-attr]
    queries, frames = torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    key, _ = attention.keys_values(frames)
    torch.nn.init.eye_(attention.out.weight)
    torch.nn.init.zeros_(attention.out.bias)
    torch.testing.assert_close(attention.weights(queries, key) @ frames, attention(queries, key, frames[:, None]))


@torch.inference_mode()
def test_the_cache_has_the_type_that_autocast_computes_in() -> None:
    decoder, x, lens = make(), torch.randn(2, 7, 12), torch.tensor([7, 4])
    tokens = torch.randint(0, 11, (2, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        source, cache = decoder.read(x, lens), decoder.start(2)
        pieces = [decoder.extend(tokens[:, i : i + 2], cache, source) for i in (0, 2, 4)]
    assert cache.memory.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(pieces, dim=1).float(), decoder(tokens, decoder.read(x, lens)), atol=0.1, rtol=0.1)
    assert decoder.start(2).memory.dtype == torch.float32

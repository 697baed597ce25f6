from __future__ import annotations

import torch

from speechkit.kernels import backend
from speechkit.nn.decoder import TransformerDecoder
from speechkit.nn.decoder_step import Places, position_table
from speechkit.nn.positional import sinusoids


def test_rows_of_equal_length_need_neither_index_nor_mask_for_one_token() -> None:
    places = Places.after(torch.tensor([4, 4]), 1)
    assert (places.first, places.held, places.index_BJ, places.mask) == (4, 5, None, None)


def test_several_tokens_see_those_before_them() -> None:
    places = Places.after(torch.tensor([2, 2]), 3)
    assert places.index_BJ is None
    assert places.mask is not None
    assert places.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 4 + [False], [True] * 5]


def test_rows_of_unequal_length_have_places_and_masks_of_their_own() -> None:
    places = Places.after(torch.tensor([1, 3]), 2)
    assert places.held == 5
    assert places.index_BJ is not None
    assert places.mask is not None
    assert places.index_BJ.tolist() == [[1, 2], [3, 4]]
    assert places.mask.shape == (2, 1, 2, 5)
    assert places.mask.sum(-1).squeeze(1).tolist() == [[2, 3], [4, 5]]


def test_a_fresh_cache_is_empty_and_of_the_same_decoder() -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(vocab_size=9, dim=16, num_layers=2, num_heads=2, ff_dim=24, cross_attention=False).eval()
    tokens, cache = torch.randint(0, 9, (2, 5)), decoder.start(2, room=3)
    first = decoder.extend(tokens, cache, None)
    other = cache.fresh(4, room=2)
    assert other.lens_B.tolist() == [0] * 4
    assert other.layers is cache.layers
    assert other.positions_LD.equal(position_table(2, cache.positions_LD))
    torch.testing.assert_close(decoder.extend(tokens.repeat(2, 1), other, None), first.repeat(2, 1, 1), atol=1e-6, rtol=1e-5)
    assert cache.lens_B.tolist() == [5, 5]


def test_room_grows_and_keeps_what_it_holds() -> None:
    decoder = TransformerDecoder(vocab_size=9, dim=16, num_layers=1, num_heads=2, ff_dim=24, cross_attention=False).eval()
    cache = decoder.start(1, room=2)
    decoder.extend(torch.tensor([[1, 2]]), cache, None)
    held = cache.memory.clone()
    cache.reserve(3)
    assert cache.memory.shape[4] == 4
    assert cache.memory[..., :2, :].equal(held)
    assert cache.positions_LD.equal(sinusoids(torch.arange(4), 16))


def test_fused_kernels_change_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = TransformerDecoder(vocab_size=9, dim=16, num_layers=1, num_heads=2, ff_dim=24).eval().to(device)
    x, tokens = torch.randn(2, 7, 16, device=device), torch.randint(0, 9, (6, 5), device=device)
    results = []
    for name in ("torch", "triton"):
        with backend(name), torch.no_grad():
            source, cache = decoder.read(x, torch.tensor([7, 4], device=device)), decoder.start(6)
            first, second = decoder.extend(tokens[:, :3], cache, source), decoder.extend(tokens[:, 3:4], cache, source)
            cache.lens_B[1] -= 2  # rows of unequal length
            results.append((decoder(tokens, source), first, second, decoder.extend(tokens[:, 4:], cache, source)))
    for theirs, ours in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)

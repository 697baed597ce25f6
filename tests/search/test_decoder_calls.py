from __future__ import annotations

import pytest
import torch

from speechkit.nn.decoder import TransformerDecoder
from speechkit.search.attention import TokenRules, attention_greedy
from speechkit.search.decoder_calls import DecoderCalls, count_calls
from speechkit.search.rescoring import score_sequences


def test_calls_rows_and_positions_are_counted_within_the_context() -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(vocab_size=7, dim=8, num_layers=1, num_heads=2, ff_dim=16).eval()
    source = decoder.read(torch.randn(2, 4, 8), torch.tensor([4, 3]))
    prompts, limits = torch.full((2, 2), 2), torch.tensor([3, 3])
    with torch.no_grad():
        decoder.head.bias[3] = -100.0  # no end before the limit
    with count_calls(decoder) as calls:
        attention_greedy(decoder, source, prompts, limits, rules=TokenRules(eos=3))
    assert calls == DecoderCalls(num_calls=4, num_rows=8, num_positions=2 * (2 + 3))
    with count_calls(decoder) as calls:
        score_sequences(decoder, source, prompts, [[(4, 5), (6,)], [(4,)]], eos=3)
    assert calls == DecoderCalls(num_calls=1, num_rows=4, num_positions=4 * 4)
    decoder(prompts, source)
    assert calls.num_calls == 1
    assert "forward" not in vars(decoder)


def test_the_decoder_is_as_before_after_an_error() -> None:
    decoder = TransformerDecoder(vocab_size=7, dim=8, num_layers=1, num_heads=2, ff_dim=16)
    with pytest.raises(IndexError), count_calls(decoder):
        decoder(torch.full((1, 1), 99), decoder.read(torch.zeros(1, 1, 8), torch.tensor([1])))
    assert not {"forward", "extend"} & set(vars(decoder))

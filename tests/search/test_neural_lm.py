"""Fusion of a neural model: sums against whole passes, searches against enumeration, batching, memory, tokenizers."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.nn.decoder import TransformerDecoder
from speechkit.search import neural_lm
from speechkit.search.attention import TokenRules
from speechkit.search.attention_beam import BeamSettings, attention_beam
from speechkit.search.ctc_prefix_beam import ctc_prefix_beam
from speechkit.search.fusion import build_scorer
from speechkit.search.lm import SumScorer, score_ends, score_pairs
from speechkit.search.neural_lm import NeuralLm, NeuralScorer
from speechkit.text.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer(symbols=list(" abc"))
VOCAB, SOS, EOS = TOKENIZER.vocab_size, TOKENIZER.sos_id, TOKENIZER.eos_id
TOKENS = range(EOS + 1, VOCAB)


def decoder(seed: int = 0, **options: Any) -> TransformerDecoder:
    torch.manual_seed(seed)
    values = {"dim": 8, "num_layers": 2, "num_heads": 2, "ff_dim": 16, "cross_attention": False, **options}
    network = TransformerDecoder(vocab_size=VOCAB, **values).eval().requires_grad_(False)
    network.head.weight.mul_(4)
    return network


def scorer(network: TransformerDecoder, weight: float = 1.0, token_bonus: float = 0.0) -> NeuralScorer:
    return NeuralScorer(decoder=network, sos=SOS, eos=EOS, weight=weight, token_bonus=token_bonus)


def whole(network: TransformerDecoder, tokens: Sequence[int], ended: bool = True) -> float:
    """Log-probability of a sentence, or of a beginning, in one pass."""
    log_probs = network(torch.tensor([[SOS, *tokens]]), None)[0].double().log_softmax(-1)
    targets = [*tokens, EOS] if ended else [*tokens]
    return float(log_probs[range(len(targets)), targets].sum())


sequences = st.lists(st.lists(st.sampled_from(list(TOKENS)), max_size=7), min_size=1, max_size=6)


@settings(max_examples=20, deadline=None)
@given(rows=sequences, weight=st.sampled_from([1.0, 0.3]), bonus=st.sampled_from([0.0, 0.5]))
def test_sums_are_those_of_a_whole_pass(rows: list[list[int]], weight: float, bonus: float) -> None:
    network = decoder()
    lm = scorer(network, weight, bonus)
    totals, states = [0.0] * len(rows), [lm.initial_state() for _ in rows]
    for u in range(max(map(len, rows))):
        growing = [i for i, row in enumerate(rows) if len(row) > u]  # prefixes of different lengths end up in one pass
        for i, (added, state) in zip(growing, score_pairs(lm, [states[i] for i in growing], [rows[i][u] for i in growing])):
            totals[i], states[i] = totals[i] + added, state
    totals = [total + end for total, end in zip(totals, score_ends(lm, states))]
    assert totals == pytest.approx([weight * whole(network, row) + bonus * len(row) for row in rows], abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_state_can_be_asked_at_any_time(data: st.DataObject) -> None:
    """A tree of prefixes grown in any order, asked together with others of any length, dropped or not."""
    network = decoder(1)
    lm = scorer(network)
    held = [((), lm.initial_state(), 0.0)]
    for _ in range(data.draw(st.integers(1, 6))):
        pair = st.tuples(st.integers(0, len(held) - 1), st.sampled_from(list(TOKENS)))
        chosen = data.draw(st.lists(pair, min_size=1, max_size=5))
        scored = lm.score_batch([held[i][1] for i, _ in chosen], [token for _, token in chosen])
        held += [
            ((*held[i][0], token), state, held[i][2] + added) for (i, token), (added, state) in zip(chosen, scored, strict=True)
        ]
        kept = data.draw(st.sets(st.integers(1, len(held) - 1)))
        held = [held[0], *(held[i] for i in sorted(kept))]
    for tokens, state, total in held:
        assert total == pytest.approx(whole(network, tokens, ended=False), abs=1e-4)
        assert total + lm.final(state) == pytest.approx(whole(network, tokens), abs=1e-4)


def test_a_pass_of_many_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    network = decoder(2)
    rows = list(itertools.product(TOKENS, repeat=3))
    found = []
    for limit in (10**6, 7):
        monkeypatch.setattr(neural_lm, "MAX_TOKENS_AT_ONCE", limit)
        lm = scorer(network)
        states = [lm.initial_state()] * len(rows)
        for u in range(3):
            states = [state for _, state in lm.score_batch(states, [row[u] for row in rows])]
        found.append(lm.final_batch(states))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


class Counting(TransformerDecoder):
    """Counts passes and rows."""

    passes = rows = 0

    def extend(self, tokens_BJ: Tensor, *arguments: Any, **options: Any) -> Tensor:
        self.passes, self.rows = self.passes + 1, self.rows + len(tokens_BJ)
        return super().extend(tokens_BJ, *arguments, **options)


def test_only_prefixes_that_are_asked_about_are_read_and_only_once() -> None:
    torch.manual_seed(0)
    network = Counting(vocab_size=VOCAB, dim=8, num_layers=1, num_heads=2, ff_dim=8, cross_attention=False).eval()
    lm = scorer(network)
    root = lm.initial_state()
    children = [state for _, state in lm.score_batch([root] * len(TOKENS), list(TOKENS))]
    assert (network.passes, network.rows) == (1, 1)
    lm.score_batch([children[0], children[1], children[0]], [4, 5, 6])
    assert (network.passes, network.rows) == (2, 3)
    lm.final_batch([root, children[0], children[1]])
    assert (network.passes, network.rows) == (2, 3)
    lm.final(children[2])
    assert (network.passes, network.rows) == (3, 4)


def test_memory_of_dropped_prefixes_is_used_again() -> None:
    lm = scorer(decoder(3))
    state = lm.initial_state()
    for token in itertools.islice(itertools.cycle(TOKENS), 100):
        beam = lm.score_batch([state] * len(TOKENS), list(TOKENS))
        lm.score_batch([each for _, each in beam], [token] * len(beam))  # all are read, one goes on
        state = beam[token - EOS - 1][1]
        del beam
    gc.collect()
    assert lm._pool is not None
    size = lm._pool.memory.shape[2]
    assert size == 256  # 401 tokens were read
    assert size - len(lm._pool.free) <= 102  # those of the one prefix that is left, and the start
    del state
    assert size - len(lm._pool.free) <= 1


def test_a_pool_grows() -> None:
    network = decoder(4)
    lm = scorer(network)
    states = [lm.initial_state()]
    for _ in range(5):  # 1 + 4 + .. + 256 prefixes are held
        states = [new for state in states for _, new in lm.score_batch([state] * len(TOKENS), list(TOKENS))]
    ends = lm.final_batch(states)
    assert lm._pool is not None
    assert lm._pool.memory.shape[2] > 1024
    rows = list(itertools.product(TOKENS, repeat=5))
    for i in range(0, len(rows), 97):
        assert ends[i] == pytest.approx(whole(network, rows[i]) - whole(network, rows[i], ended=False), abs=1e-4)


def paths(log_probs_TV: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log-probability of every transcript, by enumerating all paths of CTC."""
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product([0, *TOKENS], repeat=len(log_probs_TV)):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token)
        totals[tokens] = totals.get(tokens, 0.0) + math.exp(sum(log_probs_TV[t, token] for t, token in enumerate(path)))
    return {tokens: math.log(total) for tokens, total in totals.items()}


def random_log_probs(seed: int, batch: int, frames: int) -> Tensor:
    """CTC that knows blank and the four symbols."""
    values = torch.randn(batch, frames, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    values[..., 1 : EOS + 1] = -math.inf
    return values.log_softmax(-1)


@pytest.mark.parametrize("hotwords", [(), ("ab", "c")])
def test_prefix_beam_finds_the_best_of_all(hotwords: Sequence[str]) -> None:
    network, log_probs, lens = decoder(5), random_log_probs(0, 3, 4), torch.tensor([4, 3, 1])
    lm = NeuralLm(decoder=network, tokenizer=TOKENIZER, name="tiny")
    fused = build_scorer(TOKENIZER, lm=lm, lm_weight=0.7, word_bonus=0.4, hotwords=hotwords)
    words = build_scorer(TOKENIZER, hotwords=hotwords)
    found = ctc_prefix_beam(log_probs, lens, beam_size=700, scorer=fused, token_top_k=None, token_min_logp=None)
    for row, results in enumerate(found):
        expected = {}
        for tokens, acoustic in paths(log_probs[row, : lens[row]].numpy()).items():
            bonus, state = 0.0, None if words is None else words.initial_state()
            for token in tokens if words is not None else ():
                added, state = words.score(state, token)
                bonus += added
            bonus += words.final(state) if words is not None else 0.0
            expected[tokens] = acoustic + 0.7 * whole(network, tokens) + 0.4 * len(tokens) + bonus
        best = max(expected, key=lambda tokens: expected[tokens])
        assert results[0].tokens == best
        assert {result.tokens: result.score for result in results} == pytest.approx(expected, abs=1e-4)


def test_joint_beam_finds_the_best_of_all() -> None:
    network, limit = decoder(6), 3
    torch.manual_seed(7)
    reader = TransformerDecoder(vocab_size=VOCAB, dim=8, num_layers=1, num_heads=2, ff_dim=16, source_dim=6).eval()
    reader.requires_grad_(False).head.weight.mul_(4)
    lens = torch.tensor([5, 3])
    source, prompts = reader.read(torch.randn(2, 5, 6), lens), torch.full((2, 1), SOS)
    found = attention_beam(
        reader,
        source,
        prompts,
        torch.tensor([limit, limit - 1]),
        rules=TokenRules(eos=EOS, never=(0, 1, SOS)),
        settings=BeamSettings(beam_size=300, pre_beam=None, num_best=4, end_margin=math.inf),
        scorer=build_scorer(TOKENIZER, lm=NeuralLm(decoder=network, tokenizer=TOKENIZER, name="tiny"), lm_weight=0.6),
    )
    for row, most in enumerate((limit, limit - 1)):
        own, expected = source.select(torch.tensor([row])), {}
        for tokens in itertools.chain.from_iterable(itertools.product(TOKENS, repeat=n) for n in range(most + 1)):
            log_probs = reader(torch.tensor([[SOS, *tokens]]), own)[0].double().log_softmax(-1)
            heard = float(log_probs[range(len(tokens) + 1), [*tokens, EOS]].sum())
            expected[tokens] = heard + 0.6 * whole(network, tokens)
        best = sorted(expected, key=lambda tokens: -expected[tokens])[:4]
        assert [result.tokens for result in found[row]] == best
        assert [result.score for result in found[row]] == pytest.approx([expected[tokens] for tokens in best], abs=1e-4)


def test_a_batch_is_what_its_utterances_are_alone() -> None:
    network, log_probs, lens = decoder(8), random_log_probs(9, 4, 9), torch.tensor([9, 0, 5, 7])
    options: dict[str, Any] = {"beam_size": 4, "token_min_logp": None}
    together = ctc_prefix_beam(log_probs, lens, scorer=scorer(network, 0.5), **options)
    for row, results in enumerate(together):
        own = log_probs[row : row + 1, : max(1, lens[row])], lens[row : row + 1]
        [alone] = ctc_prefix_beam(*own, scorer=scorer(network, 0.5), **options)
        assert [result.tokens for result in alone] == [result.tokens for result in results]
        assert [result.score for result in alone] == pytest.approx([result.score for result in results], abs=1e-4)


def test_sums_of_scorers_stay_batched() -> None:
    network = decoder(10)
    both = SumScorer([scorer(network), scorer(network, 0.5, 1.0)])
    state = both.initial_state()
    [(added, state), _] = both.score_batch([state, state], [4, 5])
    assert added == pytest.approx(1.5 * whole(network, [4], ended=False) + 1.0, abs=1e-5)
    assert both.final(state) == pytest.approx(1.5 * (whole(network, [4]) - whole(network, [4], ended=False)), abs=1e-5)
    assert both.score(both.initial_state(), 4)[0] == pytest.approx(added)


def test_another_tokenizer_is_refused() -> None:
    lm = NeuralLm(decoder=decoder(), tokenizer=TOKENIZER, name="exp/lm")
    with pytest.raises(ValueError, match=r"lm=exp/lm has another tokenizer \(8 tokens\) than the recogniser \(9 tokens\)"):
        build_scorer(CharTokenizer(symbols=list(" abcd")), lm=lm)


def test_a_folder_is_not_taken_for_a_file(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"is a folder; give what speechkit\.pretrained\.load_language_model returns"):
        build_scorer(TOKENIZER, lm=str(tmp_path))

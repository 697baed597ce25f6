"""Greedy search and what a decoder may say: against loops over one utterance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.nn.decoder import TransformerDecoder
from speechkit.search.attention import AttentionResult, TokenRules, attention_greedy

EOS = 3


def make_decoder(seed: int = 0, vocab: int = 7) -> TransformerDecoder:
    torch.manual_seed(seed)
    decoder = TransformerDecoder(vocab_size=vocab, dim=8, num_layers=2, num_heads=2, ff_dim=16, source_dim=6).eval()
    with torch.no_grad():
        decoder.head.weight.mul_(4)  # far from ties
    return decoder


def slow_greedy(
    decoder: TransformerDecoder, x: torch.Tensor, prompt: list[int], limit: int, rules: TokenRules
) -> AttentionResult:
    """One utterance, the whole prefix read again for every token."""
    tokens: list[int] = []
    log_probs: list[float] = []
    if limit == 0:
        return AttentionResult()
    source = decoder.read(x[None], torch.tensor([len(x)]))
    while True:
        logits = decoder(torch.tensor([[*prompt, *tokens]]), source)[:, -1]
        own = torch.tensor([tokens], dtype=torch.long)
        scores = rules.log_probs(logits, own, torch.tensor([len(tokens)]), torch.tensor([limit]))[0]
        token = int(scores.argmax())
        log_probs.append(float(scores[token]))
        if token == rules.eos:
            return AttentionResult(tuple(tokens), tuple(log_probs[:-1]), sum(log_probs), sum(log_probs))
        tokens.append(token)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=5),
    num_prompt=st.integers(1, 3),
    max_repeats=st.sampled_from([None, 1, 2]),
    seed=st.integers(0, 10**6),
)
def test_a_batch_is_the_sum_of_its_utterances(
    rows: list[tuple[int, int]], num_prompt: int, max_repeats: int | None, seed: int
) -> None:
    with torch.inference_mode():
        decoder = make_decoder(seed)
        rules = TokenRules(eos=EOS, never=(0, 2), max_repeats=max_repeats, repeat_span=2)
        lens, limits = torch.tensor([n for n, _ in rows]), torch.tensor([limit for _, limit in rows])
        x = torch.randn(len(rows), int(lens.max()), 6)
        prompts = torch.randint(0, 7, (len(rows), num_prompt))
        found = attention_greedy(decoder, decoder.read(x, lens), prompts, limits, rules=rules)
        for b, (length, limit) in enumerate(rows):
            expected = slow_greedy(decoder, x[b, :length], prompts[b].tolist(), limit, rules)
            assert found[b].tokens == expected.tokens
            assert len(found[b].tokens) <= limit
            assert found[b].log_probs == pytest.approx(expected.log_probs, abs=1e-4)
            assert found[b].score == pytest.approx(expected.score, abs=1e-4)
            assert found[b].score == found[b].att_score


def test_no_rows() -> None:
    decoder = make_decoder()
    source = decoder.read(torch.zeros(2, 3, 6), torch.tensor([3, 3]))
    nothing = attention_greedy(decoder, source, torch.full((2, 1), 2), torch.tensor([0, 0]), rules=TokenRules(eos=EOS))
    assert nothing == [AttentionResult(), AttentionResult()]


def banned_by_definition(tokens: list[int], vocab: int, most: int, span: int) -> set[int]:
    """Tokens with which some sequence of up to `span` tokens would stand more than `most` times in a row at the end."""
    banned = set()
    for token in range(vocab):
        whole = [*tokens, token]
        for n in range(1, span + 1):
            times = most + 1
            if len(whole) >= n * times and whole[-n * times :] == whole[-n:] * times:
                banned.add(token)
    return banned


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=4),
    most=st.integers(1, 3),
    span=st.integers(1, 3),
)
def test_repetitions(rows: list[list[int]], most: int, span: int) -> None:
    vocab = 4
    rules = TokenRules(eos=EOS, max_repeats=most, repeat_span=span)
    tokens = torch.full((len(rows), max(map(len, rows))), 1)
    for row, own in zip(tokens, rows):
        row[: len(own)] = torch.tensor(own, dtype=torch.long)
    lens, limits = torch.tensor([len(own) for own in rows]), torch.full((len(rows),), 99)
    logits = torch.randn(len(rows), vocab)
    allowed = rules.log_probs(logits, tokens, lens, limits) > -torch.inf
    for row, own in zip(allowed, rows):
        assert set((~row).nonzero()[:, 0].tolist()) == banned_by_definition(own, vocab, most, span)
    torch.testing.assert_close(rules.log_probs(logits, tokens, lens, limits)[allowed], logits.log_softmax(-1)[allowed])


def test_never_and_limits() -> None:
    rules = TokenRules(eos=EOS, never=(0, 2))
    scores = rules.log_probs(torch.zeros(2, 5), torch.ones(2, 4).long(), torch.tensor([3, 4]), torch.tensor([4, 4]))
    assert (scores > -torch.inf).tolist() == [[False, True, False, True, True], [False, False, False, True, False]]


@pytest.mark.parametrize("name", ["max_repeats", "repeat_span"])
def test_impossible_rules_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        TokenRules(eos=EOS, **{name: 0})

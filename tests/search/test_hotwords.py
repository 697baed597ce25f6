"""Hotword boosts: earned by whole phrases alone, taken back otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.search.ctc_prefix_beam import ctc_prefix_beam
from speechkit.search.hotwords import HotwordScorer
from speechkit.text.tokenizers import CharTokenizer, SentencePieceTokenizer

CHARS = CharTokenizer(symbols=[" ", *"abcdefghijklmnopqrstuvwxyz"])


def boosts(scorer: HotwordScorer, tokens: list[int]) -> list[float]:
    """What each token adds, and last what the end adds."""
    state, added = scorer.initial_state(), []
    for token in tokens:
        value, state = scorer.score(state, token)
        added.append(value)
    return [*added, scorer.final(state)]


def total(scorer: HotwordScorer, text: str) -> float:
    return sum(boosts(scorer, [CHARS.encode(f"a{char}a")[1] for char in text]))


def leftmost_longest(phrases: set[tuple[str, ...]], words: list[str]) -> int:
    """Characters of the phrases found, the spaces within included."""
    if not words:
        return 0
    found = max((phrase for phrase in phrases if tuple(words[: len(phrase)]) == phrase), key=len, default=())
    return len(" ".join(found)) + leftmost_longest(phrases, words[len(found) or 1 :])


WORDS = st.text("ab", min_size=1, max_size=2)


@settings(max_examples=120, deadline=None)
@given(
    phrases=st.sets(st.lists(WORDS, min_size=1, max_size=4).map(tuple), min_size=1, max_size=5),
    words=st.lists(WORDS, max_size=12),
)
def test_text_earns_its_leftmost_longest_phrases(phrases: set[tuple[str, ...]], words: list[str]) -> None:
    scorer = HotwordScorer(sorted(map(" ".join, phrases)), tokenizer=CHARS, weight=1.5)
    assert total(scorer, " ".join(words)) == pytest.approx(1.5 * leftmost_longest(phrases, words), abs=1e-9)


@pytest.mark.parametrize(
    ("phrases", "text", "tokens"),
    [
        (["new york"], "new york", 8),
        (["new york"], "in new new york now", 8),
        (["new york"], "new yorker", 0),
        (["new york"], "knew york", 0),
        (["new york", "new york city"], "new york city", 13),
        (["new york", "new york city"], "new york cinema", 8),
        (["a a b"], "a a a b", 5),
        (["x b c y", "b c"], "x b c z", 3),
        (["x b c y", "b c"], "x b c", 3),
        (["a b", "b c"], "a b c", 3),
        (["new"], "new new  new", 9),
        (["new york"], "", 0),
    ],
)
def test_phrases_by_hand(phrases: list[str], text: str, tokens: int) -> None:
    assert total(HotwordScorer(phrases, tokenizer=CHARS, weight=1.0), text) == pytest.approx(tokens)


def test_boost_comes_token_by_token_and_goes_at_once() -> None:
    scorer = HotwordScorer({"cat": 2.0}, tokenizer=CHARS)
    assert boosts(scorer, CHARS.encode("cat")) == [2.0, 2.0, 2.0, 0.0]
    assert boosts(scorer, CHARS.encode("cab")) == [2.0, 2.0, -4.0, 0.0]
    assert boosts(scorer, CHARS.encode("cats")) == [2.0, 2.0, 2.0, -6.0, 0.0]
    assert boosts(scorer, CHARS.encode("ca")) == [2.0, 2.0, -4.0]


def test_own_weights_and_shared_beginnings() -> None:
    scorer = HotwordScorer({"ab": 1.0, "ac": 3.0}, tokenizer=CHARS)
    assert total(scorer, "ab") == pytest.approx(3.0 + 1.0)
    assert total(scorer, "ac") == pytest.approx(3.0 + 3.0)


def test_with_sentence_pieces() -> None:
    texts = ["the meeting is in reading", "reading the room", "meet the team"]
    tokenizer = SentencePieceTokenizer.train(texts * 5, vocab_size=30)
    scorer = HotwordScorer(["reading"], tokenizer=tokenizer, weight=1.0)
    length = len(tokenizer.encode("reading"))
    assert sum(boosts(scorer, tokenizer.encode("meet in reading the"))) == pytest.approx(length)
    assert sum(boosts(scorer, tokenizer.encode("meet the team"))) == 0.0


def test_raises_an_unlikely_phrase() -> None:
    log_probs = torch.full((1, 21, CHARS.vocab_size), math.log(1e-4))
    log_probs[:, :, 0] = math.log(0.97)
    for i, (wrong, right) in enumerate(zip("jon", "jan", strict=True)):
        log_probs[0, 5 * i + 2, [0, *CHARS.encode(wrong)]] = torch.tensor([0.1, 0.7]).log()
        if wrong != right:
            log_probs[0, 5 * i + 2, CHARS.encode(right)] = math.log(0.19)
    lens = torch.tensor([21])
    plain = ctc_prefix_beam(log_probs, lens)[0][0]
    boosted = ctc_prefix_beam(log_probs, lens, scorer=HotwordScorer(["jan"], tokenizer=CHARS, weight=1.0))[0][0]
    assert (CHARS.decode(plain.tokens), CHARS.decode(boosted.tokens)) == ("jon", "jan")
    assert boosted.score == pytest.approx(boosted.am_score + 3.0)
    other = ctc_prefix_beam(log_probs, lens, scorer=HotwordScorer(["janet"], tokenizer=CHARS, weight=1.0))[0][0]
    assert CHARS.decode(other.tokens) == "jon", "an unfinished phrase must not change the result"


@pytest.mark.parametrize(
    ("hotwords", "message"), [({"": 1.0}, "''"), ({"na\u00efve": 1.0}, "na\u00efve"), ({"cat": 0.0}, "'cat' is 0.0")]
)
def test_wrong_hotwords_are_named(hotwords: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HotwordScorer(hotwords, tokenizer=CHARS)

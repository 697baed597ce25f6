"""Beam and joint search against enumeration of all transcripts; batches against single utterances; beam 1 against greedy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechkit.nn.decoder import TransformerDecoder
from speechkit.search.attention import AttentionResult, TokenRules, attention_greedy
from speechkit.search.attention_beam import BeamSettings, attention_beam
from speechkit.search.ctc_prefix_score import CtcPrefixScorer

EOS, VOCAB, SOS = 3, 6, 2
RULES = TokenRules(eos=EOS, never=(0, 2))
TOKENS = (1, 4, 5)


class Bigrams:
    """A scorer with random numbers; tells that a state is only used after it was made."""

    def __init__(self, seed: int) -> None:
        self.table = torch.randn(VOCAB + 1, VOCAB, generator=torch.Generator().manual_seed(seed)).tolist()

    def initial_state(self) -> tuple[int, ...]:
        return (VOCAB,)

    def score(self, state: tuple[int, ...], token: int) -> tuple[float, tuple[int, ...]]:
        return self.table[state[-1]][token], (*state, token)

    def final(self, state: tuple[int, ...]) -> float:
        return self.table[state[-1]][EOS]

    def total(self, tokens: tuple[int, ...]) -> float:
        return sum(self.table[a][b] for a, b in itertools.pairwise((VOCAB, *tokens, EOS)))


class World:
    """A decoder, utterances and their CTC log-probabilities."""

    def __init__(self, seed: int, lens: list[int]) -> None:
        torch.manual_seed(seed)
        self.decoder = TransformerDecoder(vocab_size=VOCAB, dim=8, num_layers=2, num_heads=2, ff_dim=16, source_dim=6).eval()
        self.decoder.requires_grad_(False).head.weight.mul_(4)
        self.lens = torch.tensor(lens)
        self.x = torch.randn(len(lens), max(lens), 6)
        self.log_probs = (2 * torch.randn(len(lens), max(lens), VOCAB)).log_softmax(-1)

    def search(self, limits: list[int], rows: list[int] | None = None, scorer: Any = None, **options: Any) -> Any:
        rows = list(range(len(self.lens))) if rows is None else rows
        lens = self.lens[rows]
        frames = max(1, int(lens.max()))
        ctc = CtcPrefixScorer(self.log_probs[rows, :frames], lens)
        source, prompts = self.decoder.read(self.x[rows, :frames], lens), torch.full((len(rows), 1), SOS)
        limits_B = torch.tensor(limits)[rows]
        return attention_beam(
            self.decoder, source, prompts, limits_B, rules=RULES, settings=BeamSettings(**options), ctc=ctc, scorer=scorer
        )

    def att(self, row: int, tokens: tuple[int, ...]) -> float:
        source = self.decoder.read(self.x[row : row + 1, : self.lens[row]], self.lens[row : row + 1])
        log_probs = self.decoder(torch.tensor([[SOS, *tokens]]), source)[0].log_softmax(-1)
        return float(log_probs[range(len(tokens) + 1), [*tokens, EOS]].sum())

    def ctc(self, row: int) -> dict[tuple[int, ...], float]:
        found: dict[tuple[int, ...], float] = {}
        log_probs: Tensor = self.log_probs[row, : self.lens[row]].double()
        for path in itertools.product(range(VOCAB), repeat=len(log_probs)):
            collapsed = tuple(label for label, _ in itertools.groupby(path) if label)
            found[collapsed] = found.get(collapsed, 0.0) + math.exp(sum(float(log_probs[t, v]) for t, v in enumerate(path)))
        return {tokens: math.log(p) for tokens, p in found.items()}


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    limit=st.integers(1, 3),
    frames=st.integers(1, 4),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    bonus=st.sampled_from([0.0, 0.7]),
    with_lm=st.booleans(),
)
def test_a_beam_that_holds_everything_is_exact(
    seed: int, limit: int, frames: int, weight: float, bonus: float, with_lm: bool
) -> None:
    world, scorer = World(seed, [frames]), Bigrams(seed) if with_lm else None
    exact = {"beam_size": 150, "pre_beam": None, "num_best": 5, "end_margin": math.inf if bonus or with_lm else 0.0}
    [found] = world.search([limit], scorer=scorer, ctc_weight=weight, length_bonus=bonus, **exact)
    ctc, expected = world.ctc(0), []
    for length in range(limit + 1):
        for tokens in itertools.product(TOKENS, repeat=length):
            score = (1 - weight) * world.att(0, tokens) + bonus * length
            score += weight * ctc.get(tokens, -math.inf) if weight else 0.0
            score += scorer.total(tokens) if scorer is not None else 0.0
            if score > -math.inf:
                expected.append((score, tokens))
    expected = sorted(expected, reverse=True)[:5]
    assert [result.tokens for result in found] == [tokens for _, tokens in expected]
    assert [result.score for result in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    for result in found:
        assert result.att_score == pytest.approx(world.att(0, result.tokens), abs=1e-4)
        assert sum(result.log_probs) >= result.att_score
        if weight:
            assert result.ctc_score == pytest.approx(ctc[result.tokens], abs=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=5),
    beam=st.integers(1, 4),
    weight=st.sampled_from([0.0, 0.4]),
    coverage=st.sampled_from([0.0, 0.3]),
    with_lm=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_a_batch_is_the_sum_of_its_utterances(
    rows: list[tuple[int, int]], beam: int, weight: float, coverage: float, with_lm: bool, seed: int
) -> None:
    rows = [(0, 0) if n == 0 else (n, limit) for n, limit in rows]
    world, scorer = World(seed, [max(n, 1) for n, _ in rows]), Bigrams(seed) if with_lm else None
    world.lens = torch.tensor([n for n, _ in rows])
    limits = [limit for _, limit in rows]
    options = {"beam_size": beam, "ctc_weight": weight, "coverage_bonus": coverage, "length_bonus": 0.1, "num_best": 2}
    together = world.search(limits, scorer=scorer, **options)
    for row, (_, limit) in enumerate(rows):
        [alone] = world.search(limits, [row], scorer=scorer, **options)
        assert [result.tokens for result in together[row]] == [result.tokens for result in alone]
        assert [r.score for r in together[row]] == pytest.approx([r.score for r in alone], abs=1e-4)
        assert all(math.isfinite(result.score) and len(result.tokens) <= limit for result in alone)
        assert alone


@settings(max_examples=12, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 7)), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_beam_of_one_is_greedy(rows: list[tuple[int, int]], seed: int) -> None:
    world, limits = World(seed, [n for n, _ in rows]), [limit for _, limit in rows]
    found = world.search(limits, beam_size=1)
    source, prompts = world.decoder.read(world.x, world.lens), torch.full((len(rows), 1), SOS)
    greedy = attention_greedy(world.decoder, source, prompts, torch.tensor(limits), rules=RULES)
    assert [own[0].tokens for own in found] == [result.tokens for result in greedy]
    assert [own[0].score for own in found] == pytest.approx([result.score for result in greedy], abs=1e-4)
    assert [own[0].log_probs for own in found] == [pytest.approx(result.log_probs, abs=1e-4) for result in greedy]


def test_a_wider_beam_finds_no_worse() -> None:
    for seed in range(4):
        world = World(seed, [6, 5])
        scores = [[own[0].score for own in world.search([6, 6], beam_size=beam)] for beam in (1, 120)]
        assert all(wide >= narrow - 1e-5 for narrow, wide in zip(*scores))


def test_coverage_counts_frames_that_were_attended_to() -> None:
    world = World(3, [5])
    options = {"beam_size": 150, "num_best": 99, "end_margin": math.inf, "coverage_threshold": 0.3}
    plain = {result.tokens: result.score for result in world.search([2], **options)[0]}
    covered = world.search([2], coverage_bonus=2.0, **options)[0]
    assert len(covered) == len(plain) == 13
    for result in covered:
        attention: list[Tensor] = []
        source = world.decoder.read(world.x, world.lens)
        world.decoder.extend(torch.tensor([[SOS, *result.tokens]]), world.decoder.start(1), source, attention=attention)
        frames = int((torch.stack(attention).mean(0).sum(1) > 0.3).sum())
        assert result.score == pytest.approx(plain[result.tokens] + 2.0 * frames, abs=1e-4)


def test_without_speech_nothing_is_said() -> None:
    assert World(0, [3]).search([0], ctc_weight=0.5, scorer=Bigrams(0)) == [[AttentionResult()]]


def test_prefix_scores_are_needed() -> None:
    world = World(0, [3])
    source = world.decoder.read(world.x, world.lens)
    with pytest.raises(ValueError, match=r"ctc_weight=0.5 needs the CTC prefix scores"):
        attention_beam(
            world.decoder, source, torch.tensor([[SOS]]), torch.tensor([3]), rules=RULES, settings=BeamSettings(ctc_weight=0.5)
        )


@pytest.mark.parametrize(
    ("name", "value"), [("beam_size", 0), ("num_best", 0), ("ctc_weight", 1.5), ("pre_beam", 0.5), ("end_margin", -1.0)]
)
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        BeamSettings(**{name: value})

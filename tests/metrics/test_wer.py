"""Error counts against a slow reference, sums, and what the bootstrap says on data whose spread is known."""

from __future__ import annotations

import math

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.metrics.wer import (
    ErrorCounts,
    WerAccumulator,
    align_texts,
    bootstrap_interval,
    count_errors,
    count_errors_batch,
    format_alignment,
    paired_bootstrap,
    sum_counts,
)
from speechkit.text.normalize import get_normalizer

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "é"]), max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6)


def edit_distance(ref: list[str], hyp: list[str]) -> int:
    """Levenshtein distance, cell by cell."""
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, start=1):
        diagonal, row[0] = row[0], i
        for j, h in enumerate(hyp, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (r != h))
    return row[-1]


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_counts_agree_with_a_slow_reference(pairs: list[tuple[str, str]]) -> None:
    refs, hyps = [r for r, _ in pairs], [h for _, h in pairs]
    for unit, split in (("word", str.split), ("char", list)):
        counts = count_errors_batch(refs, hyps, unit)  # type: ignore[arg-type]
        assert len(counts) == len(pairs)
        for (ref, hyp), one in zip(pairs, counts):
            assert one.errors == edit_distance(split(ref), split(hyp))
            assert one.ref_length == len(split(ref))
            assert one.hyp_length == len(split(hyp))
            assert min(one.hits, one.substitutions, one.deletions, one.insertions) >= 0
            assert one == count_errors(ref, hyp, unit)  # type: ignore[arg-type]
    if any(refs):
        assert sum_counts(count_errors_batch(refs, hyps)).rate == pytest.approx(jiwer.wer(refs, hyps))
        assert sum_counts(count_errors_batch(refs, hyps, "char")).rate == pytest.approx(jiwer.cer(refs, hyps))


def test_white_space_is_unified_and_nothing_else() -> None:
    assert count_errors(" a \u3000b\n", "a  b").errors == 0
    assert count_errors("a b", "ab", "char") == ErrorCounts(hits=2, deletions=1)
    assert count_errors("A, b", "a b").errors == 1


def test_empty_references_count_insertions_and_divide_once() -> None:
    counts = count_errors_batch(["", "a b c d", ""], ["x y", "a b c e", ""])
    assert counts == [ErrorCounts(insertions=2), ErrorCounts(hits=3, substitutions=1), ErrorCounts()]
    assert sum_counts(counts).rate == 3 / 4
    assert counts[0].rate == math.inf
    assert counts[2].rate == 0.0
    assert count_errors_batch([], []) == []


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        count_errors_batch(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="unit: 'phone'"):
        count_errors("a", "b", "phone")  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_alignment_spells_both_texts(ref: str, hyp: str) -> None:
    pairs = align_texts(ref, hyp)
    assert [p.ref for p in pairs if p.op != "insert"] == ref.split()
    assert [p.hyp for p in pairs if p.op != "delete"] == hyp.split()
    assert all((p.ref == p.hyp) == (p.op == "equal") for p in pairs)
    counts = count_errors(ref, hyp)
    assert sum(p.op != "equal" for p in pairs) == counts.errors
    assert len(format_alignment(pairs).split("\n")) == 3


def test_alignment_is_printed_in_columns() -> None:
    text = format_alignment(align_texts("the cat 你好 sat", "the hat sat down"))
    assert text.splitlines() == [
        "REF: the cat 你好 sat",
        "HYP: the hat sat  down",
        "         S   S    S",
    ]
    text = format_alignment(align_texts("a bb c d", "a c d ee"))
    assert text.splitlines() == ["REF: a bb c d **", "HYP: a ** c d ee", "       D      I"]


def simulated(rng: np.random.Generator, size: int, rate: float, words: int = 10) -> list[ErrorCounts]:
    errors = rng.binomial(words, rate, size)
    return [ErrorCounts(hits=words - int(e), substitutions=int(e)) for e in errors]


def test_bootstrap_matches_the_normal_approximation(rng: np.random.Generator) -> None:
    counts = simulated(rng, 2000, 0.1)
    interval = bootstrap_interval(counts, num_samples=4000)
    total = sum_counts(counts).rate
    half = 1.96 * math.sqrt(0.1 * 0.9 / 20000)
    assert interval.low == pytest.approx(total - half, abs=0.1 * half)
    assert interval.high == pytest.approx(total + half, abs=0.1 * half)
    assert interval == bootstrap_interval(counts, num_samples=4000, seed=0)
    assert bootstrap_interval(counts, num_samples=50) != bootstrap_interval(counts, num_samples=50, seed=1)
    narrow = bootstrap_interval(counts, num_samples=4000, confidence=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_bootstrap_covers_the_truth_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    hits = 0
    for _ in range(200):
        interval = bootstrap_interval(simulated(rng, 200, 0.2), num_samples=300)
        hits += interval.low <= 0.2 <= interval.high
    assert 180 <= hits <= 199


def test_bootstrap_equals_plain_resampling(rng: np.random.Generator) -> None:
    """Utterances of unequal length, drawn one by one with replacement, give the same percentiles."""
    lengths = rng.integers(1, 20, 300)
    counts = [ErrorCounts(hits=int(n) - int(e), deletions=int(e)) for n, e in zip(lengths, rng.binomial(lengths, 0.15))]
    errors = np.array([c.errors for c in counts])
    draws = rng.integers(0, 300, (4000, 300))
    plain = errors[draws].sum(axis=1) / lengths[draws].sum(axis=1)
    ours = bootstrap_interval(counts, num_samples=4000)
    spread = plain.std()
    assert ours.low == pytest.approx(np.percentile(plain, 2.5), abs=0.15 * spread)
    assert ours.high == pytest.approx(np.percentile(plain, 97.5), abs=0.15 * spread)


def test_bootstrap_over_speakers_is_wider_when_speakers_differ(rng: np.random.Generator) -> None:
    counts, speakers = [], []
    for k in range(20):
        counts += simulated(rng, 50, 0.02 + 0.02 * k)
        speakers += [f"s{k}"] * 50
    single = bootstrap_interval(counts)
    grouped = bootstrap_interval(counts, groups=speakers)
    assert grouped.num_units == 20
    assert single.num_units == 1000
    assert grouped.high - grouped.low > 3 * (single.high - single.low)
    one = bootstrap_interval(counts, groups=["s"] * len(counts))
    assert one.low == pytest.approx(one.high)


def test_paired_bootstrap_sees_what_unpaired_intervals_hide(rng: np.random.Generator) -> None:
    first = simulated(rng, 300, 0.2)
    second = [ErrorCounts(c.hits + 1, c.substitutions - 1) if c.substitutions and i % 5 == 0 else c for i, c in enumerate(first)]
    result = paired_bootstrap(first, second)
    assert result.difference == pytest.approx(sum_counts(second).rate - sum_counts(first).rate)
    assert result.interval.high < 0
    assert result.significant
    assert result.improvement == 1.0
    a, b = bootstrap_interval(first), bootstrap_interval(second)
    assert b.high > a.low  # the intervals overlap
    same = paired_bootstrap(first, first)
    assert (same.difference, same.improvement, same.significant) == (0.0, 0.5, False)
    with pytest.raises(ValueError, match="same references"):
        paired_bootstrap(first, second[:-1])


def test_bootstrap_errors_and_degenerate_input() -> None:
    with pytest.raises(ValueError, match="no utterance"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence: 95"):
        bootstrap_interval([ErrorCounts(1)], confidence=95)
    with pytest.raises(ValueError, match="2 labels for 1"):
        bootstrap_interval([ErrorCounts(1)], groups=["a", "b"])
    with pytest.raises(ValueError, match="num_samples: 0"):
        bootstrap_interval([ErrorCounts(1)], num_samples=0)
    assert math.isnan(bootstrap_interval([ErrorCounts(insertions=1)]).low)


def test_accumulator_divides_once_and_adds_over_ranks() -> None:
    refs, hyps = ["A b c.", "", "d"], ["a b x", "y", "d"]
    basic = get_normalizer("basic")
    whole = WerAccumulator(normalizer=basic)
    whole.update(refs, hyps)
    assert whole.wer == 2 / 4
    assert whole.counts["word"] == ErrorCounts(hits=3, substitutions=1, insertions=1)
    assert whole.cer == 2 / 6
    ranks = [WerAccumulator(normalizer=basic) for _ in range(2)]
    ranks[0].update(refs[:1], hyps[:1])
    ranks[1].update(refs[1:], hyps[1:])
    merged = WerAccumulator()
    merged.load_state([a + b for a, b in zip(*(rank.state() for rank in ranks))])
    assert (merged.counts, merged.num_utterances) == (whole.counts, 3)
    whole.reset()
    assert (whole.wer, whole.num_utterances) == (0.0, 0)
    with pytest.raises(ValueError, match="2 numbers given, 9 expected"):
        whole.load_state([1, 2])

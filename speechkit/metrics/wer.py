"""Word and character error rates: counts first, summed over the corpus, divided once.

Alignments come from jiwer (rapidfuzz underneath), so the totals agree with what most papers compute. Confidence
intervals follow Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004).

A word is what white space separates; for unit "char" the items are the characters of the text with white space unified,
single spaces included (jiwer's definition; the normaliser "char" removes them). Nothing else is normalised here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: `--help` of the scoring script does not wait for it

Unit = Literal["word", "char"]
UNITS: tuple[Unit, ...] = ("word", "char")
_MAX_DRAW_CELLS = 4_000_000  # bounds the memory of the bootstrap


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Counts of an alignment, or the sum over many; add them with `+` or `sum_counts`.

    Attributes:
        hits: items that agree.
        substitutions: items replaced by another.
        deletions: reference items with nothing in the hypothesis.
        insertions: hypothesis items with nothing in the reference.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def ref_length(self) -> int:
        """Items of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def hyp_length(self) -> int:
        """Items of the hypothesis."""
        return self.hits + self.substitutions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference item; without reference items 0 if there is no error, else infinite."""
        if self.ref_length == 0:
            return float("inf") if self.errors else 0.0
        return self.errors / self.ref_length


@dataclass(frozen=True, slots=True)
class AlignedPair:
    """One step of an alignment: `op` is "equal", "substitute", "delete" or "insert"; the missing side is ""."""

    op: str
    ref: str
    hyp: str


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """Percentile bootstrap interval of an error rate.

    Attributes:
        low: lower bound of the rate.
        high: upper bound of the rate.
        confidence: probability that the interval was made for.
        num_samples: bootstrap samples drawn.
        num_units: utterances or groups that were resampled.
    """

    low: float
    high: float
    confidence: float
    num_samples: int
    num_units: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Paired bootstrap of two systems on the same utterances.

    Attributes:
        difference: rate of the second minus rate of the first; negative when the second is better.
        interval: bootstrap interval of that difference.
        improvement: share of bootstrap samples in which the second is better, ties counted half.
    """

    difference: float
    interval: ConfidenceInterval
    improvement: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0


def sum_counts(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Sum of counts."""
    return sum(counts, ErrorCounts())


def count_errors(ref: str, hyp: str, unit: Unit = "word") -> ErrorCounts:
    """Counts for one utterance; see `count_errors_batch`, which is faster for many."""
    return count_errors_batch([ref], [hyp], unit)[0]


def count_errors_batch(refs: Sequence[str], hyps: Sequence[str], unit: Unit = "word") -> list[ErrorCounts]:
    """Counts for each utterance.

    Args:
        refs: references; one that is empty turns its whole hypothesis into insertions.
        hyps: hypotheses, as many.
        unit: "word" or "char".

    Returns:
        One ErrorCounts per utterance, in order.

    Raises:
        ValueError: the numbers of texts differ or the unit is unknown.
        ImportError: jiwer is missing.
    """
    output = _process(refs, hyps, unit)
    counts = []
    for chunks in output.alignments if refs else ():  # of no texts jiwer makes one empty text
        ref_sizes = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
        inserted = 0
        for chunk in chunks:
            ref_sizes[chunk.type] += chunk.ref_end_idx - chunk.ref_start_idx
            if chunk.type == "insert":
                inserted += chunk.hyp_end_idx - chunk.hyp_start_idx
        counts.append(ErrorCounts(ref_sizes["equal"], ref_sizes["substitute"], ref_sizes["delete"], inserted))
    return counts


def align_texts(ref: str, hyp: str, unit: Unit = "word") -> list[AlignedPair]:
    """Alignment of one utterance with the fewest errors (one of them, where several have as few).

    Raises:
        ValueError: the unit is unknown.
        ImportError: jiwer is missing.
    """
    output = _process([ref], [hyp], unit)
    ref_items, hyp_items = output.references[0], output.hypotheses[0]
    pairs: list[AlignedPair] = []
    for chunk in output.alignments[0]:
        left = ref_items[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hyp_items[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for k in range(max(len(left), len(right))):
            pairs.append(AlignedPair(chunk.type, left[k] if left else "", right[k] if right else ""))
    return pairs


def format_alignment(pairs: Sequence[AlignedPair]) -> str:
    """Three lines: REF, HYP and the marks S, D, I below the errors; `*` fills the missing side."""
    rows: tuple[list[str], list[str], list[str]] = ([], [], [])
    for pair in pairs:
        width = max(_display_width(pair.ref), _display_width(pair.hyp), 1)
        mark = "" if pair.op == "equal" else pair.op[0].upper()
        cells = (pair.ref or "*" * width, pair.hyp or "*" * width, mark)
        for row, cell in zip(rows, cells):
            row.append(cell + " " * (width - _display_width(cell)))
    names = ("REF:", "HYP:", "    ")
    return "\n".join(f"{name} {' '.join(row)}".rstrip() for name, row in zip(names, rows))


def bootstrap_interval(
    counts: Sequence[ErrorCounts],
    *,
    groups: Sequence[str] | None = None,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ConfidenceInterval:
    """Percentile bootstrap interval of the corpus error rate.

    Args:
        counts: one per utterance.
        groups: label of each utterance, such as its speaker: whole groups are then resampled, which is honest where
            utterances of one speaker succeed or fail together.
        num_samples: bootstrap samples.
        confidence: probability of the interval, in (0, 1).
        seed: of the resampling.

    Raises:
        ValueError: there is no utterance, or an option is out of range.
    """
    rates = _resampled_rates([counts], groups=groups, num_samples=num_samples, seed=seed)
    return _interval(rates[0], confidence=confidence, num_units=len(set(groups)) if groups else len(counts))


def paired_bootstrap(
    first: Sequence[ErrorCounts],
    second: Sequence[ErrorCounts],
    *,
    groups: Sequence[str] | None = None,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two systems' error rates with the same utterances drawn for both.

    Args:
        first: counts of the first system, one per utterance.
        second: counts of the second system for the same utterances in the same order.
        groups: label of each utterance when whole groups are to be resampled.
        num_samples: bootstrap samples.
        confidence: probability of the interval, in (0, 1).
        seed: of the resampling.

    Raises:
        ValueError: the systems differ in their references, there is no utterance, or an option is out of range.
    """
    if [c.ref_length for c in first] != [c.ref_length for c in second]:
        raise ValueError("paired bootstrap: the two systems were not scored against the same references")
    rates = _resampled_rates([first, second], groups=groups, num_samples=num_samples, seed=seed)
    differences = rates[1] - rates[0]
    return PairedDifference(
        difference=float(sum_counts(second).rate - sum_counts(first).rate),
        interval=_interval(differences, confidence=confidence, num_units=len(set(groups)) if groups else len(first)),
        improvement=float((differences < 0).mean() + 0.5 * (differences == 0).mean()),
    )


class WerAccumulator:
    """Sums counts over validation batches; the rates are divided once, at the end.

    Args:
        normalizer: applied to references and hypotheses alike; None leaves them as they are.
    """

    def __init__(self, *, normalizer: Callable[[str], str] | None = None) -> None:
        self._normalizer = normalizer
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.counts: dict[Unit, ErrorCounts] = {unit: ErrorCounts() for unit in UNITS}
        self.num_utterances = 0

    def update(self, refs: Sequence[str], hyps: Sequence[str]) -> None:
        """Adds a batch of utterances.

        Raises:
            ValueError: the numbers of texts differ.
        """
        if self._normalizer is not None:
            refs, hyps = [self._normalizer(t) for t in refs], [self._normalizer(t) for t in hyps]
        for unit in UNITS:
            self.counts[unit] = sum(count_errors_batch(refs, hyps, unit), self.counts[unit])
        self.num_utterances += len(refs)

    @property
    def wer(self) -> float:
        """Word error rate so far."""
        return self.counts["word"].rate

    @property
    def cer(self) -> float:
        """Character error rate so far."""
        return self.counts["char"].rate

    def state(self) -> list[int]:
        """All sums as integers, to be added over ranks: state lists of equal length."""
        flat = [getattr(self.counts[unit], name) for unit in UNITS for name in ErrorCounts.__slots__]
        return [*flat, self.num_utterances]

    def load_state(self, state: Sequence[int]) -> None:
        """Takes sums that `state` gave, or their sum over ranks.

        Raises:
            ValueError: the list has the wrong length.
        """
        size = len(ErrorCounts.__slots__)
        if len(state) != size * len(UNITS) + 1:
            raise ValueError(f"state: {len(state)} numbers given, {size * len(UNITS) + 1} expected; take them from state()")
        numbers = [int(value) for value in state]
        self.counts = {unit: ErrorCounts(*numbers[k * size : (k + 1) * size]) for k, unit in enumerate(UNITS)}
        self.num_utterances = numbers[-1]


def _process(refs: Sequence[str], hyps: Sequence[str], unit: Unit) -> Any:
    """jiwer's output for texts with white space unified."""
    try:
        import jiwer
    except ImportError as error:
        raise ImportError('error rates need jiwer: pip install "speechkit[train]"') from error
    if len(refs) != len(hyps):
        raise ValueError(f"{len(refs)} references but {len(hyps)} hypotheses; give one hypothesis for each reference")
    if unit not in UNITS:
        raise ValueError(f"unit: {unit!r} is unknown; use 'word' or 'char'")
    clean_refs, clean_hyps = ([" ".join(text.split()) for text in side] for side in (refs, hyps))
    if unit == "word":
        words = jiwer.Compose([jiwer.ReduceToListOfListOfWords()])
        return jiwer.process_words(clean_refs, clean_hyps, words, words)
    chars = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])
    return jiwer.process_characters(clean_refs, clean_hyps, chars, chars)


def _resampled_rates(
    systems: Sequence[Sequence[ErrorCounts]], *, groups: Sequence[str] | None, num_samples: int, seed: int
) -> np.ndarray:
    """Corpus rates of bootstrap samples drawn alike for every system, shape (systems, num_samples).

    Utterances with the same counts are drawn together, by one multinomial: the same distribution, and fast.
    """
    import numpy as np

    size = len(systems[0])
    if size == 0:
        raise ValueError("bootstrap: there is no utterance to resample")
    if groups is not None and len(groups) != size:
        raise ValueError(f"groups: {len(groups)} labels for {size} utterances; give one for each")
    if num_samples < 1:
        raise ValueError(f"num_samples: {num_samples} must be positive")
    columns = np.array([[c.ref_length for c in systems[0]], *([c.errors for c in counts] for counts in systems)])
    if groups is not None:
        _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        columns = np.stack([np.bincount(index, weights=row).astype(np.int64) for row in columns])
    num_units = columns.shape[1]
    kinds, counts_of_kind = np.unique(columns, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    totals = np.empty((len(columns), num_samples), dtype=np.int64)
    step = max(1, _MAX_DRAW_CELLS // kinds.shape[1])
    for k in range(0, num_samples, step):
        draws = rng.multinomial(num_units, counts_of_kind / num_units, size=min(step, num_samples - k))
        totals[:, k : k + step] = kinds @ draws.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals[1:] / totals[0]


def _interval(values: np.ndarray, *, confidence: float, num_units: int) -> ConfidenceInterval:
    import numpy as np

    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} must lie between 0 and 1, such as 0.95")
    finite = values[np.isfinite(values)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(finite, [tail, 100 - tail]) if finite.size else (float("nan"), float("nan"))
    return ConfidenceInterval(float(low), float(high), confidence, len(values), num_units)


def _display_width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) != 0 for char in text)

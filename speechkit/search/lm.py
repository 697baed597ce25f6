"""Language models in a search: the scorer protocol, n-gram models, and how they join the acoustic score.

A `Scorer` tells a beam search what to add to a prefix's score when a token is appended. Weights live in the scorer
(shallow fusion: Gulcehre et al. 2015, "On Using Monolingual Corpora in Neural Machine Translation", section 4.1), so
language models and hotwords combine by addition (`SumScorer`). A `LanguageModel` knows nothing of tokens: `WordScorer`
feeds it whole words, `TokenScorer` the pieces themselves. Neural models are in `speechkit.search.neural_lm`.

Log-probabilities are natural ones; ARPA files and KenLM use base 10 and are converted.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

if TYPE_CHECKING:
    from speechkit.text.tokenizers import Tokenizer

_LN10 = math.log(10.0)
_BEGIN, _END, _UNK = "<s>", "</s>", "<unk>"
_MISSING_UNK_LOG10 = -100.0  # what KenLM gives unknown words of a model without <unk>
_Context = tuple[str, ...]


class Scorer(Protocol):
    """What a beam search asks while prefixes grow. States are opaque and never changed in place."""

    def initial_state(self) -> Any:
        """State of the empty prefix."""

    def score(self, state: Any, token: int) -> tuple[float, Any]:
        """What appending a token adds to the prefix's score, weights included, and the state after it."""

    def final(self, state: Any) -> float:
        """What ending here adds."""


@runtime_checkable
class BatchScorer(Scorer, Protocol):
    """A scorer that is faster on many prefixes at once, such as a neural language model."""

    def score_batch(self, states: Sequence[Any], tokens: Sequence[int]) -> Sequence[tuple[float, Any]]:
        """`score` of each (state, token) pair."""

    def final_batch(self, states: Sequence[Any]) -> Sequence[float]:
        """`final` of each state."""


def score_pairs(scorer: Scorer, states: Sequence[Any], tokens: Sequence[int]) -> Sequence[tuple[float, Any]]:
    """`scorer.score` of each (state, token) pair, in one call where the scorer can."""
    if not tokens:
        return []
    if isinstance(scorer, BatchScorer):
        return scorer.score_batch(states, tokens)
    return [scorer.score(state, token) for state, token in zip(states, tokens, strict=True)]


def score_ends(scorer: Scorer, states: Sequence[Any]) -> Sequence[float]:
    """`scorer.final` of each state, in one call where the scorer can."""
    if not states:
        return []
    if isinstance(scorer, BatchScorer):
        return scorer.final_batch(states)
    return [scorer.final(state) for state in states]


class LanguageModel(Protocol):
    """A model over sequences of words, or of anything written without white space."""

    def initial_state(self) -> Any:
        """State at the beginning of a sentence."""

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Natural log-probability of a word after a state, and the state after it."""

    def final(self, state: Any) -> float:
        """Natural log-probability of the sentence ending here."""


class WordScorer:
    """Fuses a language model over words: a word is scored when the token that begins the next one arrives.

    Args:
        lm: model over words.
        tokenizer: tells where words begin and what they spell.
        weight: factor on the model's log-probabilities.
        word_bonus: added for every word, against the model's liking for few words.
    """

    def __init__(self, *, lm: LanguageModel, tokenizer: Tokenizer, weight: float = 0.5, word_bonus: float = 0.0) -> None:
        self._lm = lm
        self._split_words = tokenizer.split_words
        self._starts_word = [tokenizer.starts_word(i) for i in range(tokenizer.vocab_size)]
        self._weight = weight
        self._word_bonus = word_bonus

    def initial_state(self) -> tuple[Any, tuple[int, ...]]:
        """The model's state and the tokens of the word under way."""
        return self._lm.initial_state(), ()

    def score(self, state: tuple[Any, tuple[int, ...]], token: int) -> tuple[float, tuple[Any, tuple[int, ...]]]:
        """What appending a token adds: nothing within a word, the word before it at a beginning."""
        lm_state, word = state
        if not self._starts_word[token]:
            return 0.0, (lm_state, (*word, token))
        added, lm_state = self._complete(lm_state, word)
        return added, (lm_state, (token,))

    def final(self, state: tuple[Any, tuple[int, ...]]) -> float:
        """The last word and the end of the sentence."""
        added, lm_state = self._complete(*state)
        return added + self._weight * self._lm.final(lm_state)

    def _complete(self, lm_state: Any, word: tuple[int, ...]) -> tuple[float, Any]:
        added = 0.0
        for text, _ in self._split_words(word):
            logp, lm_state = self._lm.score(lm_state, text)
            added += self._weight * logp + self._word_bonus
        return added, lm_state


class TokenScorer:
    """Fuses a language model over the tokenizer's own pieces, as `lm_tokens` writes them.

    Args:
        lm: model over pieces.
        tokenizer: names the pieces.
        weight: factor on the model's log-probabilities.
        token_bonus: added for every token, against the model's liking for few tokens.
    """

    def __init__(self, *, lm: LanguageModel, tokenizer: Tokenizer, weight: float = 0.5, token_bonus: float = 0.0) -> None:
        self._lm = lm
        self._pieces = lm_tokens(tokenizer, range(tokenizer.vocab_size))
        self._weight = weight
        self._token_bonus = token_bonus

    def initial_state(self) -> Any:
        """The model's state at the beginning of a sentence."""
        return self._lm.initial_state()

    def score(self, state: Any, token: int) -> tuple[float, Any]:
        """The weighted log-probability of the token, and the bonus."""
        logp, state = self._lm.score(state, self._pieces[token])
        return self._weight * logp + self._token_bonus, state

    def final(self, state: Any) -> float:
        """The end of the sentence."""
        return self._weight * self._lm.final(state)


class SumScorer:
    """Adds up several scorers.

    Args:
        scorers: what to add up.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self._scorers = tuple(scorers)

    def initial_state(self) -> tuple[Any, ...]:
        """The states of all scorers."""
        return tuple(scorer.initial_state() for scorer in self._scorers)

    def score(self, state: tuple[Any, ...], token: int) -> tuple[float, tuple[Any, ...]]:
        """The sum of what all scorers add."""
        return self.score_batch([state], [token])[0]

    def score_batch(self, states: Sequence[tuple[Any, ...]], tokens: Sequence[int]) -> list[tuple[float, tuple[Any, ...]]]:
        """`score` of each (state, token) pair."""
        parts = [score_pairs(scorer, own, tokens) for scorer, own in zip(self._scorers, zip(*states), strict=True)]
        return [(sum(added for added, _ in pair), tuple(after for _, after in pair)) for pair in zip(*parts)]

    def final(self, state: tuple[Any, ...]) -> float:
        """The sum of what all scorers add at the end."""
        return self.final_batch([state])[0]

    def final_batch(self, states: Sequence[tuple[Any, ...]]) -> list[float]:
        """`final` of each state."""
        parts = [score_ends(scorer, own) for scorer, own in zip(self._scorers, zip(*states), strict=True)]
        return [sum(ends) for ends in zip(*parts)]


def lm_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Names of tokens as a token-level language model knows them: the pieces, white space written as U+2581.

    `" ".join(lm_tokens(tokenizer, tokenizer.encode(text)))` makes the training text of such a model.
    """
    return ["".join("\u2581" if c.isspace() else c for c in piece) for piece in tokenizer.pieces(ids)]


class ArpaLm:
    """A back-off n-gram model in plain Python; `KenLm` is smaller and faster for large ones.

    Unknown words are scored as `<unk>`; a model without it gives them 10^-100, as KenLM does.

    Args:
        ngrams: log10 probability and log10 back-off weight of each n-gram.
    """

    def __init__(self, ngrams: Mapping[_Context, tuple[float, float]]) -> None:
        self._ngrams = dict(ngrams)
        self.order = max(map(len, self._ngrams), default=0)
        if not self.order:
            raise ValueError("ngrams is empty; give at least the unigrams")

    @classmethod
    def load(cls, path: str | Path) -> ArpaLm:
        """Read an ARPA file, gzip-compressed when its name ends in .gz.

        Raises:
            ValueError: the file is not a whole ARPA model; the message names the line.
        """
        path = Path(path)
        line = 0

        def numbered(file: TextIO) -> Iterator[str]:
            nonlocal line
            for text in file:
                line += 1
                yield text

        try:
            with _open_text(path, "rt") as file:
                return cls(_read_arpa(numbered(file)))
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}:{line}: {error}; give a complete ARPA file in UTF-8") from error

    def save(self, path: str | Path) -> None:
        """Write an ARPA file, gzip-compressed when its name ends in .gz."""
        by_order = [sorted(key for key in self._ngrams if len(key) == n) for n in range(1, self.order + 1)]
        with _open_text(Path(path), "wt") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(keys)}\n" for n, keys in enumerate(by_order, 1))
            for n, keys in enumerate(by_order, 1):
                file.write(f"\n\\{n}-grams:\n")
                for key in keys:
                    logp, backoff = self._ngrams[key]
                    tail = f"\t{backoff:.7g}" if n < self.order else ""
                    file.write(f"{logp:.7g}\t{' '.join(key)}{tail}\n")
            file.write("\n\\end\\\n")

    def initial_state(self) -> _Context:
        """The context of a sentence's first word."""
        return self._known_context((_BEGIN,))

    def score(self, state: _Context, word: str) -> tuple[float, _Context]:
        """Natural log-probability of a word after a context, and the context after it."""
        if (word,) not in self._ngrams:
            word = _UNK
        context, backoff = state, 0.0
        while (*context, word) not in self._ngrams:
            if not context:
                return (backoff + _MISSING_UNK_LOG10) * _LN10, ()
            backoff += self._ngrams.get(context, (0.0, 0.0))[1]
            context = context[1:]
        return (self._ngrams[(*context, word)][0] + backoff) * _LN10, self._known_context((*state, word))

    def final(self, state: _Context) -> float:
        """Natural log-probability of the sentence ending after a context."""
        return self.score(state, _END)[0]

    def _known_context(self, words: _Context) -> _Context:
        """The longest ending of the words that the model has an entry for, short enough to be a context."""
        start = max(0, len(words) - self.order + 1)
        while start < len(words) and words[start:] not in self._ngrams:
            start += 1
        return words[start:]


class KenLm:
    """An n-gram model read by KenLM: ARPA files or KenLM's own binaries.

    Args:
        path: the model.

    Raises:
        ImportError: the kenlm package is missing.
        ValueError: KenLM cannot read the file.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import kenlm
        except ImportError as error:
            raise ImportError('KenLm needs the kenlm package: pip install "speechkit[lm]"') from error
        config = kenlm.Config()
        config.show_progress = False
        try:
            self._model = kenlm.Model(str(path), config)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: KenLM cannot read it ({error}); give an ARPA file or a KenLM binary") from error
        self._new_state: Callable[[], Any] = kenlm.State
        self.order: int = self._model.order

    def initial_state(self) -> Any:
        """KenLM's state at the beginning of a sentence."""
        state = self._new_state()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Natural log-probability of a word after a state, and the state after it."""
        after = self._new_state()
        return self._model.BaseScore(state, word, after) * _LN10, after

    def final(self, state: Any) -> float:
        """Natural log-probability of the sentence ending here."""
        return self.score(state, _END)[0]


def load_lm(path: str | Path) -> LanguageModel:
    """Read an n-gram model: `.arpa` and `.arpa.gz` by `ArpaLm`, every other file by `KenLm`.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    return ArpaLm.load(path) if str(path).endswith((".arpa", ".arpa.gz")) else KenLm(path)


def estimate_arpa(texts: Iterable[str], *, order: int = 3) -> ArpaLm:
    """Estimate an n-gram model with interpolated Witten-Bell smoothing.

    The probability of words never seen, `<unk>`, comes from a uniform distribution below the unigrams.
    Source: Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", section 2.4.

    Args:
        texts: sentences, words separated by white space.
        order: longest n-gram.

    Raises:
        ValueError: there are no words, a word is one of <s>, </s>, <unk>, or the order is below 1.
    """
    if order < 1:
        raise ValueError(f"order is {order}; give at least 1")
    counts: list[defaultdict[_Context, Counter[str]]] = [defaultdict(Counter) for _ in range(order)]
    for text in texts:
        words = text.split()
        reserved = {_BEGIN, _END, _UNK}.intersection(words)
        if reserved:
            raise ValueError(f"texts holds the reserved word {min(reserved)} in {text!r}; remove it")
        padded = (_BEGIN, *words, _END) if words else ()
        for i in range(1, len(padded)):
            for n in range(min(order, i + 1)):
                counts[n][padded[i - n : i]][padded[i]] += 1
    if not counts[0]:
        raise ValueError("texts holds no words; give at least one sentence")

    vocabulary = [*counts[0][()], _UNK]
    probs: dict[_Context, float] = {}
    backoffs: dict[_Context, float] = {}
    for level in counts:
        for context, followers in level.items():
            kinds, total = len(followers), followers.total()
            backoffs[context] = kinds / (kinds + total)
            for word in followers if context else vocabulary:
                lower = probs[(*context[1:], word)] if context else 1.0 / len(vocabulary)
                probs[(*context, word)] = (followers[word] + kinds * lower) / (kinds + total)
    ngrams = {key: (math.log10(p), math.log10(backoffs.get(key, 1.0))) for key, p in probs.items()}
    ngrams[(_BEGIN,)] = (-99.0, math.log10(backoffs.get((_BEGIN,), 1.0)))
    return ArpaLm(ngrams)


def _open_text(path: Path, mode: str) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8")  # type: ignore[return-value]
    return path.open(mode, encoding="utf-8")  # type: ignore[return-value]


def _read_arpa(lines: Iterator[str]) -> dict[_Context, tuple[float, float]]:
    """The n-grams of an ARPA file; errors do not name the line, which is the last one taken."""
    stripped = (line.strip() for line in lines)
    for line in stripped:
        if line == "\\data\\":
            break
    else:
        raise ValueError("no \\data\\ section")
    expected: dict[int, int] = {}
    ngrams: dict[_Context, tuple[float, float]] = {}
    n = found = 0
    for line in stripped:
        if line.startswith("\\"):
            if n and found != expected[n]:
                raise ValueError(f"section of {n}-grams has {found} entries where \\data\\ says {expected[n]}")
            if line == "\\end\\":
                if n != len(expected):
                    raise ValueError(f"ends after {n}-grams where \\data\\ announces {len(expected)} orders")
                return ngrams
            n, found = n + 1, 0
            if line != f"\\{n}-grams:" or n not in expected:
                raise ValueError(f"found {line!r} where \\{n}-grams: or \\end\\ should be")
        elif line and n:
            key, value = _read_ngram(line, n)
            if key in ngrams:
                raise ValueError(f"n-gram {' '.join(key)!r} is there twice")
            ngrams[key] = value
            found += 1
        elif line:
            size, _, count = line.removeprefix("ngram ").partition("=")
            if not (line.startswith("ngram ") and size.strip() == str(len(expected) + 1) and count.strip().isdigit()):
                raise ValueError(f"found {line!r} where 'ngram {len(expected) + 1}=<count>' should be")
            expected[len(expected) + 1] = int(count)
    raise ValueError("the file ends before \\end\\")


def _read_ngram(line: str, n: int) -> tuple[_Context, tuple[float, float]]:
    """One entry: log10 probability, n words, and perhaps a log10 back-off weight."""
    fields = [field for field in line.replace("\t", " ").split(" ") if field]  # words may hold other white space
    if len(fields) not in (n + 1, n + 2):
        raise ValueError(f"entry {line!r} has {len(fields)} fields where {n + 1} or {n + 2} should be")
    try:
        logp, backoff = float(fields[0]), float(fields[n + 1]) if len(fields) == n + 2 else 0.0
    except ValueError:
        raise ValueError(f"entry {line!r} does not hold numbers at its ends") from None
    if not (logp <= 0.0 and math.isfinite(backoff)):
        raise ValueError(f"entry {line!r} has a log-probability above 0 or a weight that is no number")
    return tuple(fields[1 : n + 1]), (logp, backoff)

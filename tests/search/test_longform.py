"""Windows over long recordings tile the output frames exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechkit.search.longform import plan_windows, stitch, stitch_words, trim_to_seams
from speechkit.text.tokenizers import CharTokenizer
from speechkit.types import Hypothesis, Word


@given(
    num_inputs=st.integers(0, 400),
    stride=st.integers(1, 8),
    hop=st.integers(1, 20),
    edge=st.integers(0, 6),
    spare=st.integers(0, 7),
)
def test_every_output_frame_is_kept_once(num_inputs: int, stride: int, hop: int, edge: int, spare: int) -> None:
    size = hop + 2 * edge
    windows = plan_windows(num_inputs, window=size * stride + min(spare, stride - 1), context=edge * stride, stride=stride)
    frames = -(-num_inputs // stride)
    outputs = [torch.arange(w.first_frame, w.first_frame + -(-(w.end - w.start) // stride)) for w in windows]
    if not windows:
        assert num_inputs == 0
        return
    assert torch.equal(stitch(outputs, windows), torch.arange(frames))
    assert (windows[0].start, windows[-1].end) == (0, num_inputs)
    for i, window in enumerate(windows):
        assert window.start == window.first_frame * stride
        assert 0 < window.end - window.start <= size * stride
        assert len(windows) == 1 or window.end - window.start > (size - 1) * stride
        kept_end = frames if window.keep_end is None else window.keep_end
        last_frame = window.first_frame + -(-(window.end - window.start) // stride)
        assert i == 0 or window.keep_start - window.first_frame >= edge
        assert window.keep_end is None or last_frame - kept_end >= edge


@pytest.mark.parametrize("frames", [3, 50, 51, 237, 1000])
def test_local_encoder_gives_the_same_in_windows(frames: int) -> None:
    """A convolution that sees 4 frames to each side, stride 4, in windows with that much context."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(3, 5, kernel_size=9, stride=4, padding=4)
    signal = torch.randn(frames, 3)

    def encode(x: torch.Tensor) -> torch.Tensor:
        return conv(x.T[None])[0].T

    with torch.inference_mode():
        windows = plan_windows(frames, window=48, context=4, stride=4)
        joined = stitch([encode(signal[w.start : w.end]) for w in windows], windows)
        torch.testing.assert_close(joined, encode(signal), rtol=0, atol=1e-6)


def test_labels_stitch_too() -> None:
    windows = plan_windows(10, window=6, context=1, stride=1)
    assert stitch([torch.arange(w.start, w.end) for w in windows], windows).tolist() == list(range(10))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="window of at least 12"):
        plan_windows(100, window=8, context=4, stride=4)
    with pytest.raises(ValueError, match="stride 0"):
        plan_windows(100, window=8, context=4, stride=0)
    windows = plan_windows(20, window=8, context=1)
    with pytest.raises(ValueError, match=r"outputs\[0\] has 3 frames"):
        stitch([torch.zeros(3, 2)] * len(windows), windows)
    with pytest.raises(ValueError, match="1 entries for 3 windows"):
        stitch([torch.zeros(8, 2)], windows)
    with pytest.raises(ValueError, match="0 entries"):
        stitch([], [])


@given(
    words=st.lists(st.tuples(st.floats(0.0, 1.5), st.floats(0.12, 0.8)), max_size=30),
    seed=st.integers(0, 10**6),
)
def test_every_word_is_kept_once(words: list[tuple[float, float]], seed: int) -> None:
    """Windows of 6 s, 2 s apart from their seams, that agree on the words up to a few hundredths of a second."""
    rng = np.random.default_rng(seed)
    clock, spoken = 0.0, []
    for pause, length in words:
        spoken.append((clock + pause, clock + pause + length))
        clock += pause + length
    seams = [4.0 + 2.0 * i for i in range(max(0, int(clock // 2) - 1))]
    edges = [-np.inf, *seams, np.inf]
    parts, numbers = [], []
    for begin, end in itertools.pairwise(edges):
        heard = [i for i, (start, stop) in enumerate(spoken) if start >= begin - 2.0 and stop <= end + 2.0]
        jitter = rng.uniform(-0.04, 0.04, size=(len(heard), 2))
        parts.append([Word(str(i), spoken[i][0] + a, spoken[i][1] + b, 1.0) for i, (a, b) in zip(heard, jitter)])
        numbers.append(heard)
    kept = [i for own, span in zip(numbers, stitch_words(parts, seams)) for i in own[span]]
    assert kept == list(range(len(spoken)))


def test_short_words_beside_a_seam_are_told_by_their_text() -> None:
    early = [Word("so", 3.50, 3.62, 1.0), Word("do", 3.62, 3.70, 1.0)]  # ends before the middle that the later window sees
    late = [Word("so", 3.54, 3.66, 1.0), Word("do", 3.66, 3.78, 1.0), Word("I", 3.79, 3.85, 1.0)]
    assert stitch_words([early, late], [4.0]) == [slice(0, 2), slice(2, 3)]
    again = [Word("no", 3.4, 3.6, 1.0), Word("no", 3.7, 3.9, 1.0)]
    assert stitch_words([again, [*again, Word("no", 4.0, 4.2, 1.0)]], [4.0]) == [slice(0, 2), slice(2, 3)]


def test_a_word_on_the_seam_is_the_earlier_windows() -> None:
    parts = [[Word("a", 1.0, 1.4, 1.0), Word("b", 3.7, 4.2, 1.0)], [Word("b", 3.9, 4.3, 1.0), Word("c", 4.4, 4.9, 1.0)]]
    assert stitch_words(parts, [4.0]) == [slice(0, 2), slice(1, 2)]
    assert stitch_words([[], []], [4.0]) == [slice(0, 0), slice(0, 0)]


def test_transcripts_are_cut_to_their_own_words() -> None:
    tokenizer = CharTokenizer.train(["ab c"])
    windows = plan_windows(100, window=60, context=10)
    assert [window.first_frame for window in windows] == [0, 40]

    def transcript(*words: tuple[str, float]) -> Hypothesis:
        text = " ".join(word for word, _ in words)
        tokens = tuple(tokenizer.encode(text))
        owners = [(word, at + 0.01 * i) for word, at in words for i in range(len(word) + 1)][:-1]
        times = tuple(Word(word, at, at + 0.01, 0.5) for word, at in owners)
        return Hypothesis(text, tokens, -1.0, tuple(Word(word, at, at + 0.02, 0.5) for word, at in words), times)

    first, second = transcript(("ab", 0.1), ("c", 0.3), ("b", 0.55)), transcript(("b", 0.15), ("ab", 0.3), ("c", 0.5))
    (start_a, a), (start_b, b) = trim_to_seams([first, second], windows, tokenizer=tokenizer, frame_shift=0.01)
    assert (start_a, start_b) == (0.0, pytest.approx(0.4))
    assert (a.text, b.text) == ("ab c", "b ab c")
    assert (a.tokens, b.tokens) == (tuple(tokenizer.encode("ab c")), tuple(tokenizer.encode("b ab c")))
    assert [word.text for word in (*a.words, *b.words)] == ["ab", "c", "b", "ab", "c"]
    assert (len(a.token_times), len(b.token_times)) == (4, 6)
    assert (a.confidence, b.confidence) == (0.5, 0.5)

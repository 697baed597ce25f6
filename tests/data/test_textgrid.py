"""TextGrid files: intervals tile the recording, and what is written is read back."""

from __future__ import annotations

import re

import pytest

from speechkit.data.textgrid import Interval, format_textgrid


def parse(text: str) -> dict[str, list[Interval]]:
    """The interval tiers of a TextGrid in the long text format."""
    tiers: dict[str, list[Interval]] = {}
    for block in re.split(r"item \[\d+\]:", text)[1:]:
        name = re.search(r'name = "((?:[^"]|"")*)"', block)
        assert name
        found = re.findall(r'intervals \[\d+\]:\s+xmin = (\S+)\s+xmax = (\S+)\s+text = "((?:[^"]|"")*)"', block)
        size = re.search(r"intervals: size = (\d+)", block)
        assert size
        assert int(size[1]) == len(found)
        tiers[name[1].replace('""', '"')] = [(float(a), float(b), label.replace('""', '"')) for a, b, label in found]
    return tiers


def test_gaps_become_intervals_without_a_label() -> None:
    words = [(0.25, 0.5, 'the "x"'), (0.5, 0.5, "none"), (0.8, 1.0, "a\nb")]
    text = format_textgrid({"words": words, "phones": []}, duration=1234.5678)
    assert parse(text) == {
        "words": [(0, 0.25, ""), (0.25, 0.5, 'the "x"'), (0.5, 0.8, ""), (0.8, 1.0, "a b"), (1.0, 1234.5678, "")],
        "phones": [(0, 1234.5678, "")],
    }
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 1234.5678\ntiers? <exists>\n')


@pytest.mark.parametrize("intervals", [[(0.0, 0.6, "a"), (0.5, 0.9, "b")], [(0.5, 0.4, "a")], [(0.5, 1.1, "a")]])
def test_what_does_not_fit_is_refused(intervals: list[Interval]) -> None:
    with pytest.raises(ValueError, match="tier 'words'"):
        format_textgrid({"words": intervals}, duration=1.0)


def test_a_recording_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="duration=0"):
        format_textgrid({}, duration=0.0)

"""Praat's TextGrid files: tiers of labelled intervals beside a recording, in the long text format.

Source: Praat's manual, "TextGrid file formats" (https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from speechkit.types import Seconds

_LEAST: Seconds = 1e-6  # what is shorter is no interval
_DIGITS = 6

Interval = tuple[Seconds, Seconds, str]


def format_textgrid(tiers: Mapping[str, Iterable[Interval]], *, duration: Seconds) -> str:
    """A TextGrid with a tier for each entry.

    Args:
        tiers: name of each tier, and its intervals (start, end, label) in the order of time. Praat wants intervals that tile
            the recording: what lies between those given becomes intervals without a label, and intervals without a length,
            which it refuses, are left out.
        duration: of the recording, seconds.

    Raises:
        ValueError: the recording has no length, or intervals overlap or reach beyond it.
    """
    if not duration > _LEAST:
        raise ValueError(f"duration={duration}: a TextGrid needs a recording of some length")
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_number(duration)}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for place, (name, intervals) in enumerate(tiers.items(), start=1):
        tiled = _tile(name, intervals, duration)
        lines += [
            f"    item [{place}]:",
            '        class = "IntervalTier"',
            f"        name = {_quoted(name)}",
            "        xmin = 0",
            f"        xmax = {_number(duration)}",
            f"        intervals: size = {len(tiled)}",
        ]
        for number, (start, end, label) in enumerate(tiled, start=1):
            lines += [
                f"        intervals [{number}]:",
                f"            xmin = {_number(start)}",
                f"            xmax = {_number(end)}",
                f"            text = {_quoted(label)}",
            ]
    return "\n".join(lines) + "\n"


def _tile(name: str, intervals: Iterable[Interval], duration: Seconds) -> list[Interval]:
    """Intervals from 0 to the end without a gap."""
    tiled: list[Interval] = []
    now = 0.0
    for start, end, label in [*intervals, (duration, duration, "")]:
        if start < now - _LEAST or end < start or end > duration + _LEAST:
            raise ValueError(
                f"tier {name!r}: interval {label!r} from {start} to {end} s overlaps the one before it (which ends at {now} s), "
                f"or reaches beyond the recording of {duration} s"
            )
        if start > now + _LEAST:
            tiled.append((now, start, ""))
            now = start
        if end > now + _LEAST:
            tiled.append((now, end, label))
            now = end
    last = tiled[-1]  # exactly the end, whatever was rounded
    tiled[-1] = (last[0], duration, last[2])
    return tiled


def _number(seconds: Seconds) -> str:
    text = f"{seconds:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return text or "0"


def _quoted(label: str) -> str:
    """A string as Praat reads it: quotation marks doubled, on one line."""
    return '"' + " ".join(label.split()).replace('"', '""') + '"'

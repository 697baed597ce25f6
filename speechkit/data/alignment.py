"""Known times of phones, as manifests hold them, to frames of the phones that a synthesiser reads.

Shape legend: P phones, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from speechkit.text.phonemes import is_boundary
from speechkit.types import Seconds, TimedPhone, Utterance

PHONES_FIELD = "phonemes"  # of a manifest row: [[symbol, start, end], ...], seconds from the start of the utterance


def timed_phones(utterance: Utterance, field: str = PHONES_FIELD) -> tuple[TimedPhone, ...]:
    """The phones of a manifest row with their times; () where it has none.

    Raises:
        ValueError: the field is not a list of [symbol, start, end] in the order of time.
    """
    rows: Any = utterance.extra.get(field) or ()
    try:
        phones = tuple(TimedPhone(str(symbol), float(start), float(end)) for symbol, start, end in rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"utterance {utterance.id!r}: field {field!r} must be [[symbol, start, end], ...]; {error}") from error
    times = [time for phone in phones for time in (phone.start, phone.end)]
    if any(later < earlier - 1e-4 for earlier, later in pairwise(times)) or not all(np.isfinite(times)):
        raise ValueError(f"utterance {utterance.id!r}: times in field {field!r} do not increase; align it anew")
    return phones


def phone_boundaries(symbols: Sequence[str], phones: Sequence[TimedPhone], *, start: Seconds, end: Seconds) -> np.ndarray:
    """Where each symbol begins, and where the last one ends.

    Times may be known of all symbols, or of the sounds alone: what lies between two sounds then belongs to the symbols
    that stand between their words, which share it evenly where there are several.

    Args:
        symbols: what a front end makes of the text.
        phones: the times, of the same sounds in the same order.
        start: where the first symbol begins, seconds.
        end: where the last symbol ends, seconds.

    Returns:
        seconds, float64, shape (P + 1,), not decreasing.

    Raises:
        ValueError: the sounds are not those of the symbols; it says where they part.
    """
    wanted = list(range(len(symbols)))
    if len(phones) != len(symbols):
        wanted = [place for place in wanted if not is_boundary(symbols[place])]
    here, there = [symbols[place] for place in wanted], [phone.symbol for phone in phones]
    if here != there:
        place = next((i for i, pair in enumerate(zip(here, there)) if pair[0] != pair[1]), min(len(here), len(there)))
        raise ValueError(
            f"phones of the text and of the alignment part at phone {place}: {' '.join(here[place : place + 5]) or 'the end'!r} "
            f"against {' '.join(there[place : place + 5]) or 'the end'!r}; align with the same language and front end"
        )
    known = {0: start, len(symbols): end}
    for place, phone in zip(wanted, phones):  # a sound's own beginning counts, not the end of the one before it
        known[place] = phone.start if place else start
        if place + 1 == len(symbols) or is_boundary(symbols[place + 1]):
            known.setdefault(place + 1, phone.end)
    known[len(symbols)] = end
    places = sorted(known)
    return np.maximum.accumulate(np.interp(np.arange(len(symbols) + 1), places, [known[place] for place in places]))


def frame_durations(boundaries: np.ndarray, *, frame_shift: Seconds, num_frames: int) -> np.ndarray:
    """Frames of each phone: boundaries are rounded to frames, so that errors do not add up, and the last phone takes the rest.

    Args:
        boundaries: of the phones, seconds from the first sample on, shape (P + 1,).
        frame_shift: seconds from frame to frame.
        num_frames: T, what the durations add up to.

    Returns:
        int64, at least 0, shape (P,).
    """
    frames = np.clip(np.rint(np.asarray(boundaries) / frame_shift).astype(np.int64), 0, num_frames)
    frames[0], frames[-1] = 0, num_frames
    return np.diff(frames)

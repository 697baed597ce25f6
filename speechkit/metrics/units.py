"""How well discrete units of speech agree with phones: purities and shared information.

With p(u, y) the share of frames that have unit u and phone y:

- phone purity: sum over units of the largest p(u, y), the accuracy of naming for each unit its most frequent phone;
- cluster purity: sum over phones of the largest p(u, y), the accuracy of naming for each phone its most frequent unit;
- PNMI: I(u; y) / H(y), the share of the uncertainty about the phone that the unit takes away.

Phone purity and PNMI rise with the number of units and cluster purity falls, so that figures are comparable at equal numbers of
units only. A unit of its own for every frame has phone purity 1. With few frames all are too high: units that know nothing
about the phones still share about (U - 1) (Y - 1) / (2 N) nats with them (Miller 1955, "Note on the bias of information
estimates"), so let N be many times U Y.

Source: Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units", section
IV-F.

Shape legend: N frames, U units, Y phones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechkit.types import Seconds


@dataclass(frozen=True, slots=True)
class UnitQuality:
    """Agreement of units with phones; all but the counts in [0, 1], nan without frames.

    Attributes:
        phone_purity: share of frames that have the most frequent phone of their unit.
        cluster_purity: share of frames that have the most frequent unit of their phone.
        pnmi: information that units and phones share, divided by the entropy of the phones; nan where there is but one phone.
        num_frames: that were counted.
        num_units: that occur.
        num_phones: that occur.
    """

    phone_purity: float
    cluster_purity: float
    pnmi: float
    num_frames: int
    num_units: int
    num_phones: int


def purity(units_N: np.ndarray, phones_N: np.ndarray) -> UnitQuality:
    """Agreement of the units of frames with their phones.

    Args:
        units_N: unit of each frame, of a whole corpus one after the other, any values, shape (N,).
        phones_N: phone of each frame, any values that compare, such as strings, shape (N,).

    Raises:
        ValueError: the shapes differ, or are not one axis.
    """
    units_N, phones_N = np.asarray(units_N), np.asarray(phones_N)
    if units_N.ndim != 1 or units_N.shape != phones_N.shape:
        raise ValueError(f"units of shape {units_N.shape} and phones of {phones_N.shape}: give one of each for every frame")
    units, unit_N = np.unique(units_N, return_inverse=True)
    phones, phone_N = np.unique(phones_N, return_inverse=True)
    places_N = unit_N * len(phones) + phone_N
    return unit_quality(np.bincount(places_N, minlength=len(units) * len(phones)).reshape(len(units), len(phones)))


def unit_quality(counts_UY: np.ndarray) -> UnitQuality:
    """Agreement from a table; tables of parts of a corpus add up to that of the whole.

    Args:
        counts_UY: frames with each unit and phone, shape (U, Y).

    Raises:
        ValueError: it is not a table, or a count is negative.
    """
    counts_UY = np.asarray(counts_UY)
    if counts_UY.ndim != 2 or (counts_UY < 0).any():
        raise ValueError(f"counts of shape {counts_UY.shape}: give (units, phones), none below 0")
    units_U, phones_Y, total = counts_UY.sum(1), counts_UY.sum(0), int(counts_UY.sum())
    phone_purity = cluster_purity = pnmi = float("nan")
    if total:
        phone_purity = float(counts_UY.max(1).sum()) / total
        cluster_purity = float(counts_UY.max(0).sum()) / total
        uncertainty = _entropy(phones_Y)
        shared = _entropy(units_U) + uncertainty - _entropy(counts_UY)
        pnmi = min(max(shared / uncertainty, 0.0), 1.0) if (phones_Y > 0).sum() > 1 else float("nan")
    return UnitQuality(phone_purity, cluster_purity, pnmi, total, int((units_U > 0).sum()), int((phones_Y > 0).sum()))


def phones_at(
    phones: Sequence[tuple[str, Seconds, Seconds]], times_N: np.ndarray, *, silence: str = "|"
) -> np.ndarray:
    """Which phone is spoken at each time.

    Args:
        phones: symbol, beginning and end of each, by their beginnings, none of which overlap.
        times_N: in seconds, such as the centres of frames, shape (N,).
        silence: what is said outside of all phones.

    Returns:
        symbols, strings, shape (N,). A phone holds its beginning and not its end.
    """
    symbols = np.array([silence, *(symbol for symbol, _, _ in phones)])
    starts_P, ends_P = (np.array([phone[place] for phone in phones], dtype=np.float64) for place in (1, 2))
    times_N = np.asarray(times_N, dtype=np.float64)
    number_N = np.searchsorted(starts_P, times_N, side="right")  # phones that have begun; the last one counts
    inside_N = (number_N > 0) & (times_N < np.append(0.0, ends_P)[number_N])
    return symbols[np.where(inside_N, number_N, 0)]


def _entropy(counts: np.ndarray) -> float:
    """Of the shares of counts, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())

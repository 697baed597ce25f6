"""Objective measures of synthetic speech against a recording of the same text: sums first, divided once.

Definitions, which a figure is comparable within:

- Mel-cepstra: cosine transform of the natural logarithm of a mel power spectrogram, c_1 to c_order; c_0, the level, is left out.
- Mel-cepstral distortion (MCD), dB: 10 / ln 10 * sqrt(2 * sum_m (c_m - c'_m)^2), averaged over the steps of the alignment.
  With all cepstra it is the root mean square difference of the two spectra in dB over the mel bands, levels apart.
- Alignment: dynamic time warping over the Euclidean distance of mel-cepstra, with the steps (1, 1), (0, 1) and (1, 0) of equal
  weight, from both first frames to both last. Averages divide by the number of steps of the path.
- F0: root mean square difference of log F0 over the steps that are voiced on both sides, in cents as well.
- Voicing error: steps that are voiced on one side only, per step.

Sources: Kubichek, "Mel-cepstral distance measure for objective speech quality assessment", PACRIM 1993; Sakoe and Chiba,
"Dynamic programming algorithm optimization for spoken word recognition", IEEE TASSP 26 (1978).

Shape legend: T frames of the reference, S frames of the synthesis, F mel bins, M cepstra, K steps of an alignment, P phones,
D embedding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import NamedTuple, TypeVar

import numpy as np

MCD_SCALE = 10.0 / math.log(10.0) * math.sqrt(2.0)  # dB per unit of distance between mel-cepstra
CENTS = 1200.0 / math.log(2.0)  # per unit of log F0
_LEAST_STOI_SECONDS = 0.4  # about: 30 frames of 12.8 ms
_DIAGONAL, _NEXT_SYNTHESIS, _NEXT_REFERENCE = 0, 1, 2  # how a step of an alignment was reached; of equals the first

Sums = TypeVar("Sums", "CepstralSums", "PitchSums", "DurationSums", "SynthesisSums")


@dataclass(frozen=True, slots=True)
class CepstralSums:
    """Mel-cepstral distances summed over the steps of alignments.

    Attributes:
        steps: of all alignments.
        distance: sum of Euclidean distances between mel-cepstra.
    """

    steps: int = 0
    distance: float = 0.0

    def __add__(self, other: CepstralSums) -> CepstralSums:
        return _add(self, other)

    @property
    def mcd(self) -> float:
        """Mel-cepstral distortion, dB; nan without steps."""
        return MCD_SCALE * _divide(self.distance, self.steps)


@dataclass(frozen=True, slots=True)
class PitchSums:
    """Differences of pitch and voicing summed over the steps of alignments.

    Attributes:
        voiced: steps that are voiced on both sides.
        unvoiced: steps that are unvoiced on both sides.
        lost: steps that are voiced in the reference only.
        added: steps that are voiced in the synthesis only.
        squares: sum of squared differences of log F0 over the voiced steps.
    """

    voiced: int = 0
    unvoiced: int = 0
    lost: int = 0
    added: int = 0
    squares: float = 0.0

    def __add__(self, other: PitchSums) -> PitchSums:
        return _add(self, other)

    @property
    def steps(self) -> int:
        """Steps of all alignments."""
        return self.voiced + self.unvoiced + self.lost + self.added

    @property
    def log_f0_rmse(self) -> float:
        """Root mean square difference of log F0 (natural); nan where no step is voiced on both sides."""
        return math.sqrt(_divide(self.squares, self.voiced))

    @property
    def f0_rmse_cents(self) -> float:
        """The same in cents, of which a semitone has 100."""
        return CENTS * self.log_f0_rmse

    @property
    def voicing_error_rate(self) -> float:
        """Steps that are voiced on one side only, per step; nan without steps."""
        return _divide(self.lost + self.added, self.steps)


@dataclass(frozen=True, slots=True)
class DurationSums:
    """Durations in frames summed over items, which are phones or utterances.

    Attributes:
        items: how many.
        absolute: sum of absolute differences, frames.
        ref: frames of the reference.
        syn: frames of the synthesis.
    """

    items: int = 0
    absolute: float = 0.0
    ref: float = 0.0
    syn: float = 0.0

    def __add__(self, other: DurationSums) -> DurationSums:
        return _add(self, other)

    @property
    def mean_absolute(self) -> float:
        """Mean absolute difference of an item, frames; nan without items."""
        return _divide(self.absolute, self.items)

    @property
    def relative_total(self) -> float:
        """How much longer the whole synthesis is than the reference: 0.1 is 10 %; nan without reference frames."""
        return _divide(self.syn - self.ref, self.ref)


@dataclass(frozen=True, slots=True)
class SynthesisSums:
    """All measures of an utterance, or the sums over many; add them with `+` or `sum_measures`.

    Attributes:
        utterances: how many.
        unaligned: those with no frame on one side, which count in nothing but `duration`: report it with the rest.
        cepstra: mel-cepstral distances.
        pitch: differences of pitch and voicing.
        duration: of utterances.
    """

    utterances: int = 0
    unaligned: int = 0
    cepstra: CepstralSums = field(default_factory=CepstralSums)
    pitch: PitchSums = field(default_factory=PitchSums)
    duration: DurationSums = field(default_factory=DurationSums)

    def __add__(self, other: SynthesisSums) -> SynthesisSums:
        return _add(self, other)


class Warping(NamedTuple):
    """An alignment of two sequences of frames; no steps when either is empty.

    Attributes:
        ref_K: frame of the reference at each step, int64, from 0 to T - 1.
        syn_K: frame of the synthesis at each step, int64, from 0 to S - 1.
        distance: sum of the Euclidean distances at the steps.
    """

    ref_K: np.ndarray
    syn_K: np.ndarray
    distance: float


def sum_measures(measures: Iterable[SynthesisSums]) -> SynthesisSums:
    """Sum over utterances."""
    return sum(measures, SynthesisSums())


def mel_cepstra(log_power_TF: np.ndarray, *, order: int = 24) -> np.ndarray:
    """Mel-cepstra c_1 to c_order of log-mel spectra.

    c_m = 1 / F * sum_f log_power[f] * cos(pi * m * (f + 1/2) / F), so that log_power is approximated by
    c_0 + 2 * sum_m c_m * cos(pi * m * (f + 1/2) / F).

    Args:
        log_power_TF: natural logarithm of the power in mel bands (twice that of the magnitude), shape (T, F).
        order: number of cepstra M, below F.

    Returns:
        Mel-cepstra, float64, shape (T, M).

    Raises:
        ValueError: the spectra are not of two dimensions or not finite, or the order is out of range.
    """
    log_power_TF = np.asarray(log_power_TF, np.float64)
    if log_power_TF.ndim != 2 or not np.isfinite(log_power_TF).all():
        raise ValueError(f"log_power_TF of shape {log_power_TF.shape}: give finite values, shape (frames, mel bins)")
    num_mels = log_power_TF.shape[1]
    if not 1 <= order < num_mels:
        raise ValueError(f"order={order}: must be at least 1 and below the {num_mels} mel bins")
    bands_F1 = np.arange(num_mels)[:, None] + 0.5
    return log_power_TF @ (np.cos(np.pi / num_mels * bands_F1 * np.arange(1, order + 1)) / num_mels)


def warp(ref_TM: np.ndarray, syn_SM: np.ndarray) -> Warping:
    """Aligns two sequences by dynamic time warping.

    Takes time and one byte of memory for each pair of frames. Of equally good paths, going back from the last frames, the one
    is taken that moves on both sides, else the one that moves in the synthesis.

    Args:
        ref_TM: frames of the reference, shape (T, M).
        syn_SM: frames of the synthesis, shape (S, M).

    Raises:
        ValueError: the shapes do not fit together, or a value is not finite.
    """
    ref_TM, syn_SM = np.asarray(ref_TM, np.float64), np.asarray(syn_SM, np.float64)
    if ref_TM.ndim != 2 or syn_SM.ndim != 2 or ref_TM.shape[1] != syn_SM.shape[1]:
        raise ValueError(f"ref_TM and syn_SM have shapes {ref_TM.shape} and {syn_SM.shape}: give (frames, as many values each)")
    if not (np.isfinite(ref_TM).all() and np.isfinite(syn_SM).all()):
        raise ValueError("ref_TM and syn_SM must be finite: look for nan in the features")
    num_ref, num_syn = len(ref_TM), len(syn_SM)
    if not num_ref or not num_syn:
        return Warping(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0)
    steps_TS, distance = _accumulate(ref_TM, syn_SM)
    i, j = num_ref - 1, num_syn - 1
    path = [(i, j)]
    while i or j:
        step = steps_TS[i, j]
        i -= int(step != _NEXT_SYNTHESIS)
        j -= int(step != _NEXT_REFERENCE)
        path.append((i, j))
    ref_K, syn_K = np.array(path[::-1], np.int64).T
    return Warping(ref_K, syn_K, distance)


def measure_cepstra(ref_TM: np.ndarray, syn_SM: np.ndarray, warping: Warping) -> CepstralSums:
    """Distances between the mel-cepstra of two utterances along an alignment, which may be that of other features.

    Args:
        ref_TM: mel-cepstra of the reference, shape (T, M).
        syn_SM: mel-cepstra of the synthesis, shape (S, M).
        warping: their alignment.

    Raises:
        ValueError: the alignment is not one of so many frames.
    """
    _check_fit(warping, len(ref_TM), len(syn_SM))
    gaps_KM = np.asarray(ref_TM, np.float64)[warping.ref_K] - np.asarray(syn_SM, np.float64)[warping.syn_K]
    return CepstralSums(len(gaps_KM), float(np.sqrt(np.square(gaps_KM).sum(axis=1)).sum()))


def measure_pitch(ref_f0_T: np.ndarray, syn_f0_S: np.ndarray, warping: Warping) -> PitchSums:
    """Differences of pitch and voicing along an alignment.

    Args:
        ref_f0_T: pitch of the reference, Hz, 0 where unvoiced, shape (T,).
        syn_f0_S: pitch of the synthesis, shape (S,).
        warping: alignment of the frames.

    Raises:
        ValueError: the alignment is not one of so many frames; a pitch is negative or not finite.
    """
    _check_fit(warping, len(ref_f0_T), len(syn_f0_S))
    for name, values in (("ref_f0_T", ref_f0_T), ("syn_f0_S", syn_f0_S)):
        if not np.isfinite(values).all() or (np.asarray(values) < 0).any():
            raise ValueError(f"{name}: a pitch is negative or not finite; give Hz, 0 where unvoiced")
    ref_K = np.asarray(ref_f0_T, np.float64)[warping.ref_K]
    syn_K = np.asarray(syn_f0_S, np.float64)[warping.syn_K]
    both_K = (ref_K > 0) & (syn_K > 0)
    return PitchSums(
        voiced=int(both_K.sum()),
        unvoiced=int(((ref_K == 0) & (syn_K == 0)).sum()),
        lost=int(((ref_K > 0) & (syn_K == 0)).sum()),
        added=int(((ref_K == 0) & (syn_K > 0)).sum()),
        squares=float(np.square(np.log(ref_K[both_K]) - np.log(syn_K[both_K])).sum()),
    )


def measure_durations(ref_P: np.ndarray, syn_P: np.ndarray) -> DurationSums:
    """Differences between durations, such as those of the phones of an utterance.

    Args:
        ref_P: frames of each item in the reference, shape (P,).
        syn_P: frames of the same items in the synthesis, shape (P,).

    Raises:
        ValueError: the shapes differ, or a duration is negative or not finite.
    """
    ref_P, syn_P = np.asarray(ref_P, np.float64), np.asarray(syn_P, np.float64)
    if ref_P.ndim != 1 or ref_P.shape != syn_P.shape:
        raise ValueError(f"ref_P and syn_P have shapes {ref_P.shape} and {syn_P.shape}: give the same items, shape (P,) twice")
    for name, values in (("ref_P", ref_P), ("syn_P", syn_P)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{name}: a duration is negative or not finite; give frames")
    return DurationSums(len(ref_P), float(np.abs(ref_P - syn_P).sum()), float(ref_P.sum()), float(syn_P.sum()))


def measure_synthesis(
    ref_log_power_TF: np.ndarray,
    ref_f0_T: np.ndarray,
    syn_log_power_SF: np.ndarray,
    syn_f0_S: np.ndarray,
    *,
    order: int = 24,
) -> SynthesisSums:
    """All measures of one utterance, with one alignment for all.

    Args:
        ref_log_power_TF: log-mel power of the reference, shape (T, F); see `mel_cepstra`.
        ref_f0_T: its pitch on the same frames, Hz, 0 where unvoiced, shape (T,).
        syn_log_power_SF: log-mel power of the synthesis, by the same definition, shape (S, F).
        syn_f0_S: its pitch on the same frames, shape (S,).
        order: number of mel-cepstra.

    Raises:
        ValueError: shapes do not fit together, values are out of range.
    """
    for name, spectra, pitch in (("ref", ref_log_power_TF, ref_f0_T), ("syn", syn_log_power_SF, syn_f0_S)):
        if len(spectra) != len(pitch):
            raise ValueError(f"{name}_f0 has {len(pitch)} frames and {name}_log_power {len(spectra)}: use one hop for both")
    ref_TM, syn_SM = mel_cepstra(ref_log_power_TF, order=order), mel_cepstra(syn_log_power_SF, order=order)
    warping = warp(ref_TM, syn_SM)
    return SynthesisSums(
        utterances=1,
        unaligned=int(not len(warping.ref_K)),
        cepstra=CepstralSums(len(warping.ref_K), warping.distance),
        pitch=measure_pitch(ref_f0_T, syn_f0_S, warping),
        duration=measure_durations(np.array([len(ref_TM)]), np.array([len(syn_SM)])),
    )


def speaker_similarity(ref_D: np.ndarray, syn_D: np.ndarray) -> float:
    """Cosine of two speaker embeddings, from -1 to 1.

    Raises:
        ValueError: the shapes differ, a value is not finite, or an embedding is zero.
    """
    ref_D, syn_D = np.asarray(ref_D, np.float64), np.asarray(syn_D, np.float64)
    if ref_D.ndim != 1 or ref_D.shape != syn_D.shape:
        raise ValueError(f"ref_D and syn_D have shapes {ref_D.shape} and {syn_D.shape}: give embeddings of one model, shape (D,)")
    norms = float(np.linalg.norm(ref_D)), float(np.linalg.norm(syn_D))
    if not all(0 < norm < math.inf for norm in norms):
        raise ValueError(f"ref_D and syn_D have norms {norms}: embeddings must be finite and not zero")
    return float(np.clip(np.dot(ref_D / norms[0], syn_D / norms[1]), -1.0, 1.0))


def stoi(ref_N: np.ndarray, syn_N: np.ndarray, sample_rate: int) -> float:
    """Short-time objective intelligibility, for copy synthesis: both waveforms must agree in time, sample by sample.

    Source: Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy speech", IEEE TASLP 19
    (2011), by pystoi: frames 40 dB below the loudest of the reference are left out.

    Args:
        ref_N: the recording, shape (N,).
        syn_N: what a vocoder or codec made of it, shape (N,).
        sample_rate: of both, Hz.

    Returns:
        Correlation of band envelopes, about 0 for noise and 1 for equal waveforms.

    Raises:
        ImportError: pystoi is not installed.
        ValueError: the shapes differ, a value is not finite, or there is less than 0.4 s of speech.
    """
    try:
        import pystoi
    except ImportError as error:
        raise ImportError('STOI needs pystoi; pip install "speechkit[tts]"') from error
    ref_N, syn_N = np.asarray(ref_N, np.float64), np.asarray(syn_N, np.float64)
    if ref_N.ndim != 1 or ref_N.shape != syn_N.shape:
        raise ValueError(f"ref_N and syn_N have shapes {ref_N.shape} and {syn_N.shape}: cut them to the same samples, shape (N,)")
    if not (np.isfinite(ref_N).all() and np.isfinite(syn_N).all()):
        raise ValueError("ref_N and syn_N must be finite: look for nan in the waveforms")
    too_short = f"ref_N: {len(ref_N)} samples at {sample_rate} Hz hold less than 0.4 s of speech, which STOI needs; leave it out"
    if not ref_N.any() or len(ref_N) < _LEAST_STOI_SECONDS * sample_rate:
        raise ValueError(too_short)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(pystoi.stoi(ref_N, syn_N, sample_rate))
        except RuntimeWarning:
            raise ValueError(too_short) from None


def _accumulate(ref_TM: np.ndarray, syn_SM: np.ndarray) -> tuple[np.ndarray, float]:
    """How the best path reaches each pair of frames, int8, shape (T, S), and its cost at the last, one diagonal at a time."""
    num_ref, num_syn = len(ref_TM), len(syn_SM)
    reversed_SM = syn_SM[::-1]
    steps = np.zeros(num_ref * num_syn, np.int8)
    # costs by reference frame, shifted by one, on the last diagonal (i + j one less) and the last but one
    last_T, earlier_T = np.full(num_ref + 1, np.inf), np.full(num_ref + 1, np.inf)
    for diagonal in range(num_ref + num_syn - 1):
        low, high = max(0, diagonal - num_syn + 1), min(num_ref, diagonal + 1)
        offset = num_syn - 1 - diagonal  # place of frame j = diagonal - i in the reversed synthesis: i + offset
        gaps = ref_TM[low:high] - reversed_SM[low + offset : high + offset]
        costs = np.sqrt(np.einsum("nm,nm->n", gaps, gaps))
        if diagonal:
            both, in_syn, in_ref = earlier_T[low:high], last_T[low + 1 : high + 1], last_T[low:high]
            one_side = np.minimum(in_syn, in_ref)
            costs += np.minimum(both, one_side)
            # of the flattened table; the next place on the diagonal is a row down and a column back
            places = slice(low * num_syn + diagonal - low, (high - 1) * num_syn + diagonal - high + 2, max(1, num_syn - 1))
            steps[places] = np.where(both <= one_side, _DIAGONAL, np.where(in_syn <= in_ref, _NEXT_SYNTHESIS, _NEXT_REFERENCE))
        earlier_T, last_T = last_T, earlier_T
        last_T.fill(np.inf)
        last_T[low + 1 : high + 1] = costs
    return steps.reshape(num_ref, num_syn), float(last_T[num_ref])


def _check_fit(warping: Warping, num_ref: int, num_syn: int) -> None:
    steps = len(warping.ref_K)
    ends = (int(warping.ref_K[-1]) + 1, int(warping.syn_K[-1]) + 1) if steps else (0, 0)
    if ends != ((num_ref, num_syn) if num_ref and num_syn else (0, 0)):
        raise ValueError(f"warping aligns {ends[0]} and {ends[1]} frames, the sequences have {num_ref} and {num_syn}: use theirs")


def _divide(total: float, count: float) -> float:
    return total / count if count else math.nan


def _add(one: Sums, other: Sums) -> Sums:
    """Field by field."""
    return type(one)(*(getattr(one, part.name) + getattr(other, part.name) for part in fields(one)))


__all__ = [
    "CENTS",
    "MCD_SCALE",
    "CepstralSums",
    "DurationSums",
    "PitchSums",
    "SynthesisSums",
    "Warping",
    "measure_cepstra",
    "measure_durations",
    "measure_pitch",
    "measure_synthesis",
    "mel_cepstra",
    "speaker_similarity",
    "stoi",
    "sum_measures",
    "warp",
]

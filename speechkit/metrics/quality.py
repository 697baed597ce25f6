"""How good speech sounds, as others' models of listeners rate it: PESQ against a recording, opinion scores without one.

None of them is a listener: compare their figures within one predictor, and say which it was. They are optional packages
(extra `mos`).

Shape legend: N samples.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechkit.audio.io import load_audio

OpinionScore = Callable[[Sequence[Path]], list[float]]
RATE = 16000  # Hz, of all models here
_INSTALL = 'pip install "speechkit[mos]"'


def pesq(ref_N: np.ndarray, syn_N: np.ndarray) -> float:
    """Wide-band PESQ, for copy synthesis: both waveforms must agree in time.

    Source: ITU-T P.862.2 (2007), by the package `pesq`.

    Args:
        ref_N: the recording at 16 kHz, shape (N,).
        syn_N: what a vocoder or codec made of it, at 16 kHz, shape (N,).

    Returns:
        Opinion score from about 1.0 (bad) to 4.64 (equal waveforms).

    Raises:
        ImportError: pesq is not installed.
        ValueError: the shapes differ, a value is not finite, or there is too little speech.
    """
    try:
        import pesq as package
    except ImportError as error:
        raise ImportError(f"PESQ needs pesq; {_INSTALL}") from error
    ref_N, syn_N = np.asarray(ref_N, np.float32), np.asarray(syn_N, np.float32)
    if ref_N.ndim != 1 or ref_N.shape != syn_N.shape:
        raise ValueError(f"ref_N and syn_N have shapes {ref_N.shape} and {syn_N.shape}: cut them to the same samples, shape (N,)")
    if not (np.isfinite(ref_N).all() and np.isfinite(syn_N).all()):
        raise ValueError("ref_N and syn_N must be finite: look for nan in the waveforms")
    if not (ref_N.any() and syn_N.any()):
        raise ValueError("ref_N or syn_N is silent, which PESQ cannot rate; leave it out")
    try:
        return float(package.pesq(RATE, ref_N, syn_N, "wb"))
    except (package.NoUtterancesError, package.BufferTooShortError) as error:
        raise ValueError(f"ref_N: {len(ref_N)} samples at {RATE} Hz hold too little speech for PESQ; leave it out") from error


def load_opinion_score(name: str, *, weights: str | Path | None = None) -> OpinionScore:
    """A function that gives audio files opinion scores from 1 to 5, each file by itself.

    Args:
        name: "dnsmos" for the overall score of DNSMOS P.835 (Reddy et al., ICASSP 2022), which was trained on noisy
            speech and whose package brings its weights; "utmos" for UTMOS (Saeki et al., Interspeech 2022), which was trained
            on synthetic speech; or "module:function" for any function that takes a list of paths and returns a list of numbers.
        weights: state dict of the strong learner of UTMOS, as its package utmos-pytorch converts it; none for the others.

    Raises:
        ImportError: a package or module is not there; the message says what to install.
        ValueError: the name is not known, or weights are missing, not UTMOS's, or given to a predictor that takes none.
    """
    module, colon, function = name.partition(":")
    if not colon and name not in ("dnsmos", "utmos"):
        raise ValueError(f"mos={name}: choose dnsmos, utmos or module:function")
    if (weights is not None) != (name == "utmos"):
        remedy = "give the file with its weights" if name == "utmos" else "leave them out: it takes none"
        raise ValueError(f"mos={name}, weights={weights}: {remedy}")
    if colon:
        found = getattr(importlib.import_module(module), function, None)
        if not callable(found):
            raise ValueError(f"mos={name}: {module} has no function {function!r}")
        predict: OpinionScore = found
        return predict
    one = _dnsmos() if weights is None else _utmos(Path(weights))
    return lambda paths: [one(load_audio(path, sample_rate=RATE)[0].clip(-1.0, 1.0)) for path in paths]


def _dnsmos() -> Callable[[np.ndarray], float]:
    try:
        from speechmos import dnsmos
    except ImportError as error:
        raise ImportError(f"mos=dnsmos needs speechmos and onnxruntime; {_INSTALL}") from error
    return lambda wave_N: float(dnsmos.run(wave_N, RATE)["ovrl_mos"])


def _utmos(weights: Path) -> Callable[[np.ndarray], float]:
    try:
        from utmos_pytorch.utmos_torch import UTMOSModel, UTMOSScoreTorch
    except ImportError as error:
        raise ImportError(f"mos=utmos needs utmos-pytorch; {_INSTALL}") from error
    if not weights.is_file():
        raise ValueError(f"mos=utmos, weights={weights}: no such file")
    try:
        state: Any = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of another kind makes the unpickler say
        raise ValueError(f"mos=utmos, weights={weights}: not a file of weights") from error
    with torch.device("meta"):  # the package takes whatever fits, and would rate with random numbers in place of the rest
        missing = [key for key in UTMOSModel().state_dict() if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(
            f"mos=utmos, weights={weights}: lacks {len(missing)} weights, the first is {missing[0]}; see utmos-pytorch"
        )
    model = UTMOSScoreTorch(ckpt_path=str(weights))
    return lambda wave_N: float(model.score(torch.from_numpy(wave_N)))


__all__ = ["OpinionScore", "load_opinion_score", "pesq"]

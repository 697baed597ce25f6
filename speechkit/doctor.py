"""`speechkit doctor`: what this machine has, what is missing, and what to install for what."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """An optional part: the package that carries it, the extra that installs it, and what it is for."""

    module: str
    distribution: str
    extra: str
    purpose: str


PARTS = (
    Part("soundfile", "soundfile", "", "reading WAV, FLAC, OGG, Opus and MP3"),
    Part("soxr", "soxr", "", "resampling"),
    Part("sentencepiece", "sentencepiece", "", "subword tokenizers"),
    Part("lightning", "lightning", "train", "training"),
    Part("hydra", "hydra-core", "train", "recipes and sweeps"),
    Part("jiwer", "jiwer", "train", "word error rates"),
    Part("whisper_normalizer", "whisper-normalizer", "train", "English scoring normaliser"),
    Part("tensorboard", "tensorboard", "train", "training curves"),
    Part("torchaudio", "torchaudio", "train", "parity checks and forced alignment baselines"),
    Part("espeakng_loader", "espeakng-loader", "demo", "the embedded demo corpus and phonemes"),
    Part("num2words", "num2words", "tts", "numbers in words for synthesis"),
    Part("matplotlib", "matplotlib", "tts", "pictures of synthesis"),
    Part("av", "av", "av", "reading M4A, MP4 and WebM"),
    Part("lhotse", "lhotse", "data", "reading lhotse cuts"),
    Part("datasets", "datasets", "data", "reading Hugging Face datasets"),
    Part("huggingface_hub", "huggingface-hub", "hub", "loading models from the Hugging Face Hub"),
    Part("kenlm", "kenlm", "lm", "fast n-gram language models"),
    Part("triton", "triton", "kernels", "fused GPU kernels"),
    Part("numba", "numba", "kernels", "fast alignment on the CPU"),
    Part("hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher", "sweep", "parallel sweeps"),
)


def report() -> tuple[str, bool]:
    """The report as text, and whether the base install works."""
    lines = [
        f"python      {platform.python_version()} ({platform.system()} {platform.machine()}, {os.cpu_count()} CPUs)"
    ]
    lines.append(f"speechkit   {_version('speechkit') or 'not installed (running from a checkout)'}")
    healthy = _describe_torch(lines)
    lines.append("")
    for part in PARTS:
        found, note = _probe(part)
        healthy &= found or bool(part.extra)
        mark = "ok     " if found else "missing"
        remedy = (
            "" if found else f'   pip install "speechkit[{part.extra}]"' if part.extra else "   pip install speechkit"
        )
        lines.append(f"{mark} {part.distribution:<22} {note:<12} {part.purpose}{remedy}")
    lines.append("")
    lines.append(
        "everything that inference needs is there" if healthy else "the base install is broken: see the lines above"
    )
    return "\n".join(lines), healthy


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _probe(part: Part) -> tuple[bool, str]:
    try:
        importlib.import_module(part.module)
    except ImportError:
        return False, ""
    except Exception as error:  # a broken binary package raises anything
        return False, f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
    return True, _version(part.distribution)


def _describe_torch(lines: list[str]) -> bool:
    try:
        import torch
    except Exception as error:
        lines.append(f"torch       does not import: {error}; pip install 'torch>=2.11,<2.15'")
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    lines.append(f"torch       {torch.__version__} ({torch.get_num_threads()} threads, {capability})")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            lines.append(
                f"device      cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}"
            )
    else:
        lines.append("device      cpu only (no CUDA device is visible to torch)")
    if not _has_fast_bfloat16():
        lines.append(
            "note        this CPU has no bfloat16 instructions: keep dtype=float32 and trainer.precision=32 on it"
        )
    return True


def _has_fast_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return True
    return not flags or "avx512_bf16" in flags or "amx_bf16" in flags

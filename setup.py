"""Packaging: what is installed with what. Tool settings live in pyproject.toml; exact pins in requirements/lock.txt."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "speechkit" / "__init__.py").read_text(encoding="utf-8"))
assert VERSION is not None

# Inference only. torch 2.15 no longer works with the last torchaudio; numpy 2.4 breaks Triton 3.6's interpreter.
BASE = [
    "torch>=2.11,<2.15",
    "numpy>=1.26,<2.4",
    "soundfile>=0.12",
    "soxr>=0.3.7",
    "sentencepiece>=0.2",
    "safetensors>=0.4.3",
    "pyyaml>=6",
    "click>=8.1",
    "tqdm>=4.64",
]
EXTRAS = {
    "train": [
        "lightning>=2.5,<2.7",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "torchaudio==2.11.0",
        "librosa>=0.10.2",
        "jiwer>=4.0,<5",
        "whisper-normalizer>=0.1.10",
        "tensorboard>=2.16",
        "psutil>=5.9",
    ],
    "kernels": ["triton>=3.2; platform_system == 'Linux'", "numba>=0.60"],
    "tts": ["librosa>=0.10.2", "numba>=0.60", "espeakng-loader>=0.2.4", "num2words>=0.5.13", "pystoi>=0.4.1", "matplotlib>=3.8"],
    "data": ["lhotse>=1.30", "datasets>=3.0"],
    "demo": ["espeakng-loader>=0.2.4"],
    "av": ["av>=12"],
    "hub": ["huggingface-hub>=0.30"],
    "lm": ["kenlm>=0.2"],
    "sweep": ["hydra-joblib-launcher>=1.2", "setuptools<81"],
}
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})
EXTRAS["moonshine"] = ["moonshine-voice==0.0.59"]  # a recogniser of others, for reading synthesis; later ones bring no model
EXTRAS["mos"] = [  # models of listeners, for scripts/score_tts.py; pesq is compiled when it is installed
    "pesq>=0.0.4",
    "speechmos==0.0.1.1",
    "onnxruntime>=1.16",
    "requests>=2.28",
    "librosa>=0.10.2",
    "utmos-pytorch>=0.1,<0.2",
]
EXTRAS["dev"] = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "mypy>=1.10",
    "types-PyYAML",
    "types-tqdm",
    "types-psutil",
]

setup(
    name="speechkit",
    version=VERSION.group(1),
    description="Speech recognition, synthesis and translation: trained by recipe, used from Python or the shell",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=[*find_packages(include=["speechkit*"]), "speechkit.conf", "speechkit.recipes", "speechkit.scripts"],
    # conf/, recipes/ and scripts/ stay at the top of the checkout, where people look for them, and travel in the wheel.
    package_dir={"speechkit.conf": "conf", "speechkit.recipes": "recipes", "speechkit.scripts": "scripts"},
    package_data={
        "speechkit": ["py.typed", "assets/*/*", "data/corpora/*.txt", "data/corpora/*.tsv", "data/corpora/*.json"],
        "speechkit.conf": ["*.yaml", "**/*.yaml"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["speechkit=speechkit.cli:main"]},
)

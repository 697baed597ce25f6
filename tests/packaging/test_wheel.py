"""The wheel carries what the commands need: conf/, recipes/, scripts/ and the shipped models."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """The wheel of this checkout, unpacked into a directory of its own."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=repo_root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):  # a copy: building leaves files behind
        path = repo_root / name
        if path.is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(work)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [wheel] = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "site")
    return work / "site"


def _run(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "speechkit", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_configuration_recipes_scripts_and_models(site: Path, repo_root: Path) -> None:
    for folder, pattern in (("conf", "*.yaml"), ("recipes", "*.py"), ("scripts", "*.py")):
        expected = {path.relative_to(repo_root / folder) for path in (repo_root / folder).rglob(pattern)}
        found = {path.relative_to(site / "speechkit" / folder) for path in (site / "speechkit" / folder).rglob(pattern)}
        assert expected <= found, folder
    for model in (repo_root / "speechkit" / "assets").glob("*/config.yaml"):
        assert (site / "speechkit" / "assets" / model.parent.name / "model.safetensors").is_file()
    assert list((site / "speechkit" / "data" / "corpora").glob("demo_*.txt"))


def test_train_decode_score_and_transcribe_from_an_empty_directory(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    where = subprocess.run(
        [sys.executable, "-c", "import speechkit; print(speechkit.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    sizes = ["--set", "num_train=12", "--set", "num_dev=4", "--set", "num_test=4"]
    steps = [
        ("prepare", "demo", "data/demo", *sizes),
        ("train", "experiment=demo_ctc", "debug=fast", "run_dir=run", "data.num_workers=0"),
        ("decode", "checkpoint=run/pretrained", "manifest=data/demo/test.jsonl", "output=hyps.jsonl"),
        ("score", "hyps.jsonl"),
        ("rtfx", "hyps.jsonl"),
        ("transcribe", "data/demo/audio/test", "--model", "run/pretrained", "--output", "texts"),
    ]
    for step in steps:
        result = _run(site, tmp_path, *step)
        assert result.returncode == 0, f"{' '.join(step)}\n{result.stdout}\n{result.stderr}"
    assert len(list((tmp_path / "texts").glob("*.txt"))) == 4

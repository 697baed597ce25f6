"""recipes/batch_size.py: which kinds of training it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Run = Callable[[str, Sequence[str]], None]


@pytest.mark.parametrize(
    ("experiment", "kind", "budget"),
    [
        ("demo_fastspeech", "synthesizer", "data.sampler.max_batch_seconds"),
        ("demo_vocos_gan", "vocoder", "data.sampler.max_batch_seconds"),
        ("demo_lm", "language_model", "data.max_batch_tokens"),
    ],
)
def test_other_kinds_are_refused_in_one_line(
    experiment: str, kind: str, budget: str, run_recipe: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.yaml"
    with pytest.raises(SystemExit):
        run_recipe("batch_size.py", [f"experiment={experiment}", f"output={table}", f"run_dir={tmp_path / 'run'}"])
    line = f"error: kind={kind}: speechkit batch-size measures recognisers; bound batches of this one by {budget}"
    assert capsys.readouterr().err.splitlines() == [line]
    assert not table.exists()

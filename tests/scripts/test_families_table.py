"""scripts/families_table.py: figures of a row against what they are defined as, row syntax, rows kept, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechkit.metrics.wer import count_errors_batch, sum_counts
from speechkit.pretrained import instantiate, load, save_pretrained
from speechkit.text.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer.train(["ab ba cab"])
TEXTS = ["ab", "BA!", "cab", "a", "b", "ab ba"]
SIZES = {"decoder_layers": 1, "decoder_heads": 2, "decoder_ff_dim": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ctc": ("speechkit.models.ctc.model.CtcModel", {}),
    "aed": ("speechkit.models.aed.model.AedModel", SIZES),
    "paraformer": ("speechkit.models.paraformer.model.ParaformerModel", SIZES),
}
DECODE = {"ctc": "CtcDecodeOptions", "aed": "AedDecodeOptions", "paraformer": "ParaformerDecodeOptions"}


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("families_table")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of noise with ages, and folders of random models that say something."""
    root = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = []
    for i, text in enumerate(TEXTS):
        wave = 0.1 * rng.standard_normal(4000 + 1500 * i)
        soundfile.write(root / f"{i}.wav", wave, 16000)
        row = {"id": f"u{i}", "audio_filepath": f"{i}.wav", "duration": len(wave) / 16000, "text": text, "age": 10 + 4 * i}
        rows.append(json.dumps(row))
    (root / "test.jsonl").write_text("\n".join(rows) + "\n")
    encoder = {"input_dim": 20, "dim": 16, "num_layers": 1, "num_heads": 2, "ff_dim": 16, "kernel_size": 5}
    for family, (target, sizes) in MODELS.items():
        infer = f"speechkit.models.{family}.infer"
        config = {
            "kind": "recognizer",
            "features": {"_target_": "speechkit.audio.features.LogMel", "num_mels": 20},
            "model": {
                "_target_": target,
                "vocab_size": TOKENIZER.vocab_size,
                "encoder": {"_target_": "speechkit.nn.conformer.ConformerEncoder", **encoder},
                **sizes,
            },
            "decode": {"_target_": f"{infer}.infer", "options": {"_target_": f"{infer}.{DECODE[family]}"}},
            "normalizer": "basic",
        }
        torch.manual_seed(1)
        parts = torch.nn.ModuleDict({name: instantiate(config[name], where=name) for name in ("features", "model")})
        for name, parameter in parts.named_parameters():
            if name.endswith("head.weight"):
                parameter.data.mul_(20)
        save_pretrained(root / family, config=config, state_dict=parts.state_dict(), tokenizer=TOKENIZER, card="")
    return root


def run(script: ModuleType, work: Path, output: Path, *rows: str, **options: Any) -> list[dict[str, Any]]:
    values = {"manifest": work / "test.jsonl", "output": output, "threads": torch.get_num_threads(), "timed": 3, **options}
    assert script.main([*rows, *(f"--{name}={value}" for name, value in values.items())]) == 0
    return json.loads(output.with_suffix(".json").read_text())["rows"]


def test_figures_are_what_they_are_defined_as(
    script: ModuleType, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "table.md"
    rows = run(script, work, output, f"CTC={work}/ctc", f"one pass={work}/paraformer:paraformer", normalizer="basic")
    assert [row["name"] for row in rows] == ["CTC", "one pass"]
    recognizer, row = load(work / "ctc", device="cpu"), rows[0]
    hyps = [recognizer.decode_batch(_batch(recognizer, work, i))[0][0] for i in range(6)]
    refs = ["ab", "ba", "cab", "a", "b", "ab ba"]
    for rate, unit in (("wer", "word"), ("cer", "char")):
        counts = count_errors_batch(refs, [hyp.text for hyp in hyps], unit)
        assert row["all"][rate]["rate"] == pytest.approx(sum_counts(counts).rate)
        assert row["all"][rate]["low"] <= row["all"][rate]["rate"] <= row["all"][rate]["high"]
        assert row["children"][rate]["rate"] == pytest.approx(sum_counts(counts[:2]).rate)
        assert row["adults"][rate]["rate"] == pytest.approx(sum_counts(counts[2:]).rate)
    assert (row["children"]["num_utterances"], row["adults"]["num_utterances"]) == (2, 4)
    different = [len(hyp.tokens) != len(ref) for hyp, ref in zip(hyps, refs)]
    assert row["length_error_rate"] == pytest.approx(sum(different) / 6)
    assert (row["decoder_calls"], rows[1]["decoder_calls"]) == (0, 1)
    assert row["num_different_alone"] == 0
    assert all(each["rtfx"][size] > 0 for each in rows for size in ("1", "16"))
    assert row["num_parameters"] == recognizer.num_parameters()
    table = output.read_text()
    assert table == capsys.readouterr().out
    lines = table.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "| children WER / CER % |" in lines[0]
    assert lines[2].startswith("| CTC | 0.0")


def _batch(recognizer: Any, work: Path, i: int) -> Any:
    from speechkit.data.collate import collate_asr
    from speechkit.data.dataset import SpeechDataset
    from speechkit.data.manifest import read_manifest

    dataset = SpeechDataset(utterances=read_manifest(work / "test.jsonl"), sample_rate=recognizer.sample_rate)
    return collate_asr([dataset[i]])


def test_rows_stay_and_options_reach_the_search(script: ModuleType, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    run(script, work, output, f"greedy={work}/aed", f"beam={work}/aed:aed_beam:beam_size=2", limit=2)
    settings = ":max_tokens_per_second=4.0:method=beam:beam_size=2"
    rows = run(script, work, output, f"short={work}/aed:aed_greedy{settings}", f"greedy={work}/aed")
    assert [row["name"] for row in rows] == ["greedy", "beam", "short"]
    assert [row["num_utterances"] for row in rows] == [6, 2, 6]
    assert rows[2]["options"] == {"max_tokens_per_second": 4.0, "method": "beam", "beam_size": 2}
    assert 1 <= rows[2]["decoder_calls"] < rows[1]["decoder_calls"]
    assert "families_table.py" in rows[0]["command"]
    assert script.prepare(script.parse_row(f"x={work}/aed:aed_joint:beam_size=3")).options.beam_size == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("folder", "is not NAME=FOLDER"),
        ("a=", "is not NAME=FOLDER"),
        ("a=nowhere", "nowhere"),
        ("a={work}/ctc:beam_size=2", "decode=beam_size=2 is not known"),
        ("a={work}/ctc:ctc_beam:beam", "'beam' is not OPTION=VALUE"),
        ("a={work}/ctc:ctc_beam:width=2", "width"),
        ("a={work}/ctc:ctc_beam:beam_size=2:timestamps=never", "timestamps='never'"),
        ("a={work}/ctc:ctc_beam_lm", "needs lm; add :lm=VALUE"),
        ("a={work}/ctc:aed_beam", "is for speechkit.models.aed.infer"),
    ],
)
def test_mistakes_cost_one_line(
    script: ModuleType, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, message: str
) -> None:
    arguments = [row.format(work=work), f"--manifest={work / 'test.jsonl'}", f"--output={tmp_path / 'table.md'}"]
    assert script.main([*arguments, f"--threads={torch.get_num_threads()}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "table.md").exists()

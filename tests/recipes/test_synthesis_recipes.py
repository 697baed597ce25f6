"""Synthesis by recipe, as a user runs it: prepare the embedded voice, train each family, go on exactly, speak, score."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from speechkit.data.corpora import prepare_corpus
from speechkit.pretrained import load_codec, load_synthesizer, load_vocoder
from speechkit.text import espeak

Run = Callable[[str, Sequence[str]], None]

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.skipif(not espeak.available(), reason='espeak-ng speaks the corpus: pip install "speechkit[demo]"'),
]
SMALL: dict[str, dict[str, Any]] = {
    "demo_fastspeech": {"dim": 16, "encoder_layers": 1, "decoder_layers": 1, "filter_dim": 16, "predictor_dim": 16},
    "demo_matcha": {"encoder_dim": 16, "encoder_layers": 1, "encoder_ff_dim": 16, "decoder_dims": "[16,16]"},
    "demo_f5": {"dim": 32, "num_layers": 1, "num_heads": 1, "text_dim": 16, "text_layers": 1, "dropout": 0.1},
    "demo_simplespeech": {"dim": 32, "num_layers": 1, "num_heads": 1, "text_dim": 16, "text_layers": 1, "dropout": 0.1},
    "demo_codec": {"dim": 16, "intermediate_dim": 16, "num_encoder_layers": 1, "num_decoder_layers": 1},
    "demo_codec_sq": {"dim": 16, "intermediate_dim": 16, "num_encoder_layers": 1, "num_decoder_layers": 1},
    "demo_vocos": {"generator.dim": 16, "generator.intermediate_dim": 16, "generator.num_layers": 1, "segment_frames": 16},
    "demo_vocos_gan": {"generator.dim": 16, "generator.intermediate_dim": 16, "generator.num_layers": 1, "segment_frames": 16},
    "demo_maskgct": {
        "text_backbone.dim": 16, "text_backbone.num_layers": 1, "acoustic_backbone.dim": 16, "acoustic_backbone.num_layers": 1,
        "semantic.quantizer.num_codes": 8,
    },
}  # fmt: skip
SPEAKS_THROUGH = {"demo_maskgct": "demo_codec", "demo_simplespeech": "demo_codec_sq"}


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few sentences of the embedded voice."""
    root = tmp_path_factory.mktemp("voice")
    prepare_corpus("demo", None, root, num_train=24, num_dev=4, num_test=4, num_text=24, voices="single")
    return root


@pytest.fixture(scope="module")
def codec(voice: Path, run_recipe: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Codecs that were hardly trained, by experiment."""

    @functools.cache
    def train(experiment: str) -> Path:
        run_dir = tmp_path_factory.mktemp("codec") / "run"
        run_recipe("train.py", _overrides(experiment, voice, run_dir, **{"trainer.max_epochs": 1}))
        return run_dir / "pretrained"

    return train


def _overrides(experiment: str, voice: Path, run_dir: Path, **values: Any) -> list[str]:
    """A run of a few steps of a narrow model."""
    settings = {
        "experiment": experiment,
        "run_dir": run_dir,
        "data.train": voice / "train.jsonl",
        "data.valid": voice / "dev.jsonl",
        "data.cache_dir": voice / "cache",
        "data.num_workers": 0,
        "data.sampler.max_batch_seconds": 16.0,
        "data.sampler.num_buckets": 2,
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 1,
        "threads": 1,
        **{f"model.{name}": value for name, value in SMALL[experiment].items()},
        "+callbacks.trace._target_": "tiny.Trace",
        "+callbacks.trace.path": f"{run_dir}.jsonl",
        "callbacks.checkpointer._target_": "tiny.KeepingCheckpointer",
        "callbacks.checkpointer.every_steps": 3,
    }
    return [f"{key}={value}" for key, value in {**settings, **values}.items()]


@pytest.mark.parametrize("experiment", sorted(SMALL))
def test_training_goes_on_exactly(
    experiment: str, voice: Path, codec: Callable[[str], Path], tmp_path: Path, run_recipe: Run
) -> None:
    own: dict[str, Any] = {}
    if experiment in SPEAKS_THROUGH:
        own = {"model.codec._pretrained_": codec(SPEAKS_THROUGH[experiment])}
    elif experiment == "demo_vocos_gan":
        own = {"adversarial.warmup_steps": 1, "adversarial.discriminator.parts.0.dim": 1}
    run_recipe("train.py", _overrides(experiment, voice, tmp_path / "whole", **own))
    whole = (tmp_path / "whole.jsonl").read_text().splitlines()
    kept = sorted((tmp_path / "whole/checkpoints").glob("after-*.ckpt"), key=lambda path: int(path.stem.split("-")[1]))
    middle = kept[0]
    lines = int(middle.stem.split("-")[1])
    assert 0 < lines < len(whole) - 1
    (tmp_path / "again/checkpoints").mkdir(parents=True)
    shutil.copy(middle, tmp_path / "again/checkpoints/last.ckpt")
    run_recipe("train.py", [*_overrides(experiment, voice, tmp_path / "again", **own), "resume=true"])
    assert (tmp_path / "again.jsonl").read_text().splitlines() == whole[lines:]
    weights, expected = (load_file(tmp_path / name / "pretrained/model.safetensors") for name in ("again", "whole"))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)
    if "vocos" in experiment:
        vocoder = load_vocoder(tmp_path / "whole/pretrained")
        wave_BN, lens_B = vocoder.vocode(torch.full((1, 20, 80), -5.0), torch.tensor([20]))
        assert wave_BN.shape == (1, int(lens_B[0])) == (1, 3200)
    elif experiment not in SPEAKS_THROUGH.values():
        _speak(tmp_path / "whole/pretrained", voice, tmp_path / "speech", run_recipe)


def _speak(model: Path, voice: Path, output: Path, run_recipe: Run) -> None:
    """Two sentences, read back."""
    arguments = [f"checkpoint={model}", f"manifest={voice / 'test.jsonl'}", "text_field=text_raw", f"output={output}"]
    run_recipe("synthesize.py", [*arguments, "limit=2", "recognizer=demo-ctc", "threads=1", "warmup_batches=0"])
    rows = [json.loads(line) for line in (output / "synthesis.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        wave, rate = soundfile.read(output / row["audio"])
        assert rate == 16000
        assert len(wave) / rate == pytest.approx(row["duration"], abs=1e-3)
        assert row["ref_audio"].endswith(f"{row['id']}.flac")
        assert isinstance(row["hyp"], str)


def test_silent_and_damaged_recordings_are_named(voice: Path, tmp_path: Path, run_recipe: Run) -> None:
    rows = [json.loads(line) for line in (voice / "train.jsonl").read_text().splitlines()][:6]
    for row in rows:
        row["audio_filepath"] = str(voice / row["audio_filepath"])
    silent, damaged = tmp_path / "silent.wav", tmp_path / "damaged.wav"
    soundfile.write(silent, [0.0] * 48000, 16000)
    damaged.write_bytes(b"RIFF not really")
    (tmp_path / "silent.jsonl").write_text("".join(json.dumps({**row, "audio_filepath": str(silent)}) + "\n" for row in rows))
    (tmp_path / "damaged.jsonl").write_text("".join(json.dumps({**row, "audio_filepath": str(damaged)}) + "\n" for row in rows))
    for name, run in (("silent", "s"), ("damaged", "d")):
        changed = {"data.train": tmp_path / f"{name}.jsonl"}
        with pytest.raises(SystemExit):
            run_recipe("train.py", _overrides("demo_fastspeech", voice, tmp_path / run, **changed))


def test_other_mels_are_refused_by_field(
    voice: Path, codec: Callable[[str], Path], tmp_path: Path, run_recipe: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    lender = codec("demo_codec")
    one_epoch = {"trainer.max_epochs": 1}
    own = {"model.codec._pretrained_": lender, "features.log_floor": 1e-3}
    with pytest.raises(SystemExit):
        run_recipe("train.py", _overrides("demo_maskgct", voice, tmp_path / "borrow", **own))
    assert "log_floor=0.001 against 1e-05" in capsys.readouterr().err
    begin = {"init_from": lender, "init_prefix": "model.", "features.f_max": 7000.0}
    with pytest.raises(SystemExit):
        run_recipe("train.py", _overrides("demo_codec", voice, tmp_path / "init", **begin))
    assert "f_max=7000.0 against 8000.0" in capsys.readouterr().err
    run_recipe("train.py", _overrides("demo_codec", voice, tmp_path / "run", **one_epoch))
    changed = _overrides("demo_codec", voice, tmp_path / "run", **{"features.log_floor": 1e-3})
    with pytest.raises(SystemExit):
        run_recipe("train.py", [*changed, "resume=true"])
    assert "log_floor=0.001 against 1e-05" in capsys.readouterr().err
    folder = tmp_path / "run/pretrained"
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("f_max: 8000.0", "f_max: 7500.0", 1))
    with pytest.raises(ValueError, match=r"f_max=7500\.0 against 8000\.0"):
        load_codec(folder)


def test_a_student_needs_no_teacher_once_it_is_trained(voice: Path, tmp_path: Path, run_recipe: Run) -> None:
    one_epoch = {"trainer.max_epochs": 1}
    run_recipe("train.py", _overrides("demo_fastspeech", voice, tmp_path / "teacher", **one_epoch))
    own = {"model.teacher": f"{{_pretrained_: {tmp_path}/teacher/pretrained, part: model}}", "model.dim": 8, **one_epoch}
    run_recipe("train.py", _overrides("demo_fastspeech", voice, tmp_path / "student", **own))
    weights = load_file(tmp_path / "student/pretrained/model.safetensors")
    assert not [name for name in weights if "teacher" in name]
    assert load_synthesizer(tmp_path / "student/pretrained").synthesize("Good morning.").sample_rate == 16000

"""Wiring: what a manifest becomes, how far a reader came, mixing, and limits."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.data.loader import ResumableLoader, batches_by_length
from speechkit.data.manifest import read_manifest, write_manifest
from speechkit.data.sampler import BucketBatchSampler
from speechkit.data.speech_data import name_manifests, training_texts
from speechkit.models.owsm_ctc.model import OwsmCtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.text.tokenizers import CharTokenizer


def _load_tiny() -> ModuleType:
    path = Path(__file__).parents[1] / "training" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tiny"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _load_tiny()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones, and a second corpus of tones."""
    directory = tmp_path_factory.mktemp("tones")
    tiny.make_datamodule(directory)
    tiny.write_tones(directory / "other", num=8, seed=2)
    return directory


def _loader(root: Path, num_workers: int = 0) -> ResumableLoader:
    datamodule = tiny.make_datamodule(root, num_workers=num_workers)
    datamodule.setup("fit")
    return datamodule._train_loader


def _ids(loader: ResumableLoader) -> list[tuple[str, ...]]:
    return [batch.ids for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_after_the_batches_that_were_taken(root: Path, num_workers: int) -> None:
    whole = _ids(_loader(root))
    loader = _loader(root, num_workers)
    reader = iter(loader)
    taken = [next(reader).ids for _ in range(3)]  # workers have read further by now
    state = loader.state_dict()
    assert state["position"] == 3
    other = _loader(root, num_workers)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert taken + _ids(other) == whole
    assert len(other) == len(whole)
    assert _ids(other) == whole, "the next pass is a whole one"


def test_a_restored_epoch_that_is_over_yields_nothing(root: Path) -> None:
    loader = _loader(root)
    batches = _ids(loader)
    other = _loader(root)
    other.load_state_dict(loader.state_dict())
    assert _ids(other) == []
    other.batches.set_epoch(1)
    assert other.state_dict()["position"] == 0
    assert sorted(i for ids in _ids(other) for i in ids) == sorted(i for ids in batches for i in ids)


def test_epochs_differ_and_reach_the_dataset(root: Path) -> None:
    loader = _loader(root)
    first = _ids(loader)
    loader.batches.set_epoch(1)
    second = _ids(loader)
    assert loader.dataset.epoch == 1
    assert first != second
    assert sorted(i for ids in first for i in ids) == sorted(i for ids in second for i in ids)


def test_loading_draws_nothing_from_the_global_stream(root: Path) -> None:
    loader = _loader(root)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    _ids(loader)
    assert torch.rand(1).equal(expected)


def test_limits_are_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datamodule = tiny.make_datamodule(root, max_seconds=0.5)
    datamodule.setup("fit")
    assert len(datamodule.train_dataset) < 24
    assert "longer than 0.5 s" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no utterance of .* is left"):
        tiny.make_datamodule(root, min_seconds=30.0).setup("fit")


def test_mixing_by_weight(root: Path) -> None:
    datamodule = tiny.make_datamodule(
        root,
        train={"tones": root / "train", "other": root / "other"},
        weights={"tones": 1.0, "other": 1.0},
        sampler=partial(BucketBatchSampler, max_batch_seconds=3.0, seed=0, epoch_size=32),
    )
    datamodule.setup("fit")
    dataset = datamodule.train_dataset
    assert len(dataset) == 24 + 8
    drawn = Counter(index >= 24 for batch in datamodule._train_loader.batches for index in batch)
    assert drawn == {False: 16, True: 16}


def test_texts_and_names(root: Path) -> None:
    texts = list(training_texts([root / "train", root / "other"]))
    assert len(texts) == 32
    assert set("".join(texts)) <= set("abcd")
    assert name_manifests("a") == {"0": Path("a")}
    assert name_manifests({"x": "a"}) == {"x": Path("a")}


@pytest.fixture(scope="module")
def translated(root: Path) -> Path:
    """The tones; every third is to be spelt backwards, every second follows what was said before."""
    utterances = read_manifest(root / "train" / "manifest.jsonl")
    for i, utterance in enumerate(utterances):
        extra = {"taskname": "backwards", "answer": utterance.text[::-1] + "e"} if i % 3 == 0 else {}
        extra |= {"previous": utterances[i - 1].text} if i % 2 == 0 else {}
        utterances[i] = dataclasses.replace(utterance, extra=extra)
    write_manifest(root / "translated.jsonl", utterances)
    return root / "translated.jsonl"


FIELDS = {"target_field": "answer", "task_field": "taskname", "prompt_field": "previous"}


def test_tasks_and_prompts_reach_the_model(root: Path, translated: Path) -> None:
    """A batch of several tasks from a manifest gives the loss of the batch put together by hand."""
    tokenizer = CharTokenizer(symbols=[*tiny.TONES, "e"], tags=["en", "transcribe", "backwards"])
    datamodule = tiny.make_datamodule(root, train=translated, tokenizer=tokenizer, **FIELDS)
    datamodule.setup("fit")
    batch = next(iter(datamodule._train_loader))
    rows = {utterance.id: utterance for utterance in read_manifest(translated)}
    own = [rows[name] for name in batch.ids]
    assert len(own) > 1
    assert batch.tasks == tuple(u.extra.get("taskname", "") for u in own)
    wanted = [tokenizer.encode(u.extra.get("answer", u.text)) for u in own]
    prompts = [tokenizer.encode(u.extra.get("previous", "")) for u in own]
    for tokens_BU, lens_B, expected in (
        (batch.task_tokens_BU, batch.task_token_lens_B, wanted),
        (batch.prompt_tokens_BU, batch.prompt_token_lens_B, prompts),
    ):
        assert [row[:length].tolist() for row, length in zip(tokens_BU, lens_B)] == expected
    torch.manual_seed(0)
    encoder = ConformerEncoder(input_dim=20, dim=16, num_layers=3, num_heads=2, ff_dim=16, kernel_size=5)
    model = OwsmCtcModel(
        encoder=encoder,
        vocab_size=tokenizer.vocab_size,
        language_tokens={"en": 4},
        task_tokens={"transcribe": 5, "backwards": 6},
        asr_layers=[1],
        task_layers=[2],
        prompt_layers=1,
        prompt_heads=2,
        prompt_ff_dim=16,
        prompt_every=1,
    ).eval()  # no dropout, and prompts are not withheld
    feats, lens = torch.randn(len(own), 90, 20), torch.full((len(own),), 90)
    losses = [
        float(model.loss(feats, lens, each).loss)
        for each in (batch, batch._replace(tasks=()), batch._replace(task_tokens_BU=None), batch._replace(prompt_tokens_BU=None))
    ]
    assert len(set(losses)) == 4, "each of the streams counts"
    assert np.isfinite(losses).all()


def test_plain_data_brings_no_streams(root: Path) -> None:
    batch = next(iter(_loader(root)))
    assert batch.tasks == ()
    assert batch[-2:] == (None, None)
    assert batch.task_tokens_BU is None


def test_a_field_that_no_row_has_is_named(root: Path, translated: Path) -> None:
    datamodule = tiny.make_datamodule(root, train=translated, target_field="anwser")
    with pytest.raises(ValueError, match=r"data.target_field=anwser: no training utterance .* answer, previous, taskname"):
        datamodule.setup("fit")


def test_texts_of_tasks_train_the_tokenizer_too(translated: Path) -> None:
    transcripts = list(training_texts(translated))
    texts = list(training_texts(translated, target_field="answer"))
    assert len(texts) == 24 + 8
    assert sum("e" in text for text in texts) == 8
    assert sorted(text for text in texts if "e" not in text) == sorted(transcripts)


@settings(max_examples=50, deadline=None)
@given(
    durations=st.lists(st.floats(0.1, 30.0), min_size=1, max_size=60),
    budget=st.floats(1.0, 100.0),
)
def test_evaluation_batches_hold_everything_once_within_the_budget(durations: list[float], budget: float) -> None:
    values = np.array(durations)
    batches = batches_by_length(values, max_batch_seconds=budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(values)))
    assert all(len(batch) == 1 or len(batch) * values[batch].max() <= budget * (1 + 1e-9) for batch in batches)
    longest = [values[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)

"""The batch size search on a synthetic memory model, and the probe on a tiny real model."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.data.batch_size import TrainStepProbe, find_batch_sizes, is_out_of_memory, largest_size, synthetic_batch
from speechkit.data.buckets import BatchSizeTable, Bin, Bins
from speechkit.models.aed.model import AedModel
from speechkit.models.owsm_ctc.model import OwsmCtcModel
from speechkit.nn.conformer import ConformerEncoder
from speechkit.types import AsrBatch, LossOutput

BINS = Bins((Bin(4.0, 10), Bin(4.0, 20), Bin(15.0, 40), Bin(15.0, 90)))


def true_maximum(duration: float, tokens: int, memory: float) -> int:
    """Memory model: linear in seconds, quadratic attention, logits."""
    return int(memory // (duration + duration**2 / 30.0 + 0.1 * tokens))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.floats(40.0, 20_000.0))
def test_search_finds_the_true_maximum_from_every_start(start, memory):
    tried = []

    def try_step(size: int, duration: float, tokens: int) -> bool:
        tried.append((duration, tokens))
        return size <= true_maximum(duration, tokens, memory)

    table = find_batch_sizes(try_step, BINS, start=start)
    for row in table.rows:
        best = min(true_maximum(row.max_duration, row.max_tokens, memory), 4096)
        assert best - max(1, 0.05 * (best + 1)) <= row.batch_size <= best
    assert [(row.max_duration, row.max_tokens) for row in table.rows] == [(b.max_duration, b.max_tokens) for b in BINS.rows]
    assert tried[0] == (15.0, 90)  # longest first
    assert len(tried) <= 4 * 26


@pytest.mark.parametrize("best", [*range(40), 100, 1000])
@pytest.mark.parametrize("start", [1, 2, 31, 512])
def test_search_without_tolerance_is_exact(best, start):
    assert largest_size(lambda size: size <= best, start=start, tolerance=1e-9, limit=1000) == best


def test_errors_of_memory_count_as_failures_and_others_do_not():
    def run_out(size: int, duration: float, tokens: int) -> None:
        if size > 7:
            raise torch.OutOfMemoryError("CUDA out of memory") if duration > 10 else MemoryError

    assert {row.batch_size for row in find_batch_sizes(run_out, BINS).rows} == {7}

    def break_down(size: int, duration: float, tokens: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        find_batch_sizes(break_down, BINS)
    assert is_out_of_memory(RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR"))


def test_a_bucket_that_fits_no_utterance_is_named():
    with pytest.raises(ValueError, match=r"one utterance of 15 s and 90 tokens does not fit"):
        find_batch_sizes(lambda size, duration, tokens: duration < 10, BINS)


def test_rows_are_reported_as_they_are_found_and_the_table_survives_saving(tmp_path, caplog):
    seen = []
    with caplog.at_level(logging.INFO):
        table = find_batch_sizes(lambda size, duration, tokens: size <= 100 / duration, BINS, on_row=seen.append)
    assert tuple(reversed(seen)) == table.rows
    assert "batch size" in caplog.text
    table.save(tmp_path / "sizes.yaml")
    assert BatchSizeTable.load(tmp_path / "sizes.yaml") == table


class TinyFeatures(nn.Module):
    sample_rate = 1000

    def forward(self, wave_BN: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        return wave_BN[:, :, None], wave_lens_B


class HungryModel(nn.Module):
    """Its memory is `width` floats for every sample and a copy of them for the backward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Linear(1, width), nn.Linear(width, 1)

    def loss(self, feats_BTF: Tensor, feat_lens_B: Tensor, batch: AsrBatch) -> LossOutput:
        assert batch.tokens_BU.min() >= 4
        assert torch.equal(feat_lens_B, batch.wave_lens_B)
        loss = self.reduce(torch.tanh(self.expand(feats_BTF))).square().mean()
        return LossOutput(loss, {}, batch.token_lens_B.sum())


def tiny_probe(**options: object) -> TrainStepProbe:
    return TrainStepProbe(
        features=TinyFeatures(), model=HungryModel(256), optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
        vocab_size=30, **options,
    )  # fmt: skip


def test_probe_on_the_cpu_keeps_the_cap():
    torch.ones(8, requires_grad=True).sum().backward()  # autograd was used before: the fork must survive that
    megabyte = 1 << 20
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    probe = tiny_probe(max_memory_bytes=resident + 100 * megabyte)
    assert probe(1, 1.0, 3)  # 1,000 samples x 256 floats: 1 MB
    assert probe(5, 1.0, None)
    assert not probe(1000, 1.0, 3)  # 1 GB and more
    assert probe.settings["device"] == "cpu"


def test_probe_passes_on_errors_of_the_model(capfd):
    probe = tiny_probe()
    probe.model.loss = lambda *_: 1 / 0
    with pytest.raises(RuntimeError, match="failed; see the traceback above"):
        probe(1, 1.0, 3)
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_probe_on_cuda_catches_out_of_memory():
    probe = tiny_probe(device="cuda", memory_fraction=0.05, imitate_ddp=True)
    assert probe(4, 1.0, 3)
    assert not probe(1 << 20, 10.0, 3)
    assert probe(4, 1.0, 3)


def test_synthetic_batch_fills_the_bucket():
    batch = synthetic_batch(3, 0.5, 7, sample_rate=1000, vocab_size=9, generator=torch.Generator().manual_seed(0))
    assert batch.wave_BN.shape == (3, 500)
    assert batch.tokens_BU.shape == (3, 7)
    assert np.ptp(batch.tokens_BU.numpy()) > 0
    assert 4 <= int(batch.tokens_BU.min()) <= int(batch.tokens_BU.max()) < 9


def languages_of(size, **options):
    batch = synthetic_batch(
        size, 0.1, 5, sample_rate=1000, vocab_size=9, generator=torch.Generator().manual_seed(0), **options
    )  # fmt: skip
    return batch.langs, batch


def test_synthetic_rows_take_the_languages_in_turn_and_the_streams_that_are_asked_for():
    langs, batch = languages_of(3)
    assert langs == ("", "", "")
    assert (batch.task_tokens_BU, batch.prompt_tokens_BU) == (None, None)
    langs, batch = languages_of(3, languages=["en", "zh"], with_targets=True, with_prompts=True)
    assert langs == ("en", "zh", "en")
    assert batch.task_tokens_BU.shape == batch.prompt_tokens_BU.shape == (3, 5)
    assert batch.task_token_lens_B.tolist() == batch.prompt_token_lens_B.tolist() == [5, 5, 5]
    assert not torch.equal(batch.task_tokens_BU, batch.tokens_BU)


def encoder() -> ConformerEncoder:
    return ConformerEncoder(input_dim=1, dim=8, num_layers=2, num_heads=2, ff_dim=8, kernel_size=3)


TAGS = {"en": 4, "zh": 5}
MODELS = {
    "aed": lambda: AedModel(
        encoder=encoder(), vocab_size=30, decoder_layers=1, decoder_heads=2, decoder_ff_dim=8, language_tokens=TAGS
    ),
    "owsm_ctc": lambda: OwsmCtcModel(
        encoder=encoder(), vocab_size=30, language_tokens=TAGS, task_tokens={"transcribe": 6, "de": 7}, asr_layers=[1],
        task_layers=[], prompt_layers=1, prompt_heads=2, prompt_ff_dim=8, prompt_every=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", MODELS)
def test_probe_of_models_with_language_tokens(family):
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3)
    parts = {"features": TinyFeatures(), "model": MODELS[family](), "optimizer": optimizer, "vocab_size": 30}
    assert TrainStepProbe(**parts, languages=["en", "zh"], with_targets=True, with_prompts=True)(3, 0.5, 4)


@pytest.mark.parametrize("options", [{"memory_fraction": 0.0}, {"memory_fraction": 1.5}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match="memory_fraction"):
        tiny_probe(**options)

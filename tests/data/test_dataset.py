"""The dataset: examples, offsets, errors, reproducible augmentation, epochs in workers, cache."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from speechkit.audio.augment import AddNoise, Gain, SpeedPerturb
from speechkit.audio.io import AudioError, resample
from speechkit.data.collate import collate_asr
from speechkit.data.dataset import SpeechDataset
from speechkit.data.index import compile_index
from speechkit.data.manifest import write_manifest
from speechkit.text.tokenizers import ByteTokenizer
from speechkit.types import Utterance

RATE = 16000


def wave(index: int, seconds: float, rate: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(index)
    return (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    rows = []
    for i in range(8):
        seconds = 0.2 + 0.05 * i
        path = tmp_path / f"u{i}.wav"
        soundfile.write(path, wave(i, seconds), RATE, subtype="FLOAT")
        rows.append(Utterance(id=f"u{i}", audio_path=path, duration=seconds, text=f"Text {i}", lang="en", speaker="s"))
    return rows


def make(utterances: Any, **options: Any) -> SpeechDataset:
    return SpeechDataset(utterances=utterances, **options)


def noisy(utterances: list[Utterance], **options: Any) -> SpeechDataset:
    return make(utterances, transforms=[SpeedPerturb(), Gain(), AddNoise(probability=0.8)], **options)


def test_examples_hold_audio_and_tokens(utterances: list[Utterance]) -> None:
    tokenizer = ByteTokenizer()
    dataset = make(utterances, tokenizer=tokenizer, normalizer=str.lower)
    assert len(dataset) == 8
    example = dataset[3]
    assert example is not None
    np.testing.assert_array_equal(example.wave_N, wave(3, 0.35))
    assert example.text == "text 3"
    assert example.tokens_U.tolist() == tokenizer.encode("text 3")
    assert example.tokens_U.dtype == np.int64
    assert (example.id, example.lang, example.speaker) == ("u3", "en", "s")
    np.testing.assert_allclose(dataset.durations, [u.duration for u in utterances], rtol=1e-6)
    assert dataset.num_tokens is not None
    assert dataset.num_tokens.tolist() == [len(tokenizer.encode(u.text)) for u in utterances]
    bare = make(utterances)
    assert bare.num_tokens is None
    assert bare[0] is not None
    assert bare[0].tokens_U.shape == (0,)


def test_offsets_channels_and_rates(tmp_path: Path) -> None:
    stereo = np.stack([wave(0, 3.0, 44100), wave(1, 3.0, 44100)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, 44100)
    row = Utterance(id="a", audio_path=tmp_path / "a.flac", duration=0.5, start=1.25)
    example = make([row], channel=1)[0]
    assert example is not None
    first = round(1.25 * 44100)
    expected = resample(stereo[first : first + 22050, 1], 44100, RATE)
    np.testing.assert_allclose(example.wave_N, expected, atol=1e-4)
    mixed = make([row], sample_rate=44100)[0]
    assert mixed is not None
    np.testing.assert_allclose(mixed.wave_N, stereo[first : first + 22050].mean(1), atol=1e-4)


def test_errors_name_id_and_path_or_are_counted(utterances: list[Utterance], tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound here")
    short = utterances[0].audio_path
    rows = [
        utterances[0],
        Utterance(id="bad", audio_path=broken, duration=1.0),
        Utterance(id="gone", audio_path=tmp_path / "gone.wav", duration=1.0),
        Utterance(id="long", audio_path=short, duration=9.0),
        Utterance(id="zero", audio_path=short, duration=0.0),
    ]
    dataset = make(rows)
    for i, pattern in [
        (1, r"utterance 'bad': .*broken\.wav: not an audio file"),
        (2, r"utterance 'gone': .*gone\.wav: no such file"),
        (3, r"utterance 'long': .*u0\.wav: ends after 0\.20 s of the 9\.00 s"),
        (4, r"utterance 'zero': .*u0\.wav: duration=0\.0"),
    ]:
        with pytest.raises(AudioError, match=pattern):
            dataset[i]
    lenient = make(rows, on_error="skip")
    with pytest.warns(RuntimeWarning, match=r"skipped utterance 'bad': .*broken\.wav"):
        batch = collate_asr([lenient[i] for i in range(5)])
    assert batch.num_skipped == 4
    assert batch.ids == ("u0",)


def test_error_in_a_worker_names_id_and_path(utterances: list[Utterance], tmp_path: Path) -> None:
    rows = [*utterances[:2], Utterance(id="gone", audio_path=tmp_path / "gone.wav", duration=1.0)]
    loader = DataLoader(make(rows), batch_size=1, num_workers=1, collate_fn=collate_asr)
    batches = iter(loader)
    assert [next(batches).ids, next(batches).ids] == [("u0",), ("u1",)]
    with pytest.raises(AudioError, match=r"utterance 'gone': .*gone\.wav: no such file"):
        next(batches)


def test_broken_augmenters_are_not_skipped(utterances: list[Utterance]) -> None:
    def fails(wave_N: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        raise AudioError("noise.wav: no such file")

    with pytest.raises(AudioError, match="noise"):
        make(utterances, transforms=[fails], on_error="skip")[0]


def test_augmentation_depends_on_seed_epoch_and_id_alone(utterances: list[Utterance]) -> None:
    dataset = noisy(utterances)
    first = [dataset[i].wave_N for i in range(8)]  # type: ignore[union-attr]
    again = [dataset[i].wave_N for i in reversed(range(8))][::-1]  # type: ignore[union-attr]
    turned = noisy(utterances[::-1])
    moved = [turned[7 - i].wave_N for i in range(8)]  # type: ignore[union-attr]
    for a, b, c in zip(first, again, moved):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    dataset.set_epoch(1)
    other_seed = noisy(utterances, seed=1)
    for i in range(8):
        for other in (dataset, other_seed):
            example = other[i]
            assert example is not None
            assert not np.array_equal(example.wave_N, first[i])
    dataset.set_epoch(0)
    np.testing.assert_array_equal(dataset[0].wave_N, first[0])  # type: ignore[union-attr]


def epochs_of(dataset: SpeechDataset, num_workers: int) -> list[list[torch.Tensor]]:
    loader = DataLoader(
        dataset,
        batch_size=3,
        num_workers=num_workers,
        collate_fn=collate_asr,
        persistent_workers=num_workers > 0,
    )
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append([batch.wave_BN.clone() for batch in loader])
    return epochs


def test_workers_change_nothing_and_see_the_epoch(utterances: list[Utterance]) -> None:
    runs = [epochs_of(noisy(utterances), num_workers) for num_workers in (0, 1, 2)]
    for run in runs[1:]:
        for ours, theirs in zip(runs[0], run, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    zero, one, zero_again = runs[2]
    assert all(torch.equal(a, b) for a, b in zip(zero, zero_again, strict=True))
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(zero, one, strict=True))


def test_durations_bound_what_speed_perturbation_makes(utterances: list[Utterance]) -> None:
    dataset = make(utterances, transforms=[SpeedPerturb(factors=(0.9, 1.1))])
    np.testing.assert_allclose(dataset.durations, [u.duration / 0.9 for u in utterances], rtol=1e-6)
    longest = 0.0
    for epoch in range(6):
        dataset.set_epoch(epoch)
        for i in range(8):
            example = dataset[i]
            assert example is not None
            assert len(example.wave_N) <= dataset.durations[i] * RATE + 1
            longest = max(longest, len(example.wave_N) / RATE / utterances[i].duration)
    assert longest == pytest.approx(1 / 0.9, rel=0.01)


def test_index_gives_the_same_examples(utterances: list[Utterance], tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    write_manifest(tmp_path / "m.jsonl", utterances)
    index = compile_index(tmp_path / "m.jsonl", tmp_path / "index", tokenizer)
    indexed, listed = noisy(index, tokenizer=tokenizer), noisy(utterances, tokenizer=tokenizer)  # type: ignore[arg-type]
    np.testing.assert_allclose(indexed.durations, listed.durations)
    np.testing.assert_array_equal(indexed.num_tokens, listed.num_tokens)
    for i in (0, 5):
        a, b = indexed[i], listed[i]
        assert a is not None
        assert b is not None
        np.testing.assert_array_equal(a.wave_N, b.wave_N)
        assert a.tokens_U.tolist() == b.tokens_U.tolist()


def read_all(dataset: SpeechDataset, results: Any) -> None:
    results.put([example.wave_N for i in range(len(dataset)) if (example := dataset[i]) is not None])


def test_cache_is_filled_by_workers_and_gives_rounded_audio(utterances: list[Utterance]) -> None:
    dataset = make(utterances, cache="memory")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=read_all, args=(dataset, results))
    process.start()
    first = results.get()
    process.join()
    for u in utterances:
        u.audio_path.unlink()  # from now on only the cache can give audio
    for i, x in enumerate(first):
        example = dataset[i]
        assert example is not None
        np.testing.assert_array_equal(example.wave_N, x)
        np.testing.assert_allclose(x, wave(i, utterances[i].duration), atol=2e-5)
    spawned = pickle.loads(pickle.dumps(dataset._cache))
    assert spawned.get(0) is None
    np.testing.assert_array_equal(spawned.put(0, first[0]), spawned.get(0))


def test_options_are_checked(utterances: list[Utterance]) -> None:
    for options in ({"on_error": "ignore"}, {"cache": "disk"}, {"sample_rate": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(utterances, **options)


def test_real_manifest(data_root: Path) -> None:
    from speechkit.data.manifest import read_manifest

    rows = read_manifest(data_root / "speechocean762" / "test" / "manifest.jsonl")[:5]
    batch = collate_asr([make(rows)[i] for i in range(5)])
    np.testing.assert_allclose(batch.wave_lens_B / RATE, [u.duration for u in rows], atol=0.01)
    assert batch.wave_BN.abs().amax(1).min() > 0.01


FIELDS = {"target_field": "text_de", "task_field": "taskname", "prompt_field": "previous"}


def with_fields(utterances: list[Utterance]) -> list[Utterance]:
    """Row 0 is translated and has a prompt, row 1 has empty fields, row 2 nulls, the others none."""
    extras = [
        {"text_de": "Ein langer Text", "taskname": "en_de", "previous": "Davor"},
        {"text_de": "", "taskname": "", "previous": ""},
        dict.fromkeys(FIELDS.values()),
    ]
    return [dataclasses.replace(u, extra=extra) for u, extra in zip(utterances, extras)] + utterances[3:]


def test_tasks_targets_and_prompts_come_from_fields(utterances: list[Utterance]) -> None:
    tokenizer = ByteTokenizer()
    rows = with_fields(utterances)
    dataset = make(rows, tokenizer=tokenizer, normalizer=str.lower, **FIELDS)
    first, *others = [dataset[i] for i in range(4)]
    assert first is not None
    assert first.task == "en_de"
    assert first.task_tokens_U is not None
    assert first.task_tokens_U.tolist() == tokenizer.encode("ein langer text")
    assert first.prompt_tokens_U is not None
    assert first.prompt_tokens_U.tolist() == tokenizer.encode("davor")
    assert first.tokens_U.tolist() == tokenizer.encode("text 0")
    assert all((e.task, e.task_tokens_U, e.prompt_tokens_U) == ("", None, None) for e in others if e is not None)
    assert dataset.num_tokens is not None
    assert dataset.num_tokens.tolist() == [len(first.task_tokens_U)] + [len(tokenizer.encode("text 0"))] * 7
    plain = make(rows, tokenizer=tokenizer)[0]
    assert plain is not None
    assert (plain.task, plain.task_tokens_U, plain.prompt_tokens_U) == ("", None, None)


def test_fields_of_an_index(utterances: list[Utterance], tmp_path: Path) -> None:
    write_manifest(tmp_path / "rows.jsonl", with_fields(utterances))
    index = compile_index(tmp_path / "rows.jsonl", tmp_path / "index")
    example = make(index, tokenizer=ByteTokenizer(), **FIELDS)[0]
    assert example is not None
    assert example.task == "en_de"
    assert example.prompt_tokens_U is not None


def test_a_field_that_is_no_text_is_named(utterances: list[Utterance]) -> None:
    rows = [dataclasses.replace(utterances[0], extra={"text_de": ["a", "b"]})]
    with pytest.raises(ValueError, match=r"'u0': field 'text_de' is \['a', 'b'\], not a text"):
        make(rows, tokenizer=ByteTokenizer(), target_field="text_de")[0]

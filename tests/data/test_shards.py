"""Tar shards: what goes in comes out, every shard is read once, and hostile tars are refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from speechkit.audio.io import AudioError, load_audio
from speechkit.data.index import compile_index
from speechkit.data.manifest import ManifestError, read_manifest, write_manifest
from speechkit.data.shard_dataset import ShardDataset
from speechkit.data.shards import ShardReader, audio_source, iter_tar, read_shard_list, shard_manifest, write_shards
from speechkit.data.validate import validate_manifest
from speechkit.types import Utterance

RATE = 8000


def make_audio(directory: Path, count: int, rng: np.random.Generator) -> list[Utterance]:
    directory.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        length = 400 + 37 * i
        soundfile.write(directory / f"{i}.wav", rng.integers(-9000, 9000, length).astype(np.int16), RATE)
        text = f"text {i}"
        rows.append(Utterance(f"utt/{i}", directory / f"{i}.wav", length / RATE, text=text, speaker="s", extra={"n": i}))
    return rows


@pytest.fixture
def rows(tmp_path: Path, rng: np.random.Generator) -> list[Utterance]:
    return make_audio(tmp_path / "audio", 23, rng)


@pytest.mark.parametrize("audio_format", ["flac", "wav", "copy"])
def test_round_trip_both_ways(rows: list[Utterance], tmp_path: Path, audio_format: str) -> None:
    report = write_shards(rows, tmp_path / "out", max_shard_utterances=5, audio_format=audio_format)  # type: ignore[arg-type]
    assert [shard.num_utterances for shard in report.shards] == [5, 5, 5, 5, 3]
    assert read_shard_list(tmp_path / "out") == list(report.shards)
    assert report.num_utterances == 23
    assert "5 shards, 23 utterances" in str(report)
    in_order = [pair for shard in report.shards for pair in ShardReader(tmp_path / "out" / shard.tar)]
    random_access = read_manifest(tmp_path / "out")
    assert len(in_order) == len(random_access) == 23
    for row, (streamed, data), listed in zip(rows, in_order, random_access, strict=True):
        assert streamed == listed
        assert (listed.id, listed.text, listed.speaker, listed.extra["n"]) == (row.id, row.text, "s", row.extra["n"])
        assert listed.duration == pytest.approx(row.duration)
        assert audio_source(listed) == data
        np.testing.assert_array_equal(load_audio(data)[0], load_audio(row.audio_path)[0])
    with tarfile.open(tmp_path / "out" / "000000.tar") as tar:  # plain enough for any other reader
        assert [member.size for member in tar] == [row.extra["tar_size"] for row in random_access[:5]]


def test_stretches_are_cut_and_resampled(tmp_path: Path, rng: np.random.Generator) -> None:
    make_audio(tmp_path / "audio", 1, rng)
    long = tmp_path / "long.wav"
    soundfile.write(long, rng.integers(-9000, 9000, (16000, 2)).astype(np.int16), RATE)
    stretch = [Utterance("a", long, 0.5, start=0.25), Utterance("b", long, 1.25, start=0.75)]
    write_shards(stretch, tmp_path / "out", sample_rate=16000)
    for row, packed in zip(stretch, read_manifest(tmp_path / "out"), strict=True):
        wave_N, rate = load_audio(audio_source(packed))
        expected_N, _ = load_audio(long, start=row.start, duration=row.duration, sample_rate=16000)
        assert (rate, packed.start, packed.duration) == (16000, 0.0, row.duration)
        np.testing.assert_allclose(wave_N, np.clip(expected_N, -1, 1), atol=2**-15)
    with pytest.raises(ManifestError, match=r"utterance a: .*'copy' packs whole files; use audio_format='flac'"):
        write_shards(stretch, tmp_path / "copied", audio_format="copy")
    assert not (tmp_path / "copied" / "shards.jsonl").exists()


def test_size_limit_and_equal_bytes(rows: list[Utterance], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(rows, tmp_path / name, max_shard_bytes=8000, num_workers=2 if name == "a" else 0)
    shards = read_shard_list(tmp_path / "a")
    assert len(shards) > 3
    for shard in shards:
        assert shard.num_bytes == (tmp_path / "a" / shard.tar).stat().st_size
        assert shard.num_bytes <= 8000
        assert (tmp_path / "a" / shard.tar).read_bytes() == (tmp_path / "b" / shard.tar).read_bytes()
    with pytest.raises(ValueError, match="holds shards already"):
        write_shards(rows, tmp_path / "a")


def test_unreadable_audio_stops_or_is_reported(rows: list[Utterance], tmp_path: Path) -> None:
    rows[3].audio_path.write_bytes(b"junk")
    with pytest.raises(ManifestError, match="utterance utt/3: "):
        write_shards(rows, tmp_path / "a")
    write_manifest(tmp_path / "m.jsonl", rows)
    report = shard_manifest(tmp_path / "m.jsonl", tmp_path / "b", on_error="skip")
    assert [reject.id for reject in report.rejects.entries] == ["utt/3"]
    assert report.num_utterances == 22
    assert "utt/3" in report.summary()


def test_index_and_validation_work_over_shards(rows: list[Utterance], tmp_path: Path) -> None:
    write_shards(rows, tmp_path / "out", max_shard_utterances=7)
    index = pickle.loads(pickle.dumps(compile_index(tmp_path / "out", tmp_path / "index")))
    for i in (22, 0, 9):
        np.testing.assert_array_equal(load_audio(audio_source(index[i]))[0], load_audio(rows[i].audio_path)[0])
    assert validate_manifest(tmp_path / "out", num_workers=0, ignore=["rate"]).ok
    again = write_shards(list(index), tmp_path / "again", audio_format="copy")
    assert again.num_utterances == 23
    assert [row.id for row in read_manifest(tmp_path / "again")] == [row.id for row in rows]


# ---- the dataset ----


def read_ids(dataset: ShardDataset, num_workers: int) -> list[str]:
    return [row.id for batch in DataLoader(dataset, batch_size=4, collate_fn=list, num_workers=num_workers) for row, _ in batch]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_shard_once_over_ranks_and_workers(
    rows: list[Utterance], tmp_path: Path, num_workers: int, world_size: int
) -> None:
    write_shards(rows, tmp_path / "out", max_shard_utterances=3)
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        dataset = ShardDataset(tmp_path / "out", buffer_size=4, rank=rank, world_size=world_size)
        ids = read_ids(dataset, num_workers)
        assert len(ids) == sum(shard.num_utterances for shard in dataset.rank_shards())
        seen.update(ids)
    assert seen == Counter(row.id for row in rows)


def test_order_depends_on_seed_and_epoch_alone(rows: list[Utterance], tmp_path: Path) -> None:
    write_shards(rows, tmp_path / "out", max_shard_utterances=3)
    dataset = ShardDataset(tmp_path / "out", buffer_size=5, seed=1)
    first = read_ids(dataset, 0)
    assert first == read_ids(dataset, 0) == read_ids(ShardDataset(tmp_path / "out", buffer_size=5, seed=1), 0)
    assert first != sorted(first)
    assert first != read_ids(ShardDataset(tmp_path / "out", buffer_size=5, seed=2), 0)
    dataset.set_epoch(1)
    assert read_ids(dataset, 0) != first
    dataset.set_epoch(0)
    assert read_ids(dataset, 0) == first
    plain = ShardDataset(tmp_path / "out", shuffle=False)
    assert read_ids(plain, 0) == [row.id for row in rows]


def test_epoch_reaches_persistent_workers(rows: list[Utterance], tmp_path: Path) -> None:
    write_shards(rows, tmp_path / "out", max_shard_utterances=3)
    dataset = ShardDataset(tmp_path / "out")
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    first = [row.id for row, _ in loader]
    dataset.set_epoch(1)
    second = [row.id for row, _ in loader]
    assert sorted(first) == sorted(second)
    assert first != second


def test_fewer_shards_than_ranks(rows: list[Utterance], tmp_path: Path) -> None:
    write_shards(rows, tmp_path / "out")
    with pytest.raises(ValueError, match=r"world_size=2 but .* holds 1 shards; write smaller shards"):
        ShardDataset(tmp_path / "out", world_size=2)
    with pytest.raises(ValueError, match="rank=1, world_size=1"):
        ShardDataset(tmp_path / "out", rank=1)
    with pytest.raises(ManifestError, match=r"shards\.jsonl: no such file"):
        ShardDataset(tmp_path)


# ---- hostile shards ----


def hostile_tar(path: Path, member: tarfile.TarInfo, data: bytes = b"") -> None:
    member.size = len(data)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "name", ["../evil.flac", "a/../../evil.flac", "/etc/evil.flac", "..", "C:/evil.flac", "a\\..\\evil.flac", "\\evil"]
)
def test_paths_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    hostile_tar(tmp_path / "x.tar", tarfile.TarInfo(name), b"data")
    with pytest.raises(ManifestError, match=r"x\.tar: member .*evil.*refused|x\.tar: member '\.\.'.*refused"):
        list(iter_tar(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_and_special_members_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("innocent.flac")
    member.type, member.linkname = kind, "/etc/passwd"
    hostile_tar(tmp_path / "x.tar", member)
    with pytest.raises(ManifestError, match=r"x\.tar: member innocent\.flac.* is no plain file"):
        list(iter_tar(tmp_path / "x.tar"))


def test_truncation_anywhere_is_an_error_naming_the_shard(rows: list[Utterance], tmp_path: Path) -> None:
    write_shards(rows[:4], tmp_path / "out")
    tar = tmp_path / "out" / "000000.tar"
    whole, listed = tar.read_bytes(), read_manifest(tmp_path / "out")
    assert len(list(ShardReader(tar))) == 4
    for size in (*range(0, len(whole) - 1024, 301), len(whole) - 1024):
        tar.write_bytes(whole[:size])
        with pytest.raises(ManifestError, match=r"000000\.tar: .*; fetch or write"):
            list(ShardReader(tar))
        for row in listed:
            if row.extra["tar_offset"] + row.extra["tar_size"] > size:
                with pytest.raises(AudioError, match=r"000000\.tar: truncated"):
                    audio_source(row)


def test_shard_and_rows_must_agree(rows: list[Utterance], tmp_path: Path) -> None:
    write_shards(rows[:3], tmp_path / "out")
    tar, listed = tmp_path / "out" / "000000.tar", read_manifest(tmp_path / "out")
    lines = (tmp_path / "out" / "000000.jsonl").read_text().splitlines()
    (tmp_path / "out" / "000000.jsonl").write_text("\n".join(lines[:2]))
    with pytest.raises(ManifestError, match=r"member 000002_utt-2\.flac is not in 000000\.jsonl"):
        list(ShardReader(tar))
    data = tar.read_bytes()
    end = listed[2].extra["tar_offset"] - 512
    (tmp_path / "out" / "000000.jsonl").write_text("\n".join(lines))
    tar.write_bytes(data[:end] + b"\0" * 1024)
    with pytest.raises(ManifestError, match=r"1 members of 000000\.jsonl are missing, first 000002_utt-2"):
        list(ShardReader(tar))
    tar.write_bytes(data[512:] + b"\0" * 512)  # shifted: the manifest is stale
    with pytest.raises(AudioError, match="the shard was changed"):
        audio_source(listed[0])
    tar.unlink()
    with pytest.raises(AudioError, match="cannot be read"):
        audio_source(listed[0])
    with pytest.raises(ManifestError, match="cannot be read"):
        list(ShardReader(tar))


@pytest.mark.parametrize(
    "fields", [{"tar_offset": -512}, {"tar_offset": "512"}, {"tar_size": -1}, {"tar_size": None}, {"tar_member": 5}]
)
def test_bad_places_in_rows(rows: list[Utterance], tmp_path: Path, fields: dict[str, object]) -> None:
    write_shards(rows[:1], tmp_path / "out")
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    (tmp_path / "bad.jsonl").write_text(json.dumps({**row, "audio_filepath": "out/000000.tar", **fields}))
    with pytest.raises(AudioError, match="bad fields"):
        audio_source(read_manifest(tmp_path / "bad.jsonl")[0])


def test_lying_sizes_allocate_nothing(tmp_path: Path, rows: list[Utterance]) -> None:
    member = tarfile.TarInfo("big.flac")
    member.size = 8 * 2**30 - 1
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + b"data")
    write_shards(rows[:1], tmp_path / "out")
    packed = read_manifest(tmp_path / "out")[0]
    packed.extra["tar_size"] = 2**62  # type: ignore[index]
    tracemalloc.start()
    with pytest.raises(ManifestError, match=r"truncated in member big\.flac"):
        list(iter_tar(tmp_path / "x.tar"))
    with pytest.raises(AudioError, match="truncated"):
        audio_source(packed)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/b.tar", "..", ".tar", "x.flac", 5, None])
def test_shard_list_names_stay_in_the_directory(tmp_path: Path, name: object) -> None:
    row = {"tar": name, "num_utterances": 1, "seconds": 1.0, "num_bytes": 1}
    (tmp_path / "shards.jsonl").write_text(json.dumps(row))
    with pytest.raises(ManifestError, match=r"shards\.jsonl:1: tar=.* is no plain file name"):
        read_shard_list(tmp_path)


def test_random_bytes_never_crash(tmp_path: Path, rng: np.random.Generator, rows: list[Utterance]) -> None:
    write_shards(rows[:2], tmp_path / "out")
    whole = bytearray((tmp_path / "out" / "000000.tar").read_bytes())
    for _ in range(200):
        damaged = whole.copy()
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(256)
        (tmp_path / "x.tar").write_bytes(damaged)
        try:
            assert len(list(iter_tar(tmp_path / "x.tar"))) <= 2
        except ManifestError as error:
            assert "x.tar" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
